"""Corpora of empty files, and what a listing of them says."""

from collections.abc import Callable
from pathlib import Path

import pytest

from manifests.corpora import SongListing, get_corpus
from manifests.errors import CorpusError
from tests.support.corpora import write_slakh_metadata


def touch(root: Path, *names: str) -> Path:
    """Empty files: a corpus opens no audio."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def slakh_song(root: Path, song: str, stems: tuple[str, ...] = ("Drums", "Bass")) -> Path:
    """A song in Slakh2100's layout. Returns its folder."""
    touch(root / song, "mix.flac", *(f"stems/S{index:02d}.flac" for index in range(len(stems))))
    write_slakh_metadata(root / song, stems)
    return root / song


def listed(name: str, root: Path) -> dict[str, SongListing]:
    """Listings by their songs."""
    return {listing.song: listing for listing in get_corpus(name).songs(root)}


def codes(listing: SongListing) -> list[tuple[str, str | None]]:
    """Code and stem of each problem."""
    return [(problem.code, problem.stem_id) for problem in listing.problems]


def refused(action: Callable[[], object], *words: str) -> None:
    """Assert that ``action`` raises a CorpusError of one line that holds all ``words``."""
    with pytest.raises(CorpusError) as caught:
        action()
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)
