"""A corpus by YAML layout: no code where paths tell all.

name: my-corpus
license: {id: CC-BY-4.0, url: "https://..."}
citation: "Who, What, Year"
song: "{subset}/{song}"            # folder of one song below the root; {names} match inside one path component
stems: ["{label}.wav", "*/{label}.flac"]
mixture: mixture.wav               # optional, below the song folder; never a stem; "{root}/..." is below the root
subset: train                      # for songs whose pattern has no {subset}
subsets: {dev: validation, "A - B": test}   # a value of {subset} or a song -> train | validation | test
ignore: ["*.json"]                 # known leftovers of a song, and known folders that are no song
notes: {"A - B": hi-hat in the bass}        # what is known of a song; stands in its ``extra``
labels: {"BGVOX ECHO": backing vocals}      # raw label -> instrument, where the vocabulary does not know

A {name} of the song pattern stands for its value in ``stems`` and ``mixture``: ``"{song}-{label}.wav"``.
Hidden files, and whatever else no pattern takes, stand in the song's ``extra`` as leftovers.
"""

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from manifests.corpora.base import SongListing, StemListing, leaves, list_files, list_folders, read_mapping
from manifests.errors import CorpusError
from manifests.songs import SUBSETS, Problem

_KEYS = frozenset(
    ["name", "license", "citation", "song", "stems", "mixture", "subset", "subsets", "ignore", "notes", "labels"]
)
_FIELD = re.compile(r"\{(\w+)\}")
_ROOT = "{root}/"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderLayout:
    """One folder a song, one file a stem, described by patterns."""

    name: str
    license: str
    song: str
    stems: tuple[str, ...]
    citation: str = ""
    mixture: str | None = None
    subset: str = "train"
    subsets: dict[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            raise CorpusError(f"layout {self.name!r}: a name is letters, digits, '-', '_' and '.'")
        for pattern in (self.song, *self.stems, *([self.mixture.removeprefix(_ROOT)] if self.mixture else [])):
            if not {"", ".", ".."}.isdisjoint(pattern.split("/")):
                raise CorpusError(f"layout {self.name}: {pattern!r} is no path below the root; no '/' ahead, no '..'")
        for pattern in (self.song, *self.stems):
            try:
                _matcher(pattern)
            except re.error as error:
                raise CorpusError(f"layout {self.name}: the pattern {pattern!r} is wrong ({error})") from None
        for pattern in self.stems:
            if "label" not in _FIELD.findall(pattern):
                raise CorpusError(f"layout {self.name}: the stem pattern {pattern!r} has no {{label}}")
        known = {*_FIELD.findall(self.song)}
        for name in _FIELD.findall((self.mixture or "").removeprefix(_ROOT)):
            if name not in known:
                raise CorpusError(f"layout {self.name}: mixture: the song pattern {self.song!r} has no {{{name}}}")
        for subset in (self.subset, *self.subsets.values()):
            if subset not in SUBSETS:
                raise CorpusError(f"layout {self.name}: subset {subset!r} is none of {', '.join(SUBSETS)}")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a layout file. Raises CorpusError naming the file and the key that is wrong."""
        try:
            raw = read_mapping(path)
        except ValueError as error:
            raise CorpusError(f"layout {path}: {error}") from None
        if unknown := sorted(str(key) for key in raw.keys() - _KEYS):
            raise CorpusError(f"{path}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(_KEYS))}")
        if missing := [key for key in ("name", "license", "song", "stems") if not raw.get(key)]:
            raise CorpusError(f"{path}: {', '.join(missing)} missing")
        return cls(**_typed(path, raw))

    def songs(self, root: Path) -> Iterator[SongListing]:
        """List songs in the order of their paths.

        Raises:
            CorpusError: no folder matches the song pattern, or none of those that do holds a stem.
        """
        matcher = _matcher(self.song)
        listings, others = [], []
        for folder in _folders(root, root, self.song.count("/") + 1):
            song = folder.relative_to(root).as_posix()
            if leaves(root, folder) and not self._ignored(song):
                listings.append(self._outside(song))
            elif match := matcher.fullmatch(song):
                listings.append(self._song(root, song, match.groupdict()))
            elif not self._ignored(song):
                others.append(song)
        if not listings:
            raise CorpusError(f"{root}: no folder matches {self.song!r} of layout {self.name}")
        if not any(listing.stems or listing.problems for listing in listings):
            patterns = " or ".join(map(repr, self.stems))
            raise CorpusError(f"{root}: no file matches {patterns} of layout {self.name} ({len(listings)} folders)")
        if others:
            logger.warning("%s: %d folders do not match %r, such as %r", root, len(others), self.song, others[0])
        yield from listings

    def _song(self, root: Path, song: str, fields: dict[str, str]) -> SongListing:
        problems: list[Problem] = []
        stems, leftover = [], []
        matchers = [_matcher(pattern, _values(pattern, fields)) for pattern in self.stems]
        mixture = self._mixture(song, fields)
        depth = max(pattern.count("/") for pattern in self.stems)
        for name in list_files(root / song, "", depth, problems, root):
            if f"{song}/{name}" == mixture or self._ignored(name):
                continue
            match = next((m for matcher in matchers if (m := matcher.fullmatch(name))), None)
            if match is None or any(part[0] == "." for part in name.split("/")):
                leftover.append(name)
                continue
            label = match["label"]
            stems.append(
                StemListing(stem_id=name, path=f"{song}/{name}", label=label, instrument=self.labels.get(label))
            )
        note = self.notes.get(song) or self.notes.get(song.rsplit("/", 1)[-1])
        return SongListing(
            song=song,
            subset=self._subset(song, fields.get("subset"), problems),
            stems=tuple(stems),
            mixture=mixture if mixture and os.path.exists(root / mixture) else None,
            license=self.license,
            problems=tuple(problems),
            extra=({"notes": note} if note else {}) | ({"leftover": leftover} if leftover else {}),
        )

    def _outside(self, song: str) -> SongListing:
        """The row of a folder, or of one above those of songs, that is not looked into."""
        problem = Problem(code="outside_root", detail=f"the folder {song}")
        return SongListing(song=song, subset=self.subset, stems=(), license=self.license, problems=(problem,))

    def _mixture(self, song: str, fields: dict[str, str]) -> str | None:
        if not self.mixture:
            return None
        folder = "" if self.mixture.startswith(_ROOT) else f"{song}/"
        return folder + _FIELD.sub(lambda match: fields[match[1]], self.mixture.removeprefix(_ROOT))

    def _ignored(self, path: str) -> bool:
        return any(fnmatchcase(path, pattern) for pattern in self.ignore)

    def _subset(self, song: str, value: str | None, problems: list[Problem]) -> str:
        for key in (song, song.rsplit("/", 1)[-1], value):
            if key in self.subsets:
                return self.subsets[key]
        if value is None or value in SUBSETS:
            return value or self.subset
        # Taking it for the default could mix a corpus's test songs into training.
        detail = f"{value!r} is none of {', '.join(SUBSETS)}; name it in 'subsets' of layout {self.name}"
        problems.append(Problem(code="unknown_subset", detail=detail))
        return self.subset


def _folders(root: Path, folder: Path, depth: int) -> Iterator[Path]:
    """Folders ``depth`` levels below ``folder``, and links above these that leave the root, in the order of paths."""
    try:
        children = list_folders(folder)
    except OSError as error:
        raise CorpusError(f"{folder}: cannot be listed ({error.strerror})") from None
    for child in children:
        if depth == 1 or leaves(root, child):
            yield child
        else:
            yield from _folders(root, child, depth - 1)


def _values(pattern: str, fields: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """What the song pattern found for the names in ``pattern``; a stem's label is its own."""
    return tuple((name, fields[name]) for name in _FIELD.findall(pattern) if name in fields and name != "label")


@lru_cache(maxsize=1024)
def _matcher(pattern: str, values: tuple[tuple[str, str], ...] = ()) -> re.Pattern[str]:
    """``{name}`` and ``*`` match within one path component, a name of ``values`` its value; the rest is literal."""
    known, out = dict(values), ""
    for part in re.split(r"(\{\w+\}|\*)", pattern):
        if (name := _FIELD.fullmatch(part)) and name[1] in known:
            out += re.escape(known[name[1]])
        else:
            out += f"(?P<{name[1]}>[^/]+?)" if name else "[^/]*" if part == "*" else re.escape(part)
    return re.compile(out)


def _typed(path: Path, raw: dict[Any, Any]) -> dict[str, Any]:
    """Check the types of a layout's values and bring them to the fields' types."""

    def text(key: str, value: Any) -> str:
        if not isinstance(value, str | int | float):
            raise CorpusError(f"{path}: {key} is a text, not {type(value).__name__}")
        return str(value)

    def texts(key: str) -> tuple[str, ...]:
        value = raw.get(key) or []
        return tuple(text(key, item) for item in (value if isinstance(value, list) else [value]))

    def mapping(key: str) -> dict[str, str]:
        value = raw.get(key) or {}
        if not isinstance(value, dict):
            raise CorpusError(f"{path}: {key} is a mapping, not {type(value).__name__}")
        return {text(key, name): text(key, item) for name, item in value.items()}

    license_ = raw["license"]
    typed: dict[str, Any] = {
        "name": text("name", raw["name"]),
        "license": text("the id of license", license_.get("id") if isinstance(license_, dict) else license_),
        "song": text("song", raw["song"]),
        "stems": texts("stems"),
        "subsets": mapping("subsets"),
        "ignore": texts("ignore"),
        "notes": mapping("notes"),
        "labels": mapping("labels"),
    }
    return typed | {key: text(key, raw[key]) for key in ("citation", "mixture", "subset") if raw.get(key)}
