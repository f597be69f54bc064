"""Up to which frequency a recording has content, and whether something cut it off there."""

import numpy as np
import numpy.typing as npt
import scipy.fft
from scipy.signal import get_window

from mgeldm import kernels
from mgeldm.audio import Wave

WINDOW = 4096
FIRST = 10
"""So many windows are a second apart, so that those of a short recording are some, too."""
FIRST_HOP_S, HOP_S = 1.0, 10.0
"""Seconds from one of the first windows to the next, and from any later one, where it sounds: the mean of some tells as
much as that of all."""
TRACE = 1e-6
"""Share of the energy that may lie above the bandwidth."""

# Levels are compared in bands of 1/24 octave, from an eighth of half the rate (below, tones end) to half the rate.
_BANDS, _POINTS = 24, 16
_OCTAVES = 3
# A cut may take two bands, as steep as filters of codecs and resamplers are; the mean of six before it stands above
# every one after it.
_WIDE = 6
# Above this share of half the rate a cut costs little, and converters' own filters begin.
_HIGHEST = 0.85
_SOUNDS = 1e-3


class Spectrum:
    """Mean power spectrum of windows spread over a signal, taken while it passes."""

    def __init__(self, rate: int) -> None:
        # Windows never overlap, at whatever rate.
        self._first_hop, self._hop = (max(WINDOW, round(seconds * rate)) for seconds in (FIRST_HOP_S, HOP_S))
        self._shape = get_window("blackmanharris", WINDOW)
        self._window = np.zeros(WINDOW, np.float32)
        self._filled = self._position = self._begin = self._count = 0
        self._power = np.zeros(WINDOW // 2 + 1)

    def add(self, signal: Wave) -> None:
        """The next samples ``[n]``."""
        while (offset := self._begin + self._filled - self._position) < len(signal):
            if not self._filled:
                still = kernels.first_above(signal[offset:], _SOUNDS)
                self._begin += still
                offset += still
            piece = signal[offset : offset + WINDOW - self._filled]
            self._window[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            if self._filled == WINDOW:
                self._finish_window()
                self._begin += self._first_hop if self._count < FIRST else self._hop
        self._position += len(signal)

    def power(self) -> npt.NDArray[np.float64]:
        """``[WINDOW / 2 + 1]``, the mean over the windows; all zero for silence."""
        if self._filled and not self._count:
            self._window[self._filled :] = 0
            self._finish_window()
        return self._power / max(1, self._count)

    def _finish_window(self) -> None:
        bins = scipy.fft.rfft(self._window * self._shape)
        self._power += np.square(bins.real) + np.square(bins.imag)
        self._filled, self._count = 0, self._count + 1


def bandwidth(power: npt.NDArray[np.float64], rate: int, cut_db: float) -> tuple[float | None, bool]:
    """Frequency below which all but `TRACE` of the energy lies, and whether the spectrum is cut off there.

    A bass has nothing in the upper frequencies either, but its level falls over octaves. What was upsampled or lossily
    coded falls by ``cut_db`` or more within 6 per cent of a frequency, from everything to nothing, and nothing above
    comes back. Levels are medians of bands, so that a tone here or there is none. Where there is such a cut it is the
    bandwidth. None for silence.
    """
    # Imported here since it takes a second, which a listing of corpora need not wait for.
    from librosa.feature import spectral_rolloff

    if not power.any():
        return None, False
    cut = _cut(power, cut_db)
    if cut is not None:
        return cut * rate / 2, True
    rolloff = spectral_rolloff(S=power[:, None], sr=rate, n_fft=WINDOW, roll_percent=1 - TRACE)
    return float(rolloff[0, 0]), False


def _cut(power: npt.NDArray[np.float64], cut_db: float) -> float | None:
    """The frequency of the steepest cut as a share of half the rate, or None."""
    edges = 2.0 ** (np.arange(-_BANDS * _OCTAVES, 1) / _BANDS)
    points = edges[:-1, None] + np.diff(edges)[:, None] * (np.arange(_POINTS) + 0.5) / _POINTS
    bands = np.median(power[np.rint(points * (len(power) - 1)).astype(np.int64)], axis=1)
    # What float samples hold beside 140 dB more is rounding.
    level = 10 * np.log10(bands + power.max() * 1e-14)
    means = np.lib.stride_tricks.sliding_window_view(level, _WIDE).mean(axis=1)
    highest = np.maximum.accumulate(level[::-1])[::-1]
    # Edges between bands; the band before an edge and the one after it are the cut.
    middle = np.arange(_WIDE + 1, np.searchsorted(edges, _HIGHEST))
    step = means[middle - 1 - _WIDE] - highest[middle + 1]
    steepest = int(np.argmax(step))
    return float(edges[middle[steepest]]) if step[steepest] >= cut_db else None
