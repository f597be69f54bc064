"""The random choices of a training run: each has a generator of its own, from the seed, its purpose and its place."""

from enum import IntEnum

import numpy as np


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
