#!/usr/bin/env python3
"""Make a licence-clean multitrack music corpus in the on-disk layout of Slakh2100.

Slakh2100 was made by rendering MIDI songs with sampled instruments, one instrument at a
time, and summing the results.  This tool does the same with songs it composes itself:

1. **Compose.**  Each song gets a style, key, mode, tempo, form (intro / verse / chorus /
   bridge / outro), chord progressions, a melody and 3-8 instruments, all drawn from one
   seeded random generator.  Rhythm-section parts come from one of two engines: ``mma``
   (Musical MIDI Accompaniment, a program with hundreds of played-in grooves) or
   ``native`` (drum, bass, guitar and keyboard patterns in this file).
2. **Arrange.**  Instruments enter, drop out and come back by section, so that stems have
   realistic silent stretches; sections differ in loudness.
3. **Render.**  FluidSynth (through ctypes, no binding package) plays each stem from a
   SoundFont; a fresh synthesiser per stem makes the audio a function of the seed alone.
4. **Mix as Slakh does.**  Every stem is normalised to -13 LUFS, then one ``overall_gain``
   puts the peak of the mix at -1 dBFS.  Stems are quantised first and the mix is the
   *integer* sum of the 16-bit stems, so ``mix == sum(stems)`` holds exactly.

Layout written::

    OUT/{train,validation,test}/TrackNNNNN/
        mix.flac  stems/S00.flac ...  MIDI/S00.mid ...  all_src.mid  metadata.yaml
    OUT/corpus.json      what was made, with which settings (not part of Slakh's layout)

Needs: numpy, soundfile, mido, pyyaml, pyloudnorm (PyPI); libfluidsynth3 and a General MIDI
SoundFont (Debian: fluidsynth fluid-soundfont-gm), and for the ``mma`` engine Debian's mma.

Example::

    python render_corpus.py --out corpus --tracks 24 --seconds 24 --seed 7 --workers 2
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import hashlib
import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import mido
import numpy as np
import pyloudnorm
import soundfile as sf
import yaml

VERSION = "1.0"
SAMPLE_RATE = 44100
TARGET_LUFS = -13.0  # Slakh2100's "normalization_factor"
TARGET_PEAK_DB = -1.0  # Slakh2100's "target_peak"
PPQ = 480
TAIL_SECONDS = 1.5  # room at the end for the last chord to ring
SPLITS = ("train", "validation", "test")

# --------------------------------------------------------------------------------------
# General MIDI names and Slakh's instrument classes
# --------------------------------------------------------------------------------------

GM_NAMES = (
    """
Acoustic Grand Piano|Bright Acoustic Piano|Electric Grand Piano|Honky-tonk Piano|Electric Piano 1|Electric Piano 2|Harpsichord|Clavinet
Celesta|Glockenspiel|Music Box|Vibraphone|Marimba|Xylophone|Tubular Bells|Dulcimer
Drawbar Organ|Percussive Organ|Rock Organ|Church Organ|Reed Organ|Accordion|Harmonica|Tango Accordion
Acoustic Guitar (nylon)|Acoustic Guitar (steel)|Electric Guitar (jazz)|Electric Guitar (clean)|Electric Guitar (muted)|Overdriven Guitar|Distortion Guitar|Guitar Harmonics
Acoustic Bass|Electric Bass (finger)|Electric Bass (pick)|Fretless Bass|Slap Bass 1|Slap Bass 2|Synth Bass 1|Synth Bass 2
Violin|Viola|Cello|Contrabass|Tremolo Strings|Pizzicato Strings|Orchestral Harp|Timpani
String Ensemble 1|String Ensemble 2|Synth Strings 1|Synth Strings 2|Choir Aahs|Voice Oohs|Synth Choir|Orchestra Hit
Trumpet|Trombone|Tuba|Muted Trumpet|French Horn|Brass Section|Synth Brass 1|Synth Brass 2
Soprano Sax|Alto Sax|Tenor Sax|Baritone Sax|Oboe|English Horn|Bassoon|Clarinet
Piccolo|Flute|Recorder|Pan Flute|Blown bottle|Shakuhachi|Whistle|Ocarina
Lead 1 (square)|Lead 2 (sawtooth)|Lead 3 (calliope)|Lead 4 (chiff)|Lead 5 (charang)|Lead 6 (voice)|Lead 7 (fifths)|Lead 8 (bass + lead)
Pad 1 (new age)|Pad 2 (warm)|Pad 3 (polysynth)|Pad 4 (choir)|Pad 5 (bowed)|Pad 6 (metallic)|Pad 7 (halo)|Pad 8 (sweep)
FX 1 (rain)|FX 2 (soundtrack)|FX 3 (crystal)|FX 4 (atmosphere)|FX 5 (brightness)|FX 6 (goblins)|FX 7 (echoes)|FX 8 (sci-fi)
Sitar|Banjo|Shamisen|Koto|Kalimba|Bagpipe|Fiddle|Shanai
Tinkle Bell|Agogo|Steel Drums|Woodblock|Taiko Drum|Melodic Tom|Synth Drum|Reverse Cymbal
Guitar Fret Noise|Breath Noise|Seashore|Bird Tweet|Telephone Ring|Helicopter|Applause|Gunshot
""".replace("\n", "|")
    .strip("|")
    .split("|")
)

SLAKH_CLASSES = (
    "Piano",
    "Chromatic Percussion",
    "Organ",
    "Guitar",
    "Bass",
    "Strings",
    "Strings (continued)",
    "Brass",
    "Reed",
    "Pipe",
    "Synth Lead",
    "Synth Pad",
    "Synth Effects",
    "Ethnic",
    "Percussive",
    "Sound Effects",
)
CORE = ("Drums", "Bass", "Guitar", "Piano")
UNWANTED = {"Synth Effects", "Sound Effects"}
DRUM_PROGRAM = 128  # what Slakh writes for the drum kit


def inst_class(program: int, is_drum: bool = False) -> str:
    """Slakh's ``inst_class`` of a General MIDI program number (0-127)."""
    return "Drums" if is_drum else SLAKH_CLASSES[program // 8]


# --------------------------------------------------------------------------------------
# Harmony
# --------------------------------------------------------------------------------------

QUALITIES = {  # chord quality (in MMA's spelling) -> pitch classes above the root
    "": (0, 4, 7),
    "m": (0, 3, 7),
    "7": (0, 4, 7, 10),
    "M7": (0, 4, 7, 11),
    "m7": (0, 3, 7, 10),
    "m7b5": (0, 3, 6, 10),
    "dim": (0, 3, 6),
    "sus4": (0, 5, 7),
    "6": (0, 4, 7, 9),
    "m6": (0, 3, 7, 9),
    "9": (0, 4, 7, 10, 2),
    "add9": (0, 4, 7, 2),
    "7b9": (0, 4, 7, 10, 1),
}
NOTE_NAMES = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")
SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11),
    "minor": (0, 2, 3, 5, 7, 8, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10),
    "dorian": (0, 2, 3, 5, 7, 9, 10),
    "blues": (0, 3, 5, 6, 7, 10),
}
# Progressions: one token a bar, "a,b" for two chords in a bar.  A token is semitones above
# the tonic, a colon, then the quality.
PROGRESSIONS = {
    "pop": (
        "major",
        [
            "0: 7: 9:m 5:",
            "9:m 5: 0: 7:",
            "0: 9:m 5: 7:",
            "0: 5: 7: 5:",
            "0: 4:m 5: 7:",
            "5: 0: 7: 9:m",
            "0: 5: 9:m 7:",
            "0:add9 7:sus4,7: 9:m7 5:M7",
            "2:m7 7: 0: 9:m",
            "0: 0:M7 5: 7:",
            "0: 2:7 5: 0:",
            "9:m 7: 5: 7:",
            "5: 7: 4:m 9:m",
            "5: 7: 0: 0:",
            "0: 7:,5: 0: 5:,7:",
            "9:m 4:m 5: 0:",
        ],
    ),
    "minor": (
        "minor",
        [
            "0:m 8: 3: 10:",
            "0:m 5:m 7:m 0:m",
            "0:m 10: 8: 7:7",
            "0:m 5:m 10: 3:",
            "0:m 8: 5:m 7:",
            "0:m 0:m 8: 10:",
            "8: 10: 0:m 0:m",
            "5:m 0:m 7:7 0:m",
            "0:m 3: 10: 5:",
            "0:m7 5:m7 8:M7 7:7",
            "0:m 10:,8: 0:m 7:7",
        ],
    ),
    "rock": (
        "mixolydian",
        [
            "0: 10: 5: 0:",
            "0: 5: 0: 7:",
            "0: 10: 0: 10:",
            "0: 3: 5: 0:",
            "0: 0: 5: 5:",
            "0: 7: 10: 5:",
            "5: 0: 5: 7:",
            "0: 8: 10: 0:",
            "0:,10: 5: 0: 7:",
        ],
    ),
    "blues": (
        "blues",
        [
            "0:7 0:7 0:7 0:7 5:7 5:7 0:7 0:7 7:7 5:7 0:7 7:7",
            "0:7 5:7 0:7 0:7 5:7 5:7 0:7 9:7 2:m7 7:7 0:7,9:7 2:m7,7:7",
            "0:7 5:7 0:7 7:7",
            "0:7 0:7 5:7 0:7",
            "0:7 5:7 7:7 0:7",
            "5:7 5:7 0:7 0:7",
        ],
    ),
    "jazz": (
        "major",
        [
            "2:m7 7:7 0:M7 9:7",
            "0:M7 9:m7 2:m7 7:7",
            "4:m7 9:7 2:m7 7:7",
            "2:m7 7:7 0:M7 0:6",
            "5:M7 5:m6 4:m7 9:7",
            "0:M7,9:7 2:m7,7:7 4:m7,9:7 2:m7,7:7",
            "0:6 1:dim 2:m7 7:9",
            "2:m7 7:7 4:m7 9:7b9",
            "5:M7 10:9 0:M7 9:7",
        ],
    ),
    "jazzminor": (
        "dorian",
        [
            "0:m7 5:m7 2:m7b5 7:7b9",
            "0:m7 0:m7 5:m7 5:m7",
            "2:m7b5 7:7b9 0:m6 0:m6",
            "0:m7 5:9 0:m7 5:9",
            "8:M7 7:7 0:m7 0:m7",
            "5:m7 10:7 3:M7 8:M7",
        ],
    ),
    "latin": (
        "minor",
        [
            "0:m 5:m 7:7 0:m",
            "0:m7 5:m7 2:m7b5 7:7",
            "0:m 10: 8: 7:7",
            "5:m 0:m 7:7 0:m",
            "0:m 0:m 7:7 7:7",
            "0:m7 10:7 8:M7 7:7",
        ],
    ),
    "folk": (
        "major",
        [
            "0: 0: 5: 0:",
            "0: 7: 0: 7:",
            "0: 5: 0: 7:",
            "0: 9:m 5: 7:",
            "5: 0: 7: 0:",
            "0: 5:,0: 0: 7:",
            "0: 0: 7: 0:",
            "9:m 5: 0: 7:",
        ],
    ),
    "modal": (
        "dorian",
        ["0:m7 0:m7 5: 0:m7", "0:m 10: 0:m 10:", "0:m7 5:7 0:m7 5:7", "0:m 3: 5: 10:", "0:m 10: 5: 0:m"],
    ),
}


