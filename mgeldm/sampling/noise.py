"""Noise that depends on an example and not on its neighbours, so that one seed is one result at any batch size."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def noise_for(seed: int, example_ids: Sequence[str], *, tracks: int, channels: int, frames: int) -> Tensor:
    """Starting noise that depends on the seed and each example's own id, on nothing else.

    An example gets the same noise in any batch, and a shorter one gets the first frames of a longer one.

    Args:
        seed: Any whole number from 0.
        example_ids: One stable name per example.
        tracks: K.
        channels: C.
        frames: L.

    Returns:
        Standard normal `[B, K, C, L]` float32 on the CPU.

    Raises:
        ValueError: If there is no example or the seed is negative.
    """
    if seed < 0 or not example_ids:
        raise ValueError(f"noise for seed {seed} and {len(example_ids)} examples: need a seed from 0 and an example id")
    return torch.stack([_drawn([seed, _number(name.encode())], tracks, channels, frames) for name in example_ids])


class FreshNoise:
    """More noise on the way: draw after draw, each example's from its own starting noise alone."""

    def __init__(self, start: Tensor) -> None:
        """Begin behind the starting noise `[B, K, C, L]`."""
        self._like = start
        self._seeds = [_number(example.numpy().tobytes()) for example in start.detach().cpu().contiguous()]
        self._draws = 0

    def __call__(self) -> Tensor:
        """The next draw, standard normal, in shape, dtype and place as the starting noise."""
        self._draws += 1
        _, tracks, channels, frames = self._like.shape
        drawn = [_drawn([seed, self._draws], tracks, channels, frames) for seed in self._seeds]
        return torch.stack(drawn).to(self._like)


def _number(name: bytes) -> int:
    return int.from_bytes(hashlib.sha256(name).digest()[:16], "little")


def _drawn(seeds: list[int], tracks: int, channels: int, frames: int) -> Tensor:
    rng = np.random.default_rng(np.random.SeedSequence(seeds))
    # Frames are drawn first to last, so that fewer of them are a prefix.
    drawn = rng.standard_normal((frames, tracks, channels), dtype=np.float32)
    return torch.from_numpy(drawn).permute(1, 2, 0).contiguous()
