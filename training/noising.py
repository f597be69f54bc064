"""What is done to an example before the network sees it: timesteps, noise, absent tracks.

Noise and timesteps of element ``n`` of the stream are a function of ``(seed, n)`` alone, so that they do not depend on
which process gets it, nor on how many there are.

Letters: B examples of this process, K tracks, C latent channels, L latent frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

import numpy as np
import torch
from torch import Tensor

from mgeldm.diffusion.schedule import Process
from training.randomness import Purpose, generator


class Patterns(Protocol):
    """Which tracks are given in an example, and how much the others are noised."""

    def sample(self, batch: int, rng: np.random.Generator) -> Tensor:
        """Timesteps ``[batch, K]``."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples with their noise; all tensors on one device."""

    latents: Tensor
    """``[B, K, C, L]`` as stored."""
    embeddings: Tensor
    """``[B, K, D]``."""
    noise: Tensor
    """``[B, K, C, L]``."""
    tau: Tensor
    """``[B, K]``: 0 for a given track, 1 for an absent one."""
    counted: Tensor
    """``[B, K]``, 1 where the loss counts: on noised tracks that are there; else 0."""

    def to(self, device: torch.device) -> Self:
        """The same on another device; from pinned memory without waiting."""
        return type(self)(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))

    def split(self, parts: int) -> list[Self]:
        """So many equal parts, in order."""
        chunks = zip(*(getattr(self, f.name).chunk(parts) for f in fields(self)), strict=True)
        return [type(self)(*chunk) for chunk in chunks]

    def pinned(self) -> Self:
        """The same in memory that a GPU can read while this process does other work."""
        return type(self)(*(getattr(self, f.name).pin_memory() for f in fields(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Noising:
    """How examples are noised."""

    seed: int
    purpose: Purpose
    patterns: Patterns

    def examples(self, latents: Any, embeddings: Any, present: Any, elements: Sequence[int]) -> Examples:
        """Noise for ``latents [B, K, C, L]`` and ``embeddings [B, K, D]``, whose places in the stream are given.

        A track that is not ``present [B, K]`` is pure noise, without a condition, and not in the loss.
        """
        shape = latents.shape[1:]
        noise = np.empty(latents.shape, np.float32)
        tau = torch.empty(latents.shape[:2])
        for place, element in enumerate(elements):
            rng = generator(self.seed, self.purpose, element)
            tau[place] = self.patterns.sample(1, rng)[0]
            noise[place] = rng.standard_normal(shape, dtype=np.float32)
        there = torch.from_numpy(present)
        tau = torch.where(there, tau, 1.0)
        return Examples(
            # What an absent track holds must not leak, by rounding either.
            torch.from_numpy(latents) * there[..., None, None],
            torch.from_numpy(embeddings) * there[..., None],
            torch.from_numpy(noise),
            tau,
            ((tau > 0) & there).float(),
        )


def noised(examples: Examples, process: Process, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Noised latents and the target, both ``[B, K, C, L]`` on the network's scale, ``(latents - mean) / std``."""
    clean = (examples.latents - mean) / std
    corrupted = process.corrupt(clean, examples.noise, examples.tau)
    return corrupted, process.target(clean, examples.noise, examples.tau)


def track_errors(v: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each track of each example ``[B, K]``, in float32."""
    return (v.float() - target).square().mean(dim=(-2, -1))
