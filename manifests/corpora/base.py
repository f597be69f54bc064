"""What every corpus gives: a listing of songs, their stems' paths and labels."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from manifests.songs import Problem

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".aif", ".aiff")


@dataclass(frozen=True, slots=True, kw_only=True)
class StemListing:
    """One stem as the corpus lists it."""

    stem_id: str
    path: str
    """Below the root, with forward slashes; need not exist (the scan records what is missing)."""
    label: str
    stream: int | None = None
    instrument: str | None = None
    """Canonical instrument where the corpus knows it better than the vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SongListing:
    """One song as the corpus lists it."""

    song: str
    """The song's own path or id in the corpus; stable, never a listing position."""
    subset: str
    stems: tuple[StemListing, ...]
    mixture: str | None = None
    license: str = ""
    problems: tuple[Problem, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


class Corpus(Protocol):
    """A multitrack data set. Third parties add one by the entry-point group ``mgeldm.corpora``."""

    @property
    def name(self) -> str:
        """Letters, digits, ``-``, ``_`` and ``.``; the first part of every song id."""
        ...

    @property
    def license(self) -> str:
        """Licence of the songs that have none of their own; an SPDX id where there is one."""
        ...

    @property
    def citation(self) -> str:
        """Whom to cite."""
        ...

    def songs(self, root: Path) -> Iterator[SongListing]:
        """List the songs below ``root`` in a stable order. Raises CorpusError when this is no such corpus."""
        ...


def read_mapping(path: Path) -> dict[Any, Any]:
    """Read a YAML file that holds a mapping. Raises ValueError, in one line, when it is missing or anything else."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    # Besides its own errors, the YAML reader lets those of dates (ValueError) and of deep nesting through.
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not readable as YAML: {error}"
        raise ValueError(" ".join(str(reason).split())) from None
    if not isinstance(value, dict):
        raise ValueError(f"a mapping was expected, not {type(value).__name__}")
    return value


def list_folders(folder: Path) -> list[Path]:
    """Folders in ``folder`` and links to such, sorted; hidden ones are left out. Raises OSError."""
    return [folder / name for name in sorted(os.listdir(folder)) if name[0] != "." and os.path.isdir(folder / name)]


def list_names(folder: Path, problems: list[Problem]) -> list[str]:
    """Names in a folder of a song, sorted; none if it is missing. A problem is added if it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(Problem(code="unreadable", detail=f"the folder {folder.name}: {error.strerror}"))
        return []
