"""Data sets of sealed shards without encoding: what encode's end writes, of samples with random numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manifests.shards import (
    PROMPTS_FILE,
    SHARDS_FOLDER,
    DatasetCard,
    Sample,
    write_card,
    write_index,
    write_prompts,
    write_shard,
)
from manifests.units import Failure, Sidecar, Unit, write_failures, write_sidecar, write_units
from pipelines.croissant import write_croissant
from pipelines.dataset_readme import write_readme
from pipelines.encode_unit import latent_moments

CHANNELS = 4
TEXTS = ("bass", "drums")
SPLITS = ({"source": ("a",), "submix": ("b",), "source_text": "bass", "submix_text": "drums"},)


def sealed_sample(number: int, corpus: str = "toy", seed: int = 0) -> Sample:
    """Window ``number`` of song ``number // 2``; even songs train, odd ones test."""
    rng = np.random.default_rng([number, seed])
    song = number // 2
    return Sample(
        key=f"{corpus}-{number:04d}",
        latents=rng.standard_normal((3, CHANNELS, 16)).astype(np.float16),
        embeddings=rng.standard_normal((3, 3, 8)).astype(np.float16),
        meta={
            "version": "1",
            "encoder": "e",
            "song_id": f"{corpus}/{song}",
            "corpus": corpus,
            "subset": ("train", "test")[song % 2],
            "license": ("CC0-1.0", "MIT")[song % 2],
            "start_s": 2.0 * number,
            "duration_s": 2.0,
            "splits": [
                {
                    **{k: list(v) if isinstance(v, tuple) else v for k, v in split.items()},
                    "source_instruments": ["bass"],
                }
                for split in SPLITS
            ],
        },
    )


def write_sealed(
    data: Path, shards: Mapping[str, Sequence[Sample]], failures: Sequence[Failure] = (), **changes: Any
) -> Path:
    """A finished data set of these shards; ``changes`` are fields of its card."""
    sidecars = []
    for name, samples in shards.items():
        rows, digest, size = write_shard(data / SHARDS_FOLDER / f"{name}.tar", samples)
        if not samples:  # as encode leaves a unit of which nothing could be encoded
            (data / SHARDS_FOLDER / f"{name}.tar").unlink()
            size = 0
        latents = [sample.latents.astype(np.float64) for sample in samples]
        values = np.stack(latents) if latents else np.zeros((0, 3, CHANNELS, 16))
        sidecar = Sidecar(
            shard=f"{name}.tar",
            sha256=digest,
            size=size,
            plan="p",
            encoder="e",
            rows=tuple(rows),
            failures=(),
            latent_count=values.size // CHANNELS,
            latent_sum=tuple(values.sum(axis=(0, 1, 3)).tolist()),
            latent_squares=tuple(np.square(values).sum(axis=(0, 1, 3)).tolist()),
            seconds=2.0 * len(samples),
            songs=tuple(sorted({row.song_id for row in rows})),
        )
        write_sidecar(data, name, sidecar)
        sidecars.append(sidecar)
    rows = [row for sidecar in sidecars for row in sidecar.rows]
    mean, deviation = latent_moments(sidecars, CHANNELS)
    metas = {sample.meta["song_id"]: sample.meta for samples in shards.values() for sample in samples}
    card: dict[str, Any] = {
        "version": "1",
        "encoder": "e",
        "codec": {
            "identity": "codec",
            "spec": {"sample_rate": 16_000, "hop": 2_000, "latent_channels": CHANNELS, "channels": 1},
        },
        "embedder": {"identity": "embedder", "spec": {"sample_rate": 16_000, "window_s": 1.0, "dim": 8}},
        "embed_hop_s": 0.5,
        "prompt_template": "{}",
        "latent_mean": tuple(mean),
        "latent_std": tuple(deviation),
        "silence_latent": (0.0,) * CHANNELS,
        "samples": len(rows),
        "songs": len(metas),
        "hours": 2.0 * len(rows) / 3600,
        "subsets": dict(sorted(Counter(row.subset for row in rows).items())),
        "instruments": {"bass": len(rows)},
        "licenses": dict(sorted(Counter(meta["license"] for meta in metas.values()).items())),
        "failures": len(failures),
    }
    units = {
        Unit(corpus=corpus, subset=subset, songs=tuple(sorted({row.song_id for row in rows if row.subset == subset})))
        for corpus, subset in {(row.corpus, row.subset) for row in rows}
    }
    write_units(data, sorted(units, key=lambda unit: (unit.corpus, unit.subset)))
    made = DatasetCard(**{**card, **changes})
    write_index(data, rows)
    write_failures(data, failures)
    write_prompts(data / PROMPTS_FILE, {text: np.ones(8, np.float32) for text in TEXTS})
    write_readme(data, made)
    write_croissant(data, made, [("", sidecar) for sidecar in sidecars])
    write_card(data, made)
    return data
