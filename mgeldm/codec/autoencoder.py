"""A stable-audio-tools autoencoder as a codec, and its folder on disk (`config.json` + `model.safetensors`)."""

import copy
import hashlib
import math
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save as to_bytes
from torch import nn

from manifests.atomic import canonical_json, write_bytes, write_json
from manifests.errors import CheckpointError
from mgeldm.codec.base import CodecSpec
from mgeldm.codec.fast import replace_snakes
from mgeldm.codec.quietly import quietly
from mgeldm.codec.stable_audio import is_stable_audio, read_stable_audio
from mgeldm.model_folder import FolderKind
from mgeldm.state_dict import misfits

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_FOLDER = FolderKind(
    "a codec",
    f"{CONFIG_FILE} and {WEIGHTS_FILE}, or model_config.json and a checkpoint of stable-audio-tools",
    "train it (`mgeldm train-codec`), convert, copy or download it again",
)


def oobleck_config(
    *,
    channels: int,
    sample_rate: int = 16_000,
    audio_channels: int = 1,
    latent_channels: int = 64,
    strides: tuple[int, ...] = (2, 4, 4, 8, 8),
) -> dict[str, Any]:
    """A stable-audio-tools configuration of an Oobleck VAE; ``channels`` is the width of its first layer.

    The defaults are the paper's shape: hop 2048 at 16 kHz mono, 64 latent channels, widths x (1, 2, 4, 8, 16).
    """
    multiples = [2**level for level in range(len(strides))]
    shared = {"channels": channels, "c_mults": multiples, "strides": list(strides), "use_snake": True}
    hop = 1
    for stride in strides:
        hop *= stride
    return {
        "model_type": "autoencoder",
        "sample_rate": sample_rate,
        "sample_size": 32 * hop,
        "audio_channels": audio_channels,
        "model": {
            "encoder": {
                "type": "oobleck",
                "config": {"in_channels": audio_channels, "latent_dim": 2 * latent_channels, **shared},
            },
            "decoder": {
                "type": "oobleck",
                "config": {
                    "out_channels": audio_channels,
                    "latent_dim": latent_channels,
                    "final_tanh": False,
                    **shared,
                },
            },
            "bottleneck": {"type": "vae"},
            "latent_dim": latent_channels,
            "downsampling_ratio": hop,
            "io_channels": audio_channels,
        },
    }


