"""Every corpus in its true layout: trees of empty files and metadata, a maker a corpus."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml

from tests.support.listings import slakh_song, touch


def make_slakh(root: Path) -> None:
    slakh_song(root, "train/Track00001", ("Drums", "Bass", "Strings (continued)"))
    slakh_song(root, "validation/Track01501", ("Guitar", "Synth Pad"))
    slakh_song(root, "test/Track01876", ("Piano", "Chromatic Percussion"))
    slakh_song(root, "omitted/Track00002")


def make_musdb18hq(root: Path) -> None:
    for song in ("train/A - B", "train/Young Griffo - Pennies", "test/C - D"):
        touch(root / song, *(f"{stem}.wav" for stem in ("mixture", "vocals", "drums", "bass", "other")))


def make_musdb18(root: Path) -> None:
    for song in ("train/A - B", "train/Young Griffo - Pennies", "test/PR - Oh No"):
        touch(root, f"{song}.stem.mp4")


def make_dsd100(root: Path) -> None:
    for song in ("Dev/055 - A - B", "Test/001 - C - D"):
        touch(root / "Sources" / song, *(f"{stem}.wav" for stem in ("vocals", "drums", "bass", "other")))
        touch(root / "Mixtures" / song, "mixture.wav")


def make_ccmixter(root: Path) -> None:
    for song in ("A_-_B_(with_c)", "D_-_E"):
        touch(root / song, "mix.wav", "source-01.wav", "source-02.wav")


def make_bach10(root: Path) -> None:
    for song in ("01-AchGottundHerr", "02-AchLiebenChristen"):
        touch(root / song, *(f"{song}-{part}.wav" for part in ("violin", "clarinet", "saxphone", "bassoon")))
        touch(root / song, f"{song}.wav", f"{song}.mid", f"{song}.txt", f"{song}-GTF0s.mat")


def make_urmp(root: Path) -> None:
    for number, piece, players in (("01", "Jupiter", "vn_vc"), ("03", "Dance", "fl_cl"), ("13", "Hark", "vn_vn_va")):
        song = root / f"{number}_{piece}_{players}"
        touch(song, f"AuMix_{song.name}.wav", f"Sco_{number}_{piece}.pdf", f"Vid_{song.name}.mp4")
        for part, player in enumerate(players.split("_"), 1):
            end = f"{part}_{player}_{number}_{piece}"
            touch(song, f"AuSep_{end}.wav", f"Notes_{end}.txt", f"F0s_{end}.txt")
    touch(root / "Supplementary_Files", "readme.txt")


def make_cocochorales(root: Path) -> None:
    ensembles = {
        "train/brass_track001222": ("trumpet", "horn", "trombone", "tuba"),
        "valid/random_track192001": ("oboe", "english_horn", "double_bass", "saxophone"),
        "test/string_track240000": ("violin", "violin", "viola", "cello"),
    }
    for song, instruments in ensembles.items():
        touch(root / song, "metadata.yaml", "mix.mid", "mix.wav")
        for part, name in enumerate(instruments):
            touch(root / song, f"stems_MIDI/{part}_{name}.mid", f"stems_audio/{part}_{name}.wav")


def make_ikala(root: Path) -> None:
    for song in ("10161_chorus", "21025_verse"):
        touch(root, f"Wavfile/{song}.wav", f"PitchLabel/{song}.pv", f"Lyrics/{song}.lab")
    touch(root, "id_mapping.txt")


def make_mir1k(root: Path) -> None:
    for singer, numbers in (("abjones_1", ("01", "02")), ("leon_8", ("11",))):
        for song in (f"{singer}_{number}" for number in numbers):
            touch(root, f"Wavfile/{song}.wav", f"PitchLabel/{song}.pv", f"Lyrics/{song}.txt", f"LyricsWav/{song}.wav")
            touch(root, f"UnvoicedFrameLabel/{song}.unv", f"vocal-nonvocalLabel/{song}.vocal")
        touch(root, f"UndividedWavfile/{singer}.wav")


def make_guitarset(root: Path) -> None:
    for take in ("00_BN1-129-Eb_comp", "05_Jazz3-150-C_solo"):
        touch(root, f"annotation/{take}.jams", f"audio_hex-pickup_original/{take}_hex.wav")
        touch(root, f"audio_hex-pickup_debleeded/{take}_hex_cln.wav")
        touch(root, f"audio_mono-mic/{take}_mic.wav", f"audio_mono-pickup_mix/{take}_mix.wav")


def make_mtg_jamendo(root: Path) -> None:
    songs = {"train": "14/214.mp3", "validation": "48/948.mp3", "test": "00/1009600.mp3"}
    touch(root / "audio", *songs.values())
    for subset, song in songs.items():
        row = f"track_{song[3:-4]:0>7}\tartist_000014\talbum_000031\t{song}\t124.6\tgenre---punkrock"
        path = root / f"data/splits/split-0/autotagging-{subset}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n{row}\n")


def make_moisesdb(root: Path) -> None:
    tracks = {
        "vocals": ("lead male singer", "background vocals"),
        "drums": ("hi-hat", "kick drum"),
        "other_keys": ("organ, electric organ",),
        "bass": ("contrabass/double bass (bass of instrings)",),
    }
    for number in range(1, 11):
        song = f"{number:08d}-aaaa"
        listed = [(name, f"{name}-{k}", label) for name, labels in tracks.items() for k, label in enumerate(labels)]
        moisesdb_song(root / "moisesdb_v0.1" / song, listed)
        touch(root / "moisesdb_v0.1" / song, *(f"{name}/{track}.wav" for name, track, _ in listed))


def moisesdb_song(folder: Path, tracks: Sequence[tuple[str, str, object]], **more: object) -> Path:
    """``data.json`` of a song: stem, id and type of each of its tracks. Returns the folder."""
    stems = [
        {"stemName": name, "tracks": [{"id": track, "extension": "wav", "trackType": label, "has_bleed": False}]}
        for name, track, label in tracks
    ]
    folder.mkdir(parents=True, exist_ok=True)
    values = {"artist": "An Artist", "song": "A Song", "genre": "pop", "stems": stems}
    (folder / "data.json").write_text(json.dumps(values | more))
    return folder


def make_medleydb(root: Path) -> None:
    medleydb_song(root / "Audio/A_B", ("Main System", "violin", "fx/processed sound", "male singer"))
    medleydb_song(root / "V2/Meaxic_TakeAStep", ("drum set", "electric bass"))
    song = medleydb_song(root / "V2/C_D", ("piano", "double bass"))
    (root / "Metadata").mkdir()
    for name in ("C_D", "Never_Released"):
        (root / f"Metadata/{name}_METADATA.yaml").write_text((song / "C_D_METADATA.yaml").read_text())
    (song / "C_D_METADATA.yaml").unlink()


def medleydb_song(folder: Path, labels: Sequence[object], **more: object) -> Path:
    """A song with its metadata beside the audio. Returns the folder."""
    song = folder.name
    names = [f"{song}_STEM_{number:02d}.wav" for number in range(1, len(labels) + 1)]
    touch(folder, f"{song}_MIX.wav", *(f"{song}_STEMS/{name}" for name in names), f"{song}_RAW/{song}_RAW_01_01.wav")
    stems = {
        f"S{number:02d}": {"component": "", "filename": name, "instrument": label, "raw": {}}
        for number, (name, label) in enumerate(zip(names, labels, strict=True), 1)
    }
    values = {"artist": "An Artist", "title": "A Title", "genre": "Rock", "has_bleed": "no", "instrumental": "yes"}
    metadata = values | {"excerpt": "no", "composer": ["X"], "version": 1.2, "stems": stems}
    (folder / f"{song}_METADATA.yaml").write_text(yaml.safe_dump(metadata | more))
    return folder


TREES: dict[str, Callable[[Path], None]] = {
    "bach10": make_bach10,
    "ccmixter": make_ccmixter,
    "cocochorales": make_cocochorales,
    "dsd100": make_dsd100,
    "guitarset": make_guitarset,
    "ikala": make_ikala,
    "medleydb": make_medleydb,
    "mir1k": make_mir1k,
    "moisesdb": make_moisesdb,
    "mtg-jamendo": make_mtg_jamendo,
    "musdb18": make_musdb18,
    "musdb18hq": make_musdb18hq,
    "slakh2100": make_slakh,
    "slakh2100-redux": make_slakh,
    "slakh2100-splits-v2": make_slakh,
    "urmp": make_urmp,
}
"""Makers by the name of the corpus; each makes at least two songs below an empty folder."""


def make_tree(name: str, root: Path) -> Path:
    """The corpus called ``name`` below ``root``, which is returned."""
    TREES[name](root)
    return root
