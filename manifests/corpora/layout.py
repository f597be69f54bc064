"""A corpus by YAML layout: no code where paths tell all.

name: my-corpus
license: {id: CC-BY-4.0, url: "https://..."}
citation: "Who, What, Year"
song: "{subset}/{song}"            # folder of one song below the root; {names} match inside one path component
stems: ["{label}.wav", "*/{label}.flac"]
mixture: mixture.wav               # optional, below the song folder; never a stem
subset: train                      # for songs whose pattern has no {subset}
subsets: {dev: validation, "A - B": test}   # a value of {subset} or a song -> train | validation | test
ignore: ["*.json"]                 # known leftovers
labels: {"BGVOX ECHO": backing vocals}      # raw label -> instrument, where the vocabulary does not know
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Self

import yaml

from manifests.corpora.base import SongListing, StemListing
from manifests.errors import CorpusError
from manifests.songs import SUBSETS

_KEYS = frozenset(["name", "license", "citation", "song", "stems", "mixture", "subset", "subsets", "ignore", "labels"])
_FIELD = re.compile(r"\{(\w+)\}")


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
    labels: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            raise CorpusError(f"layout {self.name!r}: a name is letters, digits, '-', '_' and '.'")
        for pattern in (self.song, *self.stems):
            if pattern.startswith("/") or ".." in pattern.split("/"):
                raise CorpusError(f"layout {self.name}: the pattern {pattern!r} leaves the root")
        for pattern in self.stems:
            if "label" not in _FIELD.findall(pattern):
                raise CorpusError(f"layout {self.name}: the stem pattern {pattern!r} has no {{label}}")
        for subset in (self.subset, *self.subsets.values()):
            if subset not in SUBSETS:
                raise CorpusError(f"layout {self.name}: subset {subset!r} is none of {', '.join(SUBSETS)}")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a layout file. Raises CorpusError naming the file and the key that is wrong."""
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CorpusError(f"{path}: no such layout file") from None
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise CorpusError(f"{path}: not readable as YAML ({error})") from None
        if not isinstance(raw, dict):
            raise CorpusError(f"{path}: a layout is a mapping with name, license, song and stems")
        if unknown := sorted(str(key) for key in raw.keys() - _KEYS):
            raise CorpusError(f"{path}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(_KEYS))}")
        if missing := [key for key in ("name", "license", "song", "stems") if not raw.get(key)]:
            raise CorpusError(f"{path}: {', '.join(missing)} missing")
        return cls(**_typed(path, raw))

    def songs(self, root: Path) -> Iterator[SongListing]:
        """List songs in the order of their paths. Raises CorpusError when no folder matches the song pattern."""
        matcher = _matcher(self.song)
        depth = self.song.count("/") + 1
        found = False
        for folder in sorted(_folders(root, depth)):
            song = folder.relative_to(root).as_posix()
            if match := matcher.fullmatch(song):
                found = True
                yield self._song(folder, song, match.groupdict())
        if not found:
            raise CorpusError(f"{root}: no folder matches {self.song!r} of layout {self.name}")

    def _song(self, folder: Path, song: str, fields: dict[str, str]) -> SongListing:
        subset = self.subsets.get(song) or self.subsets.get(song.rsplit("/", 1)[-1])
        if subset is None and (value := fields.get("subset")):
            subset = self.subsets.get(value, value if value in SUBSETS else None)
        stems, leftover = [], []
        for path in sorted(path for path in folder.rglob("*") if not path.is_dir()):
            name = path.relative_to(folder).as_posix()
            if name == self.mixture or any(fnmatch(name, pattern) for pattern in self.ignore):
                continue
            match = next((m for pattern in self.stems if (m := _matcher(pattern).fullmatch(name))), None)
            if match is None:
                leftover.append(name)
                continue
            label = match.groupdict()["label"]
            stems.append(
                StemListing(stem_id=name, path=f"{song}/{name}", label=label, instrument=self.labels.get(label))
            )
        mixture = f"{song}/{self.mixture}" if self.mixture and (folder / self.mixture).exists() else None
        return SongListing(
            song=song,
            subset=subset or self.subset,
            stems=tuple(stems),
            mixture=mixture,
            license=self.license,
            extra={"leftover": leftover} if leftover else {},
        )


def _folders(root: Path, depth: int) -> Iterator[Path]:
    if not root.is_dir():
        raise CorpusError(f"{root}: no such folder")
    for child in root.iterdir():
        if child.is_dir() and not child.name.startswith("."):
            if depth == 1:
                yield child
            else:
                yield from _folders(child, depth - 1)


def _matcher(pattern: str) -> re.Pattern[str]:
    """``{name}`` and ``*`` match within one path component, everything else is literal."""
    out = ""
    for part in re.split(r"(\{\w+\}|\*)", pattern):
        name = _FIELD.fullmatch(part)
        out += f"(?P<{name[1]}>[^/]+?)" if name else "[^/]*" if part == "*" else re.escape(part)
    return re.compile(out)


def _typed(path: Path, raw: dict[str, Any]) -> dict[str, Any]:
    """Check the types of a layout's values and bring them to the fields' types."""

    def mapping(key: str) -> dict[str, str]:
        value = raw.get(key) or {}
        if not isinstance(value, dict):
            raise CorpusError(f"{path}: {key} is a mapping, not {type(value).__name__}")
        return {str(k): str(v) for k, v in value.items()}

    def strings(key: str) -> tuple[str, ...]:
        value = raw.get(key) or []
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            raise CorpusError(f"{path}: {key} is a text or a list of texts")
        return tuple(items)

    license_ = raw["license"]
    typed: dict[str, Any] = {
        "name": str(raw["name"]),
        "license": str(license_.get("id", "") if isinstance(license_, dict) else license_),
        "citation": str(raw.get("citation") or ""),
        "song": str(raw["song"]),
        "stems": strings("stems"),
        "mixture": str(raw["mixture"]) if raw.get("mixture") else None,
        "subsets": mapping("subsets"),
        "ignore": strings("ignore"),
        "labels": mapping("labels"),
    }
    return typed | ({"subset": str(raw["subset"])} if raw.get("subset") else {})
