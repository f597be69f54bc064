"""Conditions of training examples, by statistics."""

import subprocess
import sys

import numpy as np
from scipy import stats

from training.conditions import training_conditions


def _conditions(dropout: float, count: int, seed: int = 0) -> np.ndarray:
    """Conditions of many examples; words are e0, sounds of the tracks e1, e2, e3."""
    rng, sounds = np.random.default_rng(seed), np.eye(4, dtype=np.float32)[1:]
    words = np.tile(np.eye(4, dtype=np.float32)[0], (count, 1))
    return training_conditions(np.tile(sounds, (count, 1, 1)), words, 2, dropout, rng.random((count, 4)))


def test_words_and_sound_are_mixed_evenly_for_one_track() -> None:
    found = _conditions(0.0, 5000)
    assert (found[:, :2] == np.eye(4)[1:3]).all()
    np.testing.assert_allclose(found[:, 2, 0] + found[:, 2, 3], 1, atol=1e-6)
    assert stats.kstest(found[:, 2, 0], stats.uniform.cdf).pvalue > 0.001


def test_conditions_are_dropped_track_by_track() -> None:
    dropped = (_conditions(0.4, 8000) == 0).all(axis=2)
    kinds, found = np.unique(dropped @ np.array([1, 2, 4]), return_counts=True)
    assert kinds.tolist() == list(range(8))
    expected = [8000 * 0.4 ** bin(kind).count("1") * 0.6 ** (3 - bin(kind).count("1")) for kind in kinds.tolist()]
    assert stats.chisquare(found, expected).pvalue > 0.001
    assert not (_conditions(0.0, 100) == 0).all(axis=2).any()
    assert (_conditions(1.0, 100) == 0).all()


def test_sounds_are_not_written_to() -> None:
    sounds = np.ones((1, 3, 4), np.float32)
    training_conditions(sounds, np.zeros((1, 4), np.float32), 2, 1.0, np.zeros((1, 4)))
    assert (sounds == 1).all()


def test_a_process_that_only_streams_does_without_torch() -> None:
    """Which alone would take more memory than the stream may."""
    code = "import sys, training.stream; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
