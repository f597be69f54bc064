"""What each track of a training example is conditioned with (arXiv 2505.23305, section 3)."""

from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]


def training_conditions(
    audio: npt.NDArray[np.floating[Any]], text: Vectors, described: int, dropout: float, rng: np.random.Generator
) -> Vectors:
    """Embeddings of one example: words mixed in for one track, and each track's dropped for classifier-free guidance.

    Args:
        audio: Embedding of each track's sound `[K, D]`; not written to.
        text: Embedding `[D]` of the words of one track.
        described: The track that has words: its embedding is a text + (1 - a) audio, a ~ U[0, 1).
        dropout: Probability that a track's embedding is zeros, drawn for each track by itself.
        rng: Source of randomness; advanced by 1 + K uniform numbers.

    Returns:
        `[K, D]` float32.
    """
    conditions = audio.astype(np.float32)
    share = np.float32(rng.uniform())
    conditions[described] = share * text + (1 - share) * conditions[described]
    conditions[rng.uniform(size=len(conditions)) < dropout] = 0.0
    return conditions
