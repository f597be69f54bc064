"""The measure of seams between chunks tells a seam from the sound around it."""

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.long_audio import at_seams_and_without, spectral_change
from mgeldm.codec import CodecSpec
from mgeldm.engine import crop_starts

SPEC = CodecSpec(sample_rate=16_000, channels=1, latent_channels=4, hop=2048, context=0)
CROP, SHARED, SHIFT = 8, 2, 3
FRAMES = 200


def with_steps(wave: npt.NDArray[np.float32], step: float) -> npt.NDArray[np.float32]:
    """The sound, louder or softer from the frame on where each chunk has passed into the next."""
    made = wave.copy()
    for number, start in enumerate(crop_starts(len(wave) // SPEC.hop, CROP, SHARED)[:-1]):
        made[(start + CROP) * SPEC.hop :] *= step if number % 2 else 1 / step
    return made


@pytest.mark.parametrize(("step", "low", "high"), [(1.0, 0.99, 1.01), (4.0, 1.5, 10.0)])
def test_a_step_in_level_at_each_seam_is_seen(step: float, low: float, high: float) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, FRAMES * SPEC.hop).astype(np.float32)
    one, other = (spectral_change(with_steps(part, step), SPEC) for part in (wave, wave[SHIFT * SPEC.hop :]))
    assert (len(one), len(other)) == (FRAMES - 1, FRAMES - 1 - SHIFT)
    at_seams, without = at_seams_and_without(one, other, CROP, SHARED, SHIFT)
    # All but the first chunk and the last of each; one frame is between held ones and new ones, so that two places are.
    assert at_seams.shape == without.shape == (31 + 31, 2)
    passing, after = at_seams.mean(axis=0) / without.mean(axis=0)
    assert 0.99 < passing < 1.01
    assert low < after < high


def test_places_are_those_of_the_transition() -> None:
    """Frame 7 lies between those held and the next chunk's own: it may differ from 6, and 8 from it."""
    one, other = np.zeros(FRAMES - 1, np.float32), np.zeros(FRAMES - 1 - SHIFT, np.float32)
    one[[6, 7]] = 1.0
    at_seams, without = at_seams_and_without(one, other, CROP, SHARED, SHIFT)
    assert (at_seams[0].tolist(), at_seams[1:].sum(), without.sum()) == ([1.0, 1.0], 0.0, 0.0)
