"""`splits.parquet`, the plan: one row a window, with its splits into source and submix."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from manifests.atomic import canonical_json
from manifests.errors import ManifestError
from manifests.songs import ROW_GROUP, open_table, reading, write_batches, write_table

SPLITS_VERSION = "2"
_BATCH = 1_000

T = TypeVar("T")


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
class StemGain:
    """By how much a stem is louder in one window than it was recorded."""

    stem_id: str
    gain_db: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of a song that becomes one shard sample."""

    window_id: str
    song_id: str
    start_s: float
    duration_s: float
    splits: tuple[Split, ...]
    gains: tuple[StemGain, ...] = ()
    """A gain for each stem of the mix, in mix, source and submix alike; empty: as recorded."""

    def plain(self) -> dict[str, Any]:
        """What `dataclasses.asdict` gives, in a tenth of its time: a plan has millions of splits."""
        found = {name: getattr(self, name) for name in Window.__dataclass_fields__}
        found["splits"] = tuple(
            {name: getattr(split, name) for name in Split.__dataclass_fields__} for split in self.splits
        )
        found["gains"] = tuple({"stem_id": gain.stem_id, "gain_db": gain.gain_db} for gain in self.gains)
        return found


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
_GAIN = pa.struct([pa.field("stem_id", pa.string(), nullable=False), pa.field("gain_db", pa.float64(), nullable=False)])
SPLITS_SCHEMA = pa.schema(
    [
        pa.field("window_id", pa.string(), nullable=False),
        pa.field("song_id", pa.string(), nullable=False),
        pa.field("start_s", pa.float64(), nullable=False),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("splits", pa.list_(_SPLIT), nullable=False),
        pa.field("gains", pa.list_(_GAIN), nullable=False),
    ]
)


def window_id(song_id: str, start_s: float) -> str:
    """A stable key for a window: letters, digits, ``-`` and ``_`` only, as WebDataset keys must hold no dot.

    It carries a readable part of the song id, a hash over all of it, and the start in milliseconds.
    """
    return f"{song_key(song_id)}-{round(start_s * 1000):08d}"


