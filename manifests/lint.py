"""Is this manifest what it says it is? For manifests that somebody else wrote, or that were edited by hand."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.duplicates import outdated_problems
from manifests.errors import CorpusError, ManifestError
from manifests.labels import UNMAPPED, vocabulary
from manifests.problems import PROBLEMS, Effect
from manifests.remote import filesystem, is_remote
from manifests.roots import locate, state
from manifests.songs import SONGS_SCHEMA, SONGS_VERSION, SUBSETS, activity_frames, iter_songs, reading

CODES: dict[str, str] = {
    "version": "the file does not say that it is a manifest of the version that this program reads",
    "schema": "a column is missing, not known, or of another type",
    "value_missing": "a value is null that must not be",
    "order": "rows are not sorted by song_id",
    "song_id": "two songs have this id, or it does not begin with the corpus and a slash",
    "stem_id": "two stems of the song have this id",
    "subset": f"not one of {', '.join(SUBSETS)}",
    "path": "a path leaves the root of its corpus",
    "rate": "a sample rate, channel count, stream, channel or length that no recording has",
    "duration": "duration, frames and sample rate of the song contradict each other or its stems",
    "activity": "not one bit for each 100 ms of the stem",
    "sketch": "not two bytes for each 100 ms of the song",
    "level": "a loudness, peak, share of clipped samples, mean or bandwidth that no recording has",
    "fingerprint": "a stem was measured but has no fingerprint",
    "instrument": "the vocabulary has no such instrument, or has it in another family",
    "problem": "no such problem code, or a problem of a stem that the song does not have",
    "stale": "a duplicate or leak that is not, or no longer, borne out by the songs of the manifest",
    "extra": "not a JSON object",
    "file_missing": "the file of a stem or of the mixture is not on disk",
    "file_size": "the file is not as large as when it was measured",
    "not_checked": "the root cannot be reached, so that its files were not looked for",
}
"""What a finding's code means."""

