"""Classifier-free guidance: away from what the network says without a condition."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

VelocityModel = Callable[[Tensor, Tensor, Tensor], Tensor]
"""latents `[B, K, C, L]`, timesteps `[B, K]`, embeddings `[B, K, G]` -> v `[B, K, C, L]`."""


def guided_v(
    model: VelocityModel,
    latents: Tensor,
    timesteps: Tensor,
    embeddings: Tensor,
    guidance: float | Sequence[float],
    rescale: float = 0.0,
) -> Tensor:
    """v = v_null + s (v_cond - v_null), v_null with all embeddings zero.

    Args:
        model: The network.
        latents: `[B, K, C, L]`.
        timesteps: `[B, K]`.
        embeddings: `[B, K, G]`.
        guidance: Scale s, one or one per track; 1 everywhere needs, and makes, no null evaluation; any other is one
            forward of 2 B.
        rescale: Share by which each track of v gets the standard deviation of v_cond back.

    Returns:
        v `[B, K, C, L]`.

    Raises:
        ValueError: If scales are neither one nor one per track.
    """
    scales = torch.as_tensor(guidance, dtype=torch.float64)
    if scales.numel() not in (1, latents.shape[1]):
        raise ValueError(
            f"guidance {guidance} has {scales.numel()} scales: give one, or one for each of {latents.shape[1]} tracks"
        )
    if (scales == 1).all():
        return model(latents, timesteps, embeddings)
    both = model(
        torch.cat([latents, latents]),
        torch.cat([timesteps, timesteps]),
        torch.cat([embeddings, torch.zeros_like(embeddings)]),
    )
    conditional, null = both.chunk(2)
    v = null + scales.to(null).reshape(-1, 1, 1) * (conditional - null)
    if rescale:
        spread = v.std(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)
        v = v * (1 - rescale + rescale * conditional.std(dim=(-2, -1), keepdim=True) / spread)
    return v
