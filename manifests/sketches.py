"""The sketch of a song: what is left of its sound for finding it again, two bytes each 100 ms.

First byte: RMS level, in half dB below full scale. Second: how much louder or softer the K-weighting of ITU-R BS.1770
makes the frame, in quarters of a dB around 128; it tells bright from dark and does not change with gain.
"""

import numpy as np
import numpy.typing as npt


def pack(level_dbfs: npt.NDArray[np.float64], weighted_dbfs: npt.NDArray[np.float64]) -> bytes:
    """Levels of 100 ms frames ``[n]``, plain and K-weighted, -inf for silence, as ``2 n`` bytes."""
    with np.errstate(invalid="ignore"):
        tilt = np.nan_to_num(weighted_dbfs - level_dbfs, nan=0.0, posinf=0.0, neginf=0.0)
    columns = np.stack([np.maximum(level_dbfs, -127.5) * -2, tilt * 4 + 128], axis=1)
    packed: npt.NDArray[np.uint8] = np.clip(np.rint(columns), 0, 255).astype(np.uint8)
    return packed.tobytes()


def unpack(sketch: bytes) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    """Level in dBFS (-127.5 stands for silence) and tilt in dB of each 100 ms frame, ``[n]`` each."""
    columns = np.frombuffer(sketch, np.uint8).reshape(-1, 2).astype(np.float32)
    return columns[:, 0] / -2, (columns[:, 1] - 128) / 4
