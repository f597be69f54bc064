"""Compiled loops of the measurement: each goes over the samples once, in float64, and keeps its state between blocks.

numba compiles them at their first use and keeps the machine code beside this file (``__pycache__``, or else the folder
of ``NUMBA_CACHE_DIR``), so that a process that comes later loads it in milliseconds.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

# What the compiler may reorder is said a loop at a time: a recursion is fast only as it is written.
_compiled: Callable[..., Any] = numba.njit(cache=True, nogil=True)
_reordered: Callable[..., Any] = numba.njit(cache=True, nogil=True, fastmath={"contract", "reassoc", "nsz"})
_finite: Callable[..., Any] = numba.njit(cache=True, nogil=True, fastmath={"nnan", "nsz", "reassoc"})
_recursion: Callable[..., Any] = numba.njit(cache=True, nogil=True, fastmath={"contract"})

STRETCH = 1024
CLIP_RUN = 3


@_compiled
def survey(bits):  # type: ignore[no-untyped-def]
    """Float32 samples ``[n]`` seen as int32: the largest magnitude, as such bits, and whether there is a -0.0."""
    largest = np.int32(0)
    zeros = np.int32(0)
    for index in range(bits.size):
        value = bits[index]
        largest = max(largest, value & np.int32(0x7FFFFFFF))
        zeros |= np.int32(value == np.int32(-0x80000000))
    return largest, zeros != 0


@_compiled
def first_above(signal, magnitude):  # type: ignore[no-untyped-def]
    """Index of the first sample of ``[n]`` beyond a magnitude, n if there is none."""
    for begin in range(0, signal.size, STRETCH):
        piece = signal[begin : begin + STRETCH]
        # Without a way out of the loop, many samples are compared at once.
        found = np.int32(0)
        for index in range(piece.size):
            found |= np.int32(abs(piece[index]) > magnitude)
        if found:
            for index in range(piece.size):
                if abs(piece[index]) > magnitude:
                    return begin + index
    return signal.size


@_reordered
def mean_of_channels(block):  # type: ignore[no-untyped-def]
    """``[n, channels] -> [n]``, float32."""
    frames, channels = block.shape
    out = np.empty(frames, np.float32)
    if channels == 2:
        for index in range(frames):
            out[index] = np.float32(0.5) * (block[index, 0] + block[index, 1])
        return out
    for index in range(frames):
        total = 0.0
        for channel in range(channels):
            total += block[index, channel]
        out[index] = total / channels
    return out


@_reordered
def products(a, b):  # type: ignore[no-untyped-def]
    """Sums of ``a * a``, ``b * b`` and ``a * b`` of two float32 signals ``[n]``."""
    aa = bb = ab = 0.0
    for index in range(a.size):
        x, y = np.float64(a[index]), np.float64(b[index])
        aa += x * x
        bb += y * y
        ab += x * y
    return aa, bb, ab


@_recursion
def _recurse(driven, poles, state):  # type: ignore[no-untyped-def]
    """Two recursions over every second sample, in series. Returns the energy of what comes out, and the state."""
    p2, p4, q2, q4 = poles
    y1, y2, y3, y4, z1, z2, z3, z4 = state
    energy = 0.0
    pairs = driven.size // 2
    for pair in range(pairs):
        # What is older first, so that only one operation waits for the result before.
        early = (driven[2 * pair] - p4 * y4) - p2 * y2
        late = (driven[2 * pair + 1] - p4 * y3) - p2 * y1
        y1, y2, y3, y4 = late, early, y1, y2
        early = (early - q4 * z4) - q2 * z2
        late = (late - q4 * z3) - q2 * z1
        z1, z2, z3, z4 = late, early, z1, z2
        energy += early * early + late * late
    if driven.size % 2:
        late = (driven[2 * pairs] - p4 * y4) - p2 * y2
        y1, y2, y3, y4 = late, y1, y2, y3
        late = (late - q4 * z4) - q2 * z2
        z1, z2, z3, z4 = late, z1, z2, z3
        energy += late * late
    return energy, (y1, y2, y3, y4, z1, z2, z3, z4)


@_reordered
def _total_and_energy(values):  # type: ignore[no-untyped-def]
    total = energy = 0.0
    for index in range(values.size):
        total += values[index]
        energy += values[index] * values[index]
    return total, energy


@_reordered
def _convolve(padded, taps, out):  # type: ignore[no-untyped-def]
    """The last ``out.size`` of the samples ``padded``, filtered into ``out``; returns their sum and energy as well."""
    t0, t1, t2, t3, t4, t5, t6, t7, t8 = taps
    total = energy = 0.0
    for index in range(out.size):
        value = padded[index + 8]
        total += value
        energy += value * value
        out[index] = (
            t0 * value
            + t1 * padded[index + 7]
            + t2 * padded[index + 6]
            + t3 * padded[index + 5]
            + t4 * padded[index + 4]
            + t5 * padded[index + 3]
            + t6 * padded[index + 2]
            + t7 * padded[index + 1]
            + t8 * padded[index]
        )
    return total, energy


@_compiled
def _rests(signal, history, state, channel):  # type: ignore[no-untyped-def]
    """Whether there is silence, and has been until nothing of the sound before is left; then the state is cleared.

    It is not worth the time, all the less so where it decays to numbers so small that processors are slow at them.
    """
    if signal[0] != 0 or first_above(signal, 0.0) < signal.size or first_above(history, 0.0) < 8:
        return False
    if channel < len(state):
        if first_above(state[channel], 1e-20) < 8:
            return False
        state[channel] = 0.0
    return True


@_compiled
def frame_sums(block, position, rate, taps, poles, history, state, squares, weighted, totals):  # type: ignore[no-untyped-def]
    """Sums over the 100 ms frames that a block ``[n, channels]`` reaches; frame k: samples n, floor(10 n / rate) = k.

    The K-weighting, done for the first ``len(state)`` channels, is a convolution with ``taps`` (9) and two recursions
    ``poles`` (4) over every second sample. ``history`` (samples before) and ``state`` (of the recursions), each
    ``[channels, 8]``, go from block to block. Adds to ``squares`` and ``weighted`` ``[channels, frames of the block]``
    and to ``totals`` ``[channels]``.
    """
    count, channels = block.shape
    flat = block.reshape(-1)
    first = position * 10 // rate
    padded = np.empty(rate // 10 + 9)
    driven = np.empty(rate // 10 + 1)
    nine = (taps[0], taps[1], taps[2], taps[3], taps[4], taps[5], taps[6], taps[7], taps[8])
    four = (poles[0], poles[1], poles[2], poles[3])
    for channel in range(channels):
        padded[:8] = history[channel]
        begin, frame = 0, 0
        while begin < count:
            end = min(count, -(-(first + frame + 1) * rate // 10) - position)
            size = end - begin
            if _rests(flat[begin * channels + channel : end * channels : channels], padded[:8], state, channel):
                begin, frame = end, frame + 1
                continue
            if channels == 1:
                padded[8 : 8 + size] = flat[begin:end]
            else:
                padded[8 : 8 + size] = flat[begin * channels + channel : end * channels : channels]
            if channel < len(state):
                s = state[channel]
                total, square = _convolve(padded, nine, driven[:size])
                energy, after = _recurse(driven[:size], four, (s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]))
                weighted[channel, frame] += energy
                for index in range(8):
                    s[index] = after[index]
            else:
                total, square = _total_and_energy(padded[8 : 8 + size])
            totals[channel] += total
            squares[channel, frame] += square
            for index in range(8):
                padded[index] = padded[size + index]
            begin, frame = end, frame + 1
        history[channel] = padded[:8]


@_finite
def _range(values):  # type: ignore[no-untyped-def]
    high = low = np.float32(0)
    for index in range(values.size):
        high = max(high, values[index])
        low = min(low, values[index])
    return high, low


@_compiled
def count_clipped(block, peaks, counts, runs):  # type: ignore[no-untyped-def]
    """Count samples of a block ``[n, channels]`` in runs of `CLIP_RUN` or more at the highest or lowest value so far.

    ``peaks`` and ``counts`` ``[2]``: that value's magnitude and the samples counted at it, upwards and downwards;
    ``runs`` ``[2, channels]``: how long the runs are that the block before ended in.
    """
    frames, channels = block.shape
    flat = block.reshape(-1)
    for begin in range(0, frames, STRETCH):
        end = min(frames, begin + STRETCH)
        high, low = _range(flat[begin * channels : end * channels])
        for side in range(2):
            sign = np.float32(1 - 2 * side)
            if max(high * sign, low * sign) < peaks[side]:
                runs[side] = 0
                continue
            for index in range(begin, end):
                for channel in range(channels):
                    value = block[index, channel] * sign
                    if value > peaks[side]:
                        peaks[side], counts[side] = value, 0
                        runs[side] = 0
                        runs[side, channel] = 1
                    elif value == peaks[side]:
                        runs[side, channel] += 1
                        if runs[side, channel] == CLIP_RUN:
                            counts[side] += CLIP_RUN
                        elif runs[side, channel] > CLIP_RUN:
                            counts[side] += 1
                    else:
                        runs[side, channel] = 0
