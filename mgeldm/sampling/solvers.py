"""Solvers of the probability flow: from one noise level to the next lower one, for either process.

All are exact, in one step, where the network's idea of the clean latents does not change on the way.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mgeldm.diffusion.schedule import Process
from mgeldm.sampling.config import Sampler


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the network says of noised latents; tensors `[B, K, C, L]`."""

    x: Tensor
    """The latents it saw."""
    v: Tensor
    clean: Tensor
    noise: Tensor


class Denoiser(Protocol):
    """The network, guided and told what is known."""

    def __call__(self, x: Tensor, level: float) -> Estimate:
        """The estimate for latents `[B, K, C, L]` at a level."""
        ...

    def timesteps(self, level: float) -> Tensor:
        """The level of each track `[B, K]`: `level`, or 0 where it is given."""
        ...


class Solver(Protocol):
    """One way down. It may remember earlier steps, so each sampling has its own."""

    def step(self, denoise: Denoiser, x: Tensor, level: float, next_level: float) -> Tensor:
        """Latents `[B, K, C, L]` at `next_level`, lower than `level`; at 0 these are the clean latents."""
        ...


@dataclass(slots=True)
class DDIM:
    """First order (arXiv 2010.02502, eta 0): clean latents and noise as estimated, mixed anew."""

    process: Process

    def step(self, denoise: Denoiser, x: Tensor, level: float, next_level: float) -> Tensor:
        """See `Solver`; one evaluation."""
        at = denoise(x, level)
        return self.process.corrupt(at.clean, at.noise, denoise.timesteps(next_level))


@dataclass(slots=True)
class DPMSolver2M:
    """DPM-Solver++(2M) (arXiv 2211.01095): DDIM, and how the clean latents changed since the last step.

    The step from pure noise, where log-SNR is minus infinity, the one after it and the last, to level 0, are DDIM's.
    """

    process: Process
    _last: tuple[Tensor, float] | None = None
    """Clean latents of the step before, and by how much it changed the log-SNR."""

    def step(self, denoise: Denoiser, x: Tensor, level: float, next_level: float) -> Tensor:
        """See `Solver`; one evaluation."""
        at = denoise(x, level)
        (a, b), (next_a, next_b) = self.process.shares(level), self.process.shares(next_level)
        change = _log_snr(next_a, next_b) - _log_snr(a, b)
        y = self.process.corrupt(at.clean, at.noise, denoise.timesteps(next_level))
        if self._last is not None and math.isfinite(change):
            clean, last_change = self._last
            weight = (next_a - a * next_b / b) * change / (2 * last_change)
            y = y + weight * (at.clean - clean)
        self._last = at.clean, change
        return y


@dataclass(slots=True)
class Heun:
    """The trapezoidal rule, second order: the mean of the velocities here and, after a step of DDIM, there."""

    process: Process

    def step(self, denoise: Denoiser, x: Tensor, level: float, next_level: float) -> Tensor:
        """See `Solver`; two evaluations, one where `next_level` is 0."""
        at = denoise(x, level)
        guess = self.process.corrupt(at.clean, at.noise, denoise.timesteps(next_level))
        if next_level == 0:
            return guess
        ahead = denoise(guess, next_level)
        here, there = torch.tensor([level, next_level], dtype=torch.float64)
        # Half the step where the path is a line, tan of half the angle where it is a turn.
        weight = (self.process.beta(there) - self.process.beta(here)) / (
            self.process.gain(there) + self.process.gain(here)
        )
        return at.x + weight.item() * (at.v + ahead.v)


SOLVERS: dict[Sampler, type[DDIM] | type[DPMSolver2M] | type[Heun]] = {
    "ddim": DDIM,
    "dpm++2m": DPMSolver2M,
    "heun": Heun,
}


def _log_snr(alpha: float, beta: float) -> float:
    """log(alpha / beta), half the logarithm of the signal-to-noise ratio."""
    if alpha == 0:
        return -math.inf
    return math.inf if beta == 0 else math.log(alpha / beta)
