"""Small data set folders whose numbers say where they come from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.shards import (
    PROMPTS_FILE,
    SAMPLE_VERSION,
    SHARDS_FOLDER,
    DatasetCard,
    Sample,
    write_card,
    write_index,
    write_prompts,
    write_shard,
)

CHANNELS, DIM = 4, 8
SPLITS = 2
FRAMES_PER_HOP = 10
WINDOW_FRAMES = 40
TEXTS = ("bass", "drums")
STEMS = (*TEXTS, "guitar", "piano")
PROMPTS = (*STEMS, "organ", "strings")
TEXT_AXIS = 4
"""Prompt k of `STEMS` is 1 on axis TEXT_AXIS + k, where audio embeddings are 0; the other prompts are zeros."""

Sources = Sequence[Sequence[str]]
"""Instruments of the source of each split of a window."""
PLAIN: Sources = (("bass",), ("drums",))
SOURCES: Sequence[Sources] = (
    (("bass",), ("drums",), ("guitar",), ("piano",)),
    (("piano",), ("bass",), ("strings",)),
    (("drums",),),
    (("guitar", "piano"), ("drums",), ("drums",)),
    (("strings",), ("organ",)),
    (("bass", "guitar"), ("strings",)),
)
"""Windows with all `STEMS`; some, in another order; one; one twice, beside two in one source; none; none alone."""


def latents(number: int, frames: int, splits: int = SPLITS) -> npt.NDArray[np.float16]:
    """``[1 + 2K, C, L]``: channel 0 is 100 track + frame, channel 1 the number of the sample, the others are zeros."""
    array = np.zeros((1 + 2 * splits, CHANNELS, frames), np.float16)
    array[:, 0] = 100 * np.arange(1 + 2 * splits)[:, None] + np.arange(frames)
    array[:, 1] = number
    return array


def embeddings(number: int, hops: int, splits: int = SPLITS) -> npt.NDArray[np.float16]:
    """``[1 + 2K, W, D]``: hop, track, sample number and 1."""
    array = np.zeros((1 + 2 * splits, hops, DIM), np.float16)
    array[..., 0] = np.arange(hops)
    array[..., 1] = np.arange(1 + 2 * splits)[:, None]
    array[..., 2] = number
    array[..., 3] = 1
    return array


def sample(number: int, subset: str, frames: int, corpus: str, sources: Sources = PLAIN) -> Sample:
    """Sample ``number``: split k has the instruments k as its source, and the first of them as its text."""
    hops = max(1, 1 + (frames - WINDOW_FRAMES) // FRAMES_PER_HOP)
    return Sample(
        key=f"{corpus}-{number:04d}",
        latents=latents(number, frames, len(sources)),
        embeddings=embeddings(number, hops, len(sources)),
        meta={
            "corpus": corpus,
            "subset": subset,
            "song_id": f"{corpus}/song{number}",
            "splits": [{"source_text": source[0], "source_instruments": list(source)} for source in sources],
        },
    )


def write_dataset(
    data: Path,
    subsets: Mapping[str, int],
    *,
    frames: int = 80,
    corpus: str = "toy",
    per_shard: int = 100,
    sources: Sequence[Sources] = (PLAIN,),
    more: Sequence[Sample] = (),
    **card: Any,
) -> Path:
    """A data set folder with so many samples of each subset; numbers go on from subset to subset.

    ``sources`` are those of the samples, in turn.
    """
    rows, number = [], 0
    for subset, count in subsets.items():
        numbers = range(number, number + count)
        samples = [sample(n, subset, frames, corpus, sources[n % len(sources)]) for n in numbers]
        samples += [extra for extra in more if extra.meta["subset"] == subset]
        number += count
        for begin in range(0, len(samples), per_shard):
            path = data / SHARDS_FOLDER / f"{corpus}-{subset}-{begin:04d}.tar"
            rows += write_shard(path, samples[begin : begin + per_shard])[0]
    write_index(data, rows)
    axes = np.eye(TEXT_AXIS + len(PROMPTS), DIM, dtype=np.float32)[TEXT_AXIS:]
    write_prompts(data / PROMPTS_FILE, dict(zip(PROMPTS, axes, strict=True)))
    write_card(data, DatasetCard(**{**_card(subsets), **card}))
    return data


def _card(subsets: Mapping[str, int]) -> dict[str, Any]:
    return {
        "version": SAMPLE_VERSION,
        "encoder": "toy encoder",
        "codec": {
            "identity": "toy codec",
            "spec": {"sample_rate": 16_000, "hop": 2048, "latent_channels": CHANNELS, "channels": 1, "context": 0},
        },
        "embedder": {"identity": "toy embedder", "spec": {"sample_rate": 16_000, "window_s": 5.12, "dim": DIM}},
        "embed_hop_s": 1.28,
        "prompt_template": "{}",
        "latent_mean": (100.0, 5.0, 0.0, 0.0),
        "latent_std": (80.0, 5.0, 1.0, 1.0),
        "silence_latent": (0.0,) * CHANNELS,
        "samples": sum(subsets.values()),
        "songs": sum(subsets.values()),
        "hours": 1.0,
        "subsets": {subset: count for subset, count in subsets.items() if count},
        "instruments": {},
        "licenses": {},
        "failures": 0,
    }
