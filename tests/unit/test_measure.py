import math
import tempfile
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import AudioError
from manifests.songs import activity_frames
from mgeldm import audio
from mgeldm.measure import ActivityConfig, Measurement, Meter, decibels, hysteresis, measure
from tests.support.sounds import sound, write_sound

CONFIG = ActivityConfig()


def measured(path: Path, wave: audio.Wave, rate: int, subtype: str = "FLOAT") -> Measurement:
    return measure(write_sound(path, wave, rate, subtype), None, CONFIG)


def plain_activity(wave: audio.Wave, rate: int) -> list[bool]:
    """Frame by frame, sample k in frame floor(10 k / rate); on at -50 dBFS, off below -60 dBFS."""
    frame_of = np.arange(wave.shape[1]) * 10 // rate
    active, out = False, []
    for frame in range(math.ceil(wave.shape[1] * 10 / rate)):
        samples = wave[:, frame_of == frame].astype(np.float64)
        level = 10 * math.log10(np.square(samples).mean()) if samples.any() else -math.inf
        active = level >= -50 or (active and level >= -60)
        out.append(active)
    return out


def swelling(rate: int, channels: int, seconds: float) -> audio.Wave:
    """Noise whose level wanders between -75 and -15 dBFS."""
    rng = np.random.default_rng([rate, channels])
    frames = round(seconds * rate)
    level = np.interp(np.arange(frames), np.linspace(0, frames, 25), rng.uniform(-75, -15, 25))
    return (rng.standard_normal((channels, frames)) * 10 ** (level / 20)).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_loudness_is_that_of_pyloudnorm(tmp_path: Path, rate: int, channels: int) -> None:
    for seconds in (0.4, 1.27, 4.05):
        wave = swelling(rate, channels, seconds)
        expected = pyloudnorm.Meter(rate).integrated_loudness(wave.T.astype(np.float64))
        assert measured(tmp_path / "a.wav", wave, rate).lufs == pytest.approx(expected, abs=1e-6)


def test_loudness_does_not_depend_on_where_blocks_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wave = swelling(11_025, 2, 5.0)
    whole = measured(tmp_path / "a.wav", wave, 11_025)
    for samples in (202, 998, 4410, 20_001):
        monkeypatch.setattr(audio, "BLOCK_SAMPLES", samples)
        parts = measured(tmp_path / "a.wav", wave, 11_025)
        assert parts.lufs == pytest.approx(whole.lufs, abs=1e-9)
        assert parts.fingerprint == whole.fingerprint
        assert parts.activity.tolist() == whole.activity.tolist()


def test_what_has_no_loudness_has_none(tmp_path: Path) -> None:
    rate = 16_000
    assert measured(tmp_path / "a.wav", sound("short", seconds=0.39, rate=rate), rate).lufs is None
    assert measured(tmp_path / "a.wav", np.zeros((2, rate), np.float32), rate).lufs is None
    assert measured(tmp_path / "a.wav", sound("faint", level=1e-5), rate).lufs is None


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_activity_is_that_of_a_plain_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: int, channels: int
) -> None:
    monkeypatch.setattr(audio, "BLOCK_SAMPLES", 7_001)
    wave = swelling(rate, channels, 6.03)
    found = measured(tmp_path / "a.wav", wave, rate)
    assert found.activity.tolist() == plain_activity(wave, rate)
    assert 5 < found.activity.sum() < 58


