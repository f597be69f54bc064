"""Units of the encode job: fixed lists of whole songs, their names, sidecars and failures.

The assignment of songs to units is kept in ``units.parquet`` and only grows: songs added later make new units and
touch no old one.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa

from manifests.atomic import content_hash, readable_json
from manifests.errors import ShardError
from manifests.shards import SHARDS_FOLDER, IndexRow
from manifests.songs import Song, read_table, write_table
from manifests.splits import Window
from manifests.store import open_store

UNITS_VERSION = "1"
FAILURES_VERSION = "1"
UNITS_FILE = "units.parquet"
FAILURES_FILE = "failures.parquet"
_READERS = 16
"""Sidecars that are asked for at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """The songs of one shard, all of one corpus and subset."""

    corpus: str
    subset: str
    songs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A window that could not be encoded."""

    unit: str
    song_id: str
    window_id: str
    stage: str
    code: str
    message: str


WORKER_DIED = "worker_died"
"""Code of the windows of a unit that is not sealed, since it ended every process that worked on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What stands beside a shard and marks it complete."""

    shard: str
    sha256: str
    size: int
    """Bytes of the shard; 0 where no window could be encoded, so that there is no shard."""
    plan: str
    """Hash over the unit's windows and their splits."""
    encoder: str
    rows: tuple[IndexRow, ...]
    failures: tuple[Failure, ...]
    latent_count: int
    """Latent frames behind the sums, over all tracks."""
    latent_sum: tuple[float, ...]
    latent_squares: tuple[float, ...]
    seconds: float
    """Duration of the windows that were written."""
    songs: tuple[str, ...]
    """Songs that have a window in the shard."""


UNITS_SCHEMA = pa.schema(
    [
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("subset", pa.string(), nullable=False),
        pa.field("songs", pa.list_(pa.string()), nullable=False),
    ]
)
FAILURES_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in Failure.__dataclass_fields__])


def assign_units(
    known: Sequence[Unit], windows: Mapping[str, Sequence[Window]], songs: Mapping[str, Song], windows_per_shard: int
) -> list[Unit]:
    """``known`` units, and new ones for the songs of the plan that stand in none of them.

    New units take whole songs in the order of their ids until ``windows_per_shard`` windows are reached. A song whose
    corpus or subset changed gets a new place.
    """
    placed = {(unit.corpus, unit.subset, song) for unit in known for song in unit.songs}
    waiting = sorted({(songs[name].corpus, songs[name].subset, name) for name in windows} - placed)
    units = list(known)
    for (corpus, subset), group in groupby(waiting, key=itemgetter(0, 1)):
        chosen: list[str] = []
        count = 0
        for _, _, name in group:
            if chosen and count + len(windows[name]) > windows_per_shard:
                units.append(Unit(corpus=corpus, subset=subset, songs=tuple(chosen)))
                chosen, count = [], 0
            chosen.append(name)
            count += len(windows[name])
        units.append(Unit(corpus=corpus, subset=subset, songs=tuple(chosen)))
    return units


def plan_hash(windows: Iterable[Window], songs: Mapping[str, Song]) -> str:
    """Hash over windows, their splits, and what the manifest says of the songs and stems that goes into samples.

    A stem's fingerprint stands for its decoded audio.
    """
    parts = []
    for window in windows:
        song = songs[window.song_id]
        used = {stem for split in window.splits for stem in (*split.source, *split.submix)}
        stems = {
            stem.stem_id: [stem.fingerprint, stem.offset_frames, stem.instrument]
            for stem in song.stems
            if stem.stem_id in used
        }
        parts.append([window.plain(), song.license, stems])
    return content_hash(parts)


def unit_name(unit: Unit, plan: str, encoder: str) -> str:
    """``CORPUS-SUBSET-HASH``: the hash covers the plan of the unit and the encoder's identity."""
    return f"{unit.corpus}-{unit.subset}-{content_hash([plan, encoder], 12)}"


