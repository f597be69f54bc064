"""Measuring one audio file in one pass and constant memory: length, loudness, peak, activity, fingerprint."""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pyloudnorm import Meter
from scipy.signal import lfilter

from manifests.errors import AudioError
from manifests.songs import activity_frames
from mgeldm import audio


# No slots in what is nested in a configuration: the command line's parser reads defaults by their __dict__.
@dataclass(frozen=True, kw_only=True)
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


def measure(path: audio.AudioFile, stream: int | None, config: ActivityConfig) -> Measurement:
    """Decode a file once and measure it. Raises AudioError when nothing at all could be decoded."""
    info = audio.probe(path, stream)
    meter = _LoudnessMeter(info.sample_rate, info.channels)
    energy = _FrameSums(info.sample_rate, info.channels)
    digest = hashlib.blake2b(f"{info.sample_rate} {info.channels}".encode(), digest_size=16)
    frames, peak, finite = 0, 0.0, True
    problem: AudioError | None = None
    try:
        for block in audio.blocks(path, stream):
            if not np.isfinite(block).all():
                finite = False
                block = np.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0)
            frames += block.shape[1]
            peak = max(peak, float(np.abs(block).max(initial=0.0)))
            # Channels interleaved, so that the hash does not depend on where blocks end; and no negative zeros.
            digest.update(np.add(block.T, np.float32(0), order="C").data)
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
    """Sums of squares over successive 100 ms frames, per channel. Frame k holds samples n, floor(10 n / rate) = k."""

    def __init__(self, rate: int, channels: int) -> None:
        self._rate = rate
        self._channels = channels
        self._parts: list[tuple[int, npt.NDArray[np.float64]]] = []
        self.samples = 0

    def add(self, block: npt.NDArray[np.floating]) -> None:
        if not block.shape[1]:
            return
        end = self.samples + block.shape[1]
        first, last = self.samples * 10 // self._rate, (end - 1) * 10 // self._rate
        starts = np.maximum(self._edges(first, last + 1), self.samples) - self.samples
        self._parts.append((first, np.add.reduceat(np.square(block, dtype=np.float64), starts, axis=1)))
        self.samples = end

    def sums(self) -> npt.NDArray[np.float64]:
        """``[channels, ceil(duration / 0.1 s)]``; the last frame may be a part of one."""
        total = np.zeros((self._channels, activity_frames(self.samples, self._rate)))
        for first, sums in self._parts:
            total[:, first : first + sums.shape[1]] += sums
        return total

    def rms_dbfs(self) -> npt.NDArray[np.float64]:
        """RMS of each frame over all channels, in dBFS; -inf for digital silence."""
        sums = self.sums()
        counts = np.diff(np.minimum(self._edges(0, sums.shape[1] + 1), self.samples)) * self._channels
        with np.errstate(divide="ignore"):
            return np.asarray(10 * np.log10(sums.sum(axis=0) / np.maximum(counts, 1)), dtype=np.float64)

    def _edges(self, first: int, end: int) -> npt.NDArray[np.int64]:
        """First sample of each of the frames ``first`` to ``end - 1``."""
        return -(-np.arange(first, end) * self._rate // 10)


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
        if self._frames.samples * 10 < 4 * self._rate:
            return None
        # As in pyloudnorm, a last block counts when it is at least about half there.
        sums = self._frames.sums()[:, : round(self._frames.samples * 10 / self._rate)]
        blocks = np.lib.stride_tricks.sliding_window_view(sums, 4, axis=1).sum(axis=2) / (0.4 * self._rate)
        power = (np.asarray(self._GAINS[: self._channels])[:, None] * blocks).sum(axis=0)
        gated = _lufs(power) >= -70.0
        if not gated.any():
            return None
        gated &= _lufs(power) > _lufs(power[gated].mean()) - 10.0
        return float(_lufs(power[gated].mean())) if gated.any() else None


def _lufs(power: npt.ArrayLike) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.asarray(-0.691 + 10 * np.log10(power), dtype=np.float64)
