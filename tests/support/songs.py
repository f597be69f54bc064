"""Rows of a manifest, made up or measured."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from manifests.labels import lookup
from manifests.songs import Problem, Song, Stem
from mgeldm.measure import ActivityConfig, measure


def made_stem(name: str, active: Sequence[bool] | None = None, *, seconds: float = 30.0, **fields: object) -> Stem:
    """A stem that sounds in the 100 ms frames of ``active`` (all by default); its instrument is ``name``."""
    frames = np.ones(round(10 * seconds), bool) if active is None else np.array(active, bool)
    values: dict[str, object] = {
        "stem_id": name,
        "path": f"{name}.wav",
        "label": name,
        "instrument": lookup(name).instrument,
        "family": lookup(name).family,
        "sample_rate": 16_000,
        "channels": 1,
        "frames": 1_600 * len(frames),
        "activity": np.packbits(frames).tobytes(),
        "fingerprint": hashlib.sha256(name.encode()).hexdigest()[:32],
    }
    return Stem(**(values | fields))  # type: ignore[arg-type]


def made_song(song_id: str, stems: Sequence[Stem], problems: Sequence[Problem] = (), subset: str = "train") -> Song:
    """A song of made-up stems; the corpus is the first part of its id."""
    return Song(
        song_id=song_id,
        corpus=song_id.split("/")[0],
        root="/nowhere",
        subset=subset,
        sample_rate=16_000,
        frames=max(stem.frames or 0 for stem in stems),
        duration_s=max((stem.frames or 0) / (stem.sample_rate or 1) for stem in stems),
        stems=tuple(stems),
        license="CC0-1.0",
        problems=tuple(problems),
    )


def measured_song(root: Path, files: Mapping[str, str], offsets: Mapping[str, int] | None = None) -> Song:
    """A song of the files ``files`` (stem id, which is its label -> path below ``root``), measured as a scan does."""
    stems = []
    for name, path in files.items():
        found = measure(root / path, None, ActivityConfig())
        stems.append(
            Stem(
                stem_id=name,
                path=path,
                label=name,
                instrument=lookup(name).instrument,
                family=lookup(name).family,
                sample_rate=found.sample_rate,
                channels=found.channels,
                frames=found.frames,
                offset_frames=(offsets or {}).get(name, 0),
                activity=np.packbits(found.activity).tobytes(),
                fingerprint=found.fingerprint,
            )
        )
    song = made_song("corpus/song", stems)
    return Song(**{**{name: getattr(song, name) for name in Song.__dataclass_fields__}, "root": str(root)})
