"""Copies of real recordings, coded again, louder, resampled and cut, are found among the others; nothing else is."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pyloudnorm import Meter
from scipy.signal import lfilter

from manifests import sketches
from manifests.duplicates import near_duplicates
from mgeldm import audio
from tests.support.sounds import write_sound

EXAMPLES = Path(__file__).parents[2] / "examples"
RATE = 44_100


def sketch(wave: audio.Wave, rate: int = RATE) -> bytes:
    """The sketch of ``wave [1, frames]``."""
    weighted = wave.astype(np.float64)
    for stage in Meter(rate)._filters.values():
        weighted = lfilter(stage.b * stage.passband_gain, stage.a, weighted)
    frames = wave.shape[1] * 10 // rate
    edges = -(-np.arange(frames) * rate // 10)
    with np.errstate(divide="ignore"):
        plain, weighted = (
            10
            * np.log10(np.add.reduceat(np.square(part[0, : frames * rate // 10], dtype=np.float64), edges) * 10 / rate)
            for part in (wave, weighted)
        )
    return sketches.pack(plain, weighted)


def aac(wave: audio.Wave, folder: Path) -> bytes:
    return sketch(audio.read(write_sound(folder / "copy.m4a", wave, RATE)))


def vorbis(wave: audio.Wave, folder: Path) -> bytes:
    path = folder / "copy.ogg"
    with soundfile.SoundFile(path, "w", RATE, 1) as file:
        for begin in range(0, wave.shape[1], 1 << 16):
            file.write(np.clip(wave[0, begin : begin + (1 << 16)], -1, 1))
    return sketch(audio.read(path))


COPIES: dict[str, Callable[[audio.Wave, Path], bytes]] = {
    "aac": aac,
    "vorbis": vorbis,
    "gain": lambda wave, _: sketch(wave * np.float32(0.4)),
    "16 kHz": lambda wave, _: sketch(audio.resample(wave, RATE, 16_000), 16_000),
    "cut": lambda wave, _: sketch(wave[:, int(3.7 * RATE) :]),
    "cut within a frame, softer, aac": lambda wave, folder: aac(wave[:, int(3.743 * RATE) :] * np.float32(0.5), folder),
}


@pytest.fixture(scope="module")
def songs() -> list[audio.Wave]:
    """The mixes of the example songs, ``[1, frames]`` at 44.1 kHz."""
    return [audio.load(path, RATE) for path in sorted((EXAMPLES / "minislakh").glob("*/*/mix.flac"))]


@pytest.mark.parametrize("copy", COPIES)
def test_each_copy_is_found_and_nothing_else(copy: str, songs: list[audio.Wave], tmp_path: Path) -> None:
    assert len(songs) >= 5
    originals = [sketch(wave) for wave in songs]
    copies = [COPIES[copy](wave, tmp_path) for wave in songs]
    found = {(first, second) for first, second, _ in near_duplicates(originals + copies)}
    assert found == {(number, number + len(songs)) for number in range(len(songs))}
