"""The training objective: squared error of v, the velocity of either process, over the tracks that were noised.

Letters: B batch, K tracks, C latent channels, L latent frames.
"""

from torch import Tensor


def v_loss(v: Tensor, target: Tensor, tau: Tensor) -> Tensor:
    """Mean squared error over all elements of the noised tracks (tau > 0) of a batch.

    Given tracks (tau = 0) carry no noise to predict and add nothing, neither error nor count.

    Args:
        v: Predicted v `[B, K, C, L]`.
        target: True v, same shape.
        tau: Noise level per track `[B, K]`.

    Returns:
        A scalar; 0 when no track of the batch is noised.
    """
    noised = tau > 0
    return (_errors(v, target) * noised).sum() / noised.sum().clamp(min=1)


def track_losses(v: Tensor, target: Tensor, tau: Tensor) -> Tensor:
    """The same error track by track, for metrics.

    Args:
        v: Predicted v `[B, K, C, L]`.
        target: True v, same shape.
        tau: Noise level per track `[B, K]`.

    Returns:
        `[K]`: mean squared error of each track over the examples in which it was noised; NaN for a
        track that was noised in none.
    """
    noised = tau > 0
    return (_errors(v, target).detach() * noised).sum(dim=0) / noised.sum(dim=0)


def _errors(v: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each track of each example `[B, K]`."""
    if v.shape != target.shape:
        raise ValueError(f"prediction of shape {tuple(v.shape)} and target of shape {tuple(target.shape)} must agree")
    return (v - target).square().mean(dim=(-2, -1))
