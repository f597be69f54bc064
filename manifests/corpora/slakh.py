"""Slakh2100: synthesised multitracks with Lakh MIDI (Manilow et al., WASPAA 2019). CC BY 4.0.

    ROOT/{train,validation,test,omitted}/TrackNNNNN/     babyslakh: ROOT/TrackNNNNN/, no subset folders
        metadata.yaml  mix.flac  all_src.mid
        stems/SNN.flac                                   babyslakh: .wav
        MIDI/SNN.mid

``audio_rendered`` and ``audio_dir`` of the metadata are not to be trusted (babyslakh, and Track00616 of the redux): a
stem exists when its file does.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from manifests.corpora.base import SongListing, StemListing
from manifests.errors import CorpusError
from manifests.songs import SUBSETS, Problem, inside

_FOLDERS = (*SUBSETS, "omitted")


class Slakh2100:
    """The original, the redux and babyslakh; subsets are the folders (babyslakh: all train)."""

    name = "slakh2100"
    license = "CC-BY-4.0"
    citation = "Manilow et al., Cutting Music Source Separation Some Slakh, WASPAA 2019"

    def songs(self, root: Path) -> Iterator[SongListing]:
        """List songs in the order of their paths. Raises CorpusError when no TrackNNNNN folder is below ``root``."""
        folders = [(subset, f"{subset}/") for subset in _FOLDERS if (root / subset).is_dir()] or [("train", "")]
        tracks = [
            (subset, prefix + track.name)
            for subset, prefix in folders
            for track in sorted((root / prefix).glob("Track*"))
            if track.is_dir()
        ]
        if not tracks:
            raise CorpusError(f"{root}: no Slakh2100 here; expected train|validation|test/TrackNNNNN/metadata.yaml")
        for subset, song in tracks:
            yield self._song(root, subset, song)

    def _song(self, root: Path, subset: str, song: str) -> SongListing:
        try:
            metadata = _metadata(root, song)
            listed, problems = metadata["stems"], []
        except (OSError, yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError) as error:
            metadata, listed = {}, {}
            detail = f"{song}/metadata.yaml: {type(error).__name__}: {str(error).splitlines()[0]}"
            problems = [Problem(code="metadata", detail=detail)]
        files = {path.stem: path.name for path in sorted((root / song / "stems").glob("*")) if path.suffix != ".mid"}
        stems = []
        for stem_id in sorted({*listed, *files}):
            entry = listed.get(stem_id) or {}
            if stem_id in files:
                label = str(entry.get("inst_class", "other"))
                stems.append(StemListing(stem_id=stem_id, path=f"{song}/stems/{files[stem_id]}", label=label))
            else:
                name = entry.get("midi_program_name", "")
                problems.append(Problem(code="no_audio", detail=f"{stem_id} ({name}) has metadata only"))
        mixture = next((f"{song}/{name}" for name in ("mix.flac", "mix.wav") if (root / song / name).exists()), None)
        programs = {key: value.get("midi_program_name") for key, value in listed.items() if isinstance(value, dict)}
        return SongListing(
            song=song,
            subset=subset,
            stems=tuple(stems),
            mixture=mixture,
            license=self.license,
            problems=tuple(problems),
            extra={"uuid": metadata.get("UUID"), "programs": programs},
        )


def _metadata(root: Path, song: str) -> dict[str, Any]:
    path = inside(root, f"{song}/metadata.yaml")
    if path is None:
        raise OSError(f"{song}/metadata.yaml leaves the root")
    metadata: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(metadata["stems"], dict):
        raise TypeError("'stems' is not a mapping")
    return metadata
