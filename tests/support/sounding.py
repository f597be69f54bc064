"""One song of each corpus with a tone of its own for every stem, written where the corpus has it by a table of ours.

The table is written by hand, from the papers and file trees of the corpora: no listing has a part in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mgeldm.audio import Wave
from tests.support.sounds import write_sound, write_streams

SECONDS = 0.5


@dataclass(frozen=True)
class Place:
    """Where a recording lies: a file, or one stream or channel of it."""

    path: str
    stream: int | None = None
    channel: int | None = None


@dataclass(frozen=True)
class SoundingSong:
    """A song of `tests.support.trees`, and what sounds where."""

    song: str
    rate: int
    channels: int
    """Of a file that is one stem, or one stream."""
    stems: tuple[tuple[str, Place], ...]
    """Canonical instrument and place."""
    mixture: Place | None = None


def _files(folder: str, **names: str) -> tuple[tuple[str, Place], ...]:
    return tuple((name.replace("_", " "), Place(f"{folder}/{file}")) for name, file in names.items())


_SLAKH = "train/Track00001"
_SLAKH_STEMS = _files(f"{_SLAKH}/stems", drums="S00.flac", bass="S01.flac", strings="S02.flac")
_SLAKH_SONG = SoundingSong(_SLAKH, 44_100, 1, _SLAKH_STEMS, Place(f"{_SLAKH}/mix.flac"))
_VDBO = {"bass": "bass.wav", "drums": "drums.wav", "other": "other.wav", "vocals": "vocals.wav"}
_BACH = "01-AchGottundHerr/01-AchGottundHerr"
_URMP = "13_Hark_vn_vn_va"
_COCO = "valid/random_track192001"
_TAKE = "00_BN1-129-Eb_comp"
_MOISES = "moisesdb_v0.1/00000001-aaaa"
_MEDLEY = "Audio/A_B/A_B"
_MUSDB = "train/A - B.stem.mp4"

SOUNDING: dict[str, SoundingSong] = {
    "bach10": SoundingSong(
        "01-AchGottundHerr",
        44_100,
        1,
        tuple(
            (name, Place(f"{_BACH}-{file}.wav"))
            for name, file in (
                ("violin", "violin"),
                ("clarinet", "clarinet"),
                ("saxophone", "saxphone"),
                ("bassoon", "bassoon"),
            )
        ),
        Place(f"{_BACH}.wav"),
    ),
    "ccmixter": SoundingSong(
        "D_-_E", 44_100, 2, _files("D_-_E", other="source-01.wav", vocals="source-02.wav"), Place("D_-_E/mix.wav")
    ),
    "cocochorales": SoundingSong(
        "random_track192001",
        16_000,
        1,
        _files(
            f"{_COCO}/stems_audio",
            oboe="0_oboe.wav",
            english_horn="1_english_horn.wav",
            double_bass="2_double_bass.wav",
            saxophone="3_saxophone.wav",
        ),
        Place(f"{_COCO}/mix.wav"),
    ),
    "dsd100": SoundingSong(
        "Sources/Dev/055 - A - B",
        44_100,
        2,
        _files("Sources/Dev/055 - A - B", **_VDBO),
        Place("Mixtures/Dev/055 - A - B/mixture.wav"),
    ),
    "guitarset": SoundingSong(
        f"audio_hex-pickup_debleeded/{_TAKE}",
        44_100,
        1,
        tuple(
            ("acoustic guitar", Place(f"audio_hex-pickup_debleeded/{_TAKE}_hex_cln.wav", channel=string))
            for string in range(6)
        ),
        Place(f"audio_mono-pickup_mix/{_TAKE}_mix.wav"),
    ),
    "ikala": SoundingSong(
        "Wavfile/21025_verse",
        44_100,
        1,
        (
            ("other", Place("Wavfile/21025_verse.wav", channel=0)),
            ("vocals", Place("Wavfile/21025_verse.wav", channel=1)),
        ),
        Place("Wavfile/21025_verse.wav"),
    ),
    "medleydb": SoundingSong(
        "A_B",
        44_100,
        2,
        _files(
            f"{_MEDLEY}_STEMS",
            violin="A_B_STEM_02.wav",
            sound_effects="A_B_STEM_03.wav",
            vocals="A_B_STEM_04.wav",
        ),
        Place(f"{_MEDLEY}_MIX.wav"),
    ),
    "mir1k": SoundingSong(
        "Wavfile/leon_8_11",
        16_000,
        1,
        (("other", Place("Wavfile/leon_8_11.wav", channel=0)), ("vocals", Place("Wavfile/leon_8_11.wav", channel=1))),
        Place("Wavfile/leon_8_11.wav"),
    ),
    "moisesdb": SoundingSong(
        "00000001-aaaa",
        44_100,
        2,
        _files(
            _MOISES,
            vocals="vocals/vocals-0.wav",
            backing_vocals="vocals/vocals-1.wav",
            kick_drum="drums/drums-1.wav",
            **{"hi-hat": "drums/drums-0.wav"},
            organ="other_keys/other_keys-0.wav",
            double_bass="bass/bass-0.wav",
        ),
    ),
    "mtg-jamendo": SoundingSong("48/948", 44_100, 2, (), Place("audio/48/948.mp3")),
    "musdb18": SoundingSong(
        "train/A - B",
        44_100,
        2,
        tuple((name, Place(_MUSDB, stream)) for stream, name in enumerate(("drums", "bass", "other", "vocals"), 1)),
        Place(_MUSDB, 0),
    ),
    "musdb18hq": SoundingSong("test/C - D", 44_100, 2, _files("test/C - D", **_VDBO), Place("test/C - D/mixture.wav")),
    "slakh2100": _SLAKH_SONG,
    "slakh2100-redux": _SLAKH_SONG,
    "slakh2100-splits-v2": _SLAKH_SONG,
    "urmp": SoundingSong(
        _URMP,
        48_000,
        1,
        (
            ("violin", Place(f"{_URMP}/AuSep_1_vn_13_Hark.wav")),
            ("violin", Place(f"{_URMP}/AuSep_2_vn_13_Hark.wav")),
            ("viola", Place(f"{_URMP}/AuSep_3_va_13_Hark.wav")),
        ),
        Place(f"{_URMP}/AuMix_{_URMP}.wav"),
    ),
}
"""By the name of the corpus."""


def pitches(song: SoundingSong) -> list[int]:
    """The tone of each stem in Hz; what has no stems has the tones that three would have."""
    return [220 + 110 * index for index in range(len(song.stems) or 3)]


def write_sounding(root: Path, song: SoundingSong) -> None:
    """Write the audio of ``song``: a tone for each stem, their sum for the mixture."""
    tones = [_tone(pitch, song.rate) for pitch in pitches(song)]
    placed = [(place, tone[None]) for (_, place), tone in zip(song.stems, tones, strict=False)]
    if song.mixture and song.mixture.path not in {place.path for place, _ in placed if place.channel is not None}:
        placed.append((song.mixture, sum(tones[1:], tones[0])[None]))
    for path in {place.path for place, _ in placed}:
        parts = [(place, wave) for place, wave in placed if place.path == path]
        if parts[0][0].stream is not None:
            ordered = sorted(parts, key=lambda part: part[0].stream or 0)
            write_streams(root / path, [np.repeat(wave, song.channels, 0) for _, wave in ordered], song.rate)
        elif parts[0][0].channel is not None:
            ordered = sorted(parts, key=lambda part: part[0].channel or 0)
            write_sound(root / path, np.concatenate([wave for _, wave in ordered]), song.rate)
        else:
            write_sound(root / path, np.repeat(parts[0][1], song.channels, 0), song.rate)


def heard(wave: Wave, rate: int, among: Sequence[int]) -> list[int]:
    """Which pitches of ``among`` are in a wave ``[frames]``: those within 10 dB of the loudest sound in it."""
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    bins = [round(pitch * len(wave) / rate) for pitch in among]
    # A tone lies between two bins at worst, and the Hann window is four wide.
    levels = [float(spectrum[max(0, index - 1) : index + 2].max()) for index in bins]
    return [pitch for pitch, level in zip(among, levels, strict=True) if level > float(spectrum.max()) / 3]


def _tone(pitch: int, rate: int) -> Wave:
    return (0.1 * np.sin(2 * np.pi * pitch * np.arange(round(SECONDS * rate)) / rate)).astype(np.float32)
