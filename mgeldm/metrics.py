"""Distances between waves: log-mel L1 and SI-SDR.

Log-mel L1 follows the convention of vocoders (HiFi-GAN, AudioLDM): mel filters over the magnitude, not the power; the
natural logarithm, in which twice the amplitude is 0.69 and figures of the literature lie between 0.5 and 4; a floor of
1e-5, about the noise of 16-bit audio. Window, hop and mel bins shift such figures: compare them within this project.
"""

from functools import lru_cache

import torch
from torchaudio.functional import melscale_fbanks, resample

RATE = 16_000
FFT = 1024
HOP = 256
MELS = 80
FLOOR = 1e-5


def log_mel(wave: torch.Tensor, rate: int = RATE) -> torch.Tensor:
    """Natural logarithm of the mel spectrogram, ``[..., T] -> [..., 80, frames]``.

    At 16 kHz (other rates are resampled): periodic Hann window of 1024, hop 256, centred frames over reflected ends,
    magnitude, 80 area-normalised filters on Slaney's scale from 0 to 8 kHz, clamped at 1e-5.

    Raises:
        ValueError: the wave is shorter than the 513 samples that reflecting takes.
    """
    if rate != RATE:
        wave = resample(wave, rate, RATE)
    if wave.shape[-1] <= FFT // 2:
        raise ValueError(f"log-mel of {wave.shape[-1]} samples at {RATE} Hz: it takes more than {FFT // 2}")
    flat = wave.reshape(-1, wave.shape[-1])
    window = torch.hann_window(FFT, dtype=flat.dtype, device=flat.device)
    magnitude = torch.stft(flat, FFT, HOP, window=window, center=True, pad_mode="reflect", return_complex=True).abs()
    mel = _filters().to(magnitude) @ magnitude
    return mel.clamp(min=FLOOR).log().reshape(*wave.shape[:-1], MELS, -1)


def log_mel_l1(estimate: torch.Tensor, reference: torch.Tensor, rate: int = RATE) -> torch.Tensor:
    """Mean over mel bins and frames of the absolute difference of `log_mel`, ``[..., T] -> [...]``; 0 for equal waves.

    Raises:
        ValueError: the shapes differ, or the waves are too short.
    """
    _same_shape(estimate, reference)
    return (log_mel(estimate, rate) - log_mel(reference, rate)).abs().mean(dim=(-2, -1))


def si_sdr(estimate: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Scale-invariant signal-to-distortion ratio in dB, ``[..., T] -> [...]`` float64 (Le Roux et al., 2019).

    10 log10(|a r|^2 / |a r - e|^2), a = <e, r> / |r|^2, means removed. Infinite for an estimate proportional to the
    reference, minus infinity for one without anything of it, NaN where either is silent: the ratio is undefined there.

    Raises:
        ValueError: the shapes differ.
    """
    _same_shape(estimate, reference)
    estimate, reference = estimate.double(), reference.double()
    estimate = estimate - estimate.mean(dim=-1, keepdim=True)
    reference = reference - reference.mean(dim=-1, keepdim=True)
    factor = (estimate * reference).sum(-1, keepdim=True) / reference.square().sum(-1, keepdim=True)
    target = factor * reference
    return 10 * torch.log10(target.square().sum(-1) / (target - estimate).square().sum(-1))


@lru_cache(maxsize=1)
def _filters() -> torch.Tensor:
    return melscale_fbanks(FFT // 2 + 1, 0.0, RATE / 2, MELS, RATE, norm="slaney", mel_scale="slaney").T


def _same_shape(estimate: torch.Tensor, reference: torch.Tensor) -> None:
    if estimate.shape != reference.shape:
        raise ValueError(f"estimate {tuple(estimate.shape)} and reference {tuple(reference.shape)} must agree in shape")
