"""Log-mel L1 and SI-SDR against plain numpy in float64."""

import math

import librosa
import numpy as np
import numpy.typing as npt
import pytest
import torch

from mgeldm.metrics import log_mel, log_mel_l1, si_sdr
from tests.support.sounds import sound

Float = npt.NDArray[np.float64]


def plain_log_mel(wave: Float) -> Float:
    padded = np.pad(wave, 512, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    starts = range(0, len(padded) - 1023, 256)
    magnitude = np.abs(np.stack([np.fft.rfft(window * padded[start : start + 1024]) for start in starts], axis=1))
    filters = librosa.filters.mel(sr=16_000, n_fft=1024, n_mels=80, fmin=0, fmax=8000, htk=False, norm="slaney")
    return np.log(np.maximum(filters.astype(np.float64) @ magnitude, 1e-5))


def plain_si_sdr(estimate: Float, reference: Float) -> float:
    estimate, reference = estimate - estimate.mean(), reference - reference.mean()
    target = (estimate @ reference) / (reference @ reference) * reference
    return float(10 * np.log10(((target) ** 2).sum() / ((target - estimate) ** 2).sum()))


def waves(*names: str, seconds: float = 0.7) -> Float:
    return np.concatenate([sound(name, seconds=seconds) for name in names]).astype(np.float64)


def test_log_mel_by_hand() -> None:
    both = waves("a", "b")
    both[1, 3000:8000] = 0
    expected = np.stack([plain_log_mel(wave) for wave in both])
    assert expected.min() == pytest.approx(math.log(1e-5))
    np.testing.assert_allclose(log_mel(torch.from_numpy(both)).numpy(), expected, atol=2e-3)
    single = log_mel(torch.from_numpy(both).float()).numpy()
    assert np.abs(single - expected).mean() < 1e-3


def test_log_mel_l1_by_hand() -> None:
    a, b = waves("a", "b", "c"), waves("d", "e", "f")
    expected = [np.abs(plain_log_mel(x) - plain_log_mel(y)).mean() for x, y in zip(a, b, strict=True)]
    actual = log_mel_l1(torch.from_numpy(a).float(), torch.from_numpy(b).float())
    assert actual.shape == (3,)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-3)


def test_log_mel_l1_of_known_pairs() -> None:
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 16_000)).astype(np.float32))
    assert log_mel_l1(noise, noise).item() == 0
    assert log_mel_l1(0.5 * noise, noise).item() == pytest.approx(math.log(2), rel=1e-4)
    assert log_mel_l1(noise, torch.zeros_like(noise)).item() > 8
    # The scalar form, and symmetry.
    assert log_mel_l1(noise[0], -0.1 * noise[0]).item() == pytest.approx(math.log(10), rel=1e-4)


def test_other_rates_are_resampled() -> None:
    time = np.arange(44_100) / 44_100
    high = torch.from_numpy(0.3 * np.sin(2 * np.pi * 440 * time))
    low = torch.from_numpy(0.3 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000))
    inner = slice(5, -5)
    mel_high, mel_low = log_mel(high, 44_100), log_mel(low)
    assert mel_high.shape == mel_low.shape
    loud = mel_low[:, inner] > -4
    torch.testing.assert_close(mel_high[:, inner][loud], mel_low[:, inner][loud], atol=0.02, rtol=0)


def test_si_sdr_by_hand() -> None:
    references, noise = waves("a", "b", "c"), waves("d", "e", "f")
    estimates = 0.3 * references + np.array([[0.01], [0.1], [1.0]]) * noise + 0.2
    expected = [plain_si_sdr(x, y) for x, y in zip(estimates, references, strict=True)]
    assert expected[0] > 20
    assert expected[2] < 0
    actual = si_sdr(torch.from_numpy(estimates), torch.from_numpy(references))
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-9)


def test_si_sdr_ignores_scale_and_is_the_noise_level_for_orthogonal_noise() -> None:
    time = np.arange(16_000) / 16_000
    tone, other = np.sin(2 * np.pi * 100 * time), np.sin(2 * np.pi * 300 * time)
    for scale in (0.01, 1.0, -7.0):
        estimate = torch.from_numpy(scale * (tone + 0.1 * other))
        assert si_sdr(estimate, torch.from_numpy(tone)).item() == pytest.approx(20.0, abs=1e-6)


def test_si_sdr_at_its_ends() -> None:
    wave = torch.from_numpy(waves("a")[0])
    assert si_sdr(2 * wave, wave).item() > 250
    assert math.isnan(si_sdr(wave, torch.zeros_like(wave)).item())
    assert math.isnan(si_sdr(torch.zeros_like(wave), wave).item())


def test_shapes_must_agree() -> None:
    for metric in (log_mel_l1, si_sdr):
        with pytest.raises(ValueError, match=r"estimate \(2000,\) and reference \(1, 2000\)"):
            metric(torch.zeros(2000), torch.zeros(1, 2000))


def test_too_short_for_a_spectrum() -> None:
    with pytest.raises(ValueError, match="log-mel of 512 samples"):
        log_mel(torch.zeros(512))
    assert log_mel(torch.zeros(513)).shape == (80, 3)