@given(st.integers(1, 5000), st.sampled_from([4000, 4567, 11_025, 16_000, 44_100]))
@settings(max_examples=60, derandomize=True)
def test_every_length_has_one_activity_frame_for_each_100_ms(frames: int, rate: int) -> None:
    wave = np.full((1, frames), 0.1, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(Path(folder, "a.wav"), wave, rate)
    assert len(found.activity) == activity_frames(frames, rate)
    assert found.activity.tolist() == plain_activity(wave, rate)


def test_activity_switches_on_and_off_at_two_levels() -> None:
    levels = np.array([-55, -49, -55, -59, -61, -55, -50, -60, -np.inf, -55.0])
    assert hysteresis(levels, CONFIG).tolist() == [False, True, True, True, False, False, True, True, False, False]
    assert hysteresis(levels[:0], CONFIG).shape == (0,)
    with pytest.raises(ValueError, match="could never hold"):
        ActivityConfig(on_dbfs=-60, off_dbfs=-50)


def test_length_peak_and_format_are_measured(tmp_path: Path) -> None:
    wave = sound("peak", seconds=1.5, rate=48_000, channels=2)
    wave[1, 1234] = -0.5
    found = measured(tmp_path / "a.wav", wave, 48_000)
    assert (found.sample_rate, found.channels, found.frames) == (48_000, 2, 72_000)
    assert found.peak_dbfs == pytest.approx(-6.0206, abs=1e-4)
    assert found.problem is None
    assert decibels(0.0) is None


def test_a_silent_file_is_never_active(tmp_path: Path) -> None:
    found = measured(tmp_path / "a.wav", np.zeros((1, 16_000), np.float32), 16_000)
    assert not found.activity.any()
    assert (len(found.activity), found.peak_dbfs, found.problem) == (10, None, None)


def test_a_fingerprint_is_of_the_samples_not_of_the_file(tmp_path: Path) -> None:
    wave = np.round(sound("print", channels=2) * 32768) / 32768
    prints = {
        measured(tmp_path / name, wave.astype(np.float32), 16_000, subtype).fingerprint
        for name, subtype in (("a.wav", "PCM_16"), ("b.wav", "FLOAT"), ("c.flac", "PCM_24"))
    }
    assert len(prints) == 1
    louder = wave.astype(np.float32)
    louder[1, -1] += 2**-15
    for other, rate in (
        (louder, 16_000),
        (wave[::-1], 16_000),
        (wave[:1], 16_000),
        (wave, 8_000),
        (wave[:, :-1], 16_000),
    ):
        prints.add(measured(tmp_path / "d.wav", other.astype(np.float32), rate).fingerprint)
    assert len(prints) == 6


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_a_problem_and_spoil_no_figure(tmp_path: Path, value: float) -> None:
    wave = sound("finite", seconds=2)
    clean = measured(tmp_path / "a.wav", np.where(np.arange(wave.shape[1]) == 5000, 0, wave), 16_000)
    wave[0, 5000] = value
    found = measured(tmp_path / "a.wav", wave, 16_000)
    assert found.problem is not None
    assert found.problem.code == "not_finite"
    assert (found.lufs, found.peak_dbfs, found.frames) == (clean.lufs, clean.peak_dbfs, clean.frames)


def test_what_was_read_before_a_truncation_is_measured(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", sound("cut", seconds=4), 16_000)
    path.write_bytes(path.read_bytes()[: 44 + 2 * 16_000])
    found = measure(path, None, CONFIG)
    assert found.problem is not None
    assert (found.problem.code, found.frames, len(found.activity)) == ("truncated", 16_000, 10)


def test_a_file_without_samples_is_empty(tmp_path: Path) -> None:
    found = measured(tmp_path / "a.wav", np.zeros((1, 0), np.float32), 16_000)
    assert found.problem is not None
    assert (found.problem.code, found.frames, found.lufs, len(found.activity)) == ("empty", 0, None, 0)


def test_a_file_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="no such file"):
        measure(tmp_path / "none.wav", None, CONFIG)


def plain_clipped(wave: audio.Wave) -> float:
    """Sample by sample: the share in runs of three or more at the highest or the lowest value, if near full scale."""
    count = 0
    for signal in (wave, -wave):
        if signal.max() < 0.95:
            continue
        for channel in signal == signal.max():
            run = 0
            for at_peak in [*channel, False]:
                count += run if not at_peak and run >= 3 else 0
                run = run + 1 if at_peak else 0
    return count / wave.size


@given(
    st.lists(st.sampled_from([0.0, 0.5, 0.96, 1.0, -0.97, -1.0]), min_size=1, max_size=60),
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(1, 3),
)
@settings(max_examples=200, derandomize=True)
def test_clipping_is_that_of_a_plain_loop(values: list[float], held: int, block: int, channels: int) -> None:
    wave = np.repeat(np.array(values, np.float32), held)
    wave = np.stack([np.roll(wave, channel) for channel in range(channels)])
    meter = Meter(16_000, channels)
    for begin in range(0, wave.shape[1], block):
        meter.add(np.ascontiguousarray(wave[:, begin : begin + block].T))
    assert meter.result("a.wav", CONFIG).clipped == pytest.approx(plain_clipped(wave))


def test_clipping_far_from_the_peak_costs_nothing_and_changes_nothing(tmp_path: Path) -> None:
    wave = np.clip(sound("loud", seconds=20, level=8.0), -0.99, 0.99)
    assert measured(tmp_path / "a.wav", wave, 16_000).clipped == pytest.approx(plain_clipped(wave)) != 0
    assert measured(tmp_path / "a.wav", wave * np.float32(0.5), 16_000).clipped == 0


def test_dc_is_the_mean_of_the_channel_where_it_is_farthest_from_0(tmp_path: Path) -> None:
    wave = sound("dc", channels=2)
    wave -= wave.mean(axis=1, keepdims=True)
    wave += np.array([[0.01], [-0.02]], np.float32)
    assert measured(tmp_path / "a.wav", wave, 16_000).dc == pytest.approx(-0.02, abs=1e-7)


@given(st.lists(st.integers(1, 30_000), min_size=1, max_size=8), st.sampled_from([8_000, 11_025, 44_100, 192_000]))
@settings(max_examples=40, derandomize=True)
def test_nothing_depends_on_where_blocks_end(sizes: list[int], rate: int) -> None:
    wave = swelling(rate, 2, 1.3).T.copy()
    wave[100:2000] += 0.01
    wave[500:600] = 1.0
    found = []
    for parts in ([len(wave)], sizes):
        meter, begin, number = Meter(rate, 2), 0, 0
        while begin < len(wave):
            meter.add(wave[begin : begin + parts[number % len(parts)]])
            begin += parts[number % len(parts)]
            number += 1
        found.append(meter.result("a.wav", CONFIG))
    whole, cut = found
    assert (whole.frames, whole.peak_dbfs, whole.clipped, whole.fingerprint) == (
        cut.frames,
        cut.peak_dbfs,
        cut.clipped,
        cut.fingerprint,
    )
    assert np.array_equal(whole.spectrum, cut.spectrum)
    assert whole.activity.tolist() == cut.activity.tolist()
    assert (cut.lufs, cut.dc) == (pytest.approx(whole.lufs, abs=1e-9), pytest.approx(whole.dc, abs=1e-12))


@pytest.mark.parametrize("rate", [4_000, 44_100, 96_000, 192_000])
def test_loudness_of_low_tones_is_that_of_pyloudnorm(rate: int) -> None:
    # Where the recursions of the K-weighting are nearest to instability.
    wave = (0.3 + 0.3 * np.sin(2 * np.pi * 30 * np.arange(2 * rate + 1) / rate)).astype(np.float32)[:, None]
    meter = Meter(rate, 1)
    meter.add(wave)
    expected = pyloudnorm.Meter(rate).integrated_loudness(wave.astype(np.float64))
    assert meter.result("a.wav", CONFIG).lufs == pytest.approx(expected, abs=1e-6)


def test_one_channel_measures_as_a_file_of_its_own(tmp_path: Path) -> None:
    wave = sound("channels", channels=3)
    path = write_sound(tmp_path / "a.wav", wave, 16_000, "FLOAT")
    alone = measured(tmp_path / "b.wav", wave[1:2], 16_000)
    found = measure(path, None, CONFIG, channel=1)
    assert (found.channels, found.fingerprint, found.lufs) == (1, alone.fingerprint, alone.lufs)
    failed = measure(path, None, CONFIG, channel=3)
    assert failed.problem is not None
    assert "has 3 channels, channel 3 was asked for" in str(failed.problem)


def test_the_sign_of_silence_is_not_in_the_fingerprint(tmp_path: Path) -> None:
    wave = np.zeros((2, 1000), np.float32)
    wave[:, 500] = 0.5
    one = measured(tmp_path / "a.wav", wave, 16_000)
    wave[:, 600:] = -0.0
    assert measured(tmp_path / "a.wav", wave, 16_000).fingerprint == one.fingerprint
