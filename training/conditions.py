"""What each track of a training example is conditioned with (arXiv 2505.23305, section 3)."""

from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


def training_conditions(
    audio: npt.NDArray[np.floating[Any]],
    text: Vectors,
    described: int,
    dropout: float,
    levels: npt.NDArray[np.floating[Any]],
) -> Vectors:
    """Embeddings of examples: words mixed in for one track, and each track's dropped for classifier-free guidance.

    Args:
        audio: Embedding of each track's sound `[B, K, D]`; not written to.
        text: Embedding of the words of one track `[B, D]`.
        described: The track that has words: its embedding is a text + (1 - a) audio, a ~ U[0, 1).
        dropout: Probability that a track's embedding is zeros, drawn for each track by itself.
        levels: Uniform numbers in [0, 1) `[B, 1 + K]`: a, then what decides on each track.

    Returns:
        `[B, K, D]` float32.
    """
    conditions = audio.astype(np.float32)
    share = levels[:, :1].astype(np.float32)
    conditions[:, described] = share * text + (1 - share) * conditions[:, described]
    conditions[levels[:, 1:] < dropout] = 0.0
    return conditions
