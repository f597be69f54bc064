"""The codec: its folder, its context, and signals of any length."""

import copy
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from manifests.errors import CheckpointError
from mgeldm.codec import AutoencoderCodec, load_codec, long
from mgeldm.codec.autoencoder import oobleck_config, save_codec
from mgeldm.codec.long import decode_long, encode_long

STRIDES = (2, 4, 4)
HOP = 32


def build(**changes: Any) -> AutoencoderCodec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderCodec(oobleck_config(**{"channels": 2, "latent_channels": 4, "strides": STRIDES} | changes))


@pytest.fixture(scope="module")
def codec() -> AutoencoderCodec:
    """In float64, so that only what differs in truth differs."""
    return build().double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = build()
    path = tmp_path_factory.mktemp("codec") / "small"
    save_codec(path, made.config, made.network.state_dict())
    return path


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def copied(folder: Path, to: Path, edit: Callable[[dict[str, Any]], None] = lambda raw: None) -> Path:
    """A copy of a codec folder with an edited configuration."""
    raw = json.loads((folder / "config.json").read_text())
    edit(raw)
    to.mkdir()
    (to / "config.json").write_text(json.dumps(raw))
    (to / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return to


class TestShapes:
    def test_spec(self, codec: AutoencoderCodec) -> None:
        spec = codec.spec
        assert (spec.sample_rate, spec.channels, spec.latent_channels, spec.hop) == (16_000, 1, 4, HOP)
        assert spec.frames_per_second == 500
        assert spec.frames(0.1) == 50
        assert spec.seconds(50) == pytest.approx(0.1)

    def test_shipped_codec_has_the_papers_shape(self) -> None:
        shipped = load_codec()
        spec = shipped.spec
        assert (spec.sample_rate, spec.channels, spec.latent_channels, spec.hop) == (16_000, 1, 64, 2048)
        assert spec.frames_per_second == 7.8125
        assert sum(p.numel() for p in shipped.parameters()) < 11e6
        assert not shipped.training

    def test_shipped_codec_keeps_its_identity(self) -> None:
        """Data sets and checkpoints name it."""
        assert load_codec().identity == "3b28b99f3dd9bc1ce14f33751a3b317c06f403b059cd00b960adfc8070c6530f"

    def test_encode_gives_the_mean(self, codec: AutoencoderCodec) -> None:
        wave = 0.1 * noise(2, 1, 10 * HOP)
        latents = codec.encode(wave)
        assert latents.shape == (2, 4, 10)
        mean, scale = codec.posterior(wave)
        assert torch.equal(latents, mean)
        assert torch.equal(latents, codec.network.encoder(wave)[:, :4])
        assert torch.equal(scale, codec.network.encoder(wave)[:, 4:])
        assert codec.decode(latents).shape == (2, 1, 10 * HOP)

    @pytest.mark.parametrize("shape", [(1, 1, HOP + 1), (1, 2, HOP), (1, HOP)])
    def test_waves_of_another_shape(self, codec: AutoencoderCodec, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=rf"codec input is \[B, 1, multiple of {HOP}\]"):
            codec.encode(noise(*shape))

    @pytest.mark.parametrize("shape", [(1, 3, 5), (4, 5)])
    def test_latents_of_another_shape(self, codec: AutoencoderCodec, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"codec latents are \[B, 4, L\]"):
            codec.decode(noise(*shape))

    def test_an_autoencoder_without_vae(self) -> None:
        config = oobleck_config(channels=2, latent_channels=4, strides=STRIDES)
        del config["model"]["bottleneck"]
        config["model"]["encoder"]["config"]["latent_dim"] = 4
        plain = AutoencoderCodec(config)
        assert plain.encode(torch.zeros(1, 1, 4 * HOP)).shape == (1, 4, 4)
        with pytest.raises(ValueError, match="no VAE"):
            plain.posterior(torch.zeros(1, 1, 4 * HOP))

    def test_soft_clipping_of_the_decoder_is_kept(self) -> None:
        config = oobleck_config(channels=2, latent_channels=4, strides=STRIDES)
        plain = AutoencoderCodec(config)
        config = copy.deepcopy(config)
        config["model"]["decoder"]["soft_clip"] = True
        clipped = AutoencoderCodec(config, plain.network.state_dict())
        latents = 100 * noise(1, 4, 6).float()
        torch.testing.assert_close(clipped.decode(latents), plain.decode(latents).tanh())


class TestContext:
    @pytest.mark.parametrize("strides", [(4,), (2, 4), (3, 5), STRIDES])
    def test_it_is_the_reach_and_no_frame_more(self, strides: tuple[int, ...]) -> None:
        codec = build(strides=strides).double()
        hop, middle = codec.spec.hop, 200
        wave = (0.1 * noise(1, 1, 2 * middle * hop)).requires_grad_()
        codec.encode(wave)[..., middle].sum().backward()
        assert wave.grad is not None
        heard = wave.grad[0, 0].nonzero().flatten()
        reach = max(middle * hop - int(heard[0]), int(heard[-1]) - (middle + 1) * hop + 1)
        assert codec.spec.context - hop < reach <= codec.spec.context
        latents = noise(1, 4, 2 * middle)
        changed = latents.clone()
        changed[..., middle] += 1
        with torch.no_grad():
            told = (codec.decode(latents) - codec.decode(changed))[0, 0].nonzero().flatten()
        reach = max(middle * hop - int(told[0]), int(told[-1]) - (middle + 1) * hop + 1)
        assert codec.spec.decode_context - hop < reach <= codec.spec.decode_context


class TestLong:
    @pytest.fixture(autouse=True)
    def short_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(long, "CHUNK_FRAMES", 7)

    @pytest.mark.parametrize("frames", [1, 6, 7, 8, 50])
    def test_encode_is_one_pass_over_the_signal_in_silence(self, codec: AutoencoderCodec, frames: int) -> None:
        wave = 0.1 * noise(1, frames * HOP)
        context = codec.spec.context
        padded = torch.nn.functional.pad(wave, (2 * context, 2 * context))
        side = 2 * context // HOP
        expected = codec.encode(padded[None])[0, :, side : side + frames]
        torch.testing.assert_close(encode_long(codec, wave), expected, rtol=0, atol=1e-12)

    def test_encode_away_from_the_ends_is_one_pass_over_the_signal(self, codec: AutoencoderCodec) -> None:
        wave = 0.1 * noise(1, 80 * HOP)
        side = codec.spec.context // HOP
        latents, expected = encode_long(codec, wave), codec.encode(wave[None])[0]
        torch.testing.assert_close(latents[:, side:-side], expected[:, side:-side], rtol=0, atol=1e-12)
        assert not torch.allclose(latents[:, 0], expected[:, 0])

    @pytest.mark.parametrize("length", [1, HOP - 1, HOP + 1, 40 * HOP - 3])
    def test_the_last_frame_is_filled_with_silence(self, codec: AutoencoderCodec, length: int) -> None:
        wave = 0.1 * noise(1, length)
        frames = -(-length // HOP)
        padded = torch.nn.functional.pad(wave, (0, frames * HOP - length))
        latents = encode_long(codec, wave)
        assert latents.shape == (4, frames)
        assert torch.equal(latents, encode_long(codec, padded))

    @pytest.mark.parametrize("frames", [1, 6, 7, 8, 50])
    def test_decode_is_one_pass(self, codec: AutoencoderCodec, frames: int) -> None:
        latents = noise(4, frames)
        expected = codec.decode(latents[None])[0]
        torch.testing.assert_close(decode_long(codec, latents), expected, rtol=0, atol=1e-12)

    def test_chunks_say_no_more_than_memory(self, codec: AutoencoderCodec, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[int] = []
        encode = codec.encode
        monkeypatch.setattr(codec, "encode", lambda wave: seen.append(wave.shape[-1] // HOP) or encode(wave))
        encode_long(codec, 0.1 * noise(1, 200 * HOP))
        assert max(seen) == 7 + 2 * codec.spec.context // HOP


class TestFolder:
    def test_round_trip(self, folder: Path) -> None:
        loaded, made = AutoencoderCodec.load(folder), build()
        assert not loaded.training
        assert not any(p.requires_grad for p in loaded.parameters())
        wave = 0.1 * noise(1, 1, 8 * HOP).float()
        half = AutoencoderCodec(made.config, {k: v.half() for k, v in made.network.state_dict().items()})
        torch.testing.assert_close(loaded.encode(wave), half.encode(wave), rtol=1e-4, atol=1e-6)
        assert load_file(folder / "model.safetensors")["encoder.layers.0.weight_v"].dtype == torch.float16

    def test_identity_is_that_of_configuration_and_weights(self, folder: Path, tmp_path: Path) -> None:
        first = AutoencoderCodec.load(folder).identity
        assert first == AutoencoderCodec.load(copied(folder, tmp_path / "same")).identity
        assert len(first) == 64
        trained_on = copied(folder, tmp_path / "trained", lambda raw: raw.update(sample_size=1, training={"steps": 1}))
        assert AutoencoderCodec.load(trained_on).identity == first
        config = copied(folder, tmp_path / "config", lambda raw: raw.update(sample_rate=8_000))
        assert AutoencoderCodec.load(config).identity != first
        made = build()
        state = made.network.state_dict()
        state["decoder.layers.0.bias"] = state["decoder.layers.0.bias"] + 0.5
        save_codec(tmp_path / "weights", made.config, state)
        assert AutoencoderCodec.load(tmp_path / "weights").identity != first

    def test_others_may_read_the_files(self, folder: Path) -> None:
        before = os.umask(0o022)
        os.umask(before)
        for name in ("config.json", "model.safetensors"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o666 & ~before

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_half_a_folder(self, folder: Path, tmp_path: Path, name: str) -> None:
        half = copied(folder, tmp_path / "half")
        (half / name).unlink()
        with pytest.raises(CheckpointError, match=rf"{name}: missing|half: missing"):
            load_codec(str(half))

    @pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
    def test_truncated_files(self, folder: Path, tmp_path: Path, name: str) -> None:
        cut = copied(folder, tmp_path / "cut")
        data = (cut / name).read_bytes()
        (cut / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(
            CheckpointError, match=f"{name}: half written or damaged .* not a readable codec folder; train it"
        ):
            load_codec(str(cut))

    @pytest.mark.parametrize(
        ("edit", "words"),
        [
            (lambda raw: raw.update(model_type="diffusion_cond"), "model_type is 'diffusion_cond'"),
            (lambda raw: raw.pop("model"), "not the configuration of an autoencoder"),
            (lambda raw: raw["model"].pop("decoder"), "not the configuration of an autoencoder"),
            (lambda raw: raw["model"].pop("latent_dim"), "latent_dim must be specified"),
            (lambda raw: raw["model"]["encoder"]["config"].update(surprise=1), "surprise"),
            (lambda raw: raw["model"].update(bottleneck={"type": "tanh"}), "'tanh' bottleneck"),
            (lambda raw: raw["model"]["encoder"]["config"].update(channels=4), "do not fit"),
        ],
    )
    def test_wrong_configurations(
        self, folder: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], None], words: str
    ) -> None:
        with pytest.raises(CheckpointError, match=words):
            AutoencoderCodec.load(copied(folder, tmp_path / "wrong", edit))

    def test_a_list_is_no_configuration(self, folder: Path, tmp_path: Path) -> None:
        wrong = copied(folder, tmp_path / "wrong")
        (wrong / "config.json").write_text("[]")
        with pytest.raises(CheckpointError, match="model_type is None"):
            AutoencoderCodec.load(wrong)
