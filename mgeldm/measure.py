"""Measuring one audio file in one pass and constant memory: length, loudness, peak, activity, fingerprint."""

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pyloudnorm import Meter
from scipy.signal import lfilter

from manifests.errors import AudioError
from manifests.songs import activity_frames
from mgeldm import audio


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityConfig:
    """When a 100 ms frame counts as active."""

    on_dbfs: float = -50.0
    """A frame at least this loud (RMS over all channels) switches activity on."""
    off_dbfs: float = -60.0
    """Activity lasts until a frame is quieter than this."""

    def __post_init__(self) -> None:
        if self.off_dbfs > self.on_dbfs:
            raise ValueError(f"off_dbfs {self.off_dbfs} is above on_dbfs {self.on_dbfs}; activity could never hold")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one decode of a file tells."""

    sample_rate: int
    channels: int
    frames: int
    lufs: float | None
    peak_dbfs: float | None
    activity: npt.NDArray[np.bool_]
    fingerprint: str
    problem: AudioError | None = None
    """Why decoding stopped before the end, if it did (``truncated``), or ``not_finite``, or ``empty``."""


def measure(path: Path | str, stream: int | None, config: ActivityConfig) -> Measurement:
    """Decode a file once and measure it. Raises AudioError when nothing at all could be decoded."""
    info = audio.probe(path, stream)
    meter = _LoudnessMeter(info.sample_rate, info.channels)
    energy = _FrameSums(info.sample_rate, info.channels)
    digest = hashlib.blake2b(digest_size=16)
    frames, peak, finite = 0, 0.0, True
    problem: AudioError | None = None
    try:
        for block in audio.blocks(path, stream):
            if not np.isfinite(block).all():
                finite = False
                block = np.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0)
            frames += block.shape[1]
            peak = max(peak, float(np.abs(block).max(initial=0.0)))
            digest.update(block.tobytes())
            energy.add(block)
            meter.add(block)
    except AudioError as error:
        problem = error
    if not finite:
        problem = AudioError(f"{path}: samples are NaN or infinite", "not_finite")
    elif frames == 0 and problem is None:
        problem = AudioError(f"{path}: the file holds no samples", "empty")
    return Measurement(
        sample_rate=info.sample_rate,
        channels=info.channels,
        frames=frames,
        lufs=meter.integrated(),
        peak_dbfs=decibels(peak),
        activity=hysteresis(energy.rms_dbfs(), config),
        fingerprint=digest.hexdigest(),
        problem=problem,
    )


def decibels(amplitude: float) -> float | None:
    """20 log10, or None for zero."""
    return 20 * math.log10(amplitude) if amplitude > 0 else None


def hysteresis(rms_dbfs: npt.NDArray[np.float64], config: ActivityConfig) -> npt.NDArray[np.bool_]:
    """Active frames: on at ``on_dbfs``, held while at least ``off_dbfs``. ``[n] -> [n]``."""
    on, hold = rms_dbfs >= config.on_dbfs, rms_dbfs >= config.off_dbfs
    # The last frame that was not merely "held" decides: index of the latest on or off event.
    event = np.where(on | ~hold, np.arange(len(on)), -1)
    latest = np.maximum.accumulate(event) if len(on) else event
    return np.where(latest >= 0, on[latest], False).astype(np.bool_)


class _FrameSums:
    """Sums of squares over successive 100 ms frames, per channel."""

    def __init__(self, rate: int, channels: int) -> None:
        self._rate = rate
        self._position = 0
        self.sums = np.zeros((channels, 0))

    def add(self, block: npt.NDArray[np.floating]) -> None:
        if not block.shape[1]:
            return
        end = self._position + block.shape[1]
        first, last = self._position * 10 // self._rate, activity_frames(end, self._rate)
        # Frame k holds the samples n with floor(10 n / rate) = k.
        starts = np.maximum(-(-np.arange(first, last) * self._rate // 10), self._position) - self._position
        sums = np.add.reduceat(np.square(block, dtype=np.float64), starts, axis=1)
        grown = np.zeros((block.shape[0], max(last, self.sums.shape[1])))
        grown[:, : self.sums.shape[1]] = self.sums
        grown[:, first:last] += sums
        self.sums, self._position = grown, end

    def rms_dbfs(self) -> npt.NDArray[np.float64]:
        """RMS of each frame over all channels, in dBFS; -inf for digital silence."""
        edges = np.minimum(-(-np.arange(self.sums.shape[1] + 1) * self._rate // 10), self._position)
        counts = np.diff(edges) * self.sums.shape[0]
        with np.errstate(divide="ignore"):
            return np.asarray(10 * np.log10(self.sums.sum(axis=0) / np.maximum(counts, 1)), dtype=np.float64)

    def whole(self) -> npt.NDArray[np.float64]:
        """Sums of the frames that are complete, ``[channels, frames]``."""
        return self.sums[:, : self._position * 10 // self._rate]


class _LoudnessMeter:
    """Integrated loudness of ITU-R BS.1770-4 from blocks: pyloudnorm's filters and gates, with state kept."""

    _GAINS = (1.0, 1.0, 1.0, 1.41, 1.41)

    def __init__(self, rate: int, channels: int) -> None:
        self._rate = rate
        self._channels = min(channels, len(self._GAINS))
        self._stages = [(f.b * f.passband_gain, f.a) for f in Meter(rate)._filters.values()]
        self._state = [np.zeros((self._channels, 2)) for _ in self._stages]
        self._frames = _FrameSums(rate, self._channels)

    def add(self, block: audio.Wave) -> None:
        signal: npt.NDArray[np.float64] = block[: self._channels].astype(np.float64)
        for index, (b, a) in enumerate(self._stages):
            signal, self._state[index] = lfilter(b, a, signal, axis=1, zi=self._state[index])
        self._frames.add(signal)

    def integrated(self) -> float | None:
        """LUFS, or None under 0.4 s or when every block is gated."""
        sums = self._frames.whole()
        if sums.shape[1] < 4:
            return None
        blocks = np.lib.stride_tricks.sliding_window_view(sums, 4, axis=1).sum(axis=2) / (0.4 * self._rate)
        power = (np.asarray(self._GAINS[: self._channels])[:, None] * blocks).sum(axis=0)
        with np.errstate(divide="ignore"):
            loudness = -0.691 + 10 * np.log10(power)
        gated = loudness > -70.0
        if not gated.any():
            return None
        relative = -0.691 + 10 * np.log10(power[gated].mean()) - 10.0
        gated &= loudness > relative
        return float(-0.691 + 10 * np.log10(power[gated].mean())) if gated.any() else None
