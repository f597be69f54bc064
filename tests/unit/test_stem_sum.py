import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgeldm import audio
from mgeldm.stem_sum import LockStep, SumComparison, SumMatch

RATE = 8_000


def noise(seed: int, seconds: float, rate: int = RATE) -> audio.Wave:
    rng = np.random.default_rng(seed)
    return (0.1 * rng.standard_normal(round(seconds * rate))).astype(np.float32)


def shifted(wave: audio.Wave, lag: int) -> audio.Wave:
    """``wave`` later by ``lag`` samples, of the same length."""
    moved = np.zeros_like(wave)
    moved[max(0, lag) : len(wave) + min(0, lag)] = wave[max(0, -lag) : len(wave) - max(0, lag)]
    return moved


def mean_and_side(wave: audio.Wave) -> audio.Wave:
    """``[2, n]``, left and right, as what is compared."""
    return (np.stack([wave[0] + wave[1], wave[0] - wave[1]]) / 2).astype(np.float32)


def compared(stems: audio.Wave, mixture: audio.Wave, sizes: list[int]) -> SumMatch | None:
    """``stems`` and ``mixture`` are ``[n]``, or mean and side ``[2, n]``."""
    stems, mixture = np.atleast_2d(stems, mixture)
    comparison = SumComparison(RATE, len(stems))
    begin = 0
    while begin < stems.shape[1]:
        size = sizes[begin % len(sizes)]
        comparison.add(list(stems[:, begin : begin + size]), list(mixture[:, begin : begin + size]))
        begin += size
    return comparison.result()


