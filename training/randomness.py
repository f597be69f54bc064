"""The random choices of a training run: each has numbers of its own, from the seed, its purpose and its place."""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

_BLOCK = 4
"""Numbers that one count of the generator gives."""


class Purpose(IntEnum):
    """What numbers are drawn for. The values decide what a seed means: never renumber them."""

    DATA_SET = 0
    ORDER = 1
    EXAMPLE = 2
    NOISE = 3
    VALIDATION_EXAMPLE = 4
    VALIDATION_NOISE = 5


def generator(seed: int, purpose: Purpose, *place: int) -> np.random.Generator:
    """The generator for one choice; ``place`` are whole numbers from 0, such as the step."""
    return np.random.default_rng(np.random.SeedSequence([seed, purpose, *place]))


def uniforms(seed: int, purpose: Purpose, *place: int, first: int, count: int, width: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) for many places at once ``[count, width]``: row i is that of place ``(*place, first + i)``.

    A row depends on its place alone, not on where the rows begin or how many are drawn: the generator is one that
    counts (Philox), and every place has counts of its own.
    """
    counts = -(-width // _BLOCK)
    philox = np.random.Philox(np.random.SeedSequence([seed, purpose, *place]))
    rng = np.random.Generator(philox.advance(first * counts))
    return rng.random((count, counts * _BLOCK))[:, :width]
