"""`songs.parquet`, the manifest: one row a song, its stems, what was measured and what is wrong."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.atomic import canonical_json
from manifests.errors import ManifestError
from manifests.problems import PROBLEMS, Effect, effect
from manifests.remote import parse_root
from manifests.store import open_place

SONGS_VERSION = "2"
ACTIVITY_FRAME_S = 0.1
SUBSETS = ("train", "validation", "test")
ROW_GROUP = 10_000
"""Rows of one row group of a table."""
_BATCH = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong with a song (``stem_id`` None) or with one of its stems."""

    code: str
    stem_id: str | None = None
    detail: str = ""

    def __post_init__(self) -> None:
        if self.code not in PROBLEMS:
            raise ManifestError(f"unknown problem code {self.code!r}; known: {', '.join(PROBLEMS)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stem:
    """One isolated recording. Measured fields are None until the file could be decoded."""

    stem_id: str
    path: str
    """Path below the corpus root, with forward slashes; ``<table>.parquet#<row>/<column>`` is a cell of a table."""
    stream: int | None = None
    """Index among the audio streams of a multi-stream file."""
    channel: int | None = None
    """The one channel of the file that is this recording, where a corpus keeps sources in channels; None: all."""
    label: str
    """The label as the corpus says it."""
    instrument: str
    """The canonical instrument of the vocabulary."""
    family: str
    sample_rate: int | None = None
    channels: int | None = None
    frames: int | None = None
    """Samples per channel at the stem's own rate."""
    offset_frames: int = 0
    """Where the stem begins in the song, in frames of its own rate."""
    lufs: float | None = None
    """Integrated loudness (ITU-R BS.1770); None for silence or under 0.4 s."""
    peak_dbfs: float | None = None
    """Sample peak; None for digital silence."""
    clipped: float | None = None
    """Share of samples in runs of three or more at the file's own positive or negative peak, near full scale."""
    dc: float | None = None
    """Mean of the samples, full scale 1.0, of the channel where it is farthest from 0."""
    bandwidth_hz: float | None = None
    """Frequency below which all but a trace of the energy lies: well below half the rate for a file that was upsampled
    or lossily coded. None where nothing sounds."""
    activity: bytes = b""
    """Packed bits (numpy.packbits), one per 100 ms."""
    fingerprint: str | None = None
    """Hash of the decoded samples."""
    size: int | None = None
    """Bytes of the file when it was measured."""
    mtime_ns: int | None = None
    """Modification time of the file when it was measured."""

    def active(self) -> npt.NDArray[np.bool_]:
        """Activity as booleans `[ceil(duration / 0.1 s)]` on the stem's own time."""
        if not self.frames or not self.sample_rate:
            return np.zeros(0, dtype=np.bool_)
        count = activity_frames(self.frames, self.sample_rate)
        return np.unpackbits(np.frombuffer(self.activity, dtype=np.uint8), count=count).astype(np.bool_)


@dataclass(frozen=True, slots=True, kw_only=True)
class Song:
    """One row of the manifest."""

    song_id: str
    """Corpus name, a slash, and the song's own path or id in the corpus."""
    corpus: str
    root: str
    """Folder, or URL that fsspec reaches, that the paths of this row are below (see `manifests.roots`)."""
    subset: str
    sample_rate: int | None = None
    """Highest rate among the readable stems."""
    frames: int | None = None
    """Length of the longest stem in frames of ``sample_rate``."""
    duration_s: float = 0.0
    mixture: str | None = None
    """Path of the mixture file below the root, or None."""
    mixture_audio: Stem | None = None
    """The mixture as it was measured, or None where there is none that can be used."""
    sum_gain_db: float | None = None
    """Gain on the sum of the stems that brings it nearest to the mixture."""
    sum_lag_s: float | None = None
    """By how much the mixture comes later than the sum of the stems."""
    sum_residual_db: float | None = None
    """Energy of the mixture minus the sum at that gain and lag, over that of the mixture; of left and right, where the
    mixture and some stem have two channels, else of the mean of all channels."""
    sketch: bytes = b""
    """Course of the mixture (or else of the sum of the stems), two bytes each 100 ms: see `manifests.sketches`."""
    stems: tuple[Stem, ...] = ()
    license: str = ""
    problems: tuple[Problem, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def usable_stems(self) -> tuple[Stem, ...]:
        """Stems that no problem excludes; empty when a problem excludes the song."""
        if any(effect(problem.code) is Effect.SONG for problem in self.problems):
            return ()
        excluded = {problem.stem_id for problem in self.problems if effect(problem.code) is Effect.STEM}
        return tuple(stem for stem in self.stems if stem.stem_id not in excluded)


def activity_frames(frames: int, sample_rate: int) -> int:
    """Number of 100 ms activity frames that cover ``frames`` samples."""
    return -(-frames * 10 // sample_rate)


_STEM = pa.struct(
    [
        pa.field("stem_id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("stream", pa.int32()),
        pa.field("channel", pa.int32()),
        pa.field("label", pa.string(), nullable=False),
        pa.field("instrument", pa.string(), nullable=False),
        pa.field("family", pa.string(), nullable=False),
        pa.field("sample_rate", pa.int32()),
        pa.field("channels", pa.int32()),
        pa.field("frames", pa.int64()),
        pa.field("offset_frames", pa.int64(), nullable=False),
        pa.field("lufs", pa.float64()),
        pa.field("peak_dbfs", pa.float64()),
        pa.field("clipped", pa.float64()),
        pa.field("dc", pa.float64()),
        pa.field("bandwidth_hz", pa.float64()),
        pa.field("activity", pa.binary(), nullable=False),
        pa.field("fingerprint", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("mtime_ns", pa.int64()),
    ]
)
_PROBLEM = pa.struct(
    [
        pa.field("code", pa.string(), nullable=False),
        pa.field("stem_id", pa.string()),
        pa.field("detail", pa.string(), nullable=False),
    ]
)
SONGS_SCHEMA = pa.schema(
    [
        pa.field("song_id", pa.string(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("root", pa.string(), nullable=False),
        pa.field("subset", pa.string(), nullable=False),
        pa.field("sample_rate", pa.int32()),
        pa.field("frames", pa.int64()),
        pa.field("duration_s", pa.float64(), nullable=False),
        pa.field("mixture", pa.string()),
        pa.field("mixture_audio", _STEM),
        pa.field("sum_gain_db", pa.float64()),
        pa.field("sum_lag_s", pa.float64()),
        pa.field("sum_residual_db", pa.float64()),
        pa.field("sketch", pa.binary(), nullable=False),
        pa.field("stems", pa.list_(_STEM), nullable=False),
        pa.field("license", pa.string(), nullable=False),
        pa.field("problems", pa.list_(_PROBLEM), nullable=False),
        pa.field("extra", pa.string(), nullable=False),
    ]
)


def write_table(path: Path | str, table: pa.Table, kind: str, version: str, metadata: dict[str, str]) -> None:
    """Write a Parquet table atomically, with its kind and version in the file's metadata."""
    write_batches(path, [table], table.schema, kind, version, metadata)


def write_batches(
    path: Path | str, tables: Iterable[pa.Table], schema: pa.Schema, kind: str, version: str, metadata: dict[str, str]
) -> None:
    """`write_table` of a table that comes in parts; parts of `ROW_GROUP` rows give the bytes of the whole."""
    keys = {f"mgeldm.{kind}.version": version} | {f"mgeldm.{key}": value for key, value in metadata.items()}
    store, name = open_place(path)
    with (
        store.create(name) as file,
        pq.ParquetWriter(file, schema.with_metadata(keys), compression="zstd") as writer,
    ):
        for table in tables:
            writer.write_table(table.replace_schema_metadata(keys), row_group_size=ROW_GROUP)


@contextmanager
def open_table(
    path: Path | str, kind: str, version: str, schema: pa.Schema
) -> Iterator[tuple[pq.ParquetFile, dict[str, str]]]:
    """Open a table written by `write_table`; check kind, version and schema. Yields the open file and its metadata.

    Raises:
        ManifestError: no such file, not Parquet, another kind or version, or other columns.
    """
    missing = f"{path}: no such file; it is made by an earlier stage (see `mgeldm --help`)"
    source: Path | str | BytesIO = parse_root(str(path))
    if isinstance(source, str):
        store, name = open_place(source)
        try:
            source = BytesIO(store.read(name))
        except FileNotFoundError:
            raise ManifestError(missing) from None
    elif not source.exists():  # type: ignore[union-attr]
        raise ManifestError(missing)
    with reading(path):
        file = pq.ParquetFile(source)
    with file:
        found = file.schema_arrow
        entries = (found.metadata or {}).items()
        raw = {key.decode(errors="replace"): value.decode(errors="replace") for key, value in entries}
        number = raw.get(f"mgeldm.{kind}.version")
        if number is None:
            raise ManifestError(f"{path}: not a {kind} table of mgeldm (no version in its metadata)")
        if number != version:
            raise ManifestError(f"{path}: {kind} version {number}, this program reads {version}; make it anew")
        if not found.equals(schema, check_metadata=False):
            raise ManifestError(f"{path}: columns differ from the {kind} schema version {version}; make it anew")
        yield file, {key.removeprefix("mgeldm."): value for key, value in raw.items() if key.startswith("mgeldm.")}


@contextmanager
def reading(path: Path | str) -> Iterator[None]:
    """What goes wrong while the Parquet file ``path`` is read becomes a ManifestError of one line."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from None


def read_table(path: Path | str, kind: str, version: str, schema: pa.Schema) -> tuple[pa.Table, dict[str, str]]:
    """Read a table written by `write_table`; check kind, version and schema. Returns it and its metadata.

    Raises:
        ManifestError: no such file, not Parquet, another kind or version, or other columns.
    """
    with open_table(path, kind, version, schema) as (file, metadata), reading(path):
        return file.read(), metadata


def write_songs(path: Path | str, songs: Iterable[Song], metadata: dict[str, str] | None = None) -> None:
    """Write the manifest, rows sorted by ``song_id``. Raises ManifestError if two songs share an id."""
    ordered = sorted(songs, key=lambda song: song.song_id)
    for first, second in pairwise(ordered):
        if first.song_id == second.song_id:
            raise ManifestError(f"{first.song_id}: two songs with this id, below {first.root} and {second.root}")
    tables = (song_rows(ordered[begin : begin + ROW_GROUP]) for begin in range(0, len(ordered), ROW_GROUP))
    write_batches(path, tables, SONGS_SCHEMA, "songs", SONGS_VERSION, metadata or {})


def song_rows(songs: Iterable[Song]) -> pa.Table:
    """Songs as rows of the manifest."""
    return pa.Table.from_pylist([_row(song) for song in songs], schema=SONGS_SCHEMA)


def iter_songs(path: Path | str) -> Iterator[Song]:
    """The songs of a manifest in the order of their ids, read as they are asked for: memory does not grow with them.

    Raises:
        ManifestError: the file is missing or is no manifest of this version.
    """
    with open_table(path, "songs", SONGS_VERSION, SONGS_SCHEMA) as (file, _), reading(path):
        for batch in file.iter_batches(batch_size=_BATCH):
            yield from row_songs(batch, path)


def row_songs(rows: pa.Table | pa.RecordBatch, path: Path | str) -> list[Song]:
    """The songs of rows of the manifest ``path``. Raises ManifestError when an extra is not JSON."""
    try:
        return [_song(row) for row in rows.to_pylist()]
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}: a row's extra is not JSON ({error}); scan anew") from None


def read_songs(path: Path | str) -> list[Song]:
    """Read a whole manifest. Raises ManifestError when the file is missing or is no manifest of this version."""
    return list(iter_songs(path))


def songs_metadata(path: Path | str) -> dict[str, str]:
    """The key-value metadata of a manifest, such as the configuration it was measured with."""
    with open_table(path, "songs", SONGS_VERSION, SONGS_SCHEMA) as (_, metadata):
        return metadata


def song_instruments(path: Path | str) -> set[str]:
    """Every instrument that a stem of the manifest has. Raises ManifestError as `iter_songs` does."""
    found: set[str] = set()
    with open_table(path, "songs", SONGS_VERSION, SONGS_SCHEMA) as (file, _), reading(path):
        for batch in file.iter_batches(columns=["stems.list.element.instrument"]):
            found.update(batch.column("stems").flatten().field("instrument").unique().to_pylist())
    return found


def song_ids(path: Path | str) -> set[str]:
    """The ids of all songs of a manifest. Raises ManifestError as `iter_songs` does."""
    with open_table(path, "songs", SONGS_VERSION, SONGS_SCHEMA) as (file, _), reading(path):
        return set(file.read(columns=["song_id"]).column("song_id").to_pylist())


def find_song(path: Path | str, song_id: str) -> Song:
    """One song of a manifest. Raises ManifestError where there is none with this id, and as `iter_songs` does."""
    with open_table(path, "songs", SONGS_VERSION, SONGS_SCHEMA) as (file, _), reading(path):
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=["song_id"]).column("song_id").to_pylist()
            if song_id in ids:
                return row_songs(file.read_row_group(group).slice(ids.index(song_id), 1), path)[0]
    raise ManifestError(f"{path}: no song {song_id!r}")


def _row(song: Song) -> dict[str, Any]:
    # Not dataclasses.asdict: it copies every value deeply, which takes most of the time of a large manifest.
    return _values(song) | {
        "stems": [_values(stem) for stem in song.stems],
        "mixture_audio": _values(song.mixture_audio) if song.mixture_audio else None,
        "problems": [_values(problem) for problem in song.problems],
        "extra": canonical_json(song.extra),
    }


def _values(record: Song | Stem | Problem) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__dataclass_fields__}


def _song(row: dict[str, Any]) -> Song:
    return Song(
        **{
            **row,
            "stems": tuple(Stem(**stem) for stem in row["stems"]),
            "mixture_audio": Stem(**row["mixture_audio"]) if row["mixture_audio"] else None,
            "problems": tuple(Problem(**problem) for problem in row["problems"]),
            "extra": json.loads(row["extra"]),
        }
    )


def inside(root: Path, relative: str) -> Path | None:
    """The path of ``relative`` below ``root``, or None when it would leave it (absolute, ``..``, or by a link)."""
    pure = PurePosixPath(relative)
    if pure.is_absolute() or ".." in pure.parts or "\x00" in relative:
        return None
    # Unlike Path.resolve, realpath takes links that go in a circle; opening such a path fails later.
    real = os.path.realpath(root / relative)
    return root / relative if Path(real).is_relative_to(os.path.realpath(root)) else None


def count_problems(songs: Sequence[Song]) -> dict[str, int]:
    """How often each problem code stands in the manifest, most frequent first."""
    counts: dict[str, int] = {}
    for song in songs:
        for problem in song.problems:
            counts[problem.code] = counts.get(problem.code, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
