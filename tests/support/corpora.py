"""Small corpora on disk, of both kinds that the project reads."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from tests.support.sounds import sound, write_sound

INSTRUMENTS = ("Drums", "Bass", "Piano", "Guitar")
SLAKH_SONGS = {"train": 2, "validation": 1, "test": 1}

LAYOUT = {
    "name": "folders",
    "license": {"id": "CC0-1.0"},
    "song": "{song}",
    "stems": ["{label}.wav", "{label}.flac", "{label}.m4a"],
    "subsets": {"song 2": "test"},
    "labels": {"BGVOX ECHO": "backing vocals"},
}
# Label, suffix, sample rate, channels, and by how much the stem is shorter than the song.
FOLDER_STEMS = (
    ("drums", ".flac", 44_100, 1, 0.0),
    ("Synth & Bass", ".wav", 48_000, 2, 0.4),
    ("BGVOX ECHO", ".m4a", 44_100, 2, 0.0),
)


def write_slakh(
    root: Path,
    songs: Mapping[str, int] = SLAKH_SONGS,
    *,
    seconds: float = 3.0,
    rate: int = 16_000,
    instruments: tuple[str, ...] = INSTRUMENTS,
) -> Path:
    """A corpus in Slakh2100's layout: mono FLAC, the mixture their sum. Returns its root."""
    number = 0
    for subset, count in songs.items():
        for _ in range(count):
            number += 1
            folder = root / subset / f"Track{number:05d}"
            waves = [sound("slakh", number, name, seconds=seconds, rate=rate) for name in instruments]
            for index, wave in enumerate(waves):
                write_sound(folder / "stems" / f"S{index:02d}.flac", wave, rate)
            write_sound(folder / "mix.flac", sum(waves[1:], waves[0]), rate)
            write_slakh_metadata(folder, instruments)
    return root


def write_slakh_metadata(folder: Path, instruments: tuple[str, ...]) -> None:
    """``metadata.yaml`` of one song."""
    stems = {
        f"S{index:02d}": {"inst_class": name, "is_drum": name == "Drums", "midi_program_name": f"{name} 1"}
        for index, name in enumerate(instruments)
    }
    metadata = {"UUID": folder.name.lower(), "audio_dir": "stems", "stems": stems}
    (folder / "metadata.yaml").write_text(yaml.safe_dump(metadata))


def write_folders(root: Path, songs: int = 2, *, seconds: float = 3.0) -> Path:
    """A corpus with one folder a song, and its layout file beside it, which is returned.

    File types, sample rates, channels and lengths differ, and there is no mixture file.
    """
    for number in range(1, songs + 1):
        for label, suffix, rate, channels, shorter in FOLDER_STEMS:
            wave = sound("folders", number, label, seconds=seconds - shorter, rate=rate, channels=channels)
            write_sound(root / f"song {number}" / f"{label}{suffix}", wave, rate)
    return write_layout(root.with_name(f"{root.name}.yaml"))


def write_layout(path: Path, **changes: object) -> Path:
    """`LAYOUT` with ``changes`` as a layout file."""
    path.write_text(yaml.safe_dump(LAYOUT | changes))
    return path
