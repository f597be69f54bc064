"""In which order an epoch gives the samples of a data set: a function of the generator, each sample once."""

from typing import Literal

import numpy as np
import numpy.typing as npt

Order = Literal["shuffled", "shards"]
Places = npt.NDArray[np.int64]


def epoch_order(shards: Places, order: Order, buffer: int, rng: np.random.Generator) -> Places:
    """The rows of one epoch ``[rows]``, from the shard that each row lies in ``[rows]``.

    "shuffled": every order is equally likely. Best mixed; for disks.

    "shards": shards in random order, each spread evenly over the time that ``buffer`` shards take, so that about
    ``buffer + 1`` are read from at any time and each is read from in one go. The end of the epoch is mixed with its
    beginning, so that no part of it is mixed less. For object stores behind a cache.
    """
    if order == "shuffled":
        return rng.permutation(len(shards))
    present, number = np.unique(shards, return_inverse=True)
    start = rng.permutation(len(present))[number]
    return np.argsort((start + min(buffer, len(present)) * rng.random(len(shards))) % len(present), kind="stable")
