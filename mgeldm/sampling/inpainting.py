"""Conditional inpainting: given tracks stay as they are, the others are denoised together.

Generation, imputation, extraction and accompaniment are one procedure that differs in which tracks
are given (arXiv 2505.23305, section 3). Letters: B batch, K tracks, C latent channels, L latent
frames, G embedding length.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from manifests.errors import ConfigError
from mgeldm.diffusion.schedule import PROCESSES, TAU_MIN, Objective, Process
from mgeldm.sampling.config import SamplingConfig
from mgeldm.sampling.guidance import VelocityModel, guided_v
from mgeldm.sampling.noise import FreshNoise
from mgeldm.sampling.solvers import SOLVERS, Estimate

Progress = Callable[[int, int], None]
"""Called with (network evaluations done, in all)."""


@torch.no_grad()
def sample(
    model: VelocityModel,
    given: Tensor,
    given_mask: Tensor,
    embeddings: Tensor,
    noise: Tensor,
    config: SamplingConfig | None = None,
    *,
    objective: Objective = "v",
    held_frames: int | Tensor = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Denoise the tracks that are not given.

    Levels fall evenly from 1 to 0.02. Before every evaluation given tracks are set to their latents at
    level 0, and held frames of the others to their known latents noised to the current level. (With
    `config.resample`, given tracks are noised like held frames, and both with fresh noise every time.)

    Args:
        model: The network; on the device of `noise`, in evaluation mode.
        given: Known latents `[B, K, C, L]`; read only where a track is given or a frame is held.
        given_mask: Which tracks are given: bool `[K]` for all examples alike, or `[B, K]`.
        embeddings: Condition per track `[B, K, G]`; zeros for none.
        noise: Starting noise `[B, K, C, L]`, as from `noise_for`; its dtype is that of the arithmetic.
        config: Sampler, steps, guidance; its seed is not read, noise is.
        objective: What the network was trained to predict.
        held_frames: Frames of every track that are known in `given` and stay as they are, earlier output
            where chunks of long audio overlap: how many of the first, or which, bool `[L]` or `[B, L]`.
        progress: Told after every evaluation of the network.

    Returns:
        Latents `[B, K, C, L]` in the dtype of `noise`; given tracks and held frames are those of `given`, exactly.

    Raises:
        ValueError: If shapes disagree, or held frames are not within the frames.
        ConfigError: If there is no such objective, or guidance is not for so many tracks.
    """
    config = config or SamplingConfig()
    if objective not in PROCESSES:
        raise ConfigError(f"objective {objective!r} is none of {', '.join(PROCESSES)}")
    if len(config.scales) not in (1, noise.shape[1]):
        raise ConfigError(f"guidance {config.guidance}: give one scale, or one for each of {noise.shape[1]} tracks")
    process = PROCESSES[objective]
    mask = _expanded_mask(given, given_mask, noise)
    exact = mask[:, :, None, None] | _held(held_frames, noise)[:, None, None, :]
    denoise = _Inpainting(model, process, given, mask, exact, embeddings, noise, config, progress)
    solver = SOLVERS[config.sampler](process)
    levels = torch.linspace(1.0, TAU_MIN, config.steps, dtype=torch.float64).tolist()
    x = noise
    for level, next_level in pairwise([*levels, 0.0]):
        for visit in range(max(1, config.resample)):
            if visit:
                x = _noised_again(process, x, next_level, level, denoise.fresh())
            x = solver.step(denoise, x, level, next_level)
    return torch.where(exact, denoise.given, x)


class _Inpainting:
    """The denoiser of one sampling: puts in what is known, evaluates with guidance, tells of progress."""

    def __init__(
        self,
        model: VelocityModel,
        process: Process,
        given: Tensor,
        mask: Tensor,
        exact: Tensor,
        embeddings: Tensor,
        noise: Tensor,
        config: SamplingConfig,
        progress: Progress | None,
    ) -> None:
        self.given = given.to(noise.dtype)
        self.fresh = FreshNoise(noise) if config.resample else lambda: noise
        self._model, self._process, self._exact, self._embeddings = model, process, exact, embeddings
        # RePaint has one timestep: even a given track is noised.
        self._noised = (~mask | (config.resample > 0)).to(noise.dtype)
        self._config, self._progress, self._done = config, progress, 0

    def __call__(self, x: Tensor, level: float) -> Estimate:
        config, tau = self._config, self.timesteps(level)
        x = torch.where(self._exact, self._process.corrupt(self.given, self.fresh(), tau), x)
        guided = config.interval[0] <= level <= config.interval[1]
        scales = config.scales if guided else (1.0,)
        v = guided_v(self._model, x, tau, self._embeddings, scales, config.rescale)
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, config.evaluations)
        return Estimate(x, v, self._process.clean(x, v, tau), self._process.noise(x, v, tau))

    def timesteps(self, level: float) -> Tensor:
        return self._noised * level


def _noised_again(process: Process, x: Tensor, level: float, higher: float, noise: Tensor) -> Tensor:
    """Latents at a level, diffused up to a higher one."""
    (a, b), (higher_a, higher_b) = process.shares(level), process.shares(higher)
    kept = higher_a / a
    return kept * x + math.sqrt(max(0.0, higher_b**2 - (kept * b) ** 2)) * noise


def _expanded_mask(given: Tensor, given_mask: Tensor, noise: Tensor) -> Tensor:
    """The mask as bool `[B, K]`, after a look at the shapes."""
    if given.shape != noise.shape or given.ndim != 4:
        raise ValueError(
            f"given latents {tuple(given.shape)} and noise {tuple(noise.shape)} must both be [B, K, C, L]: "
            "where nothing is known pass zeros"
        )
    batch, tracks, _, _ = noise.shape
    if given_mask.dtype != torch.bool or given_mask.shape not in ((tracks,), (batch, tracks)):
        raise ValueError(
            f"given_mask is {given_mask.dtype} {tuple(given_mask.shape)}: "
            f"it must be bool [{tracks}] or [{batch}, {tracks}]"
        )
    return given_mask.to(noise.device).expand(batch, tracks)


def _held(held: int | Tensor, noise: Tensor) -> Tensor:
    """Held frames as bool `[B, L]`."""
    batch, _, _, frames = noise.shape
    if isinstance(held, int):
        if not 0 <= held <= frames:
            raise ValueError(f"held_frames is {held}: it must lie in 0 .. {frames}, the frames there are")
        held = torch.arange(frames) < held
    if held.dtype != torch.bool or held.shape not in ((frames,), (batch, frames)):
        raise ValueError(
            f"held_frames is {held.dtype} {tuple(held.shape)}: it must be a number, or bool [{frames}] or "
            f"[{batch}, {frames}]"
        )
    return held.to(noise.device).expand(batch, frames)
