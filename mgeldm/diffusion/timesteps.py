"""Which tracks are noised, and how much, in each training example."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mgeldm.diffusion.schedule import TAU_MIN

Weights = Sequence[float]


def draw_timesteps(
    given: npt.NDArray[np.bool_], weights: Weights, tau_min: float, batch: int, rng: np.random.Generator
) -> Tensor:
    """Draw a pattern and a level for every example, independently.

    Two uniform numbers are used per example, in order, so the first examples of a batch do not depend on its size.

    Args:
        given: Patterns `[P, K]`: which tracks are given in each.
        weights: Weight of each pattern `[P]`; they need not sum to 1.
        tau_min: Lower end of the level t ~ U[tau_min, 1].
        batch: Number of examples B.
        rng: Source of randomness; advanced by 2 B uniform numbers.

    Returns:
        tau `[B, K]` float32: 0 for a given track, else the example's t in [tau_min, 1].
    """
    choice, level = rng.random((batch, 2)).T
    cumulative = np.cumsum(np.asarray(weights, dtype=np.float64))
    pattern = np.searchsorted(cumulative / cumulative[-1], choice, side="right")
    tau = tau_min + (1 - tau_min) * level
    return torch.from_numpy((~given[pattern] * tau[:, None]).astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class TimestepPatterns:
    """Weights of the four timestep patterns of training (arXiv 2505.23305, section 3).

    A pattern says which tracks (mix, submix, source) share the noise level t; a zero marks a given
    track. Weights need not sum to 1.

    Attributes:
        all: Weight of (t, t, t): total generation.
        mix_given: Weight of (0, t, t): source extraction.
        submix_given: Weight of (t, 0, t): source imputation.
        source_given: Weight of (t, t, 0): accompaniment.
        tau_min: Lower end of t ~ U[tau_min, 1], in (0, 1).

    Raises:
        ValueError: On a negative or non-finite weight, on no positive weight, or on `tau_min` outside (0, 1).
    """

    all: float = 0.25
    mix_given: float = 0.25
    submix_given: float = 0.25
    source_given: float = 0.25
    tau_min: float = TAU_MIN

    def __post_init__(self) -> None:
        """Refuse weights that make no distribution."""
        _check(self._weights(), "all, mix_given, submix_given, source_given", self.tau_min)

    def sample(self, batch: int, rng: np.random.Generator) -> Tensor:
        """Timesteps `[B, 3]` of a batch; see `draw_timesteps`."""
        given = np.vstack([np.zeros(3, dtype=bool), np.eye(3, dtype=bool)])
        return draw_timesteps(given, self._weights(), self.tau_min, batch, rng)

    def _weights(self) -> Weights:
        return self.all, self.mix_given, self.submix_given, self.source_given


@dataclass(frozen=True, kw_only=True)
class SubsetPatterns:
    """Timestep patterns for any number of tracks, such as the four stems of a fixed-class model.

    Attributes:
        tracks: K.
        weights: Weight of the patterns in which so many tracks are given: none, any one, any two, ... K - 1 at most.
            Which ones is drawn evenly. (1,) is one timestep for all; (1, 3) for three tracks is the paper's.
        tau_min: Lower end of t ~ U[tau_min, 1], in (0, 1).

    Raises:
        ValueError: As `TimestepPatterns`, or on more weights than tracks.
    """

    tracks: int
    weights: tuple[float, ...] = (1.0,)
    tau_min: float = TAU_MIN

    def __post_init__(self) -> None:
        """Refuse weights that make no distribution."""
        if not 1 <= len(self.weights) <= self.tracks:
            raise ValueError(
                f"timestep pattern weights {list(self.weights)} for {self.tracks} tracks: give one for each number of "
                "given tracks from 0, and leave at least one track to be noised"
            )
        _check(self.weights, "none given, one given, ...", self.tau_min)

    def sample(self, batch: int, rng: np.random.Generator) -> Tensor:
        """Timesteps `[B, K]` of a batch; see `draw_timesteps`."""
        given, weights = _subsets(self.tracks, tuple(self.weights))
        return draw_timesteps(given, weights, self.tau_min, batch, rng)


@cache
def _subsets(tracks: int, weights: tuple[float, ...]) -> tuple[npt.NDArray[np.bool_], Weights]:
    """All patterns of `SubsetPatterns` ``[P, K]`` and the weight of each."""
    subsets = [
        (chosen, weight / math.comb(tracks, count))
        for count, weight in enumerate(weights)
        for chosen in combinations(range(tracks), count)
    ]
    given = np.stack([np.isin(np.arange(tracks), chosen) for chosen, _ in subsets])
    return given, [weight for _, weight in subsets]


def _check(weights: Weights, names: str, tau_min: float) -> None:
    if not all(0 <= weight < math.inf for weight in weights) or sum(weights) <= 0:
        raise ValueError(
            f"timestep pattern weights ({names}) are {list(weights)}: give finite weights of at least 0, one of them "
            "above 0"
        )
    if not 0 < tau_min < 1:
        raise ValueError(f"tau_min is {tau_min}: it must lie between 0 and 1, both excluded (paper: {TAU_MIN})")