class AutoencoderCodec(nn.Module):
    """Codec over any stable-audio-tools autoencoder with a VAE bottleneck or none."""

    def __init__(self, config: dict[str, Any], state: dict[str, torch.Tensor] | None = None) -> None:
        """Build from a stable-audio-tools model configuration, with ``state`` as weights or freshly initialised.

        Raises:
            CheckpointError: the configuration is no autoencoder, or the weights do not fit it.
        """
        super().__init__()
        kind = config.get("model_type") if isinstance(config, dict) else None
        if kind != "autoencoder":
            raise CheckpointError(f"model_type is {kind!r}; a codec needs 'autoencoder'")
        with quietly():
            # Slow to import (about 8 s), so only where a codec is built.
            from stable_audio_tools.models.autoencoders import create_autoencoder_from_config

        self.config = config
        try:
            with quietly():
                # A copy, as building some encoders changes it.
                self.network = create_autoencoder_from_config(copy.deepcopy(config))
            bottleneck = config["model"].get("bottleneck", {"type": "none"})["type"]
        except ImportError as error:
            raise CheckpointError(
                f"the autoencoder's kind of layers needs a package that is not here ({error})"
            ) from None
        except (KeyError, TypeError, AttributeError, AssertionError, ValueError, NotImplementedError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"not the configuration of an autoencoder ({reason})") from None
        sizes = {"sample_rate": self.network.sample_rate, "downsampling_ratio": self.network.downsampling_ratio}
        if wrong := [f"{name} is {size!r}" for name, size in sizes.items() if not isinstance(size, int) or size < 1]:
            raise CheckpointError(f"not the configuration of an autoencoder ({', '.join(wrong)})")
        if bottleneck not in ("none", "vae") or self.network.pretransform is not None:
            raise CheckpointError(
                f"the autoencoder has a {bottleneck!r} bottleneck or a pretransform; a codec has a 'vae' bottleneck or "
                "none, and no pretransform"
            )
        if len({self.network.in_channels, self.network.out_channels, self.network.io_channels}) > 1:
            raise CheckpointError(
                f"the autoencoder takes {self.network.in_channels} channels and gives {self.network.out_channels}; a "
                "codec gives what it takes"
            )
        if kinds := sorted({type(module).__name__ for module in self.network.modules() if _is_unbounded(module)}):
            raise CheckpointError(
                f"the autoencoder has layers of {', '.join(kinds)}, whose reach over time cannot be told; a codec is "
                "made of convolutions"
            )
        if state is not None:
            if faults := misfits(self.network.state_dict(), state):
                raise CheckpointError(f"codec weights do not fit their configuration: {faults}")
            self.network.load_state_dict({key: value.float() for key, value in state.items()})
        self.identity = identity(identity_config(config), self.network.state_dict() if state is None else state)
        self._variational = self.network.bottleneck is not None
        hop = int(self.network.downsampling_ratio)
        self.spec = CodecSpec(
            sample_rate=int(self.network.sample_rate),
            channels=int(self.network.io_channels),
            latent_channels=int(self.network.latent_dim),
            hop=hop,
            context=-(-receptive_side(self.network.encoder) // hop) * hop,
            decode_context=-(-receptive_side(self.network.decoder, hop) // hop) * hop,
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a codec folder, ours or one of stable-audio-tools, ready for inference. Raises CheckpointError."""
        config, state = read_codec(folder)
        try:
            return cls.frozen(config, state)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from None

    @classmethod
    def frozen(cls, config: dict[str, Any], state: dict[str, torch.Tensor]) -> Self:
        """Build from configuration and weights, ready for inference. Raises CheckpointError as the constructor does."""
        # The layers draw first weights that are thrown away; the caller's generator stays where it was.
        with torch.random.fork_rng(devices=[]):
            codec = cls(config, state)
        # In this order: the folded weights are new parameters.
        fold_weight_norm(codec)
        replace_snakes(codec)
        codec.eval().requires_grad_(False)
        return codec

    def encode(self, wave: torch.Tensor) -> torch.Tensor:
        """``[B, channels, T]``, T a multiple of the hop -> latents ``[B, C, T / hop]``: the VAE's mean."""
        hidden = self._hidden(wave)
        return hidden.chunk(2, dim=1)[0] if self._variational else hidden

    def posterior(self, wave: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and raw scale of the VAE's posterior, each ``[B, C, L]``. Raises ValueError where there is no VAE."""
        if not self._variational:
            raise ValueError("this codec is no VAE: it has latents, but no posterior")
        mean, scale = self._hidden(wave).chunk(2, dim=1)
        return mean, scale

    def _hidden(self, wave: torch.Tensor) -> torch.Tensor:
        if wave.ndim != 3 or wave.shape[1] != self.spec.channels or wave.shape[2] % self.spec.hop:
            raise ValueError(
                f"codec input is [B, {self.spec.channels}, multiple of {self.spec.hop}], got {tuple(wave.shape)}"
            )
        return self.network.encoder(wave)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents ``[B, C, L]`` -> ``[B, channels, L * hop]``."""
        if latents.ndim != 3 or latents.shape[1] != self.spec.latent_channels:
            raise ValueError(f"codec latents are [B, {self.spec.latent_channels}, L], got {tuple(latents.shape)}")
        wave = self.network.decoder(latents)
        return torch.tanh(wave) if self.network.soft_clip else wave


def read_codec(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and weights in a codec folder, ours or one of stable-audio-tools. Raises CheckpointError."""
    if is_stable_audio(folder):
        return read_stable_audio(folder)
    return _FOLDER.json(folder / CONFIG_FILE), _FOLDER.tensors(folder / WEIGHTS_FILE)


def save_codec(
    folder: Path, config: dict[str, Any], state: dict[str, torch.Tensor], dtype: torch.dtype | None = torch.float16
) -> None:
    """Write a codec folder: the configuration, then the weights (as trained, weight norm unfolded).

    Weights are written in ``dtype``, or, where it is None, each in its own, so that the codec's identity stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_FILE, config)
    tensors = {key: value.detach().cpu().to(dtype or value.dtype).contiguous() for key, value in state.items()}
    write_bytes(folder / WEIGHTS_FILE, to_bytes(tensors))


def identity_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of an autoencoder's configuration that its computation depends on.

    So the autoencoder of a released diffusion model and the same one in a folder of its own are one codec: how it was
    trained, and on which length, is left out.
    """
    model = copy.deepcopy(config["model"])
    for part in ("encoder", "decoder"):
        model[part].pop("requires_grad", None)
    return {
        "model_type": "autoencoder",
        "sample_rate": config["sample_rate"],
        # A constant of the hop and one of the model, as codecs that data sets name have them in their hash.
        "sample_size": 32 * model["downsampling_ratio"],
        "audio_channels": model["io_channels"],
        "model": model,
    }


def _is_unbounded(module: nn.Module) -> bool:
    """Whether a layer hears more than a fixed stretch around each step, or one that `receptive_side` cannot tell."""
    name = type(module).__name__.lower()
    return isinstance(module, nn.RNNBase) or "attention" in name or "transformer" in name


def identity(config: dict[str, Any], state: dict[str, torch.Tensor]) -> str:
    """Hex SHA-256 over a configuration and the weights' names, types, shapes and bytes."""
    digest = hashlib.sha256(canonical_json(config).encode())
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def receptive_side(network: nn.Module, rate: float = 1) -> int:
    """Samples on the wider side by which a network of convolutions reaches beyond its own frame.

    Convolutions are walked in order; a skip connection adds nothing to the reach of the branch beside it.

    Args:
        network: The encoder, or the decoder with transposed convolutions.
        rate: Samples to a step of its input: 1 for an encoder, the hop for a decoder.
    """
    left = right = 0.0
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            stride, span = module.stride[0], (module.kernel_size[0] - 1) * module.dilation[0]
            pad = module.padding[0] if isinstance(module.padding, tuple) else span // 2
            if isinstance(module, nn.ConvTranspose1d):
                rate /= stride
            left += pad * rate
            right += max(0, span - pad - (stride - 1)) * rate
            if isinstance(module, nn.Conv1d):
                rate *= stride
        elif isinstance(module, nn.Upsample):
            rate /= float(module.scale_factor) if isinstance(module.scale_factor, int | float) else 1
    return math.ceil(max(left, right))


def fold_weight_norm(module: nn.Module) -> None:
    """Fold weight normalisation into plain weights: the same function, without its cost at every call."""
    for child in module.modules():
        if hasattr(child, "weight_g"):
            nn.utils.remove_weight_norm(child)
