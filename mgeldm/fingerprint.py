"""The fingerprint of decoded audio: the same for the same samples, whatever file or block they come in."""

import numpy as np
import xxhash

from mgeldm.audio import Wave


class Fingerprint:
    """128-bit hash (XXH3) of sample rate, number of channels and samples. It tells recordings apart; it proves nothing.

    A cryptographic hash would take as long as half the decoding.
    """

    def __init__(self, rate: int, channels: int) -> None:
        self._digest = xxhash.xxh3_128(f"{rate} {channels}".encode())

    def add(self, block: Wave) -> None:
        """The next samples, interleaved ``[frames, channels]``. A zero's sign makes a difference: see `positive`."""
        self._digest.update(np.ascontiguousarray(block).data)

    def hexdigest(self) -> str:
        """32 hexadecimal digits."""
        return self._digest.hexdigest()


def positive(block: Wave) -> Wave:
    """The samples, contiguous, every -0.0 made 0.0: decoders differ in the sign of silence."""
    return np.add(block, np.float32(0), order="C")
