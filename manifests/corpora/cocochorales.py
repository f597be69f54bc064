"""CocoChorales: chorales in four synthesised parts (Wu et al., 2022). CC BY 4.0, 16 kHz.

    ROOT/[{train,valid,test}/]<ensemble>_trackNNNNNN/
        metadata.yaml  mix.mid  mix.wav
        stems_MIDI/<part>_<instrument>.mid
        stems_audio/<part>_<instrument>.wav

Subsets: the number of a track says it, whichever folder it lies in: 1 to 192000, to 216000 and to 240000.
Defects: parts of one instrument share a label.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from manifests.corpora.base import SongListing, first_of_each
from manifests.corpora.layout import FolderLayout
from manifests.songs import Problem

_FOLDERS = ("train", "valid", "test")
_LAST = ((192_000, "train"), (216_000, "validation"), (240_000, "test"))


class CocoChorales:
    """The main data set; songs are called as their folders, without the folder of the subset."""

    name = "cocochorales"
    license = "CC-BY-4.0"
    citation = "Wu et al., The Chamber Ensemble Generator, 2022, arXiv:2209.14458"

    def songs(self, root: Path) -> Iterator[SongListing]:
        """List songs in the order of their paths. Raises CorpusError when no track is below ``root``."""
        folder = "{folder}/" if any(os.path.isdir(root / name) for name in _FOLDERS) else ""
        layout = FolderLayout(
            name=self.name,
            license=self.license,
            song=folder + "{ensemble}_track{number}",
            stems=("stems_audio/{part}_{label}.wav",),
            mixture="mix.wav",
            residual_db=-20.0,
            ignore=("metadata.yaml", "mix.mid", "stems_MIDI/*"),
        )
        for listing in first_of_each(layout.songs(root), _track, root):
            track = _track(listing)
            number = track.rsplit("_track", 1)[-1]
            subset = _subset(int(number)) if re.fullmatch("[0-9]{6}", number) else None
            problem = Problem(code="unknown_subset", detail=f"{track!r} has no number from 000001 to 240000")
            problems = (*listing.problems, *([] if subset else [problem]))
            yield replace(listing, song=track, subset=subset or "train", problems=problems)


def _track(listing: SongListing) -> str:
    return listing.song.rsplit("/", 1)[-1]


def _subset(number: int) -> str | None:
    return next((subset for last, subset in _LAST if 0 < number <= last), None)
