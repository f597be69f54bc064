"""`splits.parquet`, the plan: one row a window, with its splits into source and submix."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests.atomic import canonical_json
from manifests.errors import ManifestError
from manifests.songs import read_table, write_table

SPLITS_VERSION = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A choice of source and submix stems of one window."""

    source: tuple[str, ...]
    submix: tuple[str, ...]
    source_text: str
    submix_text: str

    def __post_init__(self) -> None:
        if not self.source or not self.submix:
            raise ManifestError(f"a split needs stems on both sides, got source {self.source}, submix {self.submix}")
        if overlap := set(self.source) & set(self.submix):
            raise ManifestError(f"stems {sorted(overlap)} stand in source and in submix of one split")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of a song that becomes one shard sample."""

    window_id: str
    song_id: str
    start_s: float
    duration_s: float
    splits: tuple[Split, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All windows, the configuration they were drawn with, and what was passed over by reason."""

    windows: tuple[Window, ...]
    config: dict[str, Any]
    passed_over: dict[str, int]


_SPLIT = pa.struct(
    [
        pa.field("source", pa.list_(pa.string()), nullable=False),
        pa.field("submix", pa.list_(pa.string()), nullable=False),
        pa.field("source_text", pa.string(), nullable=False),
        pa.field("submix_text", pa.string(), nullable=False),
    ]
)
SPLITS_SCHEMA = pa.schema(
    [
        pa.field("window_id", pa.string(), nullable=False),
        pa.field("song_id", pa.string(), nullable=False),
        pa.field("start_s", pa.float64(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("splits", pa.list_(_SPLIT), nullable=False),
    ]
)


def window_id(song_id: str, start_s: float) -> str:
    """A stable key for a window: letters, digits, ``-`` and ``_`` only, as WebDataset keys must hold no dot.

    It carries a readable part of the song id, a hash over all of it, and the start in milliseconds.
    """
    readable = re.sub(r"[^A-Za-z0-9]+", "_", song_id).strip("_")[-48:]
    digest = hashlib.sha256(song_id.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{readable}-{digest}-{round(start_s * 1000):08d}"


def write_splits(path: Path | str, plan: Plan) -> None:
    """Write a plan, rows sorted by ``window_id``. Raises ManifestError if two windows share an id."""
    ordered = sorted(plan.windows, key=lambda window: window.window_id)
    for first, second in pairwise(ordered):
        if first.window_id == second.window_id:
            raise ManifestError(f"{first.window_id}: two windows with this id ({first.song_id}, {second.song_id})")
    table = pa.Table.from_pylist([asdict(window) for window in ordered], schema=SPLITS_SCHEMA)
    metadata = {"config": canonical_json(plan.config), "passed_over": canonical_json(plan.passed_over)}
    write_table(path, table, "splits", SPLITS_VERSION, metadata)


def read_splits(path: Path | str) -> Plan:
    """Read a plan. Raises ManifestError when the file is missing or is no plan of this version."""
    table, metadata = read_table(path, "splits", SPLITS_VERSION, SPLITS_SCHEMA)
    return Plan(
        windows=tuple(_window(row) for row in table.to_pylist()),
        config=json.loads(metadata.get("config", "{}")),
        passed_over=json.loads(metadata.get("passed_over", "{}")),
    )


def _window(row: dict[str, Any]) -> Window:
    splits = tuple(
        Split(**{**split, "source": tuple(split["source"]), "submix": tuple(split["submix"])})
        for split in row["splits"]
    )
    return Window(**{**row, "splits": splits})


def texts(windows: Iterable[Window]) -> list[str]:
    """Every text that the splits of the windows can show to the embedder, sorted."""
    return sorted({text for w in windows for split in w.splits for text in (split.source_text, split.submix_text)})