@dataclass
class Chord:
    """A chord on the time line; start and length in quarter notes."""

    start: float
    length: float
    root: int
    quality: str

    @property
    def tones(self) -> list[int]:
        """Pitch classes, root first."""
        return [(self.root + i) % 12 for i in QUALITIES[self.quality]]

    @property
    def mma(self) -> str:
        """The chord's name as MMA spells it."""
        return NOTE_NAMES[self.root] + self.quality


def parse_progression(text: str, key: int, bars: int, beats: int) -> list[list[tuple[int, str]]]:
    """Lay a progression over ``bars`` bars; each bar is a list of (root, quality)."""
    tokens = text.split()
    out = []
    for bar in range(bars):
        chords = []
        for part in tokens[bar % len(tokens)].split(","):
            degree, quality = part.split(":")
            chords.append(((key + int(degree)) % 12, quality))
        out.append(chords if beats == 4 else chords[:1])
    return out


# --------------------------------------------------------------------------------------
# Styles
# --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Style:
    """What a song of one style is made of."""

    name: str
    engine: str  # "mma" or "native"
    groove: str  # MMA groove family, or a key of NATIVE
    tempo: tuple[int, int]
    flavour: str  # key of FLAVOURS: which leads and layers suit it
    harmony: tuple[str, ...]
    beats: int = 4
    swing: bool = False
    weight: float = 1.0


def _mma(groove, lo, hi, flavour, harmony, beats=4, swing=False, weight=1.0):
    return Style(f"mma:{groove}", "mma", groove, (lo, hi), flavour, tuple(harmony.split()), beats, swing, weight)


def _nat(groove, lo, hi, flavour, harmony, swing=False, weight=2.5):
    return Style(f"native:{groove}", "native", groove, (lo, hi), flavour, tuple(harmony.split()), 4, swing, weight)


STYLES = [
    # pop, rock, soul (MMA standard library, by MMA's author)
    _mma("8Beat", 88, 132, "pop", "pop minor", weight=2),
    _mma("PopBallad", 66, 92, "ballad", "pop minor", weight=2),
    _mma("SoftRock", 92, 128, "pop", "pop rock", weight=2),
    _mma("FolkRock", 96, 132, "folk", "pop folk", weight=1.5),
    _mma("BubbleRock", 110, 148, "pop", "pop folk"),
    _mma("BoneyM", 104, 128, "pop", "pop minor", weight=1.5),
    _mma("50sRock", 120, 164, "rock", "blues pop"),
    _mma("60sRock", 112, 150, "rock", "rock pop", weight=1.5),
    _mma("BasicRock", 104, 144, "rock", "rock pop minor", weight=2),
    _mma("Rock128", 60, 84, "ballad", "pop blues"),
    _mma("RockBallad", 64, 86, "rock", "pop minor rock", weight=1.5),
    _mma("PianoBallad", 64, 88, "ballad", "pop minor"),
    _mma("GuitarBallad", 66, 92, "folk", "pop folk"),
    _mma("StringBallad", 62, 84, "ballad", "pop minor"),
    _mma("Ballad", 66, 92, "ballad", "pop jazz"),
    _mma("R&B", 92, 124, "soul", "pop rock minor", weight=1.5),
    _mma("R&B-Ballad", 62, 84, "soul", "pop jazz"),
    _mma("DSoul", 88, 116, "soul", "minor pop", weight=1.5),
    _mma("BVFunk", 92, 116, "soul", "modal rock", weight=1.5),
    _mma("Strut", 96, 124, "soul", "modal blues"),
    _mma("Trance", 124, 140, "electro", "minor modal", weight=1.5),
    _mma("Twist", 132, 168, "rock", "blues rock"),
    _mma("Ska", 116, 152, "rock", "pop rock"),
    _mma("Desert", 84, 112, "world", "modal minor"),
    # blues, country, folk
    _mma("Blues", 84, 128, "blues", "blues", swing=True),
    _mma("SlowBlues", 54, 74, "blues", "blues", swing=True),
    _mma("FastBlues", 132, 176, "blues", "blues", swing=True),
    _mma("ShuffleBoggie", 112, 148, "blues", "blues", swing=True),
    _mma("CountryBlues", 84, 120, "folk", "blues folk", swing=True),
    _mma("CountrySwing", 112, 160, "folk", "folk pop", swing=True),
    _mma("SlowCountry", 70, 96, "folk", "folk pop"),
    _mma("HillCountry", 110, 150, "folk", "folk"),
    _mma("BlueGrass", 112, 150, "folk", "folk"),
    _mma("Folk", 88, 124, "folk", "folk pop"),
    _mma("FolkBallad", 68, 96, "folk", "folk pop"),
    _mma("Zydeco", 112, 150, "folk", "folk blues"),
    _mma("WesternSwing", 120, 160, "folk", "folk jazz", swing=True),
    # latin
    _mma("BossaNova", 104, 144, "latin", "jazz jazzminor", weight=1.5),
    _mma("Samba", 150, 196, "latin", "jazz latin"),
    _mma("Salsa", 150, 190, "latin", "latin jazzminor"),
    _mma("Mambo", 150, 190, "latin", "latin"),
    _mma("ChaCha", 108, 128, "latin", "latin pop"),
    _mma("Rhumba", 96, 124, "latin", "latin pop"),
    _mma("Merengue", 128, 152, "latin", "latin pop"),
    _mma("Calypso", 108, 140, "latin", "folk pop"),
    _mma("Bolero", 80, 104, "latin", "latin jazzminor"),
    _mma("Son", 120, 160, "latin", "latin"),
    _mma("Beguine", 104, 128, "latin", "jazz latin"),
    # jazz
    _mma("Swing", 112, 176, "jazz", "jazz blues", swing=True),
    _mma("EasySwing", 100, 140, "jazz", "jazz", swing=True),
    _mma("BigBand", 120, 176, "jazz", "jazz blues", swing=True),
    _mma("JazzCombo", 108, 160, "jazz", "jazz jazzminor", swing=True),
    _mma("ModernJazz", 112, 160, "jazz", "jazzminor jazz", swing=True),
    _mma("SlowJazz", 60, 84, "jazz", "jazz jazzminor", swing=True),
    _mma("JazzRock", 96, 132, "jazz", "jazzminor modal"),
    _mma("LFusion", 96, 128, "latin", "jazzminor jazz"),
    _mma("Bebop", 150, 200, "jazz", "jazz", swing=True),
    _mma("Foxtrot", 108, 140, "jazz", "jazz folk", swing=True),
    # three in a bar
    _mma("Waltz", 96, 140, "ballad", "folk pop", 3),
    _mma("JazzWaltz", 120, 168, "jazz", "jazz jazzminor", 3, True),
    _mma("CountryWaltz", 96, 132, "folk", "folk", 3),
    _mma("RockWaltz", 92, 126, "rock", "pop rock", 3),
    # engine in this file
    _nat("rock8", 96, 150, "rock", "rock pop minor", weight=5),
    _nat("punk", 150, 190, "rock", "rock pop"),
    _nat("metal", 110, 160, "rock", "minor modal"),
    _nat("halftime", 68, 92, "rock", "minor pop"),
    _nat("funk16", 92, 116, "soul", "modal minor", weight=4),
    _nat("disco", 112, 126, "soul", "minor pop", weight=4),
    _nat("house", 120, 128, "electro", "minor modal", weight=4),
    _nat("synthpop", 104, 128, "electro", "pop minor", weight=4),
    _nat("hiphop", 80, 100, "soul", "minor jazzminor"),
    _nat("trap", 66, 80, "electro", "minor"),
    _nat("dnb", 164, 176, "electro", "minor modal"),
    _nat("reggae", 68, 90, "soul", "minor pop"),
    _nat("slowpop", 70, 96, "ballad", "pop minor", weight=4),
    _nat("acoustic", 84, 124, "folk", "pop folk", weight=4),
]

# Lead instruments, and layers (kind -> weight), per flavour.
FLAVOURS = {
    "pop": (
        [80, 81, 73, 65, 11, 84, 56, 26, 78, 22, 40],
        dict(strings=3, pad=3, organ=2, brass=2, bells=2, choir=1.5, arp=1.5, counter=1, guitar2=1.5),
    ),
    "rock": (
        [29, 30, 27, 16, 81, 65, 18, 66],
        dict(organ=4, guitar2=4, strings=1.5, pad=1.5, brass=1.5, choir=1, counter=0.7),
    ),
    "soul": (
        [65, 66, 26, 4, 80, 56, 11, 73],
        dict(brass=4, organ=3, strings=2, reeds=2.5, pad=1.5, guitar2=1, bells=1, arp=0.7),
    ),
    "ballad": (
        [40, 42, 68, 73, 71, 64, 60, 26, 79, 69],
        dict(strings=4, pad=2.5, counter=2.5, choir=1.5, harp=1.5, bells=1.5, reeds=1, brass=0.7),
    ),
    "electro": (
        [80, 81, 82, 84, 87, 83, 86],
        dict(pad=4, arp=4, strings=1.5, bells=1.5, choir=1, synbrass=2, perc=0.6),
    ),
    "folk": (
        [110, 105, 22, 21, 73, 74, 40, 78, 75, 24, 15],
        dict(ethnic=3, counter=2, strings=1.5, guitar2=2, organ=1.5, reeds=1, bells=0.8, harp=0.8),
    ),
    "blues": (
        [22, 66, 27, 65, 29, 57, 56, 71],
        dict(organ=3, brass=2.5, reeds=2.5, guitar2=1.5, strings=0.7, counter=0.7),
    ),
    "latin": (
        [56, 73, 64, 65, 11, 12, 114, 24, 23, 75],
        dict(brass=3.5, reeds=2, perc=2, strings=1.5, bells=1.5, organ=1, counter=1, guitar2=1),
    ),
    "jazz": (
        [56, 65, 66, 71, 64, 73, 11, 26, 57, 59],
        dict(brass=3, reeds=3, bells=2, strings=1.5, organ=1.5, counter=1),
    ),
    "world": (
        [104, 107, 75, 77, 111, 68, 108, 106],
        dict(ethnic=4, pad=2.5, strings=2, perc=2, choir=1.5, harp=1, counter=1),
    ),
}
LAYER_PROGRAMS = {
    "strings": [48, 48, 49, 50, 51, 44],
    "pad": [88, 89, 89, 90, 91, 92, 94, 95],
    "organ": [16, 16, 17, 18, 19, 20],
    "brass": [61, 61, 56, 57, 60],
    "synbrass": [62, 63],
    "reeds": [65, 66, 64, 67, 71, 68],
    "bells": [8, 9, 10, 11, 12, 14],
    "choir": [52, 53, 54],
    "counter": [40, 42, 60, 73, 71, 41, 68, 75],
    "harp": [46, 45],
    "arp": [80, 81, 84, 38, 87],
    "ethnic": [104, 105, 107, 108, 15, 106],
    "perc": [114, 12, 113, 108, 117, 115],
}
GUITARS = {
    "rock": [29, 30, 29, 27],
    "soul": [28, 27, 27],
    "folk": [25, 24, 25],
    "ballad": [24, 25, 27],
    "pop": [25, 27, 25, 24],
    "electro": [27, 28, 29],
    "blues": [27, 26, 29],
    "latin": [24, 24, 27],
    "jazz": [26],
    "world": [24, 25],
}
PIANOS = {
    "rock": [0, 1, 2],
    "soul": [4, 5, 7, 0],
    "folk": [0, 3, 0],
    "ballad": [0, 0, 4, 1],
    "pop": [0, 1, 4, 2],
    "electro": [5, 2, 4, 1],
    "blues": [0, 3, 1],
    "latin": [0, 1, 5],
    "jazz": [0, 0, 4],
    "world": [0, 6, 5],
}
BASSES = {
    "rock": [33, 34, 34],
    "soul": [33, 36, 37, 35],
    "folk": [32, 33],
    "ballad": [33, 35, 32],
    "pop": [33, 34, 35],
    "electro": [38, 39],
    "blues": [33, 32],
    "latin": [32, 33, 35],
    "jazz": [32, 32, 35],
    "world": [32, 35],
}
KITS = {
    "rock": [0, 16, 8, 0],
    "soul": [0, 8, 25],
    "folk": [0, 8, 40],
    "ballad": [0, 8, 40],
    "pop": [0, 8, 16, 0],
    "electro": [24, 25, 24],
    "blues": [0, 8, 32],
    "latin": [0, 8, 0],
    "jazz": [32, 40, 32],
    "world": [0, 8, 40],
}

