"""Identities of codecs and embedders: any weight and any setting counts, but not the names of files and folders."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from manifests.errors import CheckpointError
from mgeldm.codec import load_codec
from mgeldm.embedder import load_embedder
from tests.support.clap import write_clap
from tests.support.models import write_codec, write_embedder

Load = Callable[[str], Any]


def write_released(folder: Path) -> Path:
    """A codec as stable-audio-tools lays it out."""
    write_codec(folder)
    (folder / "config.json").rename(folder / "model_config.json")
    return folder


KINDS: dict[str, tuple[Callable[[Path], Path], Load, tuple[str, ...]]] = {
    "our codec": (write_codec, load_codec, ("config.json",)),
    "codec of stable-audio-tools": (write_released, load_codec, ("model_config.json",)),
    "our embedder": (write_embedder, load_embedder, ("config.json",)),
    "CLAP": (write_clap, load_embedder, ("config.json", "processor_config.json")),
}

NO_PART: dict[str, set[str]] = {
    # How it was trained and on which length; and what is said a second time, and read at one place only.
    "our codec": {"sample_size", "audio_channels"},
    "codec of stable-audio-tools": {"sample_size", "audio_channels"},
    "our embedder": set(),
    "CLAP": {
        # Training and bookkeeping.
        "*.dropout",
        "*.attention_probs_dropout_prob",
        "*.attention_dropout",
        "*.hidden_dropout_prob",
        "*.hidden_dropout",
        "*.drop_path_rate",
        "*.initializer_factor",
        "*.initializer_range",
        "*.logit_scale_init_value",
        "*.transformers_version",
        "*.dtype",
        "*.architectures",
        "*.model_type",
        "*.processor_class",
        "*.feature_extractor_type",
        "audio_config.num_classes",
        "text_config.bos_token_id",
        "text_config.eos_token_id",
        # Said a second time: transformers takes it from another place.
        "hidden_size",
        "num_hidden_layers",
        "text_config.projection_dim",
        "text_config.projection_hidden_act",
        "audio_config.projection_dim",
        "audio_config.projection_hidden_act",
        "feature_extractor.nb_frequency_bins",
        "feature_extractor.nb_max_samples",
        # Of audio that is no window long.
        "feature_extractor.padding",
        "feature_extractor.padding_side",
        "feature_extractor.padding_value",
        "feature_extractor.return_attention_mask",
    },
}
"""Settings by the way to them; ``*.name`` is a name anywhere."""


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def original(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return KINDS[kind][0](tmp_path_factory.mktemp("identity") / "folder")


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every number, text and truth value in a JSON value, with the way there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
        return
    for key, inner in items:
        yield from leaves(inner, (*path, key))


def has_no_part(kind: str, way: tuple[Any, ...]) -> bool:
    """Whether a leaf is in `NO_PART`."""
    names = [part for part in way if isinstance(part, str)]
    return bool({".".join(names), f"*.{names[-1]}"} & NO_PART[kind])


def other(value: Any) -> Any:
    """Another value of its kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if isinstance(value, int) else value * 1.5 + 0.25
    return "relu" if value in ("gelu", "gelu_new") else f"{value}x"


def test_every_weight_counts(kind: str, original: Path, tmp_path: Path) -> None:
    _, load, _ = KINDS[kind]
    before, draw = load(str(original)).identity, random.Random(0)
    state = load_file(original / "model.safetensors")
    floating = sorted(name for name, value in state.items() if value.is_floating_point() and "logit_scale" not in name)
    for number, name in enumerate(draw.sample(floating, 8)):
        folder = Path(shutil.copytree(original, tmp_path / str(number)))
        changed = {key: value.clone() for key, value in state.items()}
        flat = changed[name].view(-1)
        place = draw.randrange(len(flat))
        bits = flat.view(torch.int16 if flat.element_size() == 2 else torch.int32)
        bits[place] = bits[place] ^ 1  # the smallest change there is
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        assert load(str(folder)).identity != before, name


def test_every_setting_counts(kind: str, original: Path, tmp_path: Path) -> None:
    """Each leaf of the configuration in turn: the identity is another, or the folder is no model any more."""
    _, load, files = KINDS[kind]
    before, changed = load(str(original)).identity, 0
    folder = Path(shutil.copytree(original, tmp_path / "folder"))
    for file in files:
        text = (original / file).read_text()
        for way, value in leaves(json.loads(text)):
            place = edited = json.loads(text)
            if value is None or has_no_part(kind, way):
                continue
            for key in way[:-1]:
                place = place[key]
            place[way[-1]] = other(value)
            (folder / file).write_text(json.dumps(edited))
            try:
                identity = load(str(folder)).identity
            except CheckpointError:
                continue
            changed += 1
            assert identity != before, way
        (folder / file).write_text(text)
    assert load(str(folder)).identity == before
    assert changed >= 3


def test_names_of_files_and_folders_say_nothing(kind: str, original: Path, tmp_path: Path) -> None:
    _, load, _ = KINDS[kind]
    before = load(str(original)).identity
    moved = Path(shutil.copytree(original, tmp_path / "another name"))
    (moved / "README.md").write_text("about it")
    assert load(str(moved)).identity == before
    if kind == "codec of stable-audio-tools":
        (moved / "model.safetensors").rename(moved / "epoch=3-step=7.safetensors")
        assert load(str(moved)).identity == before
