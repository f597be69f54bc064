"""The two diffusion processes: how a clean latent is noised, what the network predicts, and how that is undone.

Letters: B batch, K tracks, C latent channels, L latent frames. Every method takes one noise level per track,
tau `[B, K]` in [0, 1], and returns the dtype of the latents it is given, so that the same code serves float32
training and float64 checks.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

TAU_MIN = 0.02
"""Lowest noise level trained on, and the last one visited by the sampler."""

Objective = Literal["v", "rf"]
Curve = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A path from the clean latent z0 to noise eps, and the velocity along it, which the network predicts.

    Noised latents are z = alpha z0 + beta eps, the velocity is v = gain eps - loss z0, all four being functions of the
    level, with alpha gain + beta loss = 1. So the clean latent is gain z - beta v, and the noise loss z + alpha v.
    """

    alpha: Curve
    """Share of the clean latent; exactly 1 at level 0."""
    beta: Curve
    """Share of the noise; exactly 0 at level 0."""
    gain: Curve
    """Speed at which the noise comes in."""
    loss: Curve
    """Speed at which the clean latent goes."""

    def corrupt(self, z0: Tensor, eps: Tensor, tau: Tensor) -> Tensor:
        """Noise each track to its own level.

        Args:
            z0: Clean latents `[B, K, C, L]`.
            eps: Standard normal noise of the same shape.
            tau: Noise level per track `[B, K]`, in [0, 1]; a track at 0 stays as it is, bit for bit.

        Returns:
            Noised latents, shape and dtype of `z0`.

        Raises:
            ValueError: If `tau` does not have one value per track of `z0`.
        """
        return _at(self.alpha, tau, z0) * z0 + _at(self.beta, tau, z0) * eps

    def target(self, z0: Tensor, eps: Tensor, tau: Tensor) -> Tensor:
        """What the network learns to predict, v; arguments as in `corrupt`."""
        return _at(self.gain, tau, z0) * eps - _at(self.loss, tau, z0) * z0

    def clean(self, z: Tensor, v: Tensor, tau: Tensor) -> Tensor:
        """Clean latents that `v` claims lie under the noised `z`."""
        return _at(self.gain, tau, z) * z - _at(self.beta, tau, z) * v

    def noise(self, z: Tensor, v: Tensor, tau: Tensor) -> Tensor:
        """Noise that `v` claims lies in the noised `z`."""
        return _at(self.loss, tau, z) * z + _at(self.alpha, tau, z) * v

    def shares(self, level: float) -> tuple[float, float]:
        """Alpha and beta of one level, in double precision; alpha is exactly 0 at level 1."""
        tau = torch.tensor(level, dtype=torch.float64)
        return (0.0 if level == 1 else self.alpha(tau).item()), self.beta(tau).item()


V = Process(
    alpha=lambda tau: torch.cos(tau * (math.pi / 2)),
    beta=lambda tau: torch.sin(tau * (math.pi / 2)),
    gain=lambda tau: torch.cos(tau * (math.pi / 2)),
    loss=lambda tau: torch.sin(tau * (math.pi / 2)),
)
"""The paper's (arXiv 2505.23305, section 3): a quarter turn, v = alpha eps - beta z0."""

RECTIFIED_FLOW = Process(alpha=lambda tau: 1 - tau, beta=lambda tau: tau, gain=torch.ones_like, loss=torch.ones_like)
"""A straight line, v = eps - z0 (arXiv 2209.03003)."""

PROCESSES: dict[Objective, Process] = {"v": V, "rf": RECTIFIED_FLOW}
"""By the name that a recipe and a checkpoint give their objective."""


def _at(curve: Curve, tau: Tensor, z: Tensor) -> Tensor:
    """The curve at each track's level, shaped to multiply `z`, in the dtype of `z`."""
    if tau.shape != z.shape[: tau.ndim]:
        raise ValueError(
            f"noise levels of shape {tuple(tau.shape)} do not fit latents of shape {tuple(z.shape)}: "
            "give one level per track, tau [B, K] for latents [B, K, C, L]"
        )
    # Trigonometry in the wider dtype: neither float64 checks nor float16 latents may lose digits here.
    level = tau.to(torch.promote_types(tau.dtype, z.dtype)).reshape(*tau.shape, *[1] * (z.ndim - tau.ndim))
    return curve(level).to(z.dtype)
