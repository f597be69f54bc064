"""Measuring audio in one pass and constant memory: length, loudness, peak, clipping, activity, fingerprint, ..."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pyloudnorm import Meter as LoudnessMeter

from manifests.errors import AudioError
from manifests.songs import activity_frames
from mgeldm import audio, kernels
from mgeldm.bandwidth import Spectrum
from mgeldm.fingerprint import Fingerprint, positive

NEAR_FULL_SCALE = 0.95
"""Runs of one value are clipping from this magnitude on."""

_NOT_FINITE = 0x7F800000
_LOUDNESS_GAINS = (1.0, 1.0, 1.0, 1.41, 1.41)


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
    """What one decode of a file, or of one of its channels, tells."""

    sample_rate: int
    channels: int
    frames: int
    lufs: float | None
    peak_dbfs: float | None
    clipped: float
    """Share of samples in runs of three or more at the highest or lowest value, where that is near full scale."""
    dc: float
    """Mean of the channel where it is farthest from 0."""
    spectrum: npt.NDArray[np.float64]
    """Mean power spectrum of the mean of the channels: see `mgeldm.bandwidth`."""
    activity: npt.NDArray[np.bool_]
    fingerprint: str
    problem: AudioError | None = None
    """Why decoding stopped before the end, if it did (``truncated``), or ``not_finite``, or ``empty``."""


def measure(
    path: audio.AudioFile, stream: int | None, config: ActivityConfig, channel: int | None = None
) -> Measurement:
    """Decode a file once and measure it, or its ``channel`` alone. Raises AudioError when nothing can be decoded."""
    info = audio.probe(path, stream)
    meter = Meter(info.sample_rate, 1 if channel is not None else info.channels)
    try:
        for block in audio.interleaved(path, stream):
            meter.add(block if channel is None else audio.one_channel(block, channel, path))
    except AudioError as error:
        return meter.result(path, config, error)
    return meter.result(path, config)


class Meter:
    """Measures a signal that is added block by block; nothing depends on where blocks end but the last bits of sums."""

    def __init__(self, rate: int, channels: int) -> None:
        self._rate = rate
        self._channels = channels
        self.levels = Levels(rate, channels)
        self._spectrum = Spectrum(rate)
        self._fingerprint = Fingerprint(rate, channels)
        self._peak = 0.0
        self.finite = True
        """Whether there was neither NaN nor infinity so far."""
        self._clip_values = np.full(2, NEAR_FULL_SCALE, np.float32)
        self._clip_counts = np.zeros(2, np.int64)
        self._clip_runs = np.zeros((2, channels), np.int64)

    def add(self, block: audio.Wave) -> audio.Wave:
        """The next samples, interleaved ``[frames, channels]``. Returns the mean of their channels ``[frames]``."""
        largest, negative_zeros = kernels.survey(block.reshape(-1).view(np.int32))
        if largest >= _NOT_FINITE:
            self.finite = False
            block = np.nan_to_num(block, nan=0.0, posinf=0.0, neginf=0.0)
            largest, negative_zeros = kernels.survey(block.reshape(-1).view(np.int32))
        if negative_zeros:
            block = positive(block)
        peak = float(np.int32(largest).view(np.float32))
        self._peak = max(self._peak, peak)
        if peak >= NEAR_FULL_SCALE:
            kernels.count_clipped(block, self._clip_values, self._clip_counts, self._clip_runs)
        else:
            self._clip_runs[:] = 0
        self._fingerprint.add(block)
        self.levels.add(block)
        mean: audio.Wave = block[:, 0] if self._channels == 1 else kernels.mean_of_channels(block)
        self._spectrum.add(mean)
        return mean

    def result(self, path: audio.AudioFile, config: ActivityConfig, problem: AudioError | None = None) -> Measurement:
        """What was measured so far; ``path`` is for messages, ``problem`` is why there is no more."""
        frames = self.levels.samples
        if not self.finite:
            problem = AudioError(f"{path}: samples are NaN or infinite", "not_finite")
        elif frames == 0 and problem is None:
            problem = AudioError(f"{path}: the file holds no samples", "empty")
        means = self.levels.totals / max(1, frames)
        return Measurement(
            sample_rate=self._rate,
            channels=self._channels,
            frames=frames,
            lufs=self.levels.integrated(),
            peak_dbfs=decibels(self._peak),
            clipped=float(self._clip_counts.sum()) / max(1, frames * self._channels),
            dc=float(means[np.argmax(np.abs(means))]),
            spectrum=self._spectrum.power(),
            activity=hysteresis(self.levels.rms_dbfs(), config),
            fingerprint=self._fingerprint.hexdigest(),
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


class Levels:
    """Energies of successive 100 ms frames, plain and K-weighted. Frame k holds samples n, floor(10 n / rate) = k."""

    def __init__(self, rate: int, channels: int) -> None:
        self._rate = rate
        self._channels = channels
        self._weighted_channels = min(channels, len(_LOUDNESS_GAINS))
        self._taps, self._poles = _k_weighting(rate)
        self._history = np.zeros((channels, 8))
        self._state = np.zeros((self._weighted_channels, 8))
        self._parts: list[tuple[int, npt.NDArray[np.float64], npt.NDArray[np.float64]]] = []
        self.samples = 0
        self.totals = np.zeros(channels)
        """Sum of the samples of each channel."""

    def add(self, block: audio.Wave) -> None:
        """The next samples, interleaved ``[frames, channels]``, all finite."""
        if not len(block):
            return
        first, last = self.samples * 10 // self._rate, (self.samples + len(block) - 1) * 10 // self._rate
        squares = np.zeros((self._channels, last - first + 1))
        weighted = np.zeros((self._weighted_channels, last - first + 1))
        kernels.frame_sums(
            block,
            self.samples,
            self._rate,
            self._taps,
            self._poles,
            self._history,
            self._state,
            squares,
            weighted,
            self.totals,
        )
        self._parts.append((first, squares, weighted))
        self.samples += len(block)

    def rms_dbfs(self) -> npt.NDArray[np.float64]:
        """RMS of each frame over all channels, in dBFS; -inf for digital silence. ``[ceil(duration / 0.1 s)]``."""
        return self._mean_dbfs(self._sums()[0])

    def weighted_dbfs(self) -> npt.NDArray[np.float64]:
        """The same of the K-weighted signal."""
        return self._mean_dbfs(self._sums()[1])

    def integrated(self) -> float | None:
        """Integrated loudness (ITU-R BS.1770-4) in LUFS, or None under 0.4 s or when every block is gated."""
        if self.samples * 10 < 4 * self._rate:
            return None
        # As in pyloudnorm, a last block counts when it is at least about half there.
        sums = self._sums()[1][:, : round(self.samples * 10 / self._rate)]
        blocks = np.lib.stride_tricks.sliding_window_view(sums, 4, axis=1).sum(axis=2) / (0.4 * self._rate)
        power = (np.asarray(_LOUDNESS_GAINS[: self._weighted_channels])[:, None] * blocks).sum(axis=0)
        gated = _lufs(power) >= -70.0
        if not gated.any():
            return None
        gated &= _lufs(power) > _lufs(power[gated].mean()) - 10.0
        return float(_lufs(power[gated].mean())) if gated.any() else None

    def _sums(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        count = activity_frames(self.samples, self._rate)
        total = np.zeros((self._channels, count)), np.zeros((self._weighted_channels, count))
        for first, *parts in self._parts:
            for whole, part in zip(total, parts, strict=True):
                whole[:, first : first + part.shape[1]] += part
        return total

    def _mean_dbfs(self, sums: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """``sums`` ``[channels, n]`` as the level of each frame; the last one may be a part of one."""
        edges = np.minimum(-(-np.arange(sums.shape[1] + 1) * self._rate // 10), self.samples)
        with np.errstate(divide="ignore"):
            return np.asarray(10 * np.log10(sums.sum(axis=0) / np.maximum(np.diff(edges) * len(sums), 1)))


def _k_weighting(rate: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The K-weighting of pyloudnorm as `kernels.frame_sums` wants it.

    ``1 + a z + b z^2`` below a fraction is the same as ``1 - a z + b z^2`` above it and, below, ``1 + (2 b - a^2) z^2 +
    b^2 z^4``: even and odd samples no longer wait for each other, which takes half the time. Loudness stays within
    1e-6 LU of pyloudnorm's up to 192 kHz, and within 1e-3 LU at the highest rates.
    """
    taps, poles = np.ones(1), []
    for stage in LoudnessMeter(rate)._filters.values():
        a, b = stage.a[1:] / stage.a[0]
        taps = np.convolve(np.convolve(taps, stage.b * stage.passband_gain / stage.a[0]), [1, -a, b])
        poles += [2 * b - a * a, b * b]
    return taps, np.array(poles)


def _lufs(power: npt.ArrayLike) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.asarray(-0.691 + 10 * np.log10(power), dtype=np.float64)
