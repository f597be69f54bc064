"""A corpus by a YAML file that names the columns of a Hugging Face data set: one row a song, one audio column a stem.

kind: huggingface
name: my-set
license: CC-BY-4.0
citation: "Who, What, Year"
config: default                    # configuration of the data set, where it has several
id: track_id                       # column; without it a song is called by a hash of its row's content
stems: {vocals: vocals, kit: drums}          # audio column -> label
mixture: mix                       # audio column, optional
subset: fold                       # column that tells the subset; without it the data set's own splits do
subsets: {dev: validation, "3": test}        # value of that column, or split -> train | validation | test
extra: [artist, title]             # columns that stand in the song's ``extra``
labels: {BGVOX: backing vocals}    # label -> instrument, where the vocabulary does not know
residual_db: -20                   # the stems sum to the mixture: what may be left, at most

The root is a folder of Parquet files, one that ``save_to_disk`` wrote, or an ``audiofolder`` (audio files and a
metadata.csv or .jsonl with ``<column>_file_name``); or the URL of such a folder: ``hf://datasets/OWNER/NAME`` is one
on the hub. Audio is neither decoded nor copied: a stem's path is a file, or a cell of a table (`manifests.cells`).
Without ``id`` a listing reads every byte.
"""

import csv
import hashlib
import io
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

import yaml

from manifests import roots
from manifests.cells import Audio, open_table
from manifests.corpora.base import SongListing, StemListing, read_mapping, read_metadata
from manifests.errors import CorpusError
from manifests.remote import RemoteFile
from manifests.songs import SUBSETS, Problem, inside

KIND = "huggingface"
_SPLITS = {name: name for name in SUBSETS} | dict.fromkeys(("valid", "val", "dev", "eval"), "validation")
_METADATA = ("metadata.csv", "metadata.jsonl")
_FILE_NAME = "file_name"
_REQUIRED = ("name", "license", "stems")
_TEXTS = ("name", "license", "citation", "config", "id", "mixture", "subset")
_MAPPINGS = ("stems", "subsets", "labels")


