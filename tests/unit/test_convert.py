"""Released files, made here with the structure they have, to folders that load without options."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from manifests.errors import CheckpointError, ConfigError
from mgeldm import MGELDM
from mgeldm.checkpoint import load_checkpoint
from mgeldm.cli import main
from mgeldm.codec import AutoencoderCodec, load_codec
from mgeldm.codec.autoencoder import oobleck_config, save_codec
from mgeldm.codec.long import silence_latent
from mgeldm.codec.stable_audio import oobleck_of_weights
from mgeldm.convert import convert
from mgeldm.embedder import load_embedder
from mgeldm.sampling import SamplingConfig
from tests.support.models import write_embedder

GOLDEN = Path(__file__).parents[1] / "golden"
State = dict[str, torch.Tensor]
CODEC = oobleck_config(channels=2, latent_channels=8, strides=(2, 4, 8))


@pytest.fixture(scope="module")
def codec_state() -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(AutoencoderCodec(CODEC).network.state_dict())


@pytest.fixture(scope="module")
def network_state() -> State:
    """As in the released file: names with `model_dit.`."""
    return load_file(GOLDEN / "official_dit_tiny.safetensors")


@pytest.fixture
def released(tmp_path: Path, network_state: State, codec_state: State) -> Path:
    """A file of the structure of `unwrapped_DiT.ckpt`."""
    codec = {f"pretransform.model.{key}": value for key, value in codec_state.items()}
    torch.save({"state_dict": network_state | codec}, tmp_path / "unwrapped_DiT.ckpt")
    return tmp_path / "unwrapped_DiT.ckpt"


@pytest.fixture
def bare(tmp_path: Path, network_state: State) -> Path:
    """A file of the same structure, without a codec."""
    torch.save({"state_dict": network_state}, tmp_path / "bare.ckpt")
    return tmp_path / "bare.ckpt"


def nothing_written(folder: Path) -> bool:
    """Neither the folder ``out`` nor anything of it under a temporary name."""
    return not (folder / "out").exists() and not list(folder.glob(".tmp-*"))


@torch.no_grad()
def test_the_network_gives_what_the_original_gives(released: Path, tmp_path: Path) -> None:
    told = convert(released, tmp_path / "out", heads=3)
    config, network = load_checkpoint(tmp_path / "out")
    io = load_file(GOLDEN / "official_dit_tiny_io.safetensors")
    v = network(io["x"].view(2, 3, 8, 20), io["t"], io["embed"]).flatten(1, 2)
    assert ((v - io["v"]).abs().max() / io["v"].abs().max()).item() < 1e-5
    assert (told["width"], told["depth"], told["heads"]) == (96, 2, 3)
    assert config.objective == "v"
    assert config.crop_frames == 100
    assert config.prompt_template == "the sound of {}"
    assert config.latent_mean == (0.0,) * 8
    assert config.latent_std == (1.0,) * 8
    assert config.embedder == {
        "identity": None,
        "spec": {"dim": 16},
        "name": "LAION CLAP, HTSAT-base, trained on music and AudioSet",
    }


def test_heads_are_32_channels_wide_where_nothing_is_said(released: Path, tmp_path: Path) -> None:
    convert(released, tmp_path / "out")
    assert load_checkpoint(tmp_path / "out")[0].model.heads == 96 // 32


def test_the_codec_lies_inside_and_is_the_original(released: Path, tmp_path: Path, codec_state: State) -> None:
    convert(released, tmp_path / "out")
    config, _ = load_checkpoint(tmp_path / "out")
    codec, original = load_codec(str(tmp_path / "out" / "codec")), AutoencoderCodec(CODEC, codec_state).eval()
    assert codec.spec == original.spec
    assert codec.identity == original.identity == config.codec["identity"]
    wave = 0.1 * torch.randn(1, 1, 64 * 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(codec.encode(wave), original.encode(wave), rtol=1e-4, atol=1e-5)
        silence = original.encode(torch.zeros(1, 1, 64 * 201))[0, :, 100]
    assert silence.abs().max() > 1e-3
    torch.testing.assert_close(torch.tensor(config.silence_latent), silence, rtol=1e-4, atol=1e-5)


def test_a_converted_folder_extracts_without_a_codec_named(released: Path, tmp_path: Path) -> None:
    embedder = write_embedder(tmp_path / "embedder")
    convert(released, tmp_path / "out", embedder=str(embedder), crop_frames=8)
    model = MGELDM.from_pretrained(tmp_path / "out", embedder=str(embedder), device="cpu")
    wave = (0.1 * np.random.default_rng(0).standard_normal((1, 700))).astype(np.float32)
    tracks = model.extract(wave, "drums", SamplingConfig(sampler="dpm++2m", steps=2))
    assert tracks["source"].shape == (1, 700)
    assert np.isfinite(tracks["source"]).all()
    assert load_checkpoint(tmp_path / "out")[0].embedder["identity"] == load_embedder(str(embedder)).identity


def test_an_embedder_that_is_not_pinned_needs_its_dimension_only(released: Path, tmp_path: Path) -> None:
    convert(released, tmp_path / "out", crop_frames=8)
    embedder = write_embedder(tmp_path / "embedder")
    MGELDM.from_pretrained(tmp_path / "out", embedder=str(embedder), device="cpu")
    with pytest.raises(CheckpointError, match=r"embedder has dim 16 \(LAION CLAP.*--embedder FOLDER"):
        MGELDM.from_pretrained(tmp_path / "out", device="cpu")


def test_a_codec_beside_the_file(bare: Path, tmp_path: Path, codec_state: State) -> None:
    save_codec(tmp_path / "mine", CODEC, codec_state)
    with pytest.raises(CheckpointError, match=r"no codec in it .*--codec FOLDER.*--codec none"):
        convert(bare, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert(bare, tmp_path / "out", codec=str(tmp_path / "mine"))
    identity = load_codec(str(tmp_path / "mine")).identity
    assert load_codec(str(tmp_path / "out" / "codec")).identity == identity
    assert load_checkpoint(tmp_path / "out")[0].codec["identity"] == identity


class TestWhole:
    """The folder appears at once, with everything in it, or not at all."""

    @pytest.mark.parametrize(
        ("options", "error", "words"),
        [
            ({"codec": "none", "model_config": Path("/nope")}, ConfigError, "--model-config .* --codec none"),
            ({"codec": "default", "model_config": Path("/nope")}, ConfigError, "--model-config .* --codec default"),
            ({"model_config": Path("/nope")}, CheckpointError, "/nope: missing"),
            ({"crop_frames": 0}, ConfigError, "--crop-frames 0"),
            ({"prompt_template": "the sound"}, ConfigError, "--prompt-template 'the sound'"),
            ({"embedder": "/nope"}, CheckpointError, "/nope/config.json: missing"),
            ({"codec": "/nope"}, CheckpointError, "/nope/config.json: missing"),
            ({"heads": 7}, CheckpointError, "heads"),
        ],
    )
    def test_nothing_is_written_after_a_refusal(
        self, released: Path, tmp_path: Path, options: dict[str, Any], error: type[Exception], words: str
    ) -> None:
        with pytest.raises(error, match=words) as caught:
            convert(released, tmp_path / "out", **options)
        assert "\n" not in str(caught.value)
        assert nothing_written(tmp_path)

    @pytest.mark.parametrize("killed", ["save_checkpoint", "save_codec"])
    def test_a_write_that_fails_leaves_nothing(
        self, released: Path, tmp_path: Path, killed: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(f"mgeldm.convert.{killed}", fail)
        with pytest.raises(OSError, match="No space left"):
            convert(released, tmp_path / "out")
        assert nothing_written(tmp_path)

    def test_it_is_not_there_before_all_of_it_is(
        self, released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replace, seen = os.replace, list[list[str]]()

        def spied(source: Path, target: Path) -> None:
            if Path(target).name == "out":
                assert not Path(target).exists()
                seen.append(sorted(str(path.relative_to(source)) for path in Path(source).rglob("*")))
            replace(source, target)

        monkeypatch.setattr(os, "replace", spied)
        convert(released, tmp_path / "out")
        parts = ["codec", "codec/config.json", "codec/model.safetensors", "config.json", "model.safetensors"]
        assert seen == [parts]
        assert sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")) == parts

    def test_a_folder_with_something_in_it_is_left_alone(self, bare: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine.txt").write_text("mine")
        with pytest.raises(ConfigError, match="there is something in this folder"):
            convert(bare, tmp_path / "out", codec="none")
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
        with pytest.raises(ConfigError, match="a file"):
            convert(bare, bare, codec="none")

    def test_an_empty_folder_is_taken_and_what_a_killed_process_left_is_removed(
        self, bare: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / ".tmp-99999999-1-out" / "codec").mkdir(parents=True)
        (tmp_path / ".tmp-99999999-1-other").mkdir()
        convert(bare, tmp_path / "out", codec="none")
        assert load_checkpoint(tmp_path / "out")[0].codec["identity"] is None
        assert [path.name for path in tmp_path.glob(".tmp-*")] == [".tmp-99999999-1-other"]


def test_no_codec(bare: Path, tmp_path: Path, codec_state: State) -> None:
    convert(bare, tmp_path / "out", codec="none")
    config, _ = load_checkpoint(tmp_path / "out")
    assert config.codec == {"identity": None, "spec": {"latent_channels": 8}}
    assert not (tmp_path / "out" / "codec").exists()
    save_codec(tmp_path / "mine", CODEC, codec_state, torch.float32)
    embedder = write_embedder(tmp_path / "embedder")
    names: dict[str, Any] = {"embedder": str(embedder), "device": "cpu"}
    with pytest.raises(
        CheckpointError, match="codec has latent_channels 8, but codec 'default' has latent_channels 64"
    ):
        MGELDM.from_pretrained(tmp_path / "out", **names)
    model = MGELDM.from_pretrained(tmp_path / "out", codec=str(tmp_path / "mine"), **names)
    silence = silence_latent(load_codec(str(tmp_path / "mine")))
    assert model.config.silence_latent == pytest.approx(silence.tolist())


def test_a_codec_of_other_latents_is_refused(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="64 latent channels, the model takes 8"):
        convert(bare, tmp_path / "out", codec="default")
    assert nothing_written(tmp_path)


def test_an_embedder_of_another_dimension_is_refused(released: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="'default' has 128 dimensions, the model takes 16"):
        convert(released, tmp_path / "out", embedder="default")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: state.pop("model_dit.transformer.project_out.weight"),
            "1 missing (transformer.project_out.weight)",
        ),
        (lambda state: state.update({"model_dit.extra": torch.zeros(1)}), "1 unexpected (extra)"),
        (
            lambda state: state.update({"model_dit.transformer.project_out.weight": torch.zeros(2, 2)}),
            "1 of another shape (transformer.project_out.weight [2, 2] instead of [24, 96])",
        ),
        (lambda state: state.pop("model_dit.preprocess_conv.weight"), "'preprocess_conv.weight' is missing"),
        (
            lambda state: state["model_dit.transformer.project_out.weight"].mul_(torch.nan),
            "1 that are not finite (transformer.project_out.weight)",
        ),
        (
            lambda state: state.update(
                {"model_dit.transformer.project_out.weight": torch.zeros(24, 96).to_sparse(), 7: torch.zeros(1)}
            ),
            "1 that are no plain numbers (transformer.project_out.weight)",
        ),
        (
            lambda state: state.update(
                {"model_dit.transformer.project_out.weight": torch.zeros(24, 96, dtype=torch.int32)}
            ),
            "1 that are no plain numbers (transformer.project_out.weight)",
        ),
        (
            lambda state: state.update({"model_dit.to_global_embed.1.weight": torch.zeros(())}),
            "one that tells a size has too few dimensions",
        ),
        (lambda state: state.clear(), "no weights in it"),
        (
            lambda state: state.update(
                {"model_dit.transformer.layers.0.to_scale_shift_gate.2.weight": torch.zeros(288, 24)}
            ),
            "a network of 4 tracks; one of mix, submix, source can be converted",
        ),
        *(
            (
                lambda state, wide=wide: state.update(
                    {"model_dit.transformer.layers.0.to_scale_shift_gate.2.weight": torch.zeros(10, wide, 1)}
                ),
                f"a width of 96 is not made of tracks of width {wide} each",
            )
            for wide in (0, 10_000)
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(
    tmp_path: Path, network_state: State, change: Callable[[State], Any], words: str
) -> None:
    state = {key: value.clone() for key, value in network_state.items()}
    change(state)
    torch.save({"state_dict": state}, tmp_path / "file.ckpt")
    with pytest.raises(CheckpointError) as caught:
        convert(tmp_path / "file.ckpt", tmp_path / "out", codec="none")
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "file.ckpt"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_heads_that_do_not_divide_are_refused(bare: Path, tmp_path: Path) -> None:
    for heads in (5, 0):
        with pytest.raises(CheckpointError, match="heads"):
            convert(bare, tmp_path / "out", heads=heads, codec="none")
    assert nothing_written(tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"\x00" * 500])
def test_damaged_files_are_one_line(released: Path, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    released.write_bytes(damage(released.read_bytes()))
    with pytest.raises(CheckpointError, match="not a checkpoint of plain tensors") as caught:
        convert(released, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


class Dangerous:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_no_pickle_is_run(tmp_path: Path) -> None:
    with (tmp_path / "bad.ckpt").open("wb") as file:
        pickle.dump({"state_dict": {"model_dit.x": Dangerous(tmp_path / "touched")}}, file, protocol=2)
    torch.save({"state_dict": {"model_dit.x": Dangerous(tmp_path / "touched")}}, tmp_path / "bad.pt")
    for name in ("bad.ckpt", "bad.pt"):
        with pytest.raises(CheckpointError, match="not a checkpoint of plain tensors"):
            convert(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "touched").exists()


class TestAutoencoders:
    @pytest.fixture
    def config(self, tmp_path: Path) -> Path:
        (tmp_path / "model_config.json").write_text(json.dumps(CODEC | {"training": {"learning_rate": 1e-4}}))
        return tmp_path / "model_config.json"

    @pytest.mark.parametrize("prefix", ["", "autoencoder.", "pretransform.model."])
    @pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
    def test_every_wrapping_is_one_codec(
        self, tmp_path: Path, codec_state: State, config: Path, prefix: str, suffix: str
    ) -> None:
        file = tmp_path / f"file{suffix}"
        state = {prefix + key: value.contiguous() for key, value in codec_state.items()}
        state |= {"discriminator.weight": torch.zeros(3)} if prefix else {}
        if suffix == ".ckpt":
            torch.save({"state_dict": state, "epoch": 3}, file)
        else:
            save_file(state, file)
        told = convert(file, tmp_path / "out", model_config=config)
        codec = load_codec(str(tmp_path / "out"))
        assert told["identity"] == codec.identity == AutoencoderCodec(CODEC, codec_state).identity
        assert (told["sample_rate"], told["hop"], told["latent_channels"]) == (16_000, 64, 8)

    def test_configuration_is_needed_and_must_fit(self, tmp_path: Path, codec_state: State, config: Path) -> None:
        torch.save({"state_dict": codec_state}, tmp_path / "file.ckpt")
        with pytest.raises(ConfigError, match="--model-config"):
            convert(tmp_path / "file.ckpt", tmp_path / "out")
        config.write_text(json.dumps(oobleck_config(channels=4, latent_channels=8, strides=(2, 4, 8))))
        with pytest.raises(CheckpointError, match="codec weights do not fit their configuration"):
            convert(tmp_path / "file.ckpt", tmp_path / "out", model_config=config)
        assert nothing_written(tmp_path)

    @pytest.mark.parametrize(
        ("options", "names"),
        [
            ({"heads": 3}, "--heads"),
            ({"norm": "group"}, "--norm"),
            ({"codec": "none"}, "--codec"),
            ({"embedder": "default"}, "--embedder"),
            ({"crop_frames": 100}, "--crop-frames"),
            ({"prompt_template": "the sound of {}"}, "--prompt-template"),
            ({"norm": "layer", "crop_frames": 9}, "--norm, --crop-frames"),
        ],
    )
    def test_options_of_a_joint_model_are_refused(
        self, tmp_path: Path, codec_state: State, config: Path, options: dict[str, Any], names: str
    ) -> None:
        torch.save(codec_state, tmp_path / "file.ckpt")
        with pytest.raises(ConfigError, match=f"no joint model .*; leave away {names}, of which"):
            convert(tmp_path / "file.ckpt", tmp_path / "out", model_config=config, **options)
        assert nothing_written(tmp_path)

    def test_neither_model_nor_codec(self, tmp_path: Path) -> None:
        torch.save({"state_dict": {"x": torch.zeros(1)}}, tmp_path / "file.ckpt")
        with pytest.raises(CheckpointError, match="no weights of an autoencoder"):
            convert(tmp_path / "file.ckpt", tmp_path / "out")

    @pytest.mark.parametrize(
        "config",
        [CODEC, oobleck_config(channels=2, audio_channels=2, sample_rate=44_100, latent_channels=4, strides=(2, 5))],
    )
    def test_an_oobleck_is_read_off_its_weights(self, config: dict[str, Any]) -> None:
        state = AutoencoderCodec(config).network.state_dict()
        found = oobleck_of_weights(state, config["sample_rate"])
        assert found["model"] == config["model"]
        assert found["sample_rate"] == config["sample_rate"]

    def test_other_layers_are_refused(self, codec_state: State) -> None:
        with pytest.raises(CheckpointError, match="--model-config"):
            oobleck_of_weights({"encoder.model.0.weight": torch.zeros(1), "decoder.x": torch.zeros(1)}, 16_000)
        broken = codec_state | {"decoder.layers.0.weight_v": torch.zeros(32, 5, 7)}
        with pytest.raises(CheckpointError, match="encodes to 16 channels in 3 levels and decodes from 5"):
            oobleck_of_weights(broken, 16_000)


def test_command_line(released: Path, bare: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(released), "--out", str(tmp_path / "out"), "--crop-frames", "50", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["checkpoint"] == str(tmp_path / "out")
    assert told["parameters"] == sum(p.numel() for p in load_checkpoint(tmp_path / "out")[1].parameters())
    assert load_checkpoint(tmp_path / "out")[0].crop_frames == 50
    assert main(["convert", str(bare), "--out", str(tmp_path / "none"), "--codec", "none"]) == 0
    assert load_checkpoint(tmp_path / "none")[0].codec["identity"] is None
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "nowhere.ckpt"), "--out", str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.strip().endswith("nowhere.ckpt: missing; give the checkpoint file")
