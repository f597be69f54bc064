"""Codecs of stable-audio-tools: every wrapping of a checkpoint, Stable Audio Open's shape, identity, precision."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from manifests.errors import CheckpointError
from mgeldm.codec import AutoencoderCodec, load_codec
from mgeldm.codec.autoencoder import oobleck_config, save_codec
from mgeldm.codec.long import decode_long, encode_long

HOP = 2048
State = dict[str, torch.Tensor]


def diffusion_config(channels: int) -> dict[str, Any]:
    """As the configuration of Stable Audio Open 1.0 is laid out, its autoencoder as published but for its width."""
    shared = {"channels": channels, "c_mults": [1, 2, 4, 8, 16], "strides": [2, 4, 4, 8, 8], "use_snake": True}
    return {
        "model_type": "diffusion_cond",
        "sample_size": 2_097_152,
        "sample_rate": 44_100,
        "audio_channels": 2,
        "model": {
            "pretransform": {
                "type": "autoencoder",
                "iterate_batch": True,
                "config": {
                    "encoder": {
                        "type": "oobleck",
                        "requires_grad": False,
                        "config": {"in_channels": 2, "latent_dim": 128, **shared},
                    },
                    "decoder": {
                        "type": "oobleck",
                        "config": {"out_channels": 2, "latent_dim": 64, "final_tanh": False, **shared},
                    },
                    "bottleneck": {"type": "vae"},
                    "latent_dim": 64,
                    "downsampling_ratio": HOP,
                    "io_channels": 2,
                },
            },
            "conditioning": {"configs": [], "cond_dim": 768},
            "diffusion": {"type": "dit", "config": {"io_channels": 64, "depth": 24}},
            "io_channels": 64,
        },
        "training": {"use_ema": True},
    }


def autoencoder_config(channels: int = 2) -> dict[str, Any]:
    """The same autoencoder in a configuration of its own."""
    raw = diffusion_config(channels)
    return {
        "model_type": "autoencoder",
        "sample_size": 65_536,
        "sample_rate": 44_100,
        "audio_channels": 2,
        "model": raw["model"]["pretransform"]["config"],
        "training": {"learning_rate": 1.5e-4},
    }


@pytest.fixture(scope="module")
def state() -> State:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return dict(AutoencoderCodec(autoencoder_config()).network.state_dict())


@pytest.fixture(scope="module")
def codec(state: State) -> AutoencoderCodec:
    return AutoencoderCodec(autoencoder_config(), state).eval()


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def other(state: State) -> State:
    return {key: value + 0.1 for key, value in state.items()}


def write(folder: Path, config: Any, weights: State | None = None, file: str = "model.ckpt", **beside: Any) -> Path:
    """A folder with a configuration and a checkpoint that also holds what is ``beside`` its state."""
    folder.mkdir(parents=True)
    (folder / "model_config.json").write_text(json.dumps(config))
    if weights is not None and file.endswith(".safetensors"):
        save_file({key: value.clone() for key, value in weights.items()}, folder / file)
    elif weights is not None:
        torch.save({"state_dict": weights, **beside}, folder / file)
    return folder


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


REST = {"model.model.layers.0.weight": torch.zeros(3), "conditioner.embed.weight": torch.zeros(2)}
TRAINING = {"discriminator.layers.0.weight": torch.zeros(3), "autoencoder_ema.initted": torch.tensor(True)}

WRAPPINGS: dict[str, Callable[[Path, State], Path]] = {
    "released model": lambda at, s: write(
        at, diffusion_config(2), under("pretransform.model.", s) | REST, "model.safetensors"
    ),
    "unwrapped model": lambda at, s: write(at, diffusion_config(2), under("pretransform.model.", s) | REST),
    "model in training": lambda at, s: write(
        at, diffusion_config(2), under("diffusion.pretransform.model.", s) | {"diffusion.model.a": torch.zeros(1)}
    ),
    "exported autoencoder": lambda at, s: write(at, autoencoder_config(), s),
    "exported as safetensors": lambda at, s: write(at, autoencoder_config(), s, "model.safetensors"),
    "autoencoder in training": lambda at, s: write(
        at, autoencoder_config(), under("autoencoder.", s) | TRAINING, epoch=3, global_step=7, callbacks={}
    ),
    "averaged in training": lambda at, s: write(
        at, autoencoder_config(), under("autoencoder.", other(s)) | under("autoencoder_ema.ema_model.", s) | TRAINING
    ),
    "of another name": lambda at, s: write(at, autoencoder_config(), s, "epoch=3-step=7.ckpt"),
}


class TestWrappings:
    @pytest.mark.parametrize("wrapping", WRAPPINGS)
    def test_it_is_one_codec(self, wrapping: str, state: State, codec: AutoencoderCodec, tmp_path: Path) -> None:
        found = load_codec(str(WRAPPINGS[wrapping](tmp_path / "codec", state)))
        assert found.identity == codec.identity
        wave = noise(1, 2, 4 * HOP)
        torch.testing.assert_close(found.encode(wave), codec.encode(wave), atol=1e-5, rtol=1e-4)
        assert not any(parameter.requires_grad for parameter in found.parameters())

    def test_our_own_folder_of_it_is_the_same_codec(
        self, state: State, codec: AutoencoderCodec, tmp_path: Path
    ) -> None:
        save_codec(tmp_path, oobleck_config(channels=2, sample_rate=44_100, audio_channels=2), state, torch.float32)
        assert load_codec(str(tmp_path)).identity == codec.identity

    def test_a_state_without_a_wrapper(self, state: State, codec: AutoencoderCodec, tmp_path: Path) -> None:
        folder = write(tmp_path / "codec", autoencoder_config())
        torch.save(state, folder / "model.ckpt")
        assert load_codec(str(folder)).identity == codec.identity
        torch.save(state, folder / "model.ckpt", _use_new_zipfile_serialization=False)
        assert load_codec(str(folder)).identity == codec.identity


class TestIdentity:
    def test_it_follows_weights_and_settings(self, state: State, codec: AutoencoderCodec, tmp_path: Path) -> None:
        nudged = state | {"decoder.layers.0.bias": state["decoder.layers.0.bias"] + 1e-3}
        assert load_codec(str(write(tmp_path / "weight", autoencoder_config(), nudged))).identity != codec.identity
        for number, change in enumerate(
            (
                lambda raw: raw.update(sample_rate=48_000),
                lambda raw: raw["model"]["decoder"]["config"].update(final_tanh=True),
                lambda raw: raw["model"]["decoder"].update(soft_clip=True),
            )
        ):
            raw = copy.deepcopy(autoencoder_config())
            change(raw)
            assert load_codec(str(write(tmp_path / str(number), raw, state))).identity != codec.identity

    def test_a_folder_is_read_again_where_it_changed(self, state: State, tmp_path: Path) -> None:
        folder = write(tmp_path / "codec", autoencoder_config(), state)
        first = load_codec(str(folder))
        torch.save({"state_dict": other(state)}, folder / "model.ckpt")
        assert load_codec(str(folder)).identity != first.identity


class TestStereo:
    def test_spec(self, codec: AutoencoderCodec) -> None:
        spec = codec.spec
        assert (spec.sample_rate, spec.channels, spec.latent_channels, spec.hop) == (44_100, 2, 64, HOP)
        assert (spec.context, spec.decode_context) == (8 * HOP, 10 * HOP)

    def test_channels_are_not_mixed_up(self, codec: AutoencoderCodec) -> None:
        wave = noise(1, 2, 4 * HOP)
        with torch.inference_mode():
            latents, swapped = codec.encode(wave), codec.encode(wave.flip(1))
            assert latents.shape == (1, 64, 4)
            assert (latents - swapped).abs().max() > 1e-3
            assert codec.decode(latents).shape == wave.shape

    def test_long_signals(self, codec: AutoencoderCodec, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("mgeldm.codec.long.CHUNK_FRAMES", 8)
        wave = noise(2, 20 * HOP - 100)
        latents = encode_long(codec, wave)
        assert latents.shape == (64, 20)
        with torch.inference_mode():
            whole = codec.encode(torch.nn.functional.pad(wave, (8 * HOP, 8 * HOP + 100))[None])[0, :, 8:28]
            torch.testing.assert_close(latents, whole, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(
                decode_long(codec, latents), codec.decode(latents[None])[0], atol=1e-5, rtol=1e-4
            )

    def test_encode_gives_the_mean_everywhere(self, codec: AutoencoderCodec) -> None:
        wave = noise(1, 2, 4 * HOP)
        assert torch.equal(codec.encode(wave), codec.posterior(wave)[0])
        assert torch.equal(codec.encode(wave), codec.encode(wave))

    def test_bf16(self) -> None:
        """Within 2 % of the latents' own spread: bf16 has 8 bits, and errors of some thirty layers add up."""
        shipped, wave = load_codec(), noise(1, 1, 16 * HOP)
        with torch.inference_mode():
            exact = shipped.encode(wave)
            with torch.autocast("cpu", torch.bfloat16):
                rough = shipped.encode(wave)
        assert torch.isfinite(rough).all()
        error = (rough.float() - exact).square().mean().sqrt() / exact.std()
        assert 1e-5 < error < 0.02

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_cuda(self, state: State, codec: AutoencoderCodec, tmp_path: Path) -> None:
        wave = noise(2, 2, 8 * HOP)
        device = AutoencoderCodec.load(write(tmp_path / "codec", autoencoder_config(), state)).to("cuda")
        found = device.encode(wave.cuda()).cpu()
        assert (found - codec.encode(wave)).abs().max() < 1e-2 * found.std()

    @pytest.mark.slow
    def test_the_published_width(self, tmp_path: Path) -> None:
        """Stable Audio Open's autoencoder as it is: 156 M parameters, with weights of our own drawing."""
        config = autoencoder_config(128)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            weights = AutoencoderCodec(config).network.state_dict()
        assert 150e6 < sum(value.numel() for value in weights.values()) < 160e6
        halved = {key: value.half() for key, value in under("pretransform.model.", weights).items()}
        codec = load_codec(str(write(tmp_path / "sao", diffusion_config(128), halved | REST, "model.safetensors")))
        spec = codec.spec
        assert (spec.sample_rate, spec.channels, spec.latent_channels, spec.hop) == (44_100, 2, 64, HOP)
        with torch.inference_mode():
            latents = codec.encode(noise(1, 2, 2 * HOP))
        assert latents.shape == (1, 64, 2)
        assert torch.isfinite(latents).all()