# Patterns of the native engine on a grid of 16 steps a bar.
# Drums: digit = loudness (1-9), '.' = rest.  KSHO..: General MIDI drum keys below.
DRUM_KEYS = {
    "K": 36,
    "S": 38,
    "R": 37,
    "H": 42,
    "O": 46,
    "P": 44,
    "C": 49,
    "D": 51,
    "L": 39,
    "T": 54,
    "B": 75,
    "G": 64,
    "U": 63,
    "A": 70,
}
NATIVE = {
    "rock8": dict(
        drums=[
            "K9.....5.7.......|S....9.......9...|H8.5.7.5.8.5.7.5.",
            "K9...4...8.8.....|S....9.......9...|H8.5.8.5.8.5.8.5.",
        ],
        chorus=["K9..6..7.8.......|S....9.......9.2.|D8...7.5.8...7.5."],
        bass="eighths",
        guitar="strum power",
        keys="pulse pop",
    ),
    "punk": dict(
        drums=["K9.....8.9.....8.|S....9.......9...|H8.7.8.7.8.7.8.7."],
        chorus=["K9...8...9...8...|S..9...9...9...9.|C7...6...7...6..."],
        bass="eighths",
        guitar="power",
        keys="pulse",
    ),
    "metal": dict(
        drums=[
            "K9.99.9.99.9.99..|S....9.......9...|H8...8...8...8...",
            "K9999....9999....|S....9.......9...|D8.6.8.6.8.6.8.6.",
        ],
        chorus=["K9.9.9.9.9.9.9.9.|S....9.......9...|C8...6...7...6..."],
        bass="eighths gallop",
        guitar="gallop power",
        keys="pad pulse",
    ),
    "halftime": dict(
        drums=["K9.....6.........|S........9.......|H8.5.7.5.8.5.7.5."],
        chorus=["K9.....7...6.....|S........9.......|D8...7...8...7..."],
        bass="root",
        guitar="strum power",
        keys="ballad pop",
    ),
    "funk16": dict(
        drums=[
            "K9..7......7..5..|S....9..2.2..9..2|H8474847484748474",
            "K9.....7..77.....|S....9..3....9...|H7.7.7.7.7.7.7.7.|O.............5..",
        ],
        chorus=["K9..7..7...7..7..|S....9..2.2..9..2|H84748474847484.4|O..............7."],
        bass="funk",
        guitar="funk",
        keys="synco funk",
    ),
    "disco": dict(
        drums=["K9...9...9...9...|S....8.......8...|H7...7...7...7...|O..8...8...8...8."],
        chorus=["K9...9...9...9...|S....9.......9...|L....7.......7...|O..8...8...8...8.|T4444444444444444"],
        bass="octaves",
        guitar="funk strum",
        keys="synco pulse",
    ),
    "house": dict(
        drums=["K9...9...9...9...|L....8.......8...|O..7...7...7...7.|H5555555555555555"],
        chorus=["K9...9...9...9...|L....9.......9...|O..8...8...8...8.|T5355535553555355"],
        bass="offbeat octaves",
        guitar="funk arp",
        keys="synco stab",
    ),
    "synthpop": dict(
        drums=["K9.......9.6.....|S....9.......9...|H7.5.7.5.7.5.7.5."],
        chorus=["K9...9...9...9...|S....9.......9...|H7575757575757575"],
        bass="eighths octaves",
        guitar="arp muted",
        keys="pulse arp",
    ),
    "hiphop": dict(
        drums=[
            "K9..6...5..8.....|S....9.......9...|H7.5.6.5.7.5.6.53",
            "K9.......68..5...|S....9.......9..3|H7.4.7.4.7.4.7.4.",
        ],
        chorus=["K9..6...5..8..4..|S....9.......9...|H7.5.6.5.7.5.6.53|A4444444444444444"],
        bass="synco",
        guitar="arp",
        keys="stab ballad",
    ),
    "trap": dict(
        drums=[
            "K9......5...8....|S........9.......|H7.7.7.7.7.777.7.",
            "K9.....7......6..|L........9.......|H7.7.5.757.7.5555",
        ],
        chorus=["K9..7...5...8..6.|L........9.......|H7.7.7577.7.75555|O..............5."],
        bass="root",
        guitar="arp",
        keys="stab arp",
    ),
    "dnb": dict(
        drums=["K9.........9.....|S....9.......9..3|H7.5.7.5.7.5.7.5."],
        chorus=["K9.....5...9.....|S....9..3.2..9..3|D7.5.7.5.7.5.7.5."],
        bass="synco root",
        guitar="arp funk",
        keys="pad stab",
    ),
    "reggae": dict(
        drums=["K........9.......|R........8.......|H7..57..57..57..5"],
        chorus=["K9.......9.......|S........8....3..|H7..57..57..57..5"],
        bass="reggae",
        guitar="skank",
        keys="skank",
    ),
    "slowpop": dict(
        drums=["K9.....5.8.......|R....7.......7...|H6.4.6.4.6.4.6.4."],
        chorus=["K9.....6.8.6.....|S....8.......8...|H7.5.7.5.7.5.7.5.|T4.2.4.2.4.2.4.2."],
        bass="root synco",
        guitar="arp strum",
        keys="ballad pop",
    ),
    "acoustic": dict(
        drums=[
            "K8.......8.......|R....6.......6...|A5353535353535353",
            "K8......57.......|S....6.......6...|T5.3.5.3.5.3.5.3.",
        ],
        chorus=["K9.....5.8.......|S....8.......8...|H6.4.6.4.6.4.6.4.|T5353535353535353"],
        bass="root fifths",
        guitar="strum arp",
        keys="pulse ballad",
    ),
}

# --------------------------------------------------------------------------------------
# Notes and parts
# --------------------------------------------------------------------------------------


@dataclass
class Note:
    """One note; start and length in quarter notes."""

    start: float
    length: float
    pitch: int
    velocity: int


@dataclass
class Part:
    """One instrument's notes, and later its rendering settings."""

    role: str
    program: int
    notes: list[Note]
    is_drum: bool = False
    kit: int = 0
    extras: dict = field(default_factory=dict)

    @property
    def inst_class(self) -> str:
        return inst_class(self.program, self.is_drum)


@dataclass
class Section:
    """A stretch of bars with one function in the form."""

    name: str
    bar: int
    bars: int


@dataclass
class Song:
    """Everything decided about a song before its parts are written."""

    style: Style
    key: int
    mode: str
    tempo: float
    beats: int
    bars: int
    sections: list[Section]
    chords: list[Chord]
    bar_chords: list[list[tuple[int, str]]]

    def chord_at(self, beat: float) -> Chord:
        """The chord sounding at a time in quarter notes."""
        for chord in self.chords:
            if chord.start - 1e-6 <= beat < chord.start + chord.length - 1e-6:
                return chord
        return self.chords[-1]

    def section_at(self, beat: float) -> int:
        """Index of the section that a time falls in."""
        bar = int(beat / self.beats + 1e-3)
        for i, section in enumerate(self.sections):
            if section.bar <= bar < section.bar + section.bars:
                return i
        return len(self.sections) - 1


def clamp(value: float, lo: float, hi: float) -> float:
    return max(lo, min(hi, value))


def weighted(rng: random.Random, weights: dict):
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def nearest_pitch(pc: int, around: float) -> int:
    """The pitch of class ``pc`` nearest to ``around``."""
    return int(pc + 12 * round((around - pc) / 12))


def voicing(chord: Chord, previous: list[int] | None, centre: int, voices: int) -> list[int]:
    """A close voicing near ``centre`` that moves little from the previous one."""
    tones = chord.tones[-voices:] if len(chord.tones) > voices else chord.tones
    around = sum(previous) / len(previous) if previous else centre
    around = 0.7 * around + 0.3 * centre
    pitches = sorted({nearest_pitch(pc, around) for pc in tones})
    for pitch in list(pitches):  # double the lowest tones an octave up
        if len(pitches) < voices:
            pitches.append(pitch + 12)
    return sorted(pitches)


# --------------------------------------------------------------------------------------
# Planning a song
# --------------------------------------------------------------------------------------


