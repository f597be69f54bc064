from pathlib import Path

import av
import numpy as np
import pytest
from scipy.signal import get_window

from mgeldm import audio
from mgeldm.bandwidth import WINDOW, Spectrum, bandwidth

RATE = 44_100
SECONDS = 12


def heard(wave: audio.Wave, rate: int = RATE, block: int = 1 << 19) -> tuple[float | None, bool]:
    spectrum = Spectrum(rate)
    for begin in range(0, wave.shape[1], block):
        spectrum.add(wave.mean(axis=0)[begin : begin + block])
    return bandwidth(spectrum.power(), rate, 24.0)


def as_16_bits(wave: audio.Wave) -> audio.Wave:
    return (np.round(wave * 32768) / 32768).astype(np.float32)


def pink(rate: int = RATE, seconds: int = SECONDS, slope: float = 0.5, seed: int = 0) -> audio.Wave:
    """Noise whose power falls with frequency to the power of twice the slope: 0.5 is music, 2 is a bass."""
    rng = np.random.default_rng(seed)
    bins = np.fft.rfft(rng.standard_normal(rate * seconds))
    bins /= np.maximum(np.fft.rfftfreq(rate * seconds, 1 / rate), 40) ** slope
    wave = np.fft.irfft(bins, rate * seconds)[None]
    return (0.3 * wave / np.abs(wave).max()).astype(np.float32)


@pytest.mark.parametrize("quantised", [False, True])
def test_an_upsampled_file_is_told_from_a_full_one(quantised: bool) -> None:
    for own in (8_000, 16_000, 22_050):
        wave = audio.resample(pink(own), own, RATE)
        found, cut = heard(as_16_bits(wave) if quantised else wave)
        assert cut
        assert found == pytest.approx(own / 2, rel=0.08)
    for slope in (0.0, 0.5, 1.0):
        wave = pink(slope=slope)
        _, cut = heard(as_16_bits(wave) if quantised else wave)
        assert not cut


def test_a_bass_is_not_taken_for_an_upsampled_file() -> None:
    time = np.arange(RATE * SECONDS) / RATE
    tone = sum(np.sin(2 * np.pi * 55 * k * time) / k**2 for k in range(1, 12))[None] * 0.2
    for wave in (pink(slope=2.0), pink(slope=4.0), tone, np.sin(2 * np.pi * 220 * time)[None] * 0.3):
        found, cut = heard(as_16_bits(wave.astype(np.float32)))
        assert not cut
        assert found is not None
        assert found < 5_000


def test_white_noise_fills_the_band() -> None:
    found, cut = heard(pink(slope=0.0))
    assert not cut
    assert found == pytest.approx(RATE / 2, rel=0.01)


@pytest.mark.parametrize("bits_per_second", [48_000, 64_000])
def test_the_shelf_of_a_codec_is_a_cut(tmp_path: Path, bits_per_second: int) -> None:
    wave, path = pink(slope=0.5), tmp_path / "a.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        stream.bit_rate = bits_per_second
        for begin in range(0, wave.shape[1], 1024):
            block = np.ascontiguousarray(wave[:, begin : begin + 1024])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = RATE, begin
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    shelved, cut = heard(audio.read(path))
    assert cut
    assert shelved is not None
    assert 9_000 < shelved < 0.86 * RATE / 2


def test_silence_has_no_bandwidth_and_short_sounds_do() -> None:
    assert heard(np.zeros((1, RATE), np.float32)) == (None, False)
    wave = np.zeros((1, 9 * RATE), np.float32)
    wave[:, 5 * RATE : 5 * RATE + 2000] = pink()[:, :2000]
    assert heard(wave)[0] is not None
    assert heard(pink()[:, :500])[0] is not None


def test_a_short_song_is_judged_by_more_than_its_first_second() -> None:
    wave = pink(slope=0.0, seconds=5)
    wave[:, :RATE] = audio.resample(pink(8_000, seconds=1), 8_000, RATE)
    found, cut = heard(wave)
    assert not cut
    assert found == pytest.approx(RATE / 2, rel=0.01)


def test_windows_are_a_second_apart_and_then_ten() -> None:
    heard_seconds = [*range(10), 19, 29, 39]
    # Each second has a power of its own, so that the mean tells which were looked at.
    levels = np.sqrt(1 + np.arange(40.0) ** 2).astype(np.float32)
    wave = np.tile(pink(slope=0.0, seconds=1)[0], 40) * np.repeat(0.02 * levels, RATE)
    found, one = Spectrum(RATE), Spectrum(RATE)
    found.add(wave)
    one.add(wave[:RATE])
    assert found.power() == pytest.approx(one.power() * np.square(levels[heard_seconds]).mean(), rel=1e-4)


@pytest.mark.parametrize("size", [1_000, 4_097, 100_000])
def test_windows_do_not_overlap_at_a_low_rate(size: int) -> None:
    wave = pink(2_000, seconds=12)[0]
    found = Spectrum(2_000)
    for begin in range(0, len(wave), size):
        found.add(wave[begin : begin + size])
    shape = get_window("blackmanharris", WINDOW)
    windows = [wave[begin : begin + WINDOW] for begin in range(0, len(wave) - WINDOW, WINDOW)]
    expected = np.mean([np.abs(np.fft.rfft(window * shape)) ** 2 for window in windows], axis=0)
    assert found.power() == pytest.approx(expected, rel=1e-3)


def test_blocks_do_not_matter() -> None:
    wave = pink()
    wave[:, : 3 * RATE] = 0
    whole = heard(wave)
    assert [heard(wave, block=size) for size in (999, 4096, 44_100)] == [whole] * 3


def test_a_filter_of_48_db_an_octave_is_no_cut() -> None:

    wave = pink(slope=0.5)
    bins = np.fft.rfft(wave)
    bins *= np.minimum(1, (6_000 / np.maximum(np.fft.rfftfreq(wave.shape[1], 1 / RATE), 1)) ** 8)
    assert not heard(np.fft.irfft(bins).astype(np.float32))[1]
