"""MoisesDB: 240 songs, each stem of one or more tracks (Pereira et al., ISMIR 2023). CC BY-NC-SA 4.0.

    ROOT/[moisesdb/][moisesdb_v0.1/]<song uuid>/data.json
        <stemName>/<track id>.<extension>

A stem here is a track: ``trackType`` is its label. There is no mixture.
Subsets: none of its own. The split is the one that MGE-LDM uses: a tenth of the sorted uuids, drawn with seed 42, is
the test set. It needs all 240 songs; a part of the corpus is split otherwise.
Defects: tracks of a song differ in length, in 50 songs by more than a trifle; a ``stemName`` may stand twice; tracks
with bleed are noted; labels that the documentation does not know ("hi-hat").
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from manifests.corpora.base import (
    SongListing,
    StemListing,
    find_folders,
    first_of_each,
    has_audio,
    list_files,
    read_metadata,
)
from manifests.errors import CorpusError
from manifests.songs import Problem


class MoisesDB:
    """The released data set; songs are called by their uuids."""

    name = "moisesdb"
    license = "CC-BY-NC-SA-4.0"
    citation = "Pereira et al., MoisesDB: A dataset for source separation beyond 4-stems, ISMIR 2023"

    def songs(self, root: Path) -> Iterator[SongListing]:
        """List songs in the order of their uuids. Raises CorpusError when no data.json is 1 to 3 folders down."""
        found = find_folders(root, 3, lambda folder: os.path.lexists(folder / "data.json")) if root.is_dir() else ()
        folders = sorted(first_of_each(found, lambda folder: folder.name, root), key=lambda folder: folder.name)
        if not folders:
            raise CorpusError(f"{root}: no MoisesDB here; expected moisesdb_v0.1/<uuid>/data.json")
        # The old generator: the split was made with it.
        test = np.random.RandomState(42).permutation(len(folders))[: math.ceil(len(folders) / 10)]
        for index, folder in enumerate(folders):
            yield self._song(root, folder.relative_to(root).as_posix(), "test" if index in test else "train")

    def _song(self, root: Path, path: str, subset: str) -> SongListing:
        problems: list[Problem] = []
        stems: dict[str, StemListing] = {}
        extra: dict[str, Any] = {}
        try:
            metadata = read_metadata(root, f"{path}/data.json")
            stems, bleeding, twice = _stems(path, metadata)
            problems += [Problem(code="listed_twice", detail=f"{path}/data.json: {key}") for key in twice]
            extra = {key: metadata[key] for key in ("artist", "song", "genre") if isinstance(metadata.get(key), str)}
            extra |= {"has_bleed": bleeding} if bleeding else {}
        except ValueError as error:
            problems.append(Problem(code="metadata", detail=f"{path}/data.json: {error}"))
        missing = [key for key, stem in stems.items() if not has_audio(root, stem.path)]
        problems += [Problem(code="no_audio", detail=f"{key} has metadata only") for key in missing]
        heard = [key for key in extra.get("has_bleed", ()) if key not in missing]
        problems += [Problem(code="bleed", stem_id=key, detail="has_bleed is true") for key in heard]
        known = {stem.path for stem in stems.values()} | {f"{path}/data.json"}
        names = list_files(root / path, "", 1, problems, root)
        leftover = [name for name in names if f"{path}/{name}" not in known]
        return SongListing(
            song=path.rsplit("/", 1)[-1],
            subset=subset,
            stems=tuple(stem for key, stem in sorted(stems.items()) if key not in missing),
            license=self.license,
            problems=tuple(problems),
            extra=extra | ({"leftover": leftover} if leftover else {}),
        )


def _stems(path: str, metadata: dict[Any, Any]) -> tuple[dict[str, StemListing], list[str], list[str]]:
    """The tracks of all stems, a ``stemName`` may occur twice; which of them have bleed, and which are there twice.

    Raises ValueError.
    """
    stems: dict[str, StemListing] = {}
    bleeding, twice = [], []
    try:
        for stem in metadata["stems"]:
            for track in stem["tracks"]:
                name, track_id, suffix = (str(part) for part in (stem["stemName"], track["id"], track["extension"]))
                key = f"{name}/{track_id}"
                label = str(track.get("trackType") or name)
                twice += [key] if key in stems else []
                stems.setdefault(key, StemListing(stem_id=key, path=f"{path}/{key}.{suffix}", label=label))
                bleeding += [key] if track.get("has_bleed") is True else []
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"stems are not as documented ({type(error).__name__}: {error})") from None
    return stems, sorted({*bleeding}), sorted({*twice})
