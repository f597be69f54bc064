"""The log-mel spectrogram that CLAP was trained on, in batches and on the device: transformers' extractor in torch."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from manifests.errors import CheckpointError

_POWER_FLOOR = 1e-10
"""Least mel power: the extractor's, -100 dB."""
_CHUNK = 4
"""Windows at a time: double-precision spectra of a large batch would take gigabytes, and leave the CPU's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClapMelConfig:
    """What of a `ClapFeatureExtractor` shapes the spectrogram of a window of exactly its length."""

    sample_rate: int
    window_s: float
    fft: int
    """Samples of the Hann window."""
    hop: int
    """Samples between frames."""
    mels: int
    f_min: float
    f_max: float
    slaney: bool
    """Filters of the Slaney scale and norm, as models without fusion have; else HTK's scale, without norm."""

    @classmethod
    def of(cls, extractor: Any) -> Self:
        """The configuration of a `transformers.ClapFeatureExtractor`. Raises CheckpointError for an unknown kind."""
        if extractor.truncation not in ("fusion", "rand_trunc"):
            raise CheckpointError(
                f"the feature extractor's truncation is {extractor.truncation!r}, which we do not know"
            )
        return cls(
            sample_rate=int(extractor.sampling_rate),
            window_s=float(extractor.max_length_s),
            fft=int(extractor.fft_window_size),
            hop=int(extractor.hop_length),
            mels=int(extractor.feature_size),
            f_min=float(extractor.frequency_min),
            f_max=float(extractor.frequency_max),
            slaney=extractor.truncation == "rand_trunc",
        )

    @property
    def frames(self) -> int:
        """Frames of a window."""
        return round(self.window_s * self.sample_rate) // self.hop + 1


class ClapMel(nn.Module):
    """``[B, T]`` -> log-mel power in dB, ``[B, frames, mels]``, as `ClapFeatureExtractor` gives it.

    In double precision inside, as the extractor is: a single-precision transform errs by 1e-7 of the loudest bin, which
    is more than 1e-4 dB of every bin 45 dB below it.
    """

    window: torch.Tensor
    filters: torch.Tensor

    def __init__(self, config: ClapMelConfig) -> None:
        super().__init__()
        # Slow to import, and only for those who use CLAP.
        from transformers.audio_utils import mel_filter_bank

        self.fft, self.hop = config.fft, config.hop
        filters = mel_filter_bank(
            num_frequency_bins=config.fft // 2 + 1,
            num_mel_filters=config.mels,
            min_frequency=config.f_min,
            max_frequency=config.f_max,
            sampling_rate=config.sample_rate,
            norm="slaney" if config.slaney else None,
            mel_scale="slaney" if config.slaney else "htk",
        )
        self.register_buffer("window", torch.hann_window(config.fft, dtype=torch.float64), persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters.T.copy()).double(), persistent=False)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        """``[B, T]`` in [-1, 1] -> ``[B, T // hop + 1, mels]`` float32, at least -100, under autocast too."""
        with torch.autocast(wave.device.type, enabled=False):
            return torch.cat([self._decibels(chunk) for chunk in wave.split(_CHUNK)])

    def _decibels(self, wave: torch.Tensor) -> torch.Tensor:
        spectrum = torch.stft(wave.double(), self.fft, self.hop, window=self.window, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        mel = (self.filters @ power).clamp(min=_POWER_FLOOR)
        return (10 * torch.log10(mel)).float().transpose(1, 2)