def plan_song(style: Style, seconds: float, rng: random.Random) -> Song:
    """Draw key, tempo, form and chords so that whole bars fill the wanted length."""
    beats = style.beats
    playing = max(seconds - TAIL_SECONDS, 4.0)
    wanted = rng.uniform(*style.tempo)
    bars = max(2, round(playing * wanted / 60 / beats))
    tempo = bars * beats * 60 / playing
    family = rng.choice(style.harmony)
    mode, bank = PROGRESSIONS[family]
    key = rng.randrange(12)

    unit = 2 if bars < 7 else 4 if bars < 36 else 8
    form = [
        "intro",
        "verse",
        "chorus",
        "verse",
        "chorus",
        "bridge",
        "chorus",
        "solo",
        "verse",
        "chorus",
        "break",
        "chorus",
    ]
    if rng.random() < (0.7 if bars < 12 else 0.3):  # a short piece seldom has an intro
        form = form[1:]
    sections, bar, i = [], 0, 0
    while bar < bars:
        name = form[i] if i < len(form) else form[1 + (i - 1) % (len(form) - 1)]
        length = max(2, unit // 2) if name == "intro" and rng.random() < 0.7 else unit
        left = bars - bar
        if left - length < max(2, unit // 2):  # no stub at the end
            length = left
        sections.append(Section(name, bar, length))
        bar, i = bar + length, i + 1
    if len(sections) > 2 and sections[-1].name in ("verse", "intro"):
        sections[-1].name = "chorus"

    progressions = {name: rng.choice(bank) for name in ("verse", "chorus", "bridge")}
    if len(bank) > 3:
        while progressions["chorus"] == progressions["verse"]:
            progressions["chorus"] = rng.choice(bank)
    progressions["intro"] = progressions[rng.choice(["verse", "chorus"])]
    progressions["solo"] = progressions["verse"]
    progressions["break"] = progressions["chorus"]
    bar_chords: list[list[tuple[int, str]]] = []
    for section in sections:
        bar_chords += parse_progression(progressions[section.name], key, section.bars, beats)
    # the last bar comes home
    home = {
        "pop": "",
        "minor": "m",
        "rock": "",
        "blues": "7",
        "jazz": "6",
        "jazzminor": "m6",
        "latin": "m",
        "folk": "",
        "modal": "m",
    }[family]
    bar_chords[-1] = [(key, home)]
    chords = []
    for b, names in enumerate(bar_chords):
        step = beats / len(names)
        for j, (root, quality) in enumerate(names):
            chords.append(Chord(b * beats + j * step, step, root, quality))
    return Song(style, key, mode, tempo, beats, bars, sections, chords, bar_chords)


# --------------------------------------------------------------------------------------
# Engine 1: MMA
# --------------------------------------------------------------------------------------

MMA_LIB = Path("/usr/share/mma/lib/stdlib")


def mma_grooves() -> dict[str, str]:
    """All groove names of MMA's standard library, lower case -> as written."""
    names: dict[str, str] = {}
    for path in sorted(MMA_LIB.glob("*.mma")):
        for name in re.findall(r"(?im)^\s*DefGroove\s+(\S+)", path.read_text(errors="replace")):
            names.setdefault(name.lower(), name)
    return names


def mma_backing(song: Song, rng: random.Random, grooves: dict[str, str]) -> list[Part]:
    """Have MMA play the song's chords; one Part per (instrument, drum or not)."""
    base = song.style.groove
    special = re.compile(r"(intro|end|fill|metronome)\d*", re.I)
    family = [
        g
        for low, g in grooves.items()
        if low.startswith(base.lower())
        and not special.search(low[len(base) :])
        and re.fullmatch(r"(\d|12)?(walk|sus|plus|triple|horns|voice|clap|strum|arp|bass\d|hit)*\d?", low[len(base) :])
    ]
    verse = grooves.get(base.lower(), family[0] if family else base)
    plain = [g for g in family if "sus" not in g.lower()] or [verse]
    rich = [g for g in family if re.search("sus|plus|horns|strum", g, re.I)] or family or [verse]
    choice = {"verse": rng.choice(plain), "chorus": rng.choice(rich), "bridge": rng.choice(plain)}
    choice.update(intro=choice["verse"], solo=choice["verse"])
    choice["break"] = choice["verse"]
    fill = grooves.get((base + "Fill").lower())

    lines = [f"RndSeed {rng.randrange(1, 10**6)}", f"Tempo {song.tempo:.3f}", f"Time {song.beats}"]
    for section in song.sections:
        lines.append(f"Groove {choice[section.name]}")
        for bar in range(section.bar, section.bar + section.bars):
            if fill and section.bars >= 4 and bar == section.bar + section.bars - 1:
                lines.append(f"Groove {fill}")
            names = [Chord(0, 0, r, q).mma for r, q in song.bar_chords[bar]]
            lines.append(f"{names[0]} / {names[1]} /" if len(names) == 2 else names[0])
    with tempfile.TemporaryDirectory(prefix="mma") as tmp:
        source, target = Path(tmp, "song.mma"), Path(tmp, "song.mid")
        source.write_text("\n".join(lines) + "\n")
        done = subprocess.run(
            ["mma", "-w", "-xNOCREDIT", "-f", str(target), str(source)], capture_output=True, text=True, cwd=tmp
        )
        if done.returncode or not target.exists():
            raise RuntimeError(f"mma failed on {song.style.name}: {done.stdout[-400:]}{done.stderr[-400:]}")
        midi = mido.MidiFile(target)

    track_mean = {}  # a bass line stays one when a groove gives it a guitar's sound
    for track in midi.tracks:
        pitches = [m.note for m in track if m.type == "note_on" and m.velocity]
        track_mean[track.name.lower()] = sum(pitches) / len(pitches) if pitches else 99
    parts: dict[tuple, Part] = {}
    for track in midi.tracks:
        tick, program, pending = 0, {}, {}
        for message in track:
            tick += message.time
            if message.type == "program_change":
                program[message.channel] = message.program
            elif message.type in ("note_on", "note_off"):
                pitch_key = (message.channel, message.note)
                if message.type == "note_on" and message.velocity:
                    pending.setdefault(pitch_key, []).append((tick, message.velocity))
                elif pending.get(pitch_key):
                    start, velocity = pending[pitch_key].pop(0)
                    drum = message.channel == 9
                    number = 0 if drum else program.get(message.channel, 0)
                    low = track.name.lower()
                    walking = low.startswith(("bass", "walk")) and track_mean.get(low, 99) < 50
                    role = (
                        "drums"
                        if drum
                        else "bass"
                        if 32 <= number < 40 or walking
                        else "comp"
                        if low.startswith(("chord", "plectrum"))
                        else "line"
                    )
                    if role == "bass":
                        number = 32
                    part = parts.setdefault((drum, number), Part(role, number, [], drum))
                    part.notes.append(
                        Note(
                            start / midi.ticks_per_beat,
                            max(0.05, (tick - start) / midi.ticks_per_beat),
                            message.note,
                            velocity,
                        )
                    )
    return [p for p in parts.values() if p.inst_class not in UNWANTED]


# --------------------------------------------------------------------------------------
# Engine 2: patterns in this file.  Each writer returns notes for the whole song.
# --------------------------------------------------------------------------------------


def write_drums(song: Song, rng: random.Random, groove: str) -> list[Note]:
    """Grid drums with ghost-note jitter, a fill before each new section and a crash after it."""
    spec = NATIVE[groove]
    verse, chorus = rng.choice(spec["drums"]), rng.choice(spec["chorus"])
    notes = []
    for i, section in enumerate(song.sections):
        pattern = chorus if section.name in ("chorus", "solo") else verse
        for bar in range(section.bar, section.bar + section.bars):
            start = bar * song.beats
            last = bar == section.bar + section.bars - 1
            fill_from = rng.choice([8, 12, 12, 14]) if last and rng.random() < 0.75 else 16
            for lane in pattern.split("|"):
                pitch = DRUM_KEYS[lane[0]]
                for step, mark in enumerate(lane[1:17]):
                    if mark != "." and (step < fill_from or lane[0] == "K"):
                        if int(mark) <= 3 and rng.random() < 0.3:
                            continue
                        velocity = 30 + 10 * int(mark) + rng.randint(-6, 6)
                        notes.append(Note(start + step / 4, 0.2, pitch, velocity))
            toms = rng.choice([(38, 38, 45, 43), (50, 47, 45, 41), (38, 50, 38, 43)])
            for step in range(fill_from, 16):
                if rng.random() < 0.8:
                    notes.append(Note(start + step / 4, 0.2, toms[(step // 2) % 4], 75 + step * 2 + rng.randint(-5, 5)))
            if bar == section.bar and i and section.name in ("chorus", "solo", "bridge"):
                notes.append(Note(start, 1.0, rng.choice([49, 57]), 105))
    return notes


def write_bass(song: Song, rng: random.Random, kind: str) -> list[Note]:
    """A bass line on the chord roots, fifths and octaves."""
    notes = []
    patterns = {  # (beat, length, interval, velocity)
        "root": [(0, 3.6, 0, 96)],
        "fifths": [(0, 1.8, 0, 96), (2, 1.8, 7, 88)],
        "eighths": [(i / 2, 0.45, 0, 98 if i % 2 == 0 else 84) for i in range(8)],
        "gallop": [(b + o, 0.22, 0, v) for b in range(4) for o, v in ((0, 100), (0.5, 82), (0.75, 86))],
        "octaves": [(i / 2, 0.4, 12 * (i % 2), 98 - 8 * (i % 2)) for i in range(8)],
        "offbeat": [(i + 0.5, 0.4, 0, 98) for i in range(4)],
        "synco": [(0, 1.2, 0, 100), (1.5, 0.45, 0, 86), (2.5, 0.9, 7, 90), (3.5, 0.45, 12, 84)],
        "funk": [
            (0, 0.4, 0, 106),
            (0.75, 0.2, 12, 88),
            (1.5, 0.3, 0, 88),
            (1.75, 0.2, 0, 72),
            (2.5, 0.3, 10, 92),
            (3, 0.2, 12, 96),
            (3.5, 0.3, 7, 84),
        ],
        "reggae": [(0, 0.8, 0, 100), (1.5, 0.4, 0, 88), (2, 0.8, 7, 92), (3, 0.4, 4, 84), (3.5, 0.4, 0, 84)],
        "waltz": [(0, 2.6, 0, 96)],
    }
    pattern = patterns[kind if song.beats == 4 else "waltz"]
    for bar in range(song.bars):
        for beat, length, interval, velocity in pattern:
            if rng.random() < 0.04 and beat:
                continue
            chord = song.chord_at(bar * song.beats + beat)
            root = 28 + (chord.root - 28) % 12  # E1 .. D#2
            tones = QUALITIES[chord.quality]
            if interval == 4:
                interval = tones[1]
            elif interval == 10 and len(tones) < 4:
                interval = 12
            notes.append(Note(bar * song.beats + beat, length, root + interval, velocity + rng.randint(-5, 5)))
        following = song.chord_at((bar + 1) * song.beats)
        if song.beats == 4 and rng.random() < 0.25:  # approach note
            target = 28 + (following.root - 28) % 12
            notes = [n for n in notes if n.start < bar * 4 + 3.5]
            notes.append(Note(bar * 4 + 3.5, 0.45, target + rng.choice([-1, 2, -2]), 86))
    return notes


def comp_pattern(kind: str, rng: random.Random) -> list[tuple[float, float, float]]:
    """(beat, length, loudness) hits of a chord rhythm over four beats."""
    return {
        "pulse": [(b, 0.9, 1 - 0.12 * (b % 2)) for b in range(4)],
        "pop": [(0, 0.9, 1), (1, 0.45, 0.8), (1.5, 0.45, 0.75), (2.5, 0.9, 0.9), (3.5, 0.45, 0.75)],
        "strum": [(0, 0.9, 1), (1, 0.45, 0.85), (1.5, 0.45, 0.7), (2.5, 0.45, 0.8), (3, 0.45, 0.85), (3.5, 0.45, 0.7)],
        "power": [(i / 2, 0.45, 1 - 0.15 * (i % 2)) for i in range(8)],
        "gallop": [(b + o, 0.22, v) for b in range(4) for o, v in ((0, 1), (0.5, 0.8), (0.75, 0.85))],
        "funk": [
            (0, 0.2, 1),
            (0.75, 0.15, 0.8),
            (1.25, 0.15, 0.7),
            (1.5, 0.2, 0.9),
            (2.25, 0.15, 0.8),
            (2.75, 0.15, 0.75),
            (3.5, 0.2, 0.9),
        ],
        "synco": [(0, 0.4, 1), (0.75, 0.4, 0.85), (1.5, 0.9, 0.9), (2.75, 0.4, 0.8), (3.5, 0.4, 0.85)],
        "stab": [(0, 0.3, 1), (1.5, 0.3, 0.9)] + ([(2.75, 0.3, 0.8)] if rng.random() < 0.5 else [(3.5, 0.3, 0.8)]),
        "skank": [(1, 0.25, 1), (3, 0.25, 1)]
        if rng.random() < 0.5
        else [(0.5, 0.2, 0.9), (1.5, 0.2, 0.9), (2.5, 0.2, 0.9), (3.5, 0.2, 0.9)],
        "pad": [(0, 3.95, 0.8)],
        "muted": [(i / 2, 0.2, 1 - 0.25 * (i % 2)) for i in range(8)],
    }[kind]


def write_chords(
    song: Song,
    rng: random.Random,
    kind: str,
    centre: int,
    voices: int = 3,
    velocity: int = 82,
    strum: float = 0.0,
    left_hand: bool = False,
) -> list[Note]:
    """Chords in a rhythm; ``kind`` 'arp' and 'ballad' break them into single notes."""
    notes: list[Note] = []
    previous = None
    broken = kind in ("arp", "ballad")
    pattern = [] if broken else comp_pattern(kind, rng)
    rate = rng.choice([0.5, 0.5, 0.25]) if kind == "arp" else 0.5
    order = rng.choice(
        [(0, 1, 2, 3, 2, 1, 3, 1), (0, 2, 1, 2, 3, 2, 1, 2), (0, 1, 2, 3, 0, 1, 2, 3), (3, 2, 1, 0, 1, 2, 3, 2)]
    )
    for bar in range(song.bars):
        base = bar * song.beats
        if broken:
            for step in range(round(song.beats / rate)):
                chord = song.chord_at(base + step * rate)
                pitches = voicing(chord, previous, centre, 4)
                if step * rate % 2 == 0:
                    previous = pitches
                notes.append(
                    Note(
                        base + step * rate,
                        rate * rng.choice([1, 1.6]),
                        pitches[order[step % 8]],
                        int(velocity * (1 if step % 4 == 0 else 0.84)) + rng.randint(-5, 5),
                    )
                )
        for beat, length, loud in pattern:
            if beat >= song.beats:
                continue
            chord = song.chord_at(base + beat)
            if kind in ("power", "gallop") and voices == 2:
                root = 40 + (chord.root - 40) % 12
                pitches = [root, root + 7, root + 12]
            else:
                pitches = voicing(chord, previous, centre, voices)
            previous = pitches
            down = int(beat * 2) % 2 == 0
            for j, pitch in enumerate(pitches if down else pitches[::-1]):
                notes.append(
                    Note(
                        base + beat + j * strum,
                        max(0.1, min(length, song.beats - beat) - j * strum),
                        pitch,
                        int(velocity * loud) + rng.randint(-4, 4),
                    )
                )
        if left_hand:
            for chord in [c for c in song.chords if base <= c.start < base + song.beats]:
                low = nearest_pitch(chord.root, 43)
                notes.append(Note(chord.start, chord.length * 0.95, low, int(velocity * 0.95)))
                if rng.random() < 0.5:
                    notes.append(Note(chord.start, chord.length * 0.95, low - 12, int(velocity * 0.85)))
    return notes


def write_pad(song: Song, rng: random.Random, centre: int, voices: int, moving: bool) -> list[Note]:
    """Sustained, voice-led chords; ``moving`` adds a passing top voice."""
    notes, previous = [], None
    merged: list[Chord] = []
    for chord in song.chords:  # hold a chord that is repeated within a section
        last = merged[-1] if merged else None
        if (
            last
            and last.root == chord.root
            and last.quality == chord.quality
            and last.length < 8
            and song.section_at(last.start) == song.section_at(chord.start)
        ):
            last.length += chord.length
        else:
            merged.append(Chord(chord.start, chord.length, chord.root, chord.quality))
    for chord in merged:
        pitches = voicing(chord, previous, centre, voices)
        previous = pitches
        for pitch in pitches:
            notes.append(Note(chord.start, chord.length * 0.98, pitch, 74 + rng.randint(-5, 5)))
        if moving and chord.length >= 3 and rng.random() < 0.6:
            notes[-1].length = chord.length / 2
            step = rng.choice([2, -2, 1, -1])
            scale = [(song.key + s) % 12 for s in SCALES[song.mode]]
            pitch = pitches[-1] + step
            if pitch % 12 not in scale:
                pitch += 1 if step > 0 else -1
            notes.append(Note(chord.start + chord.length / 2, chord.length / 2 * 0.98, pitch, 74))
    return notes


def write_stabs(song: Song, rng: random.Random, centre: int) -> list[Note]:
    """Horn-section hits and swells: a two-bar figure that comes back."""
    figures = [
        [(0, 0.4, 1), (1.5, 0.4, 0.9), (3.5, 0.9, 1)],
        [(0.5, 0.4, 0.9), (1, 0.9, 1), (5.5, 0.3, 0.9), (6, 1.5, 1)],
        [(0, 3, 0.9), (6.5, 0.3, 1), (7, 0.3, 1)],
        [(2, 0.3, 0.9), (2.5, 0.3, 0.9), (3, 1.5, 1), (7.5, 0.4, 0.9)],
        [(3.5, 0.4, 1), (4, 2.5, 0.95)],
        [(0, 0.3, 1), (0.75, 0.3, 0.9), (1.5, 1.3, 1), (4, 0.3, 0.9), (5.5, 0.4, 0.9)],
    ]
    figures = rng.sample(figures, 2)
    notes, previous = [], None
    for bar in range(0, song.bars, 2):
        figure = figures[1] if bar % 8 == 6 else figures[0]
        if rng.random() < 0.12:
            continue
        for beat, length, loud in figure:
            at = bar * song.beats + beat * song.beats / 4
            if at >= song.bars * song.beats:
                continue
            previous = voicing(song.chord_at(at), previous, centre, 3)
            for pitch in previous:
                notes.append(Note(at, length, pitch, int(98 * loud) + rng.randint(-4, 4)))
    return notes


def write_melody(song: Song, rng: random.Random, centre: int, busy: float, mono_span: int = 9) -> list[Note]:
    """A tune: rhythmic motifs that repeat, mostly steps, chord tones on strong beats.

    Sections of one kind share their material, as verses and choruses do.
    """
    scale = sorted((song.key + s) % 12 for s in SCALES[song.mode])
    ladder = [p for p in range(centre - mono_span - 4, centre + mono_span + 5) if p % 12 in scale]
    beats = song.beats

    def motif() -> list[tuple[float, float]]:
        grid, at, out = 0.5 if rng.random() < 0.8 else 0.25, 0.0, []
        at = rng.choice([0, 0, 0, 0.5, 1])
        while at < beats - 1e-6:
            length = rng.choices([grid, 2 * grid, 3 * grid, 4 * grid], weights=[busy * 4, 3, 1.2, 2 * (1.2 - busy)])[0]
            length = min(length, beats - at)
            if rng.random() < 0.86:
                out.append((at, length))
            at += length
        return out or [(0, beats * 0.9)]

    notes: list[Note] = []
    material: dict[str, dict] = {}
    for section in song.sections:
        if section.name not in material:
            shift = {"chorus": 2, "verse": -1, "solo": 2}.get(section.name, 0)
            material[section.name] = dict(
                motifs=[motif(), motif(), motif()],
                form=rng.choice(["aaba", "abac", "abab", "aabc", "abcb"]),
                contour=[
                    rng.choices([-2, -1, 0, 1, 2, 3, -3], weights=[2, 5, 3, 5, 2, 0.7, 0.7])[0] for _ in range(48)
                ],
                start=len(ladder) // 2 + shift,
            )
        mat = material[section.name]
        position = mat["start"]
        for k in range(section.bars):
            bar = section.bar + k
            letter = mat["form"][k % 4]
            rhythm = mat["motifs"]["abc".index(letter)]
            if k % 4 == 3:  # phrase end: leave room to breathe
                rhythm = [(b, l) for b, l in rhythm if b < beats / 2] or [(0, 1)]
                rhythm = rhythm[:-1] + [(rhythm[-1][0], max(rhythm[-1][1], beats / 2 - rhythm[-1][0]))]
            for j, (beat, length) in enumerate(rhythm):
                step = mat["contour"][("abc".index(letter) * 16 + j) % 48]
                if j == 0 and k % 4 == 0:
                    position = mat["start"]
                position = int(clamp(position + step, 1, len(ladder) - 2))
                pitch = ladder[position]
                at = bar * beats + beat
                if beat % 1 == 0 or length >= 1:  # strong or long: a chord tone
                    tones = song.chord_at(at).tones
                    pitch = min(
                        (p for pc in tones for p in [nearest_pitch(pc, pitch)]), key=lambda p: (abs(p - pitch), p)
                    )
                    position = min(range(len(ladder)), key=lambda q: abs(ladder[q] - pitch))
                arch = 6 * math.sin(math.pi * (k % 4 + beat / beats) / 4)
                notes.append(
                    Note(
                        at,
                        length * rng.uniform(0.82, 0.98),
                        pitch,
                        int(84 + arch + (6 if beat % 2 == 0 else 0) + rng.randint(-6, 6)),
                    )
                )
    return notes


def write_counter(song: Song, rng: random.Random, centre: int) -> list[Note]:
    """A slow second voice: one or two chord tones a bar, moving by the smallest step."""
    notes, pitch = [], centre
    halves = rng.random() < 0.4
    for chord in song.chords:
        pieces = 2 if halves and chord.length >= 4 else 1
        for i in range(pieces):
            options = [nearest_pitch(pc, pitch + rng.choice([-2, 0, 2])) for pc in chord.tones]
            pitch = int(
                clamp(
                    min(options, key=lambda p: abs(p - pitch) + 0.3 * abs(p - centre) + rng.random() * 3),
                    centre - 14,
                    centre + 14,
                )
            )
            length = chord.length / pieces
            notes.append(Note(chord.start + i * length, length * 0.95, pitch, 78 + rng.randint(-6, 6)))
    return notes


def write_bells(song: Song, rng: random.Random, centre: int) -> list[Note]:
    """Sparse decoration: a short figure of chord tones in some bars."""
    notes = []
    figure = sorted(rng.sample([0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5], rng.randint(2, 5)))
    tops = [rng.randrange(4) for _ in figure]
    every = rng.choice([1, 1, 2])
    for bar in range(0, song.bars, every):
        for beat, which in zip(figure, tops):
            if beat < song.beats:
                at = bar * song.beats + beat
                pitches = voicing(song.chord_at(at), None, centre, 4)
                notes.append(Note(at, 0.9, pitches[which], 78 + rng.randint(-8, 8)))
    return notes


def native_backing(song: Song, rng: random.Random) -> list[Part]:
    """Drums, bass, guitar and keyboard by the patterns in this file."""
    spec, flavour = NATIVE[song.style.groove], song.style.flavour
    return [
        Part("drums", 0, write_drums(song, rng, song.style.groove), True),
        Part("bass", 32, write_bass(song, rng, rng.choice(spec["bass"].split()))),
        make_guitar(song, rng, flavour, rng.choice(spec["guitar"].split())),
        make_piano(song, rng, flavour, rng.choice(spec["keys"].split())),
    ]


def make_guitar(song: Song, rng: random.Random, flavour: str, kind: str | None = None) -> Part:
    """A guitar part; the sound is chosen to suit the way it is played."""
    kind = kind or rng.choice(
        {
            "rock": ["power", "strum", "arp"],
            "soul": ["funk", "stab", "muted"],
            "jazz": ["stab", "synco", "pulse"],
            "electro": ["muted", "arp", "funk"],
            "latin": ["synco", "arp"],
        }.get(flavour, ["strum", "arp", "pop"])
    )
    if kind in ("power", "gallop"):
        return Part("guitar", rng.choice([29, 30, 30, 29]), write_chords(song, rng, kind, 48, 2, 92))
    if kind in ("funk", "muted", "skank"):
        return Part("guitar", rng.choice([28, 27, 27]), write_chords(song, rng, kind, 62, 3, 88, 0.01))
    program = rng.choice([p for p in GUITARS[flavour] if p not in (29, 30)] or [27])
    if kind == "arp":
        return Part("guitar", program, write_chords(song, rng, "arp", 57, 4, 82))
    return Part("guitar", program, write_chords(song, rng, kind, 55, 5 if kind == "strum" else 4, 84, 0.02))


def make_piano(song: Song, rng: random.Random, flavour: str, kind: str | None = None) -> Part:
    """A piano, electric piano or clavinet part."""
    kind = kind or rng.choice(
        {
            "ballad": ["ballad", "pop", "pulse"],
            "jazz": ["stab", "synco"],
            "latin": ["synco", "stab"],
            "soul": ["synco", "stab", "funk"],
            "electro": ["stab", "pulse", "arp"],
        }.get(flavour, ["pulse", "pop", "synco", "ballad"])
    )
    hand = kind in ("ballad", "pop", "pulse") and rng.random() < 0.7
    return Part(
        "piano",
        rng.choice(PIANOS[flavour]),
        write_chords(song, rng, kind, rng.choice([62, 65]), rng.choice([3, 4]), 80, 0, hand),
    )


def make_layer(song: Song, rng: random.Random, kind: str) -> Part:
    """One of the additional instruments of LAYER_PROGRAMS."""
    if kind == "guitar2":
        part = make_guitar(song, rng, song.style.flavour)
        part.role = "layer"
        return part
    program = rng.choice(LAYER_PROGRAMS[kind])
    if kind in ("strings", "choir", "pad"):
        notes = write_pad(song, rng, rng.choice([62, 66]), 4 if kind != "choir" else 3, kind == "strings")
    elif kind == "organ":
        style = rng.choice(["pad", "pad", "synco", "skank", "pulse"])
        notes = write_pad(song, rng, 63, 3, False) if style == "pad" else write_chords(song, rng, style, 65, 3, 78)
    elif kind in ("brass", "synbrass", "reeds"):
        solo = program in (60, 68, 71, 64) and rng.random() < 0.6
        notes = write_counter(song, rng, 62) if solo else write_stabs(song, rng, 64)
    elif kind == "counter":
        notes = write_counter(song, rng, {42: 52, 41: 60, 60: 57}.get(program, 70))
    elif kind == "harp":
        notes = write_chords(song, rng, "arp", 65, 4, 78)
    elif kind == "arp":
        notes = write_chords(song, rng, "arp", 50 if program == 38 else 67, 4, 80)
    elif kind == "perc":
        notes = write_bells(song, rng, 67) if program != 117 else write_chords(song, rng, "funk", 48, 1, 85)
    elif kind == "ethnic":
        notes = write_chords(song, rng, "arp", 62, 4, 82) if rng.random() < 0.6 else write_bells(song, rng, 67)
    else:
        notes = write_bells(song, rng, 74)
    return Part("layer", program, notes)


# --------------------------------------------------------------------------------------
# Arranging
# --------------------------------------------------------------------------------------

LEAD_CENTRE = {
    26: 67,
    27: 67,
    29: 67,
    30: 67,
    24: 64,
    42: 55,
    60: 60,
    66: 62,
    57: 58,
    58: 48,
    67: 55,
    16: 69,
    18: 69,
    4: 69,
    11: 72,
}


def choose_parts(
    song: Song, parts: list[Part], rng: random.Random, all_core: bool, stems: tuple[int, int] = (3, 8)
) -> list[Part]:
    """Pick 3-8 instruments: the four core ones, a lead, then layers that suit the style."""
    flavour = song.style.flavour
    leads, layers = FLAVOURS[flavour]
    by_class: dict[str, list[Part]] = {}
    for part in sorted(parts, key=lambda p: -len(p.notes)):
        if len(part.notes) >= max(4, song.bars // 2):
            by_class.setdefault(part.inst_class, []).append(part)

    sizes = [n for n in range(stems[0], stems[1] + 1)]
    count = rng.choices(sizes, weights=[{3: 8, 4: 20, 5: 28, 6: 23, 7: 13, 8: 8}.get(n, 3) for n in sizes])[0]
    core = list(CORE)
    if not all_core:
        for name in rng.sample(["Guitar", "Piano"], rng.choice([1, 1, 2])) + (["Drums"] if rng.random() < 0.2 else []):
            core.remove(name)
    count = min(max(count, len(core) + (1 if rng.random() < 0.8 else 0)), max(stems[1], len(core)))

    chosen: list[Part] = []
    for name in core:
        if by_class.get(name):
            chosen.append(by_class[name].pop(0))
        elif name == "Drums":
            if song.beats == 4 and not song.style.swing:  # a groove without drums
                chosen.append(
                    Part("drums", 0, write_drums(song, rng, "slowpop" if song.tempo < 90 else "acoustic"), True)
                )
        elif name == "Bass":
            chosen.append(Part("bass", 32, write_bass(song, rng, rng.choice(["root", "fifths"]))))
        else:
            chosen.append((make_guitar if name == "Guitar" else make_piano)(song, rng, flavour))
    for part in chosen:
        part.extras["core"] = True
    if len(chosen) < count and rng.random() < 0.9:
        taken = {p.inst_class for p in chosen}
        options = [p for p in leads if inst_class(p) not in taken] or leads
        program = rng.choice(options if rng.random() < 0.8 else leads)
        centre = LEAD_CENTRE.get(program, 71)
        chosen.append(Part("lead", program, write_melody(song, rng, centre, rng.uniform(0.3, 0.9))))
    spare = [p for group in by_class.values() for p in group if p.inst_class not in ("Drums", "Bass")]
    if not all_core:
        spare = [p for p in spare if p.inst_class in core or p.inst_class not in CORE]
    rng.shuffle(spare)
    weights = dict(layers)
    while len(chosen) < count:
        if spare and rng.random() < 0.55:
            chosen.append(spare.pop())
        elif weights:
            kind = weighted(rng, weights)
            del weights[kind]
            if kind == "guitar2" and "Guitar" not in core:
                continue
            chosen.append(make_layer(song, rng, kind))
        else:
            break
    return chosen


def choose_sounds(song: Song, parts: list[Part], rng: random.Random) -> None:
    """Vary the programs within their class and pick kits, so songs do not share one band."""
    flavour, seen = song.style.flavour, set()
    for part in parts:
        if part.is_drum:
            part.kit = rng.choice(KITS[flavour])
            continue
        name = part.inst_class
        if part.role == "bass":
            part.program = rng.choice(BASSES[flavour])
        elif part.role in ("comp", "line") and rng.random() < 0.45:
            pool = {
                "Piano": PIANOS[flavour],
                "Guitar": [p for p in GUITARS[flavour] if p not in (29, 30)] or [27],
                "Organ": [16, 17, 18, 19],
                "Strings (continued)": [48, 49, 50, 51],
                "Brass": [61, 56, 57, 62],
                "Reed": [64, 65, 66, 71],
                "Synth Pad": [88, 89, 91, 94],
            }.get(name)
            if pool:
                part.program = rng.choice(pool)
        while part.program in seen:  # no two stems with one program
            base = part.program // 8 * 8
            options = [p for p in range(base, base + 8) if p not in seen and p not in (31, 47, 55, 58, 119, 118, 112)]
            if not options:
                break
            part.program = rng.choice(options)
        seen.add(part.program)


def choose_activity(song: Song, parts: list[Part], rng: random.Random) -> list[list[bool]]:
    """Which part plays in which section: entries, breaks, a solo, everyone in the chorus."""
    names = [s.name for s in song.sections]
    n = len(names)
    table, written = [], []  # written: sections for which a part has notes at all
    for part in parts:
        heard = {song.section_at(note.start + 0.06) for note in part.notes}
        written.append([i in heard for i in range(n)])
        row = []
        core = part.extras.get("core", False)
        late = rng.random() < {"drums": 0.12, "bass": 0.08, "lead": 0.2}.get(part.role, 0.15 if core else 0.35) * min(
            1, n / 5
        )
        rare = part.role in ("layer", "line") and not core and rng.random() < 0.45
        sits_out = rng.random() < (0.15 if core else 0.3)
        for i, name in enumerate(names):
            on = True
            if name == "intro":
                on = rng.random() < {"drums": 0.55, "bass": 0.6, "lead": 0.15}.get(part.role, 0.7 if core else 0.3)
            elif name in ("break", "bridge"):
                on = rng.random() < {"drums": 0.6, "bass": 0.7, "lead": 0.5}.get(part.role, 0.65)
            elif name == "verse":
                on = not rare and not (sits_out and part.role not in ("drums", "bass", "lead") and rng.random() < 0.8)
            elif name == "solo":
                on = part.role not in ("layer",) or rng.random() < 0.5
            elif name == "chorus":
                on = part.role != "lead" or rng.random() < 0.85
            if late and i < max(1, n // 4):
                on = False
            row.append(on)
        table.append(row)
    sizes = [s.bars for s in song.sections]
    for row, has in zip(table, written):  # each part plays at least ~40 % of the song
        order = sorted(
            (i for i in range(n) if has[i]), key=lambda i: (names[i] != "chorus", names[i] == "intro", rng.random())
        )
        for i in order:
            if sum(size for size, on, some in zip(sizes, row, has) if on and some) >= 0.4 * song.bars:
                break
            row[i] = True
    for i in range(n):  # two or three parts in every section, one of them more than bass and drums
        least = 2 if names[i] in ("intro", "break", "bridge") or len(parts) < 5 else 3
        able = [j for j in range(len(parts)) if written[j][i]]
        rng.shuffle(able)
        able.sort(key=lambda j: parts[j].inst_class in ("Drums", "Bass"))
        for j in able:
            playing = [k for k in able if table[k][i]]
            if len(playing) >= least and any(parts[k].inst_class not in ("Drums", "Bass") for k in playing):
                break
            table[j][i] = True
    return table


def arrange(song: Song, parts: list[Part], rng: random.Random) -> None:
    """Apply activity, section dynamics, swing, human timing and the ending, in place."""
    table = choose_activity(song, parts, rng)
    loud = {"intro": 0.86, "verse": 0.92, "chorus": 1.06, "bridge": 0.9, "break": 0.85, "solo": 1.0}
    total = song.bars * song.beats
    last_bar = total - song.beats
    stop = rng.random() < 0.75  # everyone lands on the first beat of the last bar
    seconds_per_beat = 60 / song.tempo
    for part, row in zip(parts, table):
        target = rng.uniform(74, 98) if not part.is_drum else rng.uniform(86, 102)
        mean = np.mean([n.velocity for n in part.notes]) if part.notes else target
        drop = {i for i, on in enumerate(row) if on and rng.random() < 0.08}  # a one-bar stop-time break
        kept = []
        sloppy = 0.004 if part.is_drum else rng.uniform(0.004, 0.011)
        for note in part.notes:
            if note.start >= total - 0.05:
                continue
            # an early or pushed note belongs to the section it leads into
            i = song.section_at(note.start + 0.06)
            section = song.sections[i]
            if not row[i]:
                continue
            if (
                i in drop
                and section.bars >= 4
                and note.start >= (section.bar + section.bars - 1) * song.beats + 1
                and part.role != "lead"
            ):
                continue
            end = note.start + note.length
            if i + 1 < len(song.sections) and not row[i + 1]:
                end = min(end, (section.bar + section.bars) * song.beats)
            start = note.start
            if stop and start > last_bar + 0.3:
                continue
            if stop and start >= last_bar - 0.02 and not part.is_drum:
                end = max(end, total - 0.2)
            if song.style.swing and part.role in ("lead", "layer", "guitar", "piano"):
                offbeat = start % 1
                if abs(offbeat - 0.5) < 0.02:
                    start += 0.16
            start = max(0.0, start + rng.gauss(0, sloppy) / seconds_per_beat)
            velocity = int(
                clamp(note.velocity * (target / mean) ** 0.8 * loud[section.name] + rng.gauss(0, 3), 12, 127)
            )
            pitch = note.pitch
            if not part.is_drum:  # keep within the instrument: no notes under a bass's or guitar's low string
                lowest = {"bass": 28}.get(part.role, 40 if part.inst_class == "Guitar" else 33)
                while pitch < lowest:
                    pitch += 12
                while pitch > 100:
                    pitch -= 12
            kept.append(Note(start, max(0.06, end - start), pitch, velocity))
        part.notes = tidy(kept)
        part.extras["pan"] = 64 if part.is_drum or part.role in ("bass", "lead") else rng.randint(24, 104)
        part.extras["reverb"] = 8 if part.role == "bass" else rng.randint(15, 70)
        part.extras["chorus"] = (
            rng.choice([0, 0, 0, 30]) if part.inst_class in ("Guitar", "Piano", "Synth Pad", "Organ") else 0
        )
        part.extras["swell"] = part.inst_class in ("Strings (continued)", "Synth Pad", "Organ") and rng.random() < 0.5


def tidy(notes: list[Note]) -> list[Note]:
    """Sort, and cut a note that overlaps the next one of the same pitch."""
    notes.sort(key=lambda n: (n.start, n.pitch, -n.velocity))
    last: dict[int, Note] = {}
    out = []
    for note in notes:
        before = last.get(note.pitch)
        if before and note.start - before.start < 0.03:
            continue
        if before and before.start + before.length > note.start - 0.01:
            before.length = max(0.02, note.start - before.start - 0.01)
        last[note.pitch] = note
        out.append(note)
    return out


def control_events(song: Song, part: Part) -> list[tuple[float, int, int]]:
    """(beat, controller, value): pan, sends, and slow swells on sustained sounds."""
    extras = part.extras
    events = [
        (0.0, 7, 100),
        (0.0, 10, extras["pan"]),
        (0.0, 91, extras["reverb"]),
        (0.0, 93, extras["chorus"]),
        (0.0, 11, 127),
    ]
    if extras["swell"]:
        for section in song.sections:
            steps = section.bars * 2
            for k in range(steps):
                value = int(92 + 35 * k / max(1, steps - 1))
                events.append((section.bar * song.beats + k * song.beats / 2, 11, value))
    return events


# --------------------------------------------------------------------------------------
# MIDI files
# --------------------------------------------------------------------------------------


def stem_events(song: Song, part: Part, channel: int) -> list[tuple[int, int, mido.Message]]:
    """A part as (tick, order, message), controllers and note-offs before note-ons."""
    program = part.kit if part.is_drum else part.program
    events = [(0, 0, mido.Message("program_change", channel=channel, program=program))]
    for beat, control, value in control_events(song, part):
        events.append(
            (round(beat * PPQ), 1, mido.Message("control_change", channel=channel, control=control, value=value))
        )
    for note in part.notes:
        start = round(note.start * PPQ)
        end = max(start + 1, round((note.start + note.length) * PPQ))
        events.append((start, 3, mido.Message("note_on", channel=channel, note=note.pitch, velocity=note.velocity)))
        events.append((end, 2, mido.Message("note_off", channel=channel, note=note.pitch, velocity=0)))
    events.sort(key=lambda e: e[:2])
    return events


def to_track(events, name: str) -> mido.MidiTrack:
    track = mido.MidiTrack([mido.MetaMessage("track_name", name=name)])
    now = 0
    for tick, _, message in events:
        track.append(message.copy(time=tick - now))
        now = tick
    track.append(mido.MetaMessage("end_of_track"))
    return track


def write_midi(path: Path, song: Song, tracks: list[mido.MidiTrack]) -> None:
    """A type-1 file with tempo and metre in its first track."""
    midi = mido.MidiFile(type=1, ticks_per_beat=PPQ)
    midi.tracks.append(
        mido.MidiTrack(
            [
                mido.MetaMessage("set_tempo", tempo=round(60e6 / song.tempo)),
                mido.MetaMessage("time_signature", numerator=song.beats, denominator=4),
                mido.MetaMessage("end_of_track"),
            ]
        )
    )
    midi.tracks.extend(tracks)
    midi.save(path)


# --------------------------------------------------------------------------------------
# FluidSynth
# --------------------------------------------------------------------------------------


class Fluid:
    """The few calls of libfluidsynth that rendering needs, bound with ctypes."""

    _SIGNATURES = {
        "new_fluid_settings": (ctypes.c_void_p, []),
        "delete_fluid_settings": (None, [ctypes.c_void_p]),
        "fluid_settings_setnum": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_double]),
        "fluid_settings_setint": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]),
        "new_fluid_synth": (ctypes.c_void_p, [ctypes.c_void_p]),
        "delete_fluid_synth": (None, [ctypes.c_void_p]),
        "fluid_synth_sfload": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int]),
        "fluid_synth_program_select": (ctypes.c_int, [ctypes.c_void_p] + [ctypes.c_int] * 4),
        "fluid_synth_pin_preset": (ctypes.c_int, [ctypes.c_void_p] + [ctypes.c_int] * 3),
        "fluid_synth_unpin_preset": (ctypes.c_int, [ctypes.c_void_p] + [ctypes.c_int] * 3),
        "fluid_synth_get_channel_preset": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int]),
        "fluid_preset_get_name": (ctypes.c_char_p, [ctypes.c_void_p]),
        "fluid_synth_noteon": (ctypes.c_int, [ctypes.c_void_p] + [ctypes.c_int] * 3),
        "fluid_synth_noteoff": (ctypes.c_int, [ctypes.c_void_p] + [ctypes.c_int] * 2),
        "fluid_synth_cc": (ctypes.c_int, [ctypes.c_void_p] + [ctypes.c_int] * 3),
        "fluid_synth_write_float": (
            ctypes.c_int,
            [
                ctypes.c_void_p,
                ctypes.c_int,
                ctypes.c_void_p,
                ctypes.c_int,
                ctypes.c_int,
                ctypes.c_void_p,
                ctypes.c_int,
                ctypes.c_int,
            ],
        ),
        "fluid_set_log_function": (ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]),
    }

    def __init__(self) -> None:
        name = ctypes.util.find_library("fluidsynth") or "libfluidsynth.so.3"
        library = ctypes.CDLL(name)
        for symbol, (result, arguments) in self._SIGNATURES.items():
            function = getattr(library, symbol, None)
            if function is None:
                continue  # pin_preset came with 2.2; only a cache is lost without it
            function.restype, function.argtypes = result, arguments
            setattr(self, symbol, function)
        for level in range(5):
            self.fluid_set_log_function(level, None, None)
        # FluidSynth shares decoded samples between synths for as long as one holds them;
        # pinning presets in a long-lived synth makes the short-lived ones start at once.
        # Only compressed fonts (.sf3) need it: decoding a large preset takes up to a second.
        self._holders: dict[str, tuple] = {}
        self._pinned: list[tuple] = []

    def _new(self, font: str, room: dict | None, chorus: bool = False):
        settings = self.new_fluid_settings()
        for key, value in (("synth.sample-rate", float(SAMPLE_RATE)), ("synth.gain", 0.4)):
            self.fluid_settings_setnum(settings, key.encode(), value)
        for key, value in (
            ("synth.dynamic-sample-loading", 1),
            ("synth.lock-memory", 0),
            ("synth.polyphony", 192),
            ("synth.chorus.active", int(chorus)),
            ("synth.reverb.active", 1),
        ):
            self.fluid_settings_setint(settings, key.encode(), value)
        for key, value in (room or {}).items():
            self.fluid_settings_setnum(settings, f"synth.reverb.{key}".encode(), value)
        synth = self.new_fluid_synth(settings)
        font_id = self.fluid_synth_sfload(synth, font.encode(), 0)
        if font_id < 0:
            raise RuntimeError(f"cannot load SoundFont {font}")
        return settings, synth, font_id

    def _pin(self, font: str, bank: int, program: int, most: int = 32) -> None:
        """Keep a preset's samples decoded, for the ``most`` presets used last."""
        if not hasattr(self, "fluid_synth_pin_preset"):
            return
        if font not in self._holders:
            self._holders[font] = self._new(font, None)
        key = (font, bank, program)
        if key in self._pinned:
            self._pinned.remove(key)
        else:
            self.fluid_synth_pin_preset(*self._holders[font][1:], bank, program)
        self._pinned.append(key)
        if len(self._pinned) > most:
            old, old_bank, old_program = self._pinned.pop(0)
            self.fluid_synth_unpin_preset(*self._holders[old][1:], old_bank, old_program)

    def render(
        self, font: str, events: list[tuple[float, mido.Message]], bank: int, program: int, seconds: float, room: dict
    ) -> tuple[np.ndarray, str]:
        """Play events (seconds, message) on one preset; returns (frames, 2) floats and the preset's name."""
        if font.endswith(".sf3"):
            self._pin(font, bank, program)
        chorus = any(m.type == "control_change" and m.control == 93 and m.value for _, m in events)
        settings, synth, font_id = self._new(font, room, chorus)
        try:
            channel = 9 if bank == 128 else 0
            if self.fluid_synth_program_select(synth, channel, font_id, bank, program):
                if self.fluid_synth_program_select(synth, channel, font_id, bank, 0):
                    raise RuntimeError(f"{font} lacks bank {bank} program {program}")
            preset = self.fluid_synth_get_channel_preset(synth, channel)
            name = (self.fluid_preset_get_name(preset) or b"").decode("latin-1").strip()
            frames = round(seconds * SAMPLE_RATE)
            audio = np.zeros((frames, 2), dtype=np.float32)
            at = 0
            for when, message in events + [(seconds, None)]:
                until = min(frames, round(when * SAMPLE_RATE))
                if until > at:
                    pointer = audio.ctypes.data + at * 8
                    self.fluid_synth_write_float(synth, until - at, pointer, 0, 2, pointer, 1, 2)
                    at = until
                if message is None:
                    break
                if message.type == "note_on":
                    self.fluid_synth_noteon(synth, channel, message.note, message.velocity)
                elif message.type == "note_off":
                    self.fluid_synth_noteoff(synth, channel, message.note)
                elif message.type == "control_change":
                    self.fluid_synth_cc(synth, channel, message.control, message.value)
            return audio, name
        finally:
            self.delete_fluid_synth(synth)
            self.delete_fluid_settings(settings)