# Findings that leave a manifest that can be read.
_SOUND = frozenset({"file_missing", "file_size", "not_checked"})
_RATES = (1_000, 768_000)
_CHANNELS = (1, 64)
_LEVELS: dict[str, tuple[float, float]] = {
    "lufs": (-100.0, 20.0),
    "peak_dbfs": (-400.0, 60.0),
    "clipped": (0.0, 1.0),
    "dc": (-10.0, 10.0),
}
# A stem that begins late ends with the song at the latest, but codecs round.
_TOLERANCE_S = 0.1

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong."""

    code: str
    song_id: str | None
    """None where the whole file is meant."""
    detail: str


def lint_songs(path: Path | str, *, audio: bool = False) -> Iterator[Finding]:
    """What is wrong with the manifest ``path``; ``audio``: also look whether its files are there, without reading them;
    of remote roots each object is asked for.

    Rows are read as they are checked. Where the columns are not those of a manifest, only that is told.

    Raises:
        ManifestError: the file is missing or is no Parquet file.
    """
    sound = True
    for finding in _row_findings(path, audio):
        sound = sound and finding.code in _SOUND
        yield finding
    if sound:
        for song_id in outdated_problems(iter_songs(path)):
            yield Finding(
                code="stale", song_id=song_id, detail="its duplicates and leaks are not those told; scan anew"
            )


def _row_findings(path: Path | str, audio: bool) -> Iterator[Finding]:
    """What the file and each row alone show, and the order of rows."""
    if not Path(path).exists():
        raise ManifestError(f"{path}: no such file")
    with reading(path), pq.ParquetFile(path) as file:
        faults = [Finding(code=code, song_id=None, detail=detail) for code, detail in _file_faults(file.schema_arrow)]
        yield from faults
        if any(fault.code == "schema" for fault in faults):
            return
        seen: set[str] = set()
        last = ""
        for batch in file.iter_batches(batch_size=1_000, columns=SONGS_SCHEMA.names):
            for row in batch.to_pylist():
                name = row["song_id"]
                for code, detail in _song_faults(row, audio):
                    yield Finding(code=code, song_id=name, detail=detail)
                if name is None:
                    continue
                if name in seen:
                    yield Finding(code="song_id", song_id=name, detail="stands in two rows")
                elif name < last:
                    yield Finding(code="order", song_id=name, detail=f"comes after {last}")
                seen.add(name)
                last = max(last, name)


def _file_faults(schema: pa.Schema) -> Iterator[tuple[str, str]]:
    found = (schema.metadata or {}).get(b"mgeldm.songs.version")
    if found is None:
        yield "version", "no mgeldm.songs.version in the file's metadata"
    elif found != SONGS_VERSION.encode():
        yield "version", f"version {found.decode(errors='replace')}, this program reads {SONGS_VERSION}"
    faults = list(_field_faults(schema, SONGS_SCHEMA, "column "))
    if not faults and not schema.equals(SONGS_SCHEMA, check_metadata=False):
        faults = ["columns or their fields stand in another order"]
    yield from (("schema", fault) for fault in faults)


def _field_faults(found: pa.Schema | pa.StructType, wanted: pa.Schema | pa.StructType, prefix: str) -> Iterator[str]:
    known = {field.name: field for field in found}
    for field in wanted:
        name = prefix + field.name
        if field.name not in known:
            yield f"{name} is missing ({field.type})"
            continue
        other = known.pop(field.name)
        kind, other_kind = field.type, other.type
        while pa.types.is_list(kind) and pa.types.is_list(other_kind):
            kind, other_kind = kind.value_type, other_kind.value_type
        if pa.types.is_struct(kind) and pa.types.is_struct(other_kind):
            yield from _field_faults(other_kind, kind, f"{name}.")
        elif not kind.equals(other_kind):
            yield f"{name} is {other.type}, not {field.type}"
        if other.nullable != field.nullable:
            yield f"{name} {'may' if other.nullable else 'must not'} be null"
    for name in known:
        yield f"{prefix}{name} is not known"


def _song_faults(row: Row, audio: bool) -> Iterator[tuple[str, str]]:
    missing = list(_nulls(row, SONGS_SCHEMA, ""))
    if missing:
        # The rest of the checks would stumble over them.
        yield "value_missing", ", ".join(missing)
        return
    if not row["song_id"].startswith(f"{row['corpus']}/"):
        yield "song_id", f"does not begin with {row['corpus']}/"
    if row["subset"] not in SUBSETS:
        yield "subset", repr(row["subset"])
    yield from _duration_faults(row)
    if len(row["sketch"]) % 2:
        yield "sketch", f"{len(row['sketch'])} bytes"
    ids = [stem["stem_id"] for stem in row["stems"]]
    for stem_id in sorted({stem_id for stem_id in ids if ids.count(stem_id) > 1}):
        yield "stem_id", repr(stem_id)
    recordings = row["stems"] + ([row["mixture_audio"]] if row["mixture_audio"] else [])
    for stem in recordings:
        for code, detail in _stem_faults(stem):
            yield code, f"stem {stem['stem_id']}: {detail}"
    for problem in row["problems"]:
        if problem["code"] not in PROBLEMS:
            yield "problem", f"code {problem['code']!r} is not known"
        elif PROBLEMS[problem["code"]][0] is Effect.STEM and problem["stem_id"] not in ids:
            yield "problem", f"{problem['code']} of stem {problem['stem_id']!r}, which the song does not have"
    try:
        if not isinstance(json.loads(row["extra"]), dict):
            yield "extra", f"{row['extra'][:40]!r} is no object"
    except ValueError as error:
        yield "extra", str(error)
    yield from _path_faults(row, recordings, audio)


def _nulls(value: Row, fields: pa.Schema | pa.StructType, prefix: str) -> Iterator[str]:
    """Names of the values that are null though the schema says that they must not be."""
    for field in fields:
        found, name = value[field.name], prefix + field.name
        if found is None:
            if not field.nullable:
                yield name
        elif pa.types.is_struct(field.type):
            yield from _nulls(found, field.type, f"{name}.")
        elif pa.types.is_list(field.type):
            for index, item in enumerate(found):
                if item is None:
                    yield f"{name}[{index}]"
                else:
                    yield from _nulls(item, field.type.value_type, f"{name}[{index}].")


def _duration_faults(row: Row) -> Iterator[tuple[str, str]]:
    duration, frames, rate = row["duration_s"], row["frames"], row["sample_rate"]
    if not (math.isfinite(duration) and duration >= 0):
        yield "duration", f"duration_s {duration}"
        return
    if (frames is None) != (rate is None):
        yield "duration", f"frames {frames} at a sample rate of {rate}"
    elif frames is not None and (not _within(rate, _RATES) or abs(frames / rate - duration) > 1 / rate + 1e-6):
        yield "duration", f"{frames} frames at {rate} Hz are not {duration} s"
    for stem in row["stems"]:
        if stem["frames"] and _within(stem["sample_rate"], _RATES):
            seconds = stem["frames"] / stem["sample_rate"]
            if seconds > duration + _TOLERANCE_S:
                yield "duration", f"stem {stem['stem_id']} of {seconds:.2f} s in a song of {duration:.2f} s"


def _stem_faults(stem: Row) -> Iterator[tuple[str, str]]:
    rate, frames = stem["sample_rate"], stem["frames"]
    limits: dict[str, tuple[float, float]] = {
        "sample_rate": _RATES,
        "channels": _CHANNELS,
        "frames": (0, math.inf),
        "stream": (0, 1_000),
        "channel": (0, 1_000),
    }
    for name, range_ in limits.items():
        if stem[name] is not None and not _within(stem[name], range_):
            yield "rate", f"{name} {stem[name]}"
    for name, range_ in (_LEVELS | {"bandwidth_hz": (0.0, (rate or math.inf) / 2 + 1)}).items():
        if stem[name] is not None and not _within(stem[name], range_):
            yield "level", f"{name} {stem[name]}"
    if stem["size"] is not None and stem["size"] < 0:
        yield "file_size", f"size {stem['size']}"
    if frames is not None and rate is not None and _within(rate, _RATES) and frames >= 0:
        count = activity_frames(frames, rate)
        if len(stem["activity"]) != -(-count // 8):
            yield "activity", f"{len(stem['activity'])} bytes for {count} frames of 100 ms"
        elif count % 8 and stem["activity"][-1] & (0xFF >> count % 8):
            yield "activity", f"bits beyond the last of {count} frames"
        if frames and not stem["fingerprint"]:
            yield "fingerprint", f"none, though {frames} frames were measured"
    elif stem["activity"]:
        yield "activity", "of a stem without frames and sample rate"
    families = vocabulary().families
    family = families.get(stem["instrument"], UNMAPPED)
    if stem["family"] != family:
        yield "instrument", f"{stem['instrument']!r} is of the family {family!r}, not {stem['family']!r}"


def _path_faults(row: Row, recordings: list[Row], audio: bool) -> Iterator[tuple[str, str]]:
    files = {stem["path"]: stem["size"] for stem in recordings}
    if row["mixture"] is not None:
        files.setdefault(row["mixture"], None)
    told = {problem["code"] for problem in row["problems"]}
    if audio and is_remote(row["root"]):
        try:
            filesystem(row["root"])
        except CorpusError as error:
            audio = False
            yield "not_checked", str(error)
    for relative, size in files.items():
        pure = PurePosixPath(relative)
        leaves = pure.is_absolute() or ".." in pure.parts or "\x00" in relative
        if leaves or (audio and locate(row["root"], relative) is None):
            if "outside_root" not in told:
                yield "path", repr(relative)
        elif audio:
            path = f"{row['root']}/{relative}"
            found = _state(row["root"], relative)
            if found is None and not told & {"missing", "bad_name"}:
                yield "file_missing", path
            # A server may not tell how large an object is.
            elif found and found[0] is not None and size is not None and found[0] != size:
                yield "file_size", f"{path}: {found[0]} bytes, {size} when it was measured"


def _state(root: str, relative: str) -> tuple[int | None, int] | None:
    """As `manifests.roots.state`, but that a folder is no file."""
    place = locate(root, relative)
    return None if isinstance(place, Path) and place.is_dir() else state(root, relative)


def _within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]