class TestOtherKinds:
    def test_dac(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The layers of DAC, at a rate and hop of their own, encoded in chunks as in one pass."""
        encoder = {"in_channels": 2, "latent_dim": 16, "d_model": 4, "strides": [2, 4, 4]}
        decoder = {"out_channels": 2, "latent_dim": 8, "channels": 32, "rates": [4, 4, 2]}
        model = {
            "encoder": {"type": "dac", "config": encoder},
            "decoder": {"type": "dac", "config": decoder},
            "bottleneck": {"type": "vae"},
            "latent_dim": 8,
            "downsampling_ratio": 32,
            "io_channels": 2,
        }
        config = {"model_type": "autoencoder", "sample_rate": 32_000, "model": model}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            weights = AutoencoderCodec(config).network.state_dict()
        codec = load_codec(str(write(tmp_path / "dac", config, weights))).double()
        assert (codec.spec.sample_rate, codec.spec.channels, codec.spec.hop) == (32_000, 2, 32)
        monkeypatch.setattr("mgeldm.codec.long.CHUNK_FRAMES", 8)
        context, wave = codec.spec.context, noise(2, 64 * 32).double()
        latents = encode_long(codec, wave)
        with torch.inference_mode():
            whole = codec.encode(torch.nn.functional.pad(wave, (context, context))[None])
            expected = whole[0, :, context // 32 : -context // 32]
            torch.testing.assert_close(latents, expected, atol=1e-10, rtol=0)
            torch.testing.assert_close(decode_long(codec, latents), codec.decode(latents[None])[0], atol=1e-10, rtol=0)

    def test_attention_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its reach has no bound, so that a window would not have the latents of the whole song."""

        class LocalAttention(torch.nn.Module):
            pass

        kinds = "stable_audio_tools.models.autoencoders.create_encoder_from_config"
        monkeypatch.setattr(kinds, lambda _: torch.nn.Sequential(LocalAttention(), torch.nn.LSTM(2, 2)))
        with pytest.raises(CheckpointError, match="layers of LSTM, LocalAttention"):
            AutoencoderCodec(autoencoder_config())


def without(state: State, *names: str) -> State:
    return {key: value for key, value in state.items() if key not in names}


def no_encoder(raw: dict[str, Any]) -> dict[str, Any]:
    del raw["model"]["encoder"]
    return raw


def with_parts(raw: dict[str, Any], **parts: Any) -> dict[str, Any]:
    return raw | {"model": raw["model"] | parts}


class TestErrors:
    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda at, s: write(at, autoencoder_config()), "expected model.safetensors or model.ckpt"),
            (lambda at, s: write(at, [], s), "model_type is None"),
            (lambda at, s: write(at, {"model_type": "lm", "model": {}}, s), "model_type is 'lm'"),
            (
                lambda at, s: write(at, with_parts(diffusion_config(2), pretransform={"type": "wavelet"}), s),
                "without an autoencoder as pretransform",
            ),
            (lambda at, s: write(at, no_encoder(autoencoder_config()), s), "KeyError: 'encoder'"),
            (
                lambda at, s: write(at, with_parts(autoencoder_config(), bottleneck={"type": "tanh"}), s),
                "'tanh' bottleneck",
            ),
            (
                lambda at, s: write(at, with_parts(autoencoder_config(), in_channels=1), s),
                "takes 1 channels and gives 2",
            ),
            (lambda at, s: write(at, autoencoder_config(), REST), "no weights of an autoencoder.*conditioner.embed"),
            (lambda at, s: write(at, autoencoder_config(), {}), "no weights in it"),
            (
                lambda at, s: write(at, autoencoder_config(), s | under("pretransform.model.", s)),
                "two autoencoders, under 'pretransform.model.' and ''",
            ),
            (
                lambda at, s: write(at, autoencoder_config(), without(s, "decoder.layers.0.bias")),
                r"1 missing \(decoder.layers.0.bias\)$",
            ),
            (
                lambda at, s: write(at, autoencoder_config(), s | {f"extra.{i}": torch.zeros(1) for i in range(5)}),
                r"5 unexpected \(extra.0, extra.1, extra.2, ...\)$",
            ),
            (
                lambda at, s: write(at, autoencoder_config(), s | {"decoder.layers.0.bias": torch.zeros(3)}),
                r"1 of another shape \(decoder.layers.0.bias \[3\] instead of \[32\]\)$",
            ),
        ],
    )
    def test_what_is_no_codec(
        self, make: Callable[[Path, State], Path], words: str, state: State, tmp_path: Path
    ) -> None:
        folder = make(tmp_path / "codec", state)
        with pytest.raises(CheckpointError, match=words) as caught:
            load_codec(str(folder))
        assert "\n" not in str(caught.value)
        assert str(folder) in str(caught.value)

    def test_weights_without_a_configuration(self, state: State, tmp_path: Path) -> None:
        folder = write(tmp_path / "codec", autoencoder_config(), state)
        (folder / "model_config.json").unlink()
        with pytest.raises(CheckpointError, match=r"config.json.*missing.*model_config.json"):
            load_codec(str(folder))
        with pytest.raises(CheckpointError, match="a file; give the folder"):
            load_codec(str(folder / "model.ckpt"))

    @pytest.mark.parametrize("file", ["model.ckpt", "model.safetensors", "model_config.json"])
    def test_half_a_file(self, file: str, state: State, tmp_path: Path) -> None:
        weights = "model.ckpt" if file == "model_config.json" else file
        folder = write(tmp_path / "codec", autoencoder_config(), state, weights)
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: len(data) // 2])
        with pytest.raises(CheckpointError, match=f"{file}: not a") as caught:
            load_codec(str(folder))
        assert "\n" not in str(caught.value)

    def test_code_in_a_checkpoint_is_not_run(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, ...]:
                return (Path.touch, (tmp_path / "trapped",))

        folder = write(tmp_path / "codec", autoencoder_config())
        (folder / "model.ckpt").write_bytes(pickle.dumps({"state_dict": Trap()}, protocol=2))
        with pytest.raises(CheckpointError, match="not a checkpoint of plain tensors"):
            load_codec(str(folder))
        torch.save({"state_dict": Trap()}, folder / "model.ckpt")
        with pytest.raises(CheckpointError, match="not a checkpoint of plain tensors"):
            load_codec(str(folder))
        assert not (tmp_path / "trapped").exists()