@lru_cache(maxsize=1024)
def song_key(song_id: str) -> str:
    """What the ids of all windows of a song begin with: a readable part and a hash."""
    readable = re.sub(r"[^A-Za-z0-9]+", "_", song_id).strip("_")[-48:]
    digest = hashlib.sha256(song_id.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{readable}-{digest}"


def write_splits(path: Path | str, plan: Plan) -> None:
    """Write a plan, rows sorted by ``window_id``. Raises ManifestError if two windows share an id."""
    ordered = sorted(plan.windows, key=lambda window: window.window_id)
    for first, second in pairwise(ordered):
        if first.window_id == second.window_id:
            raise ManifestError(f"{first.window_id}: two windows with this id ({first.song_id}, {second.song_id})")
    table = pa.Table.from_pylist([asdict(window) for window in ordered], schema=SPLITS_SCHEMA)
    write_table(path, table, "splits", SPLITS_VERSION, _metadata(plan.config, plan.passed_over))


def _metadata(config: Mapping[str, Any], passed_over: Mapping[str, int]) -> dict[str, str]:
    return {"config": canonical_json(config), "passed_over": canonical_json(passed_over)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SongWindows:
    """The windows of one song. A song has few different splits, so that windows name them by number."""

    song_id: str
    duration_s: float
    splits: tuple[Split, ...]
    starts_s: tuple[float, ...]
    chosen: tuple[tuple[int, ...], ...]
    """For each start, indices into ``splits``."""
    gain_stems: tuple[str, ...]
    """Stems that have gains; none where they are off."""
    gains_db: tuple[tuple[float, ...], ...]
    """For each start, a gain for each of ``gain_stems``."""

    def windows(self) -> Iterator[Window]:
        """Each window with its splits."""
        for start, chosen, gains in zip(self.starts_s, self.chosen, self.gains_db, strict=True):
            pairs = zip(self.gain_stems, gains, strict=True)
            yield Window(
                window_id=window_id(self.song_id, start),
                song_id=self.song_id,
                start_s=start,
                duration_s=self.duration_s,
                splits=tuple(self.splits[index] for index in chosen),
                gains=tuple(StemGain(stem_id=stem, gain_db=gain) for stem, gain in pairs),
            )


class PlanRows:
    """A plan under way, kept as Arrow tables: of a million windows as objects a laptop's memory would be full."""

    def __init__(self) -> None:
        self._waiting: list[SongWindows] = []
        self._tables: list[pa.Table] = []
        # Where the windows of a song lie: its sort key, its id, number of the table, first row, rows.
        self._places: list[tuple[str, str, int, int, int]] = []

    def add(self, song: SongWindows) -> None:
        """Take up the windows of a song."""
        self._waiting.append(song)
        if len(self._waiting) == _BATCH:
            self._flush()

    def write(self, path: Path | str, config: Mapping[str, Any], passed_over: Mapping[str, int]) -> None:
        """Write what was added: the bytes of `write_splits`. Raises ManifestError if windows share an id."""
        self._flush()
        self._places.sort()
        for first, second in pairwise(self._places):
            if first[0] == second[0]:
                raise ManifestError(f"{first[0]}: two windows with this id ({first[1]}, {second[1]})")
        write_batches(path, self._groups(), SPLITS_SCHEMA, "splits", SPLITS_VERSION, _metadata(config, passed_over))

    def _flush(self) -> None:
        first = 0
        for song in self._waiting:
            rows = len(song.starts_s)
            # The windows of a song lie together: their ids differ in the last part only.
            self._places.append((window_id(song.song_id, 0.0), song.song_id, len(self._tables), first, rows))
            first += rows
        self._tables.append(_rows(self._waiting))
        self._waiting = []

    def _groups(self) -> Iterator[pa.Table]:
        pending: list[pa.Table] = [SPLITS_SCHEMA.empty_table()]
        count = 0
        for _, _, table, first, rows in self._places:
            pending.append(self._tables[table].slice(first, rows))
            count += rows
            if count >= ROW_GROUP:
                whole = pa.concat_tables(pending).combine_chunks()
                yield whole.slice(0, ROW_GROUP)
                pending, count = [whole.slice(ROW_GROUP)], count - ROW_GROUP
        yield pa.concat_tables(pending).combine_chunks()


def _rows(songs: Sequence[SongWindows]) -> pa.Table:
    """The windows of songs as rows of the plan, in each song sorted by their ids."""
    splits = [split for song in songs for split in song.splits]
    columns = [_lists([split.source for split in splits]), _lists([split.submix for split in splits])]
    columns += [pa.array([getattr(split, name) for split in splits], pa.string()) for name in _SPLIT.names[2:]]
    different = pa.StructArray.from_arrays(columns, fields=list(_SPLIT))
    base, rows, taken, gain_stems, gains = 0, [], [], [], []
    for song in songs:
        keys = [window_id(song.song_id, start) for start in song.starts_s]
        for number in sorted(range(len(keys)), key=keys.__getitem__):
            rows.append((keys[number], song.song_id, song.starts_s[number], song.duration_s))
            taken.append([base + index for index in song.chosen[number]])
            gain_stems.append(song.gain_stems)
            gains.append(song.gains_db[number])
        base += len(song.splits)
    flat, offsets = _flat(taken)
    lists = pa.ListArray.from_arrays(offsets, different.take(pa.array(flat, pa.int64())), type=pa.list_(_SPLIT))
    ids = [pa.array(column, kind.type) for column, kind in zip(zip(*rows, strict=True), SPLITS_SCHEMA, strict=False)]
    columns = [*ids, lists, _gains(gain_stems, gains)]
    return pa.Table.from_arrays(columns, schema=SPLITS_SCHEMA) if rows else SPLITS_SCHEMA.empty_table()


def _gains(stems: Sequence[Sequence[str]], gains: Sequence[Sequence[float]]) -> pa.ListArray:
    flat, offsets = _flat(gains)
    columns = [pa.array(_flat(stems)[0], pa.string()), pa.array(flat, pa.float64())]
    values = pa.StructArray.from_arrays(columns, fields=list(_GAIN))
    return pa.ListArray.from_arrays(offsets, values, type=pa.list_(_GAIN))


def _lists(rows: Sequence[Sequence[str]]) -> pa.ListArray:
    flat, offsets = _flat(rows)
    return pa.ListArray.from_arrays(offsets, pa.array(flat, pa.string()))


def _flat(rows: Sequence[Sequence[T]]) -> tuple[list[T], pa.Array]:
    offsets = pa.array(accumulate((len(row) for row in rows), initial=0), pa.int32())
    return [value for row in rows for value in row], offsets


def read_splits(path: Path | str) -> Plan:
    """Read a plan. Raises ManifestError when the file is missing or is no plan of this version."""
    with open_table(path, "splits", SPLITS_VERSION, SPLITS_SCHEMA) as (file, metadata), reading(path):
        known: dict[Any, Any] = {}
        windows = tuple(
            _window(row, known) for batch in file.iter_batches(batch_size=_BATCH) for row in batch.to_pylist()
        )
        return Plan(
            windows=windows,
            config=json.loads(metadata.get("config", "{}")),
            passed_over=json.loads(metadata.get("passed_over", "{}")),
        )


def _window(row: dict[str, Any], known: dict[Any, Any]) -> Window:
    """A row as a window. What windows have in common is kept once, in ``known``: a plan has millions of splits."""

    def once(value: T) -> T:
        found: T = known.setdefault(value, value)
        return found

    splits = []
    for split in row["splits"]:
        sides = (once(tuple(map(once, split[side]))) for side in ("source", "submix"))
        key = (*sides, once(split["source_text"]), once(split["submix_text"]))
        if key not in known:
            known[key] = Split(source=key[0], submix=key[1], source_text=key[2], submix_text=key[3])
        splits.append(known[key])
    gains = tuple(StemGain(stem_id=once(gain["stem_id"]), gain_db=gain["gain_db"]) for gain in row["gains"])
    return Window(**{**row, "song_id": once(row["song_id"]), "splits": tuple(splits), "gains": gains})


def splits_config(path: Path | str) -> dict[str, Any]:
    """The configuration that a plan was drawn with. Raises ManifestError as `read_splits` does."""
    with open_table(path, "splits", SPLITS_VERSION, SPLITS_SCHEMA) as (_, metadata):
        config: dict[str, Any] = json.loads(metadata.get("config", "{}"))
        return config


def find_window(path: Path | str, key: str) -> Window | None:
    """One window of a plan, or None, read without the others. Raises ManifestError as `read_splits` does."""
    with open_table(path, "splits", SPLITS_VERSION, SPLITS_SCHEMA) as (file, _), reading(path):
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=["window_id"]).column("window_id").to_pylist()
            if key in ids:
                return _window(file.read_row_group(group).slice(ids.index(key), 1).to_pylist()[0], {})
    return None


def texts(windows: Iterable[Window]) -> list[str]:
    """Every text that the splits of the windows can show to the embedder, sorted."""
    return sorted({text for w in windows for split in w.splits for text in (split.source_text, split.submix_text)})
