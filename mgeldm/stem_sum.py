"""The sum of a song's stems against its mixture: best gain, best lag, and what is left over then."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.fft
import soxr

from mgeldm import kernels
from mgeldm.audio import Wave, fit

LAG_S = 0.05
"""Lags up to this are looked for, either way."""
SEARCH_S = 10.0
"""The lag is that of the first so many seconds in which both sound."""

_SOUNDING = 1e-6
_LEAST = 1e-12
_NOTHING_DB = -1.0


@dataclass(frozen=True, slots=True)
class SumMatch:
    """How the sum of the stems becomes most like the mixture."""

    gain_db: float | None
    """Gain on the sum; None where they have next to nothing in common."""
    lag_s: float | None
    """By how much the mixture comes later than the sum; None as above."""
    residual_db: float
    """Energy of the mixture minus the sum at that gain and lag, over that of the mixture, both over all parts; at least
    -120."""
    inverted: bool = False
    """Whether the sum had to be turned upside down."""


class SumComparison:
    """Compares two signals that are added piece by piece, in constant memory.

    A signal has one part, the mean of its channels, or two: for stereo also the side, half the difference of left and
    right. Energies of the two add up to half of those of left and right.

    Cross-correlation by FFT of the first parts finds the lag in the first `SEARCH_S` seconds; from there on one product
    a sample will do. What stands in the result is of the whole signals.
    """

    def __init__(self, rate: int, parts: int = 1) -> None:
        self._rate = rate
        self._most = math.ceil(LAG_S * rate)
        self._hop = rate
        # Up to this size the lags do not wrap around.
        self._size = scipy.fft.next_fast_len(self._hop + 2 * self._most, real=True)
        self._spectra = np.zeros((parts, self._size // 2 + 1), np.complex128)
        self._stems = [np.zeros(0, np.float32)] * parts
        # Begins by the largest lag earlier.
        self._mixture = [np.zeros(self._most, np.float32)] * parts
        self._sounding = 0
        self._lag: int | None = None
        self._energies = np.zeros(2)
        self._product = self._lagged_product = 0.0

    def add(self, stems: Sequence[Wave], mixture: Sequence[Wave]) -> None:
        """The next samples of the sum of the stems and of the mixture, ``[n]`` of each part."""
        self._stems = [np.concatenate(both) for both in zip(self._stems, stems, strict=True)]
        self._mixture = [np.concatenate(both) for both in zip(self._mixture, mixture, strict=True)]
        begin = 0
        while len(self._stems[0]) - begin >= self._hop + self._most:
            self._compare(begin)
            begin += self._hop
        self._stems = [part[begin:] for part in self._stems]
        self._mixture = [part[begin:] for part in self._mixture]

    def result(self) -> SumMatch | None:
        """The match, or None when one of the two is silent. Nothing can be added any more."""
        rest = len(self._stems[0])
        if rest:
            padding = [np.zeros(-rest % self._hop + self._most, np.float32)] * len(self._stems)
            self.add(padding, padding)
        lag = self._found_lag()
        product = self._lagged_product if lag else self._product
        stems, mixture = self._energies
        if not stems or not mixture:
            return None
        residual_db = 10 * math.log10(max(_LEAST, 1 - product**2 / (stems * mixture)))
        if residual_db > _NOTHING_DB:
            return SumMatch(gain_db=None, lag_s=None, residual_db=residual_db)
        return SumMatch(
            gain_db=20 * math.log10(abs(product) / stems),
            lag_s=lag / self._rate,
            residual_db=residual_db,
            inverted=product < 0,
        )

    def _compare(self, begin: int) -> None:
        stems = [part[begin : begin + self._hop] for part in self._stems]
        around = [part[begin : begin + self._hop + 2 * self._most] for part in self._mixture]
        found = self._products(stems, around, 0)
        self._energies += found[:, :2].sum(axis=0)
        self._product += float(found[:, 2].sum())
        if self._lag is None:
            for spectrum, one, other in zip(self._spectra, stems, around, strict=True):
                spectrum += np.conj(scipy.fft.rfft(one, self._size)) * scipy.fft.rfft(other, self._size)
            self._sounding += bool(found[0, :2].min() > _SOUNDING * self._hop)
            if self._sounding * self._hop >= SEARCH_S * self._rate:
                self._found_lag()
        elif self._lag:
            self._lagged_product += float(self._products(stems, around, self._lag)[:, 2].sum())

    def _products(self, stems: list[Wave], around: list[Wave], lag: int) -> npt.NDArray[np.float64]:
        """Energies of both and their product at that lag, of each part. ``[parts, 3]``."""
        begin = self._most + lag
        pairs = zip(stems, around, strict=True)
        return np.array([kernels.products(one, other[begin : begin + self._hop]) for one, other in pairs])

    def _found_lag(self) -> int:
        if self._lag is None:
            of_parts = scipy.fft.irfft(self._spectra, self._size)[:, : 2 * self._most + 1]
            products = of_parts[0]
            # The mixture may be the sum upside down.
            best = int(np.argmax(np.abs(products)))
            # A tone that does not move is as good at one lag as at another.
            if abs(products[best]) <= abs(products[self._most]) * (1 + 1e-5):
                best = self._most
            self._lag, self._lagged_product = best - self._most, float(of_parts[:, best].sum())
        return self._lag


class LockStep:
    """Brings mono signals that arrive block by block to one rate and hands them out over the same stretches of time."""

    def __init__(self, rates: Sequence[int], rate: int) -> None:
        """``rates`` of the signals; ``rate`` of what is handed out."""
        self._resamplers = [
            None if own == rate else soxr.ResampleStream(own, rate, 1, dtype="float32", quality="HQ") for own in rates
        ]
        self._waiting = [np.zeros(0, np.float32) for _ in rates]
        self._running = set(range(len(rates)))

    def add(self, index: int, signal: Wave, last: bool = False) -> None:
        """The next samples ``[n]`` of a signal; after ``last`` it goes on as silence."""
        if (resampler := self._resamplers[index]) is not None:
            signal = resampler.resample_chunk(np.ascontiguousarray(signal), last=last)
        waiting = self._waiting[index]
        self._waiting[index] = np.concatenate([waiting, signal]) if len(waiting) else signal
        if last:
            self._running.discard(index)

    def take(self) -> list[Wave]:
        """The stretch, ``[n]`` each, that every signal has been added for; once all have ended, all that is left."""
        count = min((len(self._waiting[index]) for index in self._running), default=max(map(len, self._waiting)))
        taken = [fit(signal[:count], count) for signal in self._waiting]
        self._waiting = [signal[count:] for signal in self._waiting]
        return taken
