"""A stable-audio-tools autoencoder as a codec, and its folder on disk (`config.json` + `model.safetensors`)."""

import hashlib
import json
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from manifests.atomic import atomic_path, canonical_json, write_json
from manifests.errors import CheckpointError
from mgeldm.codec.base import CodecSpec

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


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
        if config.get("model_type") != "autoencoder":
            raise CheckpointError(f"model_type is {config.get('model_type')!r}; a codec needs 'autoencoder'")
        # Slow to import (about 8 s), so only where a codec is built.
        from stable_audio_tools.models.autoencoders import create_autoencoder_from_config

        self.config = config
        self.network = create_autoencoder_from_config(config)
        if state is not None:
            try:
                self.network.load_state_dict({key: value.float() for key, value in state.items()})
            except RuntimeError as error:
                raise CheckpointError(f"codec weights do not fit their configuration: {error}") from None
        self.identity = identity(config, self.network.state_dict() if state is None else state)
        self._variational = self.network.bottleneck is not None
        context = receptive_side(self.network.encoder)
        hop = int(self.network.downsampling_ratio)
        self.spec = CodecSpec(
            sample_rate=int(self.network.sample_rate),
            channels=int(self.network.io_channels),
            latent_channels=int(self.network.latent_dim),
            hop=hop,
            context=-(-context // hop) * hop,
        )

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a codec folder, ready for inference. Raises CheckpointError."""
        try:
            config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
            state = load_file(folder / WEIGHTS_FILE)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{error.filename or folder}: missing; a codec folder holds {CONFIG_FILE} and {WEIGHTS_FILE}"
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError, OSError) as error:
            raise CheckpointError(f"{folder}: not a readable codec folder ({error})") from None
        codec = cls(config, state)
        codec.eval().requires_grad_(False)
        fold_weight_norm(codec)
        return codec

    def encode(self, wave: torch.Tensor) -> torch.Tensor:
        """``[B, channels, T]``, T a multiple of the hop -> latents ``[B, C, T / hop]``: the VAE's mean."""
        return self.posterior(wave)[0]

    def posterior(self, wave: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mean and raw scale of the VAE's posterior, each ``[B, C, L]``; the scale is None without a VAE."""
        if wave.ndim != 3 or wave.shape[1] != self.spec.channels or wave.shape[2] % self.spec.hop:
            raise ValueError(
                f"codec input is [B, {self.spec.channels}, multiple of {self.spec.hop}], got {tuple(wave.shape)}"
            )
        hidden = self.network.encoder(wave)
        if not self._variational:
            return hidden, None
        mean, scale = hidden.chunk(2, dim=1)
        return mean, scale

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents ``[B, C, L]`` -> ``[B, channels, L * hop]``."""
        if latents.ndim != 3 or latents.shape[1] != self.spec.latent_channels:
            raise ValueError(f"codec latents are [B, {self.spec.latent_channels}, L], got {tuple(latents.shape)}")
        return self.network.decoder(latents)


def save_codec(
    folder: Path, config: dict[str, Any], state: dict[str, torch.Tensor], dtype: torch.dtype = torch.float16
) -> None:
    """Write a codec folder: the configuration, then the weights (as trained, weight norm unfolded) in ``dtype``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_FILE, config)
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_file({key: value.detach().cpu().to(dtype).contiguous() for key, value in state.items()}, temporary)


def identity(config: dict[str, Any], state: dict[str, torch.Tensor]) -> str:
    """Hex SHA-256 over a configuration and the weights' names, types, shapes and bytes."""
    digest = hashlib.sha256(canonical_json(config).encode())
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def receptive_side(encoder: nn.Module) -> int:
    """Samples that reach a latent frame from beyond its own hop, on the wider side.

    Convolutions are walked in order; a skip connection adds nothing to the reach of the branch beside it.
    """
    left = right = 0
    jump = 1
    for module in encoder.modules():
        if isinstance(module, nn.Conv1d):
            span = (module.kernel_size[0] - 1) * module.dilation[0]
            pad = module.padding[0] if isinstance(module.padding, tuple) else span // 2
            left += int(pad) * jump
            right += max(0, span - int(pad)) * jump
            jump *= module.stride[0]
    return max(left, right)


def fold_weight_norm(module: nn.Module) -> None:
    """Fold weight normalisation into plain weights: the same function, without its cost at every call."""
    for child in module.modules():
        if hasattr(child, "weight_g"):
            nn.utils.remove_weight_norm(child)
