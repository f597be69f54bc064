"""The measure of seams between chunks tells a seam from the sound around it."""

import numpy as np
import pytest

from benchmarks.long_audio import seam_change
from mgeldm.codec import CodecSpec
from mgeldm.engine import crop_starts

SPEC = CodecSpec(sample_rate=16_000, channels=1, latent_channels=4, hop=2048, context=0)
CROP = 8


@pytest.mark.parametrize(("step", "low", "high"), [(1.0, 0.9, 1.1), (4.0, 1.5, 10.0)])
def test_a_step_in_level_at_each_seam_is_seen(step: float, low: float, high: float) -> None:
    frames = 200
    wave = np.random.default_rng(0).normal(0, 0.1, frames * SPEC.hop).astype(np.float32)
    seams = [start + CROP for start in crop_starts(frames, CROP, 2)[:-1]]
    for number, seam in enumerate(seams):
        wave[seam * SPEC.hop :] *= step if number % 2 else 1 / step
    at_seams, elsewhere = seam_change(wave, SPEC, CROP)
    assert len(at_seams) == len(seams)
    assert len(at_seams) + len(elsewhere) == frames - 1
    assert low < at_seams.mean() / elsewhere.mean() < high
