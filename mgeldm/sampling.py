"""Conditional inpainting by DDIM: given tracks stay clean, the others are denoised together.

Generation, imputation, extraction and accompaniment are one procedure that differs in which tracks
are given (arXiv 2505.23305, section 3). Letters: B batch, K tracks, C latent channels, L latent
frames, G embedding length.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mgeldm.diffusion.schedule import TAU_MIN, corrupt, eps_from_v, x0_from_v

VelocityModel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""latents `[B, K, C, L]`, timesteps `[B, K]`, embeddings `[B, K, G]` -> v `[B, K, C, L]`."""

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


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
    return torch.stack([_example_noise(seed, name, tracks, channels, frames) for name in example_ids])


def guided_v(model: VelocityModel, latents: Tensor, timesteps: Tensor, embeddings: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance: v = v_null + s (v_cond - v_null), v_null with all embeddings zero.

    Args:
        model: The network.
        latents: `[B, K, C, L]`.
        timesteps: `[B, K]`.
        embeddings: `[B, K, G]`.
        guidance: Scale s; 1 needs, and makes, no null evaluation; any other is one forward of 2 B.

    Returns:
        v `[B, K, C, L]`.
    """
    if guidance == 1:
        return model(latents, timesteps, embeddings)
    both = model(
        torch.cat([latents, latents]),
        torch.cat([timesteps, timesteps]),
        torch.cat([embeddings, torch.zeros_like(embeddings)]),
    )
    conditional, null = both.chunk(2)
    return null + guidance * (conditional - null)


def ddim_step(latents: Tensor, v: Tensor, tau: Tensor, next_tau: Tensor) -> Tensor:
    """One deterministic DDIM step (eta 0) of latents `[B, K, C, L]` from levels `tau [B, K]` to `next_tau [B, K]`."""
    return corrupt(x0_from_v(latents, v, tau), eps_from_v(latents, v, tau), next_tau)


@torch.no_grad()
def sample(
    model: VelocityModel,
    given: Tensor,
    given_mask: Tensor,
    embeddings: Tensor,
    noise: Tensor,
    *,
    steps: int = 250,
    guidance: float = 2.0,
    held_frames: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Denoise the tracks that are not given.

    Levels fall evenly from 1 to 0.02. Before every evaluation given tracks are set to their latents at
    level 0, and held frames of the others to their known latents noised to the current level.

    Args:
        model: The network; on the device of `noise`, in evaluation mode.
        given: Known latents `[B, K, C, L]`; read only where a track is given or a frame is held.
        given_mask: Which tracks are given: bool `[K]` for all examples alike, or `[B, K]`.
        embeddings: Condition per track `[B, K, G]`; zeros for none.
        noise: Starting noise `[B, K, C, L]`, as from `noise_for`; its dtype is that of the arithmetic.
        steps: Network evaluations, at least 1.
        guidance: Scale of classifier-free guidance; 1 is none.
        held_frames: First frames of every track that are known in `given` and stay as they are: earlier
            output where chunks of long audio overlap.
        progress: Told after every step.

    Returns:
        Latents `[B, K, C, L]` in the dtype of `noise`; given tracks and held frames are those of `given`, exactly.

    Raises:
        ValueError: If shapes disagree, `steps` is below 1 or `held_frames` is not within the frames.
    """
    mask = _expanded_mask(given, given_mask, noise, steps, held_frames)
    given = given.to(noise.dtype)
    exact = mask[:, :, None, None] | (torch.arange(noise.shape[-1], device=noise.device) < held_frames)
    noised = (~mask).to(noise.dtype)
    levels = [noised * level for level in torch.linspace(1.0, TAU_MIN, steps, dtype=torch.float64).tolist()]
    x = noise
    for step, tau in enumerate(levels):
        x = torch.where(exact, corrupt(given, noise, tau), x)
        v = guided_v(model, x, tau, embeddings, guidance)
        x = x0_from_v(x, v, tau) if step + 1 == steps else ddim_step(x, v, tau, levels[step + 1])
        if progress is not None:
            progress(step + 1, steps)
    return torch.where(exact, given, x)


def _expanded_mask(given: Tensor, given_mask: Tensor, noise: Tensor, steps: int, held_frames: int) -> Tensor:
    """The mask as bool `[B, K]`, after a look at all arguments."""
    if given.shape != noise.shape or given.ndim != 4:
        raise ValueError(
            f"given latents {tuple(given.shape)} and noise {tuple(noise.shape)} must both be [B, K, C, L]: "
            "where nothing is known pass zeros"
        )
    batch, tracks, _, frames = noise.shape
    if given_mask.dtype != torch.bool or given_mask.shape not in ((tracks,), (batch, tracks)):
        raise ValueError(
            f"given_mask is {given_mask.dtype} {tuple(given_mask.shape)}: "
            f"it must be bool [{tracks}] or [{batch}, {tracks}]"
        )
    if steps < 1:
        raise ValueError(f"steps is {steps}: sampling needs at least 1")
    if not 0 <= held_frames <= frames:
        raise ValueError(f"held_frames is {held_frames}: it must lie in 0 .. {frames}, the frames there are")
    return given_mask.to(noise.device).expand(batch, tracks)


def _example_noise(seed: int, name: str, tracks: int, channels: int, frames: int) -> Tensor:
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "little")
    rng = np.random.default_rng(np.random.SeedSequence([seed, digest]))
    # Frames are drawn first to last, so that fewer of them are a prefix.
    drawn = rng.standard_normal((frames, tracks, channels), dtype=np.float32)
    return torch.from_numpy(drawn).permute(1, 2, 0).contiguous()
