"""MTG-Jamendo: 55,701 full songs with tags, mixtures only (Bogdanov et al., ML4MD at ICML 2019).

    ROOT/[audio/]NN/<track>[.low].mp3                           NN: the last two digits of the track's number
    ROOT/data/splits/split-0/autotagging-{train,validation,test}.tsv

The second line is from the repository of the corpus, put there by hand; the audio comes without it. A song is listed
with its mixture and the problem ``mixture_only``: nothing can be split from it, but all of it can be measured.
Subsets: those of split 0, which has no artist in two of them; a song in none of its lists has the problem
``unknown_subset``. Without the lists all is train, and what of it was meant for testing is not known.
Defects: what sounds where is not known, tags are the uploaders'. Every track has a Creative Commons licence of its own,
which no path tells and nothing here reads: look it up before use.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from manifests.corpora.base import SongListing, first_of_each
from manifests.corpora.layout import FolderLayout
from manifests.errors import CorpusError
from manifests.songs import SUBSETS, Problem, inside

_LIST = "data/splits/split-0/autotagging-{}.tsv"


class MTGJamendo:
    """The audio in either quality; songs are called ``NN/<track>``."""

    name = "mtg-jamendo"
    license = "LicenseRef-MTG-Jamendo"
    citation = "Bogdanov et al., The MTG-Jamendo Dataset for Automatic Music Tagging, ML4MD at ICML 2019"

    def songs(self, root: Path) -> Iterator[SongListing]:
        """List songs in the order of their paths. Raises CorpusError when there are none, or a list is unreadable."""
        audio = "audio/" if os.path.isdir(root / "audio") else ""
        layout = FolderLayout(
            name=self.name,
            license=self.license,
            song=audio + "{folder}/{track}.mp3",
            mixture="{track}.mp3",
            ignore=("data", "*.tsv", "*.txt"),
        )
        subsets = {song: subset for subset in SUBSETS for song in _listed(root, subset)}

        def name(listing: SongListing) -> str:
            return listing.song.removeprefix(audio).removesuffix(".low")

        for listing in first_of_each(layout.songs(root), name, root):
            song = name(listing)
            subset = subsets.get(song, None if subsets else "train")
            unknown = Problem(code="unknown_subset", detail=f"{song} is in none of {_LIST.format('*')}")
            problems = (*listing.problems, *([] if subset else [unknown]))
            yield replace(listing, song=song, subset=subset or "train", problems=problems)


def _listed(root: Path, subset: str) -> list[str]:
    """Songs in the list of a subset: the fourth column is the path. None when there is no such list."""
    name = _LIST.format(subset)
    if not os.path.lexists(root / name):
        return []
    try:
        if (path := inside(root, name)) is None or not path.is_file():
            raise ValueError("no file, or a link that leaves the root")
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
        return [row[3].removesuffix(".mp3") for row in rows if row != [""]]
    except (OSError, ValueError, IndexError) as error:
        raise CorpusError(f"{root / name}: not the list of a split ({' '.join(str(error).split())})") from None
