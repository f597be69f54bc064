"""MedleyDB 1 and 2: 196 released songs (Bittner et al., ISMIR 2014; ICMC 2016). CC BY-NC-SA 4.0.

    ROOT/[{Audio,V1,V2}/]<Artist>_<Title>/
        <id>_MIX.wav  <id>_METADATA.yaml
        <id>_STEMS/<id>_STEM_NN.wav
        <id>_RAW/<id>_RAW_NN_MM.wav
    ROOT/Metadata/<id>_METADATA.yaml        where it does not lie beside the audio

The mixture is a weighted sum of the stems, so that no residual is promised.
Subsets: none of its own. The 46 songs of MUSDB18 are in the subset they have there, and their works are named; all
others are in train.
Defects: a "Main System" is a microphone before the whole ensemble: it holds every other stem, so that it is no stem
here; it stands in ``extra`` as a capture. Stems that people who listened found not to be what their label says are
problems; the errata of the corpus are notes. Flags are the words "yes" and "no". Bleed is told song by song. The
metadata also describe songs that were never released.
"""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from manifests.corpora.base import (
    SongListing,
    StemListing,
    find_folders,
    first_of_each,
    has_audio,
    list_names,
    read_mapping,
    read_metadata,
)
from manifests.corpora.musdb18 import in_medleydb, musdb18hq
from manifests.corpora.works import work
from manifests.errors import CorpusError
from manifests.songs import Problem

_CAPTURE = "Main System"
_TEXTS = ("artist", "title", "genre")
_FLAGS = ("has_bleed", "instrumental", "excerpt")
# What makes a stem useless; all else that is known is a note.
_UNUSABLE = ("bleed in every stem", "not what its label says")


class MedleyDB:
    """Both versions; a song is a folder with audio, for the metadata also describe songs that were never released."""

    name = "medleydb"
    license = "CC-BY-NC-SA-4.0"
    citation = "Bittner et al., MedleyDB 2.0: New Data and a System for Sustainable Data Collection, ICMC 2016"

    def songs(self, root: Path) -> Iterator[SongListing]:
        """List songs in the order of their paths. Raises CorpusError when no <Artist>_<Title> folder is there."""
        found = False
        folders = find_folders(root, 2, _is_song) if root.is_dir() else ()
        for folder in first_of_each(folders, lambda folder: folder.name, root):
            found = True
            yield self._song(root, folder.relative_to(root).as_posix())
        if not found:
            raise CorpusError(
                f"{root}: no MedleyDB here; expected Audio|V1|V2/<Artist>_<Title>/<Artist>_<Title>_STEMS/"
            )

    def _song(self, root: Path, path: str) -> SongListing:
        song = path.rsplit("/", 1)[-1]
        problems: list[Problem] = []
        files = list_names(root / path / f"{song}_STEMS", problems, root)
        extra: dict[str, Any] = {}
        try:
            metadata = _metadata(root, path, song)
            entries = _entries(metadata)
            extra = {key: metadata[key] for key in _TEXTS if isinstance(metadata.get(key), str)}
            # They are quoted, but for a few that YAML reads as true and false.
            extra |= {key: metadata[key] in ("yes", True) for key in _FLAGS if key in metadata}
        except ValueError as error:
            problems.append(Problem(code="metadata", detail=f"{song}_METADATA.yaml: {error}"))
            entries = {name: (name, "other") for name in files if name.endswith(".wav") and name[0] != "."}
        stems = [_stem(root, f"{path}/{song}_STEMS", key, *entry, problems) for key, entry in sorted(entries.items())]
        problems += _known(song, [stem.stem_id for stem in stems if stem])
        if extra.get("has_bleed"):
            problems.append(Problem(code="bleed", detail="has_bleed is yes"))
        twin = in_medleydb().get(song)
        found = {
            "captures": {key: name for key, (name, label) in sorted(entries.items()) if label == _CAPTURE},
            "musdb18": twin,
            "defects": _defects(song),
            "leftover": sorted({*files} - {name for name, _ in entries.values()}),
        }
        mixture = f"{path}/{song}_MIX.wav"
        return SongListing(
            song=song,
            subset=musdb18hq().subsets.get(twin, "train") if twin else "train",
            stems=tuple(stem for stem in stems if stem),
            mixture=mixture if os.path.exists(root / mixture) else None,
            works=(work("musdb18", twin),) if twin else (),
            license=self.license,
            problems=tuple(problems),
            extra=extra | {key: value for key, value in found.items() if value},
        )


def _stem(
    root: Path, folder: str, key: str, name: str, label: str | None, problems: list[Problem]
) -> StemListing | None:
    if label == _CAPTURE:
        return None
    if not has_audio(root, f"{folder}/{name}"):
        problems.append(Problem(code="no_audio", detail=f"{key} ({name}, {label}) has metadata only"))
        return None
    if label is None:
        problems.append(Problem(code="unlabelled", stem_id=key, detail=f"{name}: no instrument"))
    return StemListing(stem_id=key, path=f"{folder}/{name}", label=label or "other")


def _defects(song: str) -> dict[str, str]:
    """What is known to be wrong: stem, or "song" for all of it -> words, several joined."""
    found: dict[str, str] = {}
    for words, songs in _published().items():
        for key in songs[song] or ["song"] if song in songs else []:
            found[key] = f"{found[key]}; {words}" if key in found else words
    return found


def _known(song: str, stem_ids: list[str]) -> Iterator[Problem]:
    """The problems of what is known to be wrong; a whole song that is unusable is one whose stems all are."""
    for words, songs in _published().items():
        if song not in songs:
            continue
        if words in _UNUSABLE:
            keys = songs[song] or stem_ids
            yield from (Problem(code="known_defect", stem_id=key, detail=words) for key in stem_ids if key in keys)
        elif not songs[song]:
            yield Problem(code="known_flaw", detail=words)
        else:
            keys = [key for key in songs[song] if key in stem_ids]
            yield from (Problem(code="known_flaw", stem_id=key, detail=words) for key in keys)


@cache
def _published() -> dict[Any, Any]:
    return read_mapping(Path(__file__).with_name("medleydb_defects.yaml"))


def _is_song(folder: Path) -> bool:
    return any(os.path.lexists(folder / f"{folder.name}_{end}") for end in ("STEMS", "MIX.wav", "METADATA.yaml"))


def _metadata(root: Path, path: str, song: str) -> dict[Any, Any]:
    beside = f"{path}/{song}_METADATA.yaml"
    return read_metadata(root, beside if os.path.lexists(root / beside) else f"Metadata/{song}_METADATA.yaml")


def _entries(metadata: dict[Any, Any]) -> dict[str, tuple[str, str | None]]:
    """File and label of each stem. Raises ValueError; what is no text is never written out, for it may be huge."""
    stems = metadata.get("stems")
    if not isinstance(stems, dict):
        raise ValueError(f"'stems' is not a mapping but {type(stems).__name__}")
    entries: dict[str, tuple[str, str | None]] = {}
    for key, entry in stems.items():
        name = entry.get("filename") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise ValueError(f"the stem {key} has no filename")
        label = entry.get("instrument")
        entries[str(key)] = (name, label if isinstance(label, str) else None)
    return entries
