"""What every codec is."""

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecSpec:
    """The shape of a codec."""

    sample_rate: int
    channels: int
    latent_channels: int
    hop: int
    """Samples a latent frame."""
    context: int
    """Samples of receptive field of the encoder on each side of a latent frame, a multiple of ``hop``."""
    decode_context: int = 0
    """Samples on each side of a latent frame that it has a part in, beside its own, a multiple of ``hop``."""

    @property
    def frames_per_second(self) -> float:
        """Latent frames a second."""
        return self.sample_rate / self.hop

    def frames(self, seconds: float) -> int:
        """Latent frames nearest to a time."""
        return round(seconds * self.sample_rate / self.hop)

    def seconds(self, frames: int) -> float:
        """Duration of latent frames."""
        return frames * self.hop / self.sample_rate


class Codec(Protocol):
    """Waveform to latents and back. Deterministic: a VAE gives its mean, for training data and at inference alike."""

    spec: CodecSpec
    identity: str
    """Hex hash over configuration and weights."""

    def encode(self, wave: torch.Tensor) -> torch.Tensor:
        """``[B, channels, T]`` float32 in [-1, 1], T a multiple of the hop -> ``[B, C, T / hop]``."""
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """``[B, C, L]`` -> ``[B, channels, L * hop]``."""
        ...
