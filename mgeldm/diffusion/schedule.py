"""The trigonometric noise schedule and the v parametrisation (arXiv 2505.23305, section 3).

Letters: B batch, K tracks, C latent channels, L latent frames. Every function takes one noise level
per track, tau `[B, K]` in [0, 1], and returns the dtype of the latents it is given, so that the same
code serves float32 training and float64 checks.
"""

import math

import torch
from torch import Tensor

TAU_MIN = 0.02
"""Lowest noise level trained on, and the last one visited by the sampler."""


def alpha(tau: Tensor) -> Tensor:
    """Share of the clean latent at noise level `tau`: cos(pi tau / 2); exactly 1 at 0."""
    return torch.cos(tau * (math.pi / 2))


def beta(tau: Tensor) -> Tensor:
    """Share of the noise at noise level `tau`: sin(pi tau / 2); exactly 0 at 0."""
    return torch.sin(tau * (math.pi / 2))


def corrupt(z0: Tensor, eps: Tensor, tau: Tensor) -> Tensor:
    """Noise each track to its own level: z_tau = alpha z0 + beta eps.

    Args:
        z0: Clean latents `[B, K, C, L]`.
        eps: Standard normal noise of the same shape.
        tau: Noise level per track `[B, K]`, in [0, 1]; a track at 0 stays as it is, bit for bit.

    Returns:
        Noised latents, shape and dtype of `z0`.

    Raises:
        ValueError: If `tau` does not have one value per track of `z0`.
    """
    a, b = _shares(tau, z0)
    return a * z0 + b * eps


def v_target(z0: Tensor, eps: Tensor, tau: Tensor) -> Tensor:
    """What the network learns to predict: v = alpha eps - beta z0; arguments as in `corrupt`."""
    a, b = _shares(tau, z0)
    return a * eps - b * z0


def x0_from_v(z_tau: Tensor, v: Tensor, tau: Tensor) -> Tensor:
    """Clean latents that `v` claims lie under `z_tau`: z0 = alpha z_tau - beta v."""
    a, b = _shares(tau, z_tau)
    return a * z_tau - b * v


def eps_from_v(z_tau: Tensor, v: Tensor, tau: Tensor) -> Tensor:
    """Noise that `v` claims lies in `z_tau`: eps = beta z_tau + alpha v."""
    a, b = _shares(tau, z_tau)
    return b * z_tau + a * v


def _shares(tau: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and beta, shaped to multiply `z`, in the dtype of `z`."""
    if tau.shape != z.shape[: tau.ndim]:
        raise ValueError(
            f"noise levels of shape {tuple(tau.shape)} do not fit latents of shape {tuple(z.shape)}: "
            "give one level per track, tau [B, K] for latents [B, K, C, L]"
        )
    # Trigonometry in the wider dtype: neither float64 checks nor float16 latents may lose digits here.
    level = tau.to(torch.promote_types(tau.dtype, z.dtype)).reshape(*tau.shape, *[1] * (z.ndim - tau.ndim))
    return alpha(level).to(z.dtype), beta(level).to(z.dtype)
