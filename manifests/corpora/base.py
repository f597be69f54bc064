"""What every corpus gives: a listing of songs, their stems' paths and labels."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

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

    name: str
    license: str
    citation: str

    def songs(self, root: Path) -> Iterator[SongListing]:
        """List the songs below ``root`` in a stable order. Raises CorpusError when this is no such corpus."""
        ...
