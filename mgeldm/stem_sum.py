"""The sum of a song's stems against its mixture: best gain, best lag, and what is left over then."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
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
    """Energy of the mixture minus the sum at that gain and lag, over that of the mixture; at least -120."""
    inverted: bool = False
    """Whether the sum had to be turned upside down."""


class SumComparison:
    """Compares two signals that are added piece by piece, in constant memory.

    Cross-correlation by FFT finds the lag in the first `SEARCH_S` seconds; from there on one product a sample will do.
    What stands in the result is of the whole signals.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._most = math.ceil(LAG_S * rate)
        self._hop = rate
        # Up to this size the lags do not wrap around.
        self._size = scipy.fft.next_fast_len(self._hop + 2 * self._most, real=True)
        self._spectrum = np.zeros(self._size // 2 + 1, np.complex128)
        self._stems = np.zeros(0, np.float32)
        # Begins by the largest lag earlier.
        self._mixture = np.zeros(self._most, np.float32)
        self._sounding = 0
        self._lag: int | None = None
        self._energies = np.zeros(2)
        self._product = self._lagged_product = 0.0

    def add(self, stems: Wave, mixture: Wave) -> None:
        """The next samples ``[n]`` of the sum of the stems and of the mixture."""
        self._stems = np.concatenate([self._stems, stems])
        self._mixture = np.concatenate([self._mixture, mixture])
        begin = 0
        while len(self._stems) - begin >= self._hop + self._most:
            self._compare(begin)
            begin += self._hop
        self._stems, self._mixture = self._stems[begin:], self._mixture[begin:]

    def result(self) -> SumMatch | None:
        """The match, or None when one of the two is silent. Nothing can be added any more."""
        rest = len(self._stems)
        if rest:
            padding = np.zeros(-rest % self._hop + self._most, np.float32)
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
        stems = self._stems[begin : begin + self._hop]
        around = self._mixture[begin : begin + self._hop + 2 * self._most]
        *energies, product = kernels.products(stems, around[self._most : self._most + self._hop])
        self._energies += energies
        self._product += product
        if self._lag is None:
            self._spectrum += np.conj(scipy.fft.rfft(stems, self._size)) * scipy.fft.rfft(around, self._size)
            self._sounding += min(energies) > _SOUNDING * self._hop
            if self._sounding * self._hop >= SEARCH_S * self._rate:
                self._found_lag()
        elif self._lag:
            shifted = around[self._most + self._lag : self._most + self._lag + self._hop]
            self._lagged_product += kernels.products(stems, shifted)[2]

    def _found_lag(self) -> int:
        if self._lag is None:
            products = scipy.fft.irfft(self._spectrum, self._size)[: 2 * self._most + 1]
            # The mixture may be the sum upside down.
            best = int(np.argmax(np.abs(products)))
            # A tone that does not move is as good at one lag as at another.
            if abs(products[best]) <= abs(products[self._most]) * (1 + 1e-5):
                best = self._most
            self._lag, self._lagged_product = best - self._most, float(products[best])
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