_FLUID: Fluid | None = None
_GROOVES: dict[str, str] | None = None

# --------------------------------------------------------------------------------------
# One track
# --------------------------------------------------------------------------------------

MUSICAL_BALANCE = {
    "Drums": 1.0,
    "Bass": 0.0,
    "Guitar": -2.5,
    "Piano": -2.5,
    "Synth Pad": -7,
    "Strings (continued)": -6,
    "Organ": -5,
    "Chromatic Percussion": -6,
}


@dataclass
class Settings:
    """What a worker needs to know about the whole corpus."""

    out: str
    seed: int
    seconds: float
    jitter: float
    channels: int
    engine: str
    fonts: list[str]
    balance: str
    all_core: float
    stems: tuple[int, int]


def compose(settings: Settings, number: int, rng: random.Random, seconds: float) -> tuple[Song, list[Part]]:
    """Draw a song and its parts."""
    global _GROOVES
    if _GROOVES is None:
        _GROOVES = mma_grooves() if settings.engine != "native" else {}
    styles = [
        s
        for s in STYLES
        if settings.engine in ("both", s.engine) and (s.engine == "native" or s.groove.lower() in _GROOVES)
    ]
    style = rng.choices(styles, weights=[s.weight for s in styles])[0]
    song = plan_song(style, seconds, rng)
    backing = mma_backing(song, rng, _GROOVES) if style.engine == "mma" else native_backing(song, rng)
    parts = choose_parts(song, backing, rng, rng.random() < settings.all_core, settings.stems)
    choose_sounds(song, parts, rng)
    arrange(song, parts, rng)
    return song, [p for p in parts if len(p.notes) >= 3]


