"""How fast encode is on the device at hand: some windows of the plan, encoded and thrown away."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from manifests.shards import Sample
from manifests.songs import Song
from manifests.splits import Window
from pipelines.encode_config import EncodeConfig
from pipelines.encode_unit import UnitWork
from pipelines.encode_windows import WindowEncoder

CALIBRATION_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What one worker does in a second, on one GPU or on the cores of this machine."""

    device: str
    windows: int
    """Windows that were encoded."""
    window_seconds_per_s: float
    """Seconds of windows that are encoded in a second."""
    decode_cores: float
    """Cores that decoding and resampling keep busy meanwhile."""
    bytes_per_s: float
    """Bytes of audio files that are read in a second."""


def calibrate(works: Sequence[UnitWork], config: EncodeConfig, seconds: float = CALIBRATION_S) -> Calibration | None:
    """Encode songs of ``works`` in random order for some seconds, once the models are warm. None if nothing came out.

    Raises:
        CheckpointError, ConfigError: models or device cannot be used.
    """
    encoder = WindowEncoder(config)
    read: list[Song] = []
    samples = encoder.samples(_songs(works, read))
    encoded, windows, begin = 0.0, 0, None
    for _, found in samples:
        if not isinstance(found, Sample):
            continue
        now = time.perf_counter()
        if begin is None:
            begin = now
            encoder.clock.take()
            read.clear()
            continue
        encoded += found.meta["duration_s"]
        windows += 1
        if now - begin > seconds:
            break
    if begin is None or not windows:
        return None
    passed, spent = time.perf_counter() - begin, encoder.clock.take()
    return Calibration(
        device=str(encoder.forwards.device),
        windows=windows,
        window_seconds_per_s=encoded / passed,
        decode_cores=(spent.get("decode", 0.0) + spent.get("resample", 0.0)) / passed,
        bytes_per_s=sum(stem.size or 0 for song in read for stem in song.usable_stems) / passed,
    )


def _songs(works: Sequence[UnitWork], read: list[Song]) -> Iterator[tuple[Song, tuple[Window, ...]]]:
    names = [(number, name) for number, work in enumerate(works) for name in work.unit.songs]
    for place in np.random.default_rng(np.random.SeedSequence([0])).permutation(len(names)).tolist():
        number, name = names[place]
        read.append(works[number].songs[name])
        yield works[number].songs[name], works[number].windows[name]
