"""Resampling on the device where the samples are needed."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torchaudio.transforms import Resample

from mgeldm import audio


def resample_on(device: torch.device, wave: audio.Wave, rate: int, target: int) -> torch.Tensor:
    """``[channels, frames]`` of ``rate`` -> ``[channels, ceil(frames * target / rate)]`` on ``device``.

    A CPU resamples with soxr, a GPU with a windowed sinc of like quality; they differ near half the lower rate.
    """
    if device.type == "cpu":
        return torch.from_numpy(np.ascontiguousarray(audio.resample(wave, rate, target)))
    moved = torch.from_numpy(np.ascontiguousarray(wave)).to(device)
    if rate == target or not wave.shape[1]:
        return moved
    frames = audio.resampled_frames(wave.shape[1], rate, target)
    out = _resampler(rate, target, device)(moved)[..., :frames]
    return torch.nn.functional.pad(out, (0, frames - out.shape[-1]))


# As torchaudio documents librosa's "kaiser_best".
KAISER_BEST: dict[str, Any] = {
    "lowpass_filter_width": 64,
    "rolloff": 0.9475937167399596,
    "resampling_method": "sinc_interp_kaiser",
    "beta": 14.769656459379492,
}


@lru_cache(maxsize=16)
def _resampler(rate: int, target: int, device: torch.device) -> Resample:
    return Resample(rate, target, **KAISER_BEST).to(device)