def make_track(settings: Settings, split: str, number: int) -> dict:
    """Compose, render and write one track; returns a summary for corpus.json."""
    global _FLUID
    started = time.process_time()
    if _FLUID is None:
        _FLUID = Fluid()
    rng = random.Random(f"{VERSION}/{settings.seed}/{number}")
    seconds = round(settings.seconds * rng.uniform(1 - settings.jitter, 1 + settings.jitter), 2)
    song, parts = compose(settings, number, rng, seconds)
    order = {"Drums": 2, "Bass": 1}
    parts.sort(key=lambda p: rng.random() * 3 + order.get(p.inst_class, 0))  # Slakh has no fixed order
    uuid = hashlib.md5(f"{VERSION}/{settings.seed}/{number}/{song.style.name}".encode()).hexdigest()
    room = {
        "room-size": rng.uniform(0.15, 0.75),
        "damp": rng.uniform(0.1, 0.7),
        "width": 0.8,
        "level": rng.uniform(0.25, 0.7),
    }
    main_font = rng.choice(settings.fonts)

    meter = pyloudnorm.Meter(SAMPLE_RATE)
    seconds_per_tick = 60 / song.tempo / PPQ
    stems, tracks, audio = {}, [], []
    melodic = iter(c for c in list(range(9)) + list(range(10, 16)))
    for part in parts:
        channel = 9 if part.is_drum else next(melodic)
        events = stem_events(song, part, channel)
        font = main_font if rng.random() < 0.6 else rng.choice(settings.fonts)
        bank, program = (128, part.kit) if part.is_drum else (0, part.program)
        timed = [(tick * seconds_per_tick, m) for tick, _, m in events if m.type != "program_change"]
        wave, preset = _FLUID.render(font, timed, bank, program, seconds, room)
        wave = (0.5 * (wave[:, :1] + wave[:, 1:]) if settings.channels == 1 else wave).astype(np.float64)
        loudness = meter.integrated_loudness(wave)
        if not np.isfinite(loudness) or loudness < -65:
            continue
        target = TARGET_LUFS
        if settings.balance == "musical":
            target += MUSICAL_BALANCE.get(part.inst_class, -3.0) + rng.uniform(-1.5, 1.5)
        name = f"S{len(stems):02d}"
        label = "Drums" if part.is_drum else GM_NAMES[part.program]
        slug = re.sub(r"[^a-z0-9]+", "_", preset.lower()).strip("_")
        stems[name] = {
            "audio_rendered": True,
            "inst_class": part.inst_class,
            "integrated_loudness": float(target),
            "is_drum": part.is_drum,
            "midi_program_name": label,
            "midi_saved": True,
            "plugin_name": f"{Path(font).stem.lower()}_{slug}{Path(font).suffix}",
            "program_num": DRUM_PROGRAM if part.is_drum else part.program,
        }
        audio.append(wave * 10 ** ((target - loudness) / 20))
        tracks.append((name, to_track(events, label)))

    peak = float(np.max(np.abs(np.sum(audio, axis=0))))
    single = max(float(np.max(np.abs(a))) for a in audio)  # a stem may peak above the sum
    gain = 10 ** (TARGET_PEAK_DB / 20) / max(peak, single, 1e-9)
    fade = np.ones(audio[0].shape[0])
    length = min(len(fade), round(0.4 * SAMPLE_RATE))
    fade[-length:] = np.cos(np.linspace(0, np.pi / 2, length)) ** 2

    folder = Path(settings.out, split, f"Track{number:05d}")
    scratch = folder.with_name(folder.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "stems").mkdir(parents=True)
    (scratch / "MIDI").mkdir()
    mix = 0
    activity = {}
    for (name, track), wave in zip(tracks, audio):
        pcm = np.round(wave * gain * fade[:, None] * 32767).astype(np.int32)
        mix = mix + pcm
        sf.write(
            scratch / "stems" / f"{name}.flac",
            pcm.astype(np.int16),
            SAMPLE_RATE,
            subtype="PCM_16",
            compression_level=1.0,
        )
        write_midi(scratch / "MIDI" / f"{name}.mid", song, [track])
        blocks = pcm[: len(pcm) // 4410 * 4410].reshape(-1, 4410 * settings.channels).astype(np.float64) / 32768
        level = 10 * np.log10((blocks**2).mean(axis=1) + 1e-12)
        activity[name] = round(float((level > -50).mean()), 3)
    assert np.abs(mix).max() <= 32767, "mix clips"
    sf.write(scratch / "mix.flac", mix.astype(np.int16), SAMPLE_RATE, subtype="PCM_16", compression_level=1.0)
    write_midi(scratch / "all_src.mid", song, [t for _, t in tracks])
    metadata = {
        "UUID": uuid,
        "audio_dir": "stems",
        "lmd_midi_dir": f"synthetic/{song.style.name.replace(':', '/')}/{uuid}.mid",
        "midi_dir": "MIDI",
        "normalization_factor": TARGET_LUFS,
        "normalized": True,
        "overall_gain": float(gain),
        "stems": stems,
        "target_peak": TARGET_PEAK_DB,
    }
    (scratch / "metadata.yaml").write_text(yaml.safe_dump(metadata, default_flow_style=False, sort_keys=True))
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)
    return {
        "track": folder.name,
        "split": split,
        "style": song.style.name,
        "key": NOTE_NAMES[song.key],
        "mode": song.mode,
        "tempo": round(song.tempo, 2),
        "beats_per_bar": song.beats,
        "bars": song.bars,
        "seconds": seconds,
        "sections": [[s.name, s.bars] for s in song.sections],
        "chords": [c.mma for c in song.chords][:64],
        "stems": {
            k: [v["inst_class"], v["midi_program_name"], v["plugin_name"], activity[k]] for k, v in stems.items()
        },
        "cpu_seconds": round(time.process_time() - started, 3),
    }


