"""Folders of models with a file that is missing, empty or half written: one line that names it and says what to do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manifests.errors import CheckpointError
from mgeldm import MGELDM
from mgeldm.checkpoint import CheckpointConfig, load_checkpoint, save_checkpoint
from mgeldm.codec import load_codec
from mgeldm.embedder import load_embedder
from mgeldm.model import JointConfig, JointTransformer
from tests.support.clap import write_clap
from tests.support.models import write_codec, write_embedder

SHAPE = JointConfig(width_per_track=32, depth=1, heads=3, timestep_features=8, latent_channels=8, embedding_dim=16)


def write_checkpoint(folder: Path) -> Path:
    """A joint checkpoint with codec and embedder inside."""
    codec, embedder = write_codec(folder / "codec"), write_embedder(folder / "embedder")
    config = CheckpointConfig(
        model=SHAPE,
        codec={"identity": load_codec(str(codec)).identity},
        embedder={"identity": load_embedder(str(embedder)).identity},
        prompt_template="the sound of {}",
        crop_frames=8,
        latent_mean=(0.0,) * 8,
        latent_std=(1.0,) * 8,
        silence_latent=(0.0,) * 8,
    )
    save_checkpoint(folder, config, JointTransformer(SHAPE, seed=0).state_dict())
    return folder


def write_released(folder: Path) -> Path:
    """A codec as stable-audio-tools lays it out."""
    write_codec(folder)
    (folder / "config.json").rename(folder / "model_config.json")
    return folder


def load_joint(name: str) -> MGELDM:
    return MGELDM.from_pretrained(name, device="cpu")


Case = tuple[Callable[[Path], Path], Callable[[str], object], str]
CASES: list[Case] = [
    (write_checkpoint, load_joint, "config.json"),
    (write_checkpoint, load_joint, "model.safetensors"),
    (write_checkpoint, load_joint, "codec/config.json"),
    (write_checkpoint, load_joint, "codec/model.safetensors"),
    (write_checkpoint, load_joint, "embedder/config.json"),
    (write_checkpoint, load_joint, "embedder/model.safetensors"),
    (write_codec, load_codec, "config.json"),
    (write_codec, load_codec, "model.safetensors"),
    (write_released, load_codec, "model_config.json"),
    (write_released, load_codec, "model.safetensors"),
    (write_embedder, load_embedder, "config.json"),
    (write_embedder, load_embedder, "model.safetensors"),
    (write_clap, load_embedder, "config.json"),
    (write_clap, load_embedder, "model.safetensors"),
    (write_clap, load_embedder, "processor_config.json"),
    (write_clap, load_embedder, "tokenizer.json"),
]
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda data: None,
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "its last byte missing": lambda data: data.rstrip()[:-1],
    "zeros": lambda data: bytes(len(data)),
}


def refusal(load: Callable[[str], object], folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__}-{case[2]}")
def test_a_damaged_file_is_named_with_what_to_do(case: Case, damage: str, tmp_path: Path) -> None:
    write, load, name = case
    folder = write(tmp_path / "folder")
    changed = DAMAGES[damage]((folder / name).read_bytes())
    (folder / name).unlink()
    if changed is not None:
        (folder / name).write_bytes(changed)
    message = refusal(load, folder)
    assert str(folder) in message
    # Weights of transformers may be one file or many.
    assert Path(name).name in message or "no weights (model*.safetensors" in message
    assert "download it again" in message or "beside" in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codec": None}, "codec does not say which one it is"),
        ({"embedder": {}}, "embedder does not say which one it is"),
        ({"codec": {"identity": None}}, "codec does not say"),
        ({"latent_mean": None}, "NoneType"),
        ({"latent_mean": [0.0]}, "latent_mean is not 8 numbers"),
        ({"latent_std": ["1"] * 8}, "latent_std is not 8 numbers"),
        ({"silence_latent": 3}, "int"),
        ({"crop_frames": "8"}, "crop_frames is '8'"),
        ({"prompt_template": "the sound"}, "prompt_template is 'the sound'"),
        ({"model": []}, "JointConfig"),
        ({"model": {"depth": "many"}}, "JointConfig"),
    ],
)
def test_a_checkpoint_with_a_wrong_setting(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "folder") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    message = refusal(lambda name: load_checkpoint(Path(name)), path.parent)
    assert message.startswith(f"{path}: not the configuration of a checkpoint (")
    assert words in message
    assert "again" in message


@pytest.mark.parametrize(
    ("write", "load", "changes"),
    [
        (write_codec, load_codec, {"sample_rate": "fast"}),
        (write_codec, load_codec, {"sample_rate": None}),
        (write_codec, load_codec, {"model": 3}),
        (write_embedder, load_embedder, {"dim": "wide"}),
        (write_embedder, load_embedder, {"widths": []}),
        (write_embedder, load_embedder, {"words": 7}),
        (write_embedder, load_embedder, {"fft": 0}),
        (write_embedder, load_embedder, {"window_s": float("nan")}),
        (write_embedder, load_embedder, {"sample_rate": None}),
    ],
)
def test_a_part_with_a_wrong_setting(
    write: Callable[[Path], Path], load: Callable[[str], object], changes: dict[str, Any], tmp_path: Path
) -> None:
    path = write(tmp_path / "folder") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert str(path.parent) in refusal(load, path.parent)