def write_units(data: Path | str, units: Sequence[Unit]) -> None:
    """Write ``units.parquet``. Raises StoreError."""
    table = pa.Table.from_pylist([asdict(unit) for unit in units], schema=UNITS_SCHEMA)
    write_table(open_store(data).location(UNITS_FILE), table, "units", UNITS_VERSION, {})


def read_units(data: Path | str) -> list[Unit]:
    """Read ``units.parquet``; none when it does not exist. Raises ManifestError or StoreError."""
    store = open_store(data)
    if not store.exists(UNITS_FILE):
        return []
    table, _ = read_table(store.location(UNITS_FILE), "units", UNITS_VERSION, UNITS_SCHEMA)
    return [Unit(**{**row, "songs": tuple(row["songs"])}) for row in table.to_pylist()]


def write_failures(data: Path | str, failures: Iterable[Failure]) -> None:
    """Write ``failures.parquet``, sorted by window. Raises StoreError."""
    ordered = sorted(failures, key=lambda failure: failure.window_id)
    table = pa.Table.from_pylist([asdict(failure) for failure in ordered], schema=FAILURES_SCHEMA)
    write_table(open_store(data).location(FAILURES_FILE), table, "failures", FAILURES_VERSION, {})


def read_failures(data: Path | str) -> list[Failure]:
    """Read ``failures.parquet``. Raises ManifestError or StoreError."""
    table, _ = read_table(open_store(data).location(FAILURES_FILE), "failures", FAILURES_VERSION, FAILURES_SCHEMA)
    return [Failure(**row) for row in table.to_pylist()]


def sidecar_name(name: str) -> str:
    """Where in the data set the sidecar of a shard lies."""
    return f"{SHARDS_FOLDER}/{name}.json"


def write_sidecar(data: Path | str, name: str, sidecar: Sidecar) -> None:
    """Write the sidecar; from then on the shard counts as complete. Raises StoreError."""
    open_store(data).write(sidecar_name(name), readable_json(asdict(sidecar)))


def read_sidecars(data: Path | str, names: Iterable[str]) -> dict[str, Sidecar | None]:
    """Name -> the sidecar of a complete shard, or None where the shard is not there, not whole or not readable.

    One listing, then the sidecars, many at a time. Raises StoreError.
    """
    store = open_store(data)
    sizes = store.sizes(SHARDS_FOLDER)

    def read(name: str) -> Sidecar | None:
        if f"{name}.json" not in sizes:
            return None
        try:
            # With the size from the listing a store need not be asked for it.
            content = store.read_range(sidecar_name(name), 0, sizes[f"{name}.json"])
            sidecar = _sidecar(content, store.location(sidecar_name(name)))
        except (ShardError, FileNotFoundError):
            return None
        return sidecar if sizes.get(sidecar.shard, 0) == sidecar.size else None

    wanted = list(names)
    with ThreadPoolExecutor(_READERS) as pool:
        return dict(zip(wanted, pool.map(read, wanted), strict=True))


def parse_sidecar(data: Path | str, name: str) -> Sidecar:
    """Read a sidecar, whatever the shard beside it is like.

    Raises:
        ShardError: it is not there or no sidecar.
        StoreError: it cannot be read.
    """
    store, place = open_store(data), sidecar_name(name)
    try:
        return _sidecar(store.read(place), store.location(place))
    except FileNotFoundError:
        raise ShardError(f"{store.location(place)}: missing; the shard beside it is not complete") from None


def _sidecar(content: bytes, place: str) -> Sidecar:
    try:
        raw: dict[str, Any] = dict(json.loads(content))
        raw["rows"] = tuple(IndexRow(**{**row, "instruments": tuple(row["instruments"])}) for row in raw["rows"])
        raw["failures"] = tuple(Failure(**failure) for failure in raw["failures"])
        raw |= {name: tuple(raw[name]) for name in ("latent_sum", "latent_squares", "songs")}
        return Sidecar(**raw)
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{place}: not a readable sidecar ({error!r})") from None
