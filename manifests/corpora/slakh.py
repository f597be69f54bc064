"""Slakh2100: synthesised multitracks with Lakh MIDI (Manilow et al., WASPAA 2019). CC BY 4.0.

    ROOT/{train,validation,test,omitted}/TrackNNNNN/     babyslakh: ROOT/TrackNNNNN/, no subset folders
        metadata.yaml  mix.flac  all_src.mid
        stems/SNN.flac                                   babyslakh: .wav
        MIDI/SNN.mid

Subsets: the folders; babyslakh has none, all train. The original has tracks of one MIDI file in two subsets; the redux
and the second split mend that, and may be had from the folders of the original. The UUID is the checksum of the MIDI
file, and the name of the work.
Defects: ``audio_rendered`` and ``audio_dir`` of the metadata are not to be trusted (babyslakh, and Track00616 of the
redux): a stem exists when its file does. Stems of noise are problems, those at a wrong pitch notes.
"""

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from manifests.corpora.base import (
    AUDIO_SUFFIXES,
    SongListing,
    StemListing,
    list_folders,
    list_names,
    read_mapping,
    read_metadata,
)
from manifests.errors import CorpusError
from manifests.songs import SUBSETS, Problem

_OMITTED = "omitted"
_UNUSABLE = ("white noise", "missing audio")


class Slakh2100:
    """The original, the redux and babyslakh; subsets are the folders (babyslakh: all train), or those of ``resplit``.

    ``resplit`` is "redux" (tracks that it leaves out are excluded) or "splits-v2", over the folders of the original.
    """

    name = "slakh2100"
    license = "CC-BY-4.0"
    citation = "Manilow et al., Cutting Music Source Separation Some Slakh, WASPAA 2019"

    def __init__(self, resplit: str | None = None) -> None:
        self.resplit = resplit
        if resplit:
            self.name = f"{Slakh2100.name}-{resplit}"

    def songs(self, root: Path) -> Iterator[SongListing]:
        """List songs in the order of their paths. Raises CorpusError when no TrackNNNNN folder is below ``root``."""
        found = False
        for subset in ("", *SUBSETS, _OMITTED):
            try:
                folders = list_folders(root / subset, root) if os.path.isdir(root / subset) else []
            except OSError as error:
                raise CorpusError(f"{root / subset}: cannot be listed ({error.strerror})") from None
            for folder in folders:
                if folder.name.startswith("Track"):
                    found = True
                    yield self._song(root, subset, folder.relative_to(root).as_posix())
        if not found:
            raise CorpusError(f"{root}: no Slakh2100 here; expected train|validation|test/TrackNNNNN/metadata.yaml")

    def _song(self, root: Path, subset: str, song: str) -> SongListing:
        listed, uuid, problems = _metadata(root, song)
        known = not problems
        files, leftover = _stem_files(list_names(root / song / "stems", problems, root))
        stems = []
        for stem_id in sorted({*listed, *files}):
            entry = listed.get(stem_id, {})
            if stem_id not in files:
                detail = f"{stem_id} ({_text(entry.get('midi_program_name'))}) has metadata only"
                problems.append(Problem(code="no_audio", detail=detail))
                continue
            label = entry.get("inst_class")
            if known and not isinstance(label, str):
                problems.append(Problem(code="unlabelled", stem_id=stem_id, detail="metadata.yaml has no inst_class"))
            path = f"{song}/stems/{files[stem_id]}"
            stems.append(StemListing(stem_id=stem_id, path=path, label=label if isinstance(label, str) else "other"))
        number = _number(song)
        if subset == _OMITTED or (self.resplit == "redux" and number in _published()["omitted"]):
            problems.append(
                Problem(code="excluded", detail="another track has the same MIDI; the redux omits this one")
            )
        if self.resplit == "splits-v2":
            moved = _published()["moved"].items()
            subset = next((name for name, numbers in moved if number in numbers), subset)
        defects = _published()["defects"].get(number, {})
        for stem_id, words in defects.items():
            if stem_id in files:
                code = "known_defect" if words in _UNUSABLE else "known_flaw"
                problems.append(Problem(code=code, stem_id=stem_id, detail=words))
        programs = {key: _text(entry.get("midi_program_name")) for key, entry in listed.items()}
        return SongListing(
            song=song,
            subset=subset if subset in SUBSETS else "train",
            stems=tuple(stems),
            mixture=_mixture(root, song),
            residual_db=-40.0,
            works=(f"lakh:{uuid}",) if uuid else (),
            license=self.license,
            problems=tuple(problems),
            extra={"uuid": uuid, "programs": programs}
            | ({"defects": defects} if defects else {})
            | ({"leftover": leftover} if leftover else {}),
        )


@cache
def _published() -> dict[Any, Any]:
    """Numbers of the tracks that the redux omits and that the second split moves, and known defects of stems."""
    return read_mapping(Path(__file__).with_name("slakh_splits.yaml"))


def _number(song: str) -> int | None:
    digits = song.rsplit("/", 1)[-1].removeprefix("Track")
    return int(digits) if digits.isascii() and digits.isdecimal() else None


def _metadata(root: Path, song: str) -> tuple[dict[str, dict[str, Any]], str | None, list[Problem]]:
    """The entries of the stems, the UUID, and the problem if ``metadata.yaml`` cannot be used."""
    try:
        metadata = read_metadata(root, f"{song}/metadata.yaml")
        stems = metadata.get("stems")
        if not isinstance(stems, dict):
            raise ValueError(f"'stems' is not a mapping but {type(stems).__name__}")
    except ValueError as error:
        return {}, None, [Problem(code="metadata", detail=f"{song}/metadata.yaml: {error}")]
    entries = {str(key): entry if isinstance(entry, dict) else {} for key, entry in stems.items()}
    return entries, _text(metadata.get("UUID")), []


def _stem_files(names: list[str]) -> tuple[dict[str, str], list[str]]:
    """Name of the audio file of each stem id; and what else lies there."""
    files: dict[str, str] = {}
    leftover = []
    for name in names:
        stem_id, suffix = os.path.splitext(name)
        if suffix.lower() in AUDIO_SUFFIXES and name[0] != "." and stem_id not in files:
            files[stem_id] = name
        else:
            leftover.append(name)
    return files, leftover


def _mixture(root: Path, song: str) -> str | None:
    paths = (f"{song}/{name}" for name in ("mix.flac", "mix.wav"))
    return next((path for path in paths if os.path.exists(root / path)), None)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None