@dataclass(frozen=True, slots=True)
class _Row:
    split: str
    place: str
    """``<table>#<row>``, or ``<metadata file>#<row>``: for messages, and for cells."""
    values: Mapping[str, Any]
    """Values of plain columns; of audio columns the path below the root, or None where the row has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HuggingFace:
    """A Hugging Face data set whose columns are named."""

    name: str
    license: str
    stems: dict[str, str]
    citation: str = ""
    config: str | None = None
    id: str | None = None
    mixture: str | None = None
    subset: str | None = None
    subsets: dict[str, str] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    residual_db: float | None = None

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the YAML file. Raises CorpusError naming the file and the key that is wrong."""
        try:
            raw = read_mapping(path)
        except ValueError as error:
            raise CorpusError(f"layout {path}: {error}") from None
        known = ("kind", *_TEXTS, *_MAPPINGS, "extra", "residual_db")
        if unknown := sorted(str(key) for key in raw.keys() - set(known)):
            raise CorpusError(f"{path}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        if missing := [key for key in _REQUIRED if not raw.get(key)]:
            raise CorpusError(f"{path}: {', '.join(missing)} missing")
        typed: dict[str, Any] = {}
        for key in _TEXTS:
            if raw.get(key) is not None:
                typed[key] = _text(path, key, raw[key])
        for key in _MAPPINGS:
            value = raw.get(key) or {}
            if not isinstance(value, dict):
                raise CorpusError(f"{path}: {key} is a mapping, not {type(value).__name__}")
            typed[key] = {_text(path, key, name): _text(path, key, item) for name, item in value.items()}
        extra = raw.get("extra") or []
        if not isinstance(extra, list):
            raise CorpusError(f"{path}: extra is a list of columns, not {type(extra).__name__}")
        residual = raw.get("residual_db")
        if residual is not None and (isinstance(residual, bool) or not isinstance(residual, int | float)):
            raise CorpusError(f"{path}: residual_db is a number, not {residual!r}")
        for subset in typed["subsets"].values():
            if subset not in SUBSETS:
                raise CorpusError(f"{path}: subset {subset!r} is none of {', '.join(SUBSETS)}")
        return cls(**typed, residual_db=residual, extra=tuple(_text(path, "extra", name) for name in extra))

    def songs(self, root: Path) -> Iterator[SongListing]:
        """List songs in the order of the data set's rows; a file that cannot be read is a song with that problem.

        Raises CorpusError when no data set is at ``root``, or it lacks a column.
        """
        origin = roots.origin(root)
        rows: list[_Row] = []
        broken: list[SongListing] = []
        for split, file in _files(root, origin, self.config):
            try:
                rows += self._rows(origin, split, file)
            except CorpusError:
                raise
            except (OSError, ValueError, RecursionError, csv.Error) as error:
                problem = Problem(code="metadata", detail=f"{file}: {' '.join(str(error).split())}")
                broken.append(
                    SongListing(song=file, subset="train", stems=(), license=self.license, problems=(problem,))
                )
        if not rows and not broken:
            raise CorpusError(f"{origin}: the data set has no rows")
        yield from self._named(origin, rows)
        yield from broken

    def _rows(self, origin: str, split: str, file: str) -> Iterator[_Row]:
        audio = [*self.stems, *([self.mixture] if self.mixture else [])]
        plain = {*self.extra, *(name for name in (self.id, self.subset) if name)}
        columns = sorted({*audio, *plain})
        table = _table_rows(origin, file, columns) if _is_table(file) else _metadata_rows(origin, file, columns)
        for row, values in enumerate(table):
            place = f"{file}#{row}"
            found = {name: _path(origin, file, place, name, values[name]) for name in audio}
            yield _Row(split, place, {name: values[name] for name in plain} | found)

    def _named(self, origin: str, rows: list[_Row]) -> Iterator[SongListing]:
        """Songs by their ids; rows that share one are told apart by their content, for positions may change."""
        listings = [self._song(row) for row in rows]
        ids = [_id(row.values[self.id]) if self.id else None for row in rows]
        shared = {name for name, count in Counter(ids).items() if count > 1}
        names = []
        for name, row in zip(ids, rows, strict=True):
            if name is None:
                names.append(self._content(origin, row))
            else:
                names.append(f"{name}~{self._content(origin, row)[:12]}" if name in shared else name)
        # The same audio again: a copy, or a leak into another subset.
        again = Counter(names)
        copies: Counter[tuple[str, str]] = Counter()
        for name, listing in zip(names, listings, strict=True):
            copies[name, listing.subset] += 1
            copy = copies[name, listing.subset]
            end = (f"~{listing.subset}" if again[name] > 1 else "") + (f"-{copy}" if copy > 1 else "")
            yield replace(listing, song=name + end)

    def _song(self, row: _Row) -> SongListing:
        problems: list[Problem] = []
        stems = []
        for column, label in self.stems.items():
            if (path := row.values[column]) is None:
                problems.append(Problem(code="no_audio", detail=f"{column} has none in {row.place}"))
                continue
            stems.append(StemListing(stem_id=column, path=path, label=label, instrument=self.labels.get(label)))
        value = row.split if self.subset is None else _id(row.values[self.subset]) or ""
        subset = self.subsets.get(value) or _SPLITS.get(value)
        if subset is None:
            detail = f"{value!r} is none of {', '.join(SUBSETS)}; name it in 'subsets' of layout {self.name}"
            problems.append(Problem(code="unknown_subset", detail=detail))
        return SongListing(
            song=row.place,
            subset=subset or "train",
            stems=tuple(stems),
            mixture=row.values[self.mixture] if self.mixture else None,
            residual_db=self.residual_db,
            license=self.license,
            problems=tuple(problems),
            extra={name: json.loads(json.dumps(row.values[name], default=str)) for name in self.extra},
        )

    def _content(self, origin: str, row: _Row) -> str:
        """A hash of the stems' encoded bytes; of their paths where these cannot be read."""
        digest = hashlib.blake2b(digest_size=16)
        for column in sorted(self.stems):
            path = row.values[column]
            digest.update(f"{column} {path is not None}\n".encode())
            if path is not None:
                digest.update(_bytes_hash(origin, path))
        return digest.hexdigest()


def _files(root: Path, origin: str, config: str | None) -> Iterator[tuple[str, str]]:
    """Split and path below the root of every file that holds rows."""
    import datasets

    if any((root / name).exists() for name in ("dataset_dict.json", "state.json")):
        yield from _saved(root, origin)
        return
    _check_card(root, origin)
    with tempfile.TemporaryDirectory(prefix="mgeldm-datasets-") as cache:
        try:
            # It sorts files into splits; no row is read.
            builder = datasets.load_dataset_builder(str(root), name=config, cache_dir=cache)
        except Exception as error:
            raise CorpusError(f"{origin}: no data set here ({' '.join(str(error).split())})") from None
    found = False
    for split, paths in (builder.config.data_files or {}).items():
        for path in sorted(map(str, paths)):
            if _is_table(path) or PurePosixPath(path).name in _METADATA:
                found = True
                yield str(split), _relative(root, path)
    if not found:
        raise CorpusError(f"{origin}: no Parquet file and no {' or '.join(_METADATA)} here")


def _check_card(root: Path, origin: str) -> None:
    """Raise CorpusError when the data set's card leads elsewhere: `datasets` would follow it."""
    card = inside(root, "README.md")
    if card is None:
        raise CorpusError(f"{origin}: README.md is a link that leaves the root")
    if not card.is_file():
        return
    try:
        head = card.read_text(encoding="utf-8", errors="replace").removeprefix("---\n").partition("\n---")[0]
        texts = [*_texts((yaml.safe_load(head) or {}).get("configs"))]
    # A card that is plain text says nothing of files.
    except (yaml.YAMLError, AttributeError, ValueError, RecursionError):
        return
    if foreign := [text for text in texts if "://" in text or text.startswith("/") or ".." in text.split("/")]:
        raise CorpusError(f"{origin}: README.md says that data lies at {foreign[0]!r}; only what is below is read")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _saved(root: Path, origin: str) -> Iterator[tuple[str, str]]:
    """The Arrow files of ``save_to_disk``. Its own reader would follow whatever names of files stand there."""
    if origin != str(root):
        raise CorpusError(f"{origin}: what save_to_disk wrote is read from a local disk only; save it as Parquet")
    try:
        several = (root / "dataset_dict.json").exists()
        splits = read_metadata(root, "dataset_dict.json").get("splits") if several else [""]
        for split in splits or ():
            folder = f"{split}/" if split else ""
            state = read_metadata(root, f"{folder}state.json")
            for file in state["_data_files"]:
                yield str(split or state.get("_split") or "train"), f"{folder}{file['filename']}"
    except (ValueError, KeyError, TypeError) as error:
        raise CorpusError(f"{origin}: not as save_to_disk writes it ({type(error).__name__}: {error})") from None


def _relative(root: Path, path: str) -> str:
    """The path below the root; one elsewhere stays as it is, and is refused."""
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else path


def _is_table(file: str) -> bool:
    return file.endswith((".parquet", ".arrow"))


def _table_rows(origin: str, file: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    place = roots.locate(origin, file)
    if not isinstance(place, Path | RemoteFile):
        raise ValueError("a link that leaves the root")
    table = open_table(place)
    _check(origin, file, columns, table.columns)
    return table.rows(columns)


def _metadata_rows(origin: str, file: str, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of the metadata of an ``audiofolder``: ``<column>_file_name`` says where the audio of a column lies."""
    place = roots.locate(origin, file)
    if place is None:
        raise ValueError("a link that leaves the root")
    if isinstance(place, Path):
        text = place.read_text(encoding="utf-8")
    else:
        with place.open() as handle:
            text = handle.read().decode("utf-8")
    if file.endswith(".csv"):
        rows: list[Any] = list(csv.DictReader(io.StringIO(text, newline="")))
    else:
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    for row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"a row is a mapping, not {type(row).__name__}")
        values = {str(key): value for key, value in row.items()}
        named = {_audio_column(key): Audio(None, value or None) for key, value in values.items() if _is_file(key)}
        _check(origin, file, columns, [*values, *named])
        yield {name: named.get(name, values.get(name)) for name in columns}


def _is_file(key: str) -> bool:
    return key == _FILE_NAME or key.endswith(f"_{_FILE_NAME}")


def _audio_column(key: str) -> str:
    return key.removesuffix(_FILE_NAME).removesuffix("_") or "audio"


def _check(origin: str, file: str, columns: list[str], there: list[str]) -> None:
    if missing := [name for name in columns if name not in there]:
        raise CorpusError(f"{origin}: {file} has no column {', '.join(missing)}; there are {', '.join(there)}")


def _path(origin: str, file: str, place: str, column: str, value: Any) -> str | None:
    """The path below the root of what an audio column holds: the cell itself, or the file that it names.

    A file that is not below the root keeps its path, which the scan then refuses.
    """
    value = Audio(None, value) if isinstance(value, str) else value
    if value is None or value == Audio(None, None):
        return None
    if not isinstance(value, Audio):
        raise CorpusError(f"{origin}: column {column} of {file} holds {type(value).__name__}, no audio")
    if value.content is not None:
        return f"{place}/{column}"
    path = str(value.path)
    for base in (origin, os.path.realpath(origin)):
        if path.startswith(f"{base}/"):
            return path.removeprefix(f"{base}/")
    # As `datasets` reads an audiofolder: beside the metadata.
    return path if _is_table(file) or path.startswith("/") else (PurePosixPath(file).parent / path).as_posix()


def _bytes_hash(origin: str, path: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    try:
        place = roots.locate(origin, path)
        if place is None:
            raise FileNotFoundError(path)
        with place.open("rb") if isinstance(place, Path) else place.open() as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    except (OSError, ValueError):
        return path.encode("utf-8", "backslashreplace")
    return digest.digest()


def _id(value: Any) -> str | None:
    return None if value is None or value == "" else str(value)


def _text(path: Path, key: str, value: Any) -> str:
    if key == "license" and isinstance(value, dict):
        value = value.get("id")
    if not isinstance(value, str | int | float):
        raise CorpusError(f"{path}: {key} is a text, not {type(value).__name__}")
    return str(value)