@settings(max_examples=25, derandomize=True)
@given(
    st.integers(-400, 400),
    st.floats(0.1, 3),
    st.lists(st.integers(1, 40_000), min_size=1, max_size=4),
    st.sampled_from([0.02, 0.7, 5.3, 14.2]),
)
def test_gain_and_lag_are_found_wherever_blocks_end(lag: int, gain: float, sizes: list[int], seconds: float) -> None:
    stems = noise(1, seconds)
    # A margin, so that nothing is shifted out.
    stems = np.pad(stems, 400)
    mixture = (shifted(stems, lag) * np.float32(gain)).astype(np.float32)
    match = compared(stems, mixture, [max(size, len(stems) // 50) for size in sizes])
    assert match is not None
    assert match.gain_db == pytest.approx(20 * np.log10(gain), abs=1e-3)
    assert match.lag_s == lag / RATE
    assert match.residual_db < -60


@pytest.mark.parametrize("lag", [0, 37, -250])
@pytest.mark.parametrize("noise_db", [-10.0, -30.0, -50.0])
def test_the_residual_is_that_of_the_whole_signals(lag: int, noise_db: float) -> None:
    stems = np.pad(noise(1, 25), 400)
    other = noise(2, len(stems) / RATE) * 10 ** (noise_db / 20)
    mixture = (0.5 * shifted(stems, lag) + other).astype(np.float32)
    match = compared(stems, mixture, [30_001, 7])
    a, b = shifted(stems, lag).astype(np.float64), mixture.astype(np.float64)
    gain = a @ b / (a @ a)
    left = b - gain * a
    assert match is not None
    assert match.lag_s == lag / RATE
    assert match.gain_db == pytest.approx(20 * np.log10(gain), abs=1e-4)
    assert match.residual_db == pytest.approx(10 * np.log10(left @ left / (b @ b)), abs=1e-3)


@pytest.mark.parametrize("seconds", [3, 25])
@pytest.mark.parametrize("lag", [0, 37, -250])
def test_the_residual_is_that_of_left_and_right(lag: int, seconds: int) -> None:
    left, right = np.pad(noise(1, seconds), 400), np.pad(noise(2, seconds), 400)
    # The right one is too quiet, and something else is in it.
    mixed = np.stack([shifted(left, lag), 0.6 * shifted(right, lag) + 0.3 * noise(3, len(right) / RATE)])
    match = compared(mean_and_side(np.stack([left, right])), mean_and_side(mixed), [30_001, 7])
    a = np.concatenate([shifted(left, lag), shifted(right, lag)]).astype(np.float64)
    b = mixed.reshape(-1).astype(np.float64)
    gain = a @ b / (a @ a)
    rest = b - gain * a
    assert match is not None
    assert match.lag_s == lag / RATE
    assert match.gain_db == pytest.approx(20 * np.log10(gain), abs=1e-4)
    assert match.residual_db == pytest.approx(10 * np.log10(rest @ rest / (b @ b)), abs=1e-3)


def test_left_and_right_exchanged_leave_what_stands_in_one_of_them() -> None:
    left, right, both = noise(1, 12), noise(2, 12), noise(3, 12)
    stems = np.stack([left + both, right + both])
    match = compared(mean_and_side(stems), mean_and_side(stems[::-1]), [50_000])
    # Left and right have half of their energy in common: gain 1/2, which leaves three quarters.
    assert match is not None
    assert match.gain_db == pytest.approx(20 * np.log10(0.5), abs=0.1)
    assert match.residual_db == pytest.approx(10 * np.log10(0.75), abs=0.05)


def test_signals_that_stand_in_the_side_alone_are_compared() -> None:
    stems = mean_and_side(np.stack([noise(1, 12), -noise(1, 12)]))
    match = compared(stems, 0.5 * stems, [50_000])
    assert match is not None
    assert (match.gain_db, match.lag_s) == (pytest.approx(20 * np.log10(0.5), abs=1e-4), 0.0)
    assert match.residual_db < -100


def test_equal_signals_leave_nothing_and_lag_nothing() -> None:
    tone = np.sin(2 * np.pi * 50 * np.arange(20 * RATE) / RATE).astype(np.float32)
    for wave in (noise(1, 20), tone):
        match = compared(wave, wave, [9_999])
        assert match is not None
        assert (match.gain_db, match.lag_s) == (pytest.approx(0, abs=1e-9), 0.0)
        assert match.residual_db <= -110


def test_signals_that_have_nothing_in_common_leave_everything() -> None:
    match = compared(noise(1, 12), noise(2, 12), [50_000])
    assert match is not None
    assert match.residual_db > -0.1
    assert (match.gain_db, match.lag_s) == (None, None)
    assert compared(noise(1, 1), np.zeros(RATE, np.float32), [500]) is None
    assert compared(np.zeros(0, np.float32), np.zeros(0, np.float32), [500]) is None


def test_a_mixture_upside_down_is_told_from_a_delay() -> None:
    match = compared(noise(1, 12), -0.5 * shifted(noise(1, 12), 40), [50_000])
    assert match is not None
    assert match.inverted
    assert match.lag_s == 40 / RATE
    assert match.gain_db == pytest.approx(20 * np.log10(0.5), abs=1e-2)
    assert match.residual_db < -30


def test_a_silent_beginning_does_not_decide_the_lag() -> None:
    stems = np.concatenate([np.zeros(30 * RATE, np.float32), noise(1, 12)])
    match = compared(stems, shifted(stems, 100), [20_000])
    assert match is not None
    assert match.lag_s == 100 / RATE


@settings(max_examples=20, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5000)), max_size=20))
def test_signals_come_out_in_step_and_whole(blocks: list[tuple[int, int]]) -> None:
    rates = [8_000, 8_000, 16_000]
    waves = [noise(seed, 1 + 0.3 * seed, rate) for seed, rate in enumerate(rates)]
    steps = LockStep(rates, 8_000)
    done = [0, 0, 0]
    taken: list[list[audio.Wave]] = []
    for index, size in blocks:
        size = min(size, len(waves[index]) - done[index])
        steps.add(index, waves[index][done[index] : done[index] + size])
        done[index] += size
        taken.append(steps.take())
    for index, wave in enumerate(waves):
        steps.add(index, wave[done[index] :], last=True)
        taken.append(steps.take())
    assert all(len({len(piece) for piece in pieces}) == 1 for pieces in taken)
    whole = [np.concatenate([pieces[index] for pieces in taken]) for index in range(3)]
    longest = max(len(whole[0]), round(1.6 * 8_000))
    assert abs(len(whole[0]) - longest) <= 1
    for index in (0, 1):
        assert np.array_equal(whole[index], audio.fit(waves[index], len(whole[index])))
    expected = audio.resample(waves[2][None], 16_000, 8_000)[0]
    assert np.abs(audio.fit(whole[2], 12_700) - expected[:12_700]).max() < 1e-3
