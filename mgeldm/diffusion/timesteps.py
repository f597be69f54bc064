"""Which tracks are noised, and how much, in each training example."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mgeldm.diffusion.schedule import TAU_MIN

_NOISED = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 1], [1, 1, 0]], dtype=np.float64)


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
        weights = self._weights()
        if not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() <= 0:
            raise ValueError(
                f"timestep pattern weights (all, mix_given, submix_given, source_given) are {weights.tolist()}: "
                "give finite weights of at least 0, one of them above 0"
            )
        if not 0 < self.tau_min < 1:
            raise ValueError(
                f"tau_min is {self.tau_min}: it must lie between 0 and 1, both excluded (paper: {TAU_MIN})"
            )

    def sample(self, batch: int, rng: np.random.Generator) -> Tensor:
        """Draw a pattern and a level for every example, independently.

        Two uniform numbers are used per example, in order, so the first examples of a batch do not
        depend on its size.

        Args:
            batch: Number of examples B.
            rng: Source of randomness; advanced by 2 B uniform numbers.

        Returns:
            tau `[B, 3]` float32: 0 for a given track, else the example's t in [tau_min, 1].
        """
        choice, level = rng.random((batch, 2)).T
        cumulative = np.cumsum(self._weights())
        pattern = np.searchsorted(cumulative / cumulative[-1], choice, side="right")
        tau = self.tau_min + (1 - self.tau_min) * level
        return torch.from_numpy((_NOISED[pattern] * tau[:, None]).astype(np.float32))

    def _weights(self) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return np.array([self.all, self.mix_given, self.submix_given, self.source_given], dtype=np.float64)