# --------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------

FONT_CANDIDATES = (
    "/usr/share/sounds/sf2/FluidR3_GM.sf2",
    "/usr/share/sounds/sf2/MuseScore_General_Full.sf2",
    "/usr/share/sounds/sf3/MuseScore_General_Full.sf3",
)


def split_sizes(tracks: int, fractions: tuple[float, float, float]) -> list[int]:
    """Tracks per split, summing exactly, every non-zero fraction getting at least one if possible."""
    sizes = [int(round(tracks * f)) for f in fractions]
    sizes[0] = tracks - sizes[1] - sizes[2]
    return sizes


def find_fonts(wanted: list[str] | None) -> list[str]:
    """The SoundFonts to use: those named, or the known free ones that are installed."""
    fonts = wanted or [f for f in FONT_CANDIDATES if os.path.exists(f)]
    if not wanted and len([f for f in fonts if "MuseScore" in f]) > 1:
        fonts = fonts[:-1]  # the same sounds twice: keep the uncompressed one
    if not fonts or any(not os.path.exists(f) for f in fonts):
        sys.exit("no SoundFont: apt-get install fluid-soundfont-gm, or give --soundfont FILE")
    return fonts


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--out", required=True, help="folder to write the corpus into")
    parser.add_argument("--tracks", type=int, default=24, help="number of tracks over all splits")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a track")
    parser.add_argument("--jitter", type=float, default=0.0, help="tracks vary by this fraction of --seconds")
    parser.add_argument("--seed", type=int, default=0, help="same seed and versions, same corpus")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument(
        "--splits",
        type=float,
        nargs=3,
        default=(2 / 3, 1 / 6, 1 / 6),
        metavar=("TRAIN", "VAL", "TEST"),
        help="fractions",
    )
    parser.add_argument("--channels", type=int, choices=(1, 2), default=1, help="1 as in Slakh2100; 2 keeps panning")
    parser.add_argument(
        "--engine", choices=("both", "mma", "native"), default="both", help="who plays the rhythm section"
    )
    parser.add_argument(
        "--soundfont", action="append", help="SoundFont file; repeatable (default: installed free ones)"
    )
    parser.add_argument(
        "--balance",
        choices=("slakh", "musical"),
        default="slakh",
        help="slakh: all stems at -13 LUFS; musical: levels by instrument class",
    )
    parser.add_argument(
        "--all-core", type=float, default=0.85, help="share of tracks that have drums, bass, guitar and piano"
    )
    parser.add_argument(
        "--stems", type=int, nargs=2, default=(3, 8), metavar=("MIN", "MAX"), help="instruments per track"
    )
    parser.add_argument("--first", type=int, default=1, help="number of the first track")
    parser.add_argument("--resume", action="store_true", help="keep tracks that are already there")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    engine = args.engine
    if engine != "native" and not (shutil.which("mma") and MMA_LIB.is_dir()):
        if engine == "mma":
            sys.exit("mma is not installed: apt-get install mma, or use --engine native")
        print("mma not found: using the native engine only", file=sys.stderr)
        engine = "native"
    settings = Settings(
        args.out,
        args.seed,
        args.seconds,
        args.jitter,
        args.channels,
        engine,
        find_fonts(args.soundfont),
        args.balance,
        args.all_core,
        tuple(args.stems),
    )
    jobs, number = [], args.first
    for split, size in zip(SPLITS, split_sizes(args.tracks, tuple(args.splits))):
        Path(args.out, split).mkdir(parents=True, exist_ok=True)
        for _ in range(size):
            jobs.append((split, number))
            number += 1
    manifest = Path(args.out, "corpus.json")
    known = {}
    if args.resume and manifest.exists():
        known = {t["track"]: t for t in json.loads(manifest.read_text())["tracks"]}
    todo = [
        j
        for j in jobs
        if not (f"Track{j[1]:05d}" in known and Path(args.out, j[0], f"Track{j[1]:05d}", "metadata.yaml").exists())
    ]

    started, done, audio = time.time(), [], 0.0

    def report(summary: dict) -> None:
        nonlocal audio
        done.append(summary)
        audio += summary["seconds"]
        wall = time.time() - started
        left = (len(todo) - len(done)) * wall / len(done)
        print(
            f"[{len(done)}/{len(todo)}] {summary['split']}/{summary['track']} {summary['style']:<18} {summary['tempo']:6.1f} bpm "
            f"{len(summary['stems'])} stems  {audio / wall:5.1f}x real time, {left:.0f} s left",
            flush=True,
        )

    if args.workers <= 1:
        for job in todo:
            report(make_track(settings, *job))
    else:
        with ProcessPoolExecutor(args.workers) as pool:
            futures = [pool.submit(make_track, settings, *job) for job in todo]
            for future in as_completed(futures):
                report(future.result())
    wall = time.time() - started
    cpu = sum(t.pop("cpu_seconds") for t in done)
    tracks = sorted(list(known.values()) + done, key=lambda t: t["track"])
    manifest.write_text(
        json.dumps(
            {
                "generator": "render_corpus.py",
                "version": VERSION,
                "seed": args.seed,
                "seconds": args.seconds,
                "engine": engine,
                "balance": args.balance,
                "channels": args.channels,
                "sample_rate": SAMPLE_RATE,
                "soundfonts": [Path(f).name for f in settings.fonts],
                "tracks": tracks,
            },
            indent=1,
        )
        + "\n"
    )
    if done:
        print(
            f"{len(done)} tracks, {audio:.0f} s of music in {wall:.1f} s wall ({audio / wall:.1f}x real time, {args.workers} workers; "
            f"{audio / max(cpu, 1e-9):.1f}x per CPU second)"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
