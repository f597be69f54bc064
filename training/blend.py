"""How much of the stream each data set gets."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from manifests.errors import ConfigError


def blend(hours: Sequence[float], weights: Sequence[float | None], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Share of each data set in the stream ``[sets]``, summing to 1, from their hours and their weights.

    Where every data set has a weight, weights are relative to each other. Where some have none, a weight is a share of
    the stream, and those without one divide the rest by their hours to the power of 1 / temperature: 1 gives every
    hour the same chance, more brings small data sets forward.

    Raises:
        ConfigError: there is no data set, a weight is not above 0, or nothing is left for those without one.
    """
    if not hours or len(weights) != len(hours):
        raise ConfigError(f"{len(hours)} data sets and {len(weights)} weights; give at least one data set")
    given = np.array([weight or 0.0 for weight in weights])
    free = np.array([weight is None for weight in weights])
    if not (np.isfinite(given) & ((given > 0) | free)).all():
        raise ConfigError(f"weights {list(weights)}: each must be a number above 0")
    if not free.any():
        return given / given.sum()
    if given.sum() >= 1:
        raise ConfigError(f"weights {list(weights)} leave nothing for the data sets without one; they must sum below 1")
    logs = np.log(np.maximum(np.array(hours, dtype=np.float64), np.finfo(np.float64).tiny)) / temperature
    rest = np.where(free, np.exp(logs - logs[free].max()), 0.0)
    return given + (1 - given.sum()) * rest / rest.sum()
