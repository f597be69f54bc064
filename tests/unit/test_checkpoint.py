"""Checkpoints: what is written is read, and what is not whole is refused."""

import json
import math
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from manifests.errors import CheckpointError, StoreError
from mgeldm import checkpoint
from mgeldm.checkpoint import CheckpointConfig, check_identity, load_checkpoint, part_of, save_checkpoint
from mgeldm.embedder import EmbedderSpec
from mgeldm.model import JointConfig, JointTransformer

CONFIG = CheckpointConfig(
    model=JointConfig(width_per_track=32, depth=1, heads=3, timestep_features=8, latent_channels=4, embedding_dim=8),
    codec={"identity": "c" * 64, "spec": {"hop": 4}},
    embedder={"identity": "e" * 64, "spec": {"dim": 8}},
    prompt_template="the sound of {}",
    crop_frames=8,
    latent_mean=(1.0, 2.0, 3.0, 4.0),
    latent_std=(1.0, 1.0, 0.5, 0.1),
    silence_latent=(0.0, -1.0, 0.0, 0.25),
    training={"steps": 7, "recipe": {"seed": 0}},
)


@pytest.fixture
def network() -> JointTransformer:
    return JointTransformer(CONFIG.model, seed=4)


@pytest.fixture
def folder(tmp_path: Path, network: JointTransformer) -> Path:
    save_checkpoint(tmp_path / "checkpoint", CONFIG, network.state_dict())
    return tmp_path / "checkpoint"


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(folder: Path, **changes: object) -> None:
    raw = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(raw))


def test_round_trip(folder: Path, network: JointTransformer) -> None:
    config, loaded = load_checkpoint(folder)
    assert config == CONFIG
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_half_precision_weights_are_read_as_float32(tmp_path: Path, network: JointTransformer) -> None:
    save_checkpoint(tmp_path, CONFIG, {name: value.half() for name, value in network.state_dict().items()})
    loaded = load_checkpoint(tmp_path)[1]
    for name, value in network.state_dict().items():
        assert loaded.state_dict()[name].dtype == torch.float32
        assert torch.equal(loaded.state_dict()[name], value.half().float())


def test_others_may_read_the_files(folder: Path) -> None:
    before = os.umask(0o022)
    os.umask(before)
    for name in ("config.json", "model.safetensors"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o666 & ~before


def test_missing_folder(tmp_path: Path) -> None:
    assert "config.json: missing; a checkpoint folder holds" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_half_written_folder(folder: Path, name: str) -> None:
    (folder / name).unlink()
    message = refusal(folder)
    assert name in message
    assert "missing" in message


def test_truncated_weights(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "not a readable checkpoint" in refusal(folder)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(folder: Path, value: float) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["transformer.project_out.weight"][1, 2] = value
    save_file(weights, folder / "model.safetensors")
    assert "1 that are not finite (transformer.project_out.weight)" in refusal(folder)


def test_truncated_config(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text[: len(text) // 2])
    assert "not a readable checkpoint" in refusal(folder)


@pytest.mark.parametrize("change", [{"version": "2"}, {"version": None}])
def test_other_version(folder: Path, change: dict[str, str]) -> None:
    edit(folder, **change)
    assert "not a joint model checkpoint of version 1" in refusal(folder)


def test_a_list_is_no_configuration(folder: Path) -> None:
    (folder / "config.json").write_text("[]")
    assert "not a joint model checkpoint" in refusal(folder)


def test_unknown_and_missing_entries(folder: Path) -> None:
    edit(folder, surprise=1)
    assert "surprise" in refusal(folder)
    raw = json.loads((folder / "config.json").read_text())
    del raw["surprise"], raw["latent_mean"]
    (folder / "config.json").write_text(json.dumps(raw))
    assert "latent_mean" in refusal(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"latent_std": [1.0, math.nan, 1.0, 1.0]}, "latent_std is not 4 numbers"),
        ({"latent_std": [1.0, 0.0, 1.0, 1.0]}, "latent_std has 0.0: each must be above 0"),
        ({"silence_latent": [math.inf] * 4}, "silence_latent is not 4 numbers"),
        ({"crop_frames": True}, "crop_frames is True"),
        ({"codec": {"identity": 5}}, "codec does not say which one it is"),
        ({"codec": {"identity": None, "spec": 5}}, "codec does not say which one it is"),
        ({"embedder": 5}, "embedder does not say which one it is"),
    ],
)
def test_entries_that_make_no_sense(folder: Path, change: dict[str, object], words: str) -> None:
    edit(folder, **change)
    assert words in refusal(folder)


def test_weights_of_another_shape(folder: Path) -> None:
    edit(folder, model=json.loads((folder / "config.json").read_text())["model"] | {"depth": 2})
    assert "the weights do not fit config.json" in refusal(folder)


def test_a_kill_never_leaves_weights_beside_another_models_configuration(
    folder: Path, network: JointTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, value: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "write_json", killed)
    # Later in the same run, the old configuration still fits.
    later = replace(CONFIG, training={"steps": 9})
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, later, JointTransformer(CONFIG.model, seed=5).state_dict())
    assert load_checkpoint(folder)[0] == CONFIG
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(folder, replace(CONFIG, latent_mean=(0.0,) * 4), network.state_dict())
    assert "missing" in refusal(folder)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("I/O error\nfull")])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    folder: Path, network: JointTransformer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    before = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StoreError, match=r"checkpoint: cannot be written \(.*\); free some space") as caught:
        save_checkpoint(folder, CONFIG, network.state_dict())
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


class Part:
    """A codec or embedder."""

    def __init__(self, identity: str, dim: int = 8) -> None:
        self.identity = identity
        self.spec = EmbedderSpec(sample_rate=16_000, window_s=5.0, dim=dim)


@pytest.mark.parametrize("kind", ["codec", "embedder"])
def test_identity(kind: str) -> None:
    check_identity(CONFIG, kind, Part(kind[0] * 64), "default")  # type: ignore[arg-type]
    with pytest.raises(
        CheckpointError, match=rf"trained with {kind} {kind[0] * 12}, but {kind} 'mine' is x{{12}}; .*--{kind}"
    ):
        check_identity(CONFIG, kind, Part("x" * 64), "mine")  # type: ignore[arg-type]


def test_an_unknown_identity_takes_any_that_has_the_spec() -> None:
    config = replace(CONFIG, embedder={"identity": None, "spec": {"dim": 8}, "name": "LAION CLAP"})
    check_identity(config, "embedder", Part("x" * 64), "mine")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"embedder has dim 8 \(LAION CLAP\), but embedder 'mine' has dim 9"):
        check_identity(config, "embedder", Part("x" * 64, dim=9), "mine")  # type: ignore[arg-type]


def test_a_part_inside_the_folder_is_the_default_one(tmp_path: Path) -> None:
    assert part_of(tmp_path, "codec", "default") == "default"
    (tmp_path / "codec").mkdir()
    assert part_of(tmp_path, "codec", "default") == str(tmp_path / "codec")
    assert part_of(tmp_path, "codec", "mine") == "mine"
    assert part_of(tmp_path, "embedder", "default") == "default"


def test_silence_of_an_unknown_codec(tmp_path: Path, network: JointTransformer) -> None:
    save_checkpoint(tmp_path, replace(CONFIG, silence_latent=None), network.state_dict())
    assert load_checkpoint(tmp_path)[0].silence_latent is None


def test_objective(folder: Path) -> None:
    edit(folder, objective="rf")
    assert load_checkpoint(folder)[0].objective == "rf"
    edit(folder, objective="eps")
    assert "objective 'eps' is none of v, rf" in refusal(folder)
