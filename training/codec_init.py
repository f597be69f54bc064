"""First weights of an Oobleck VAE that let the latents be heard from the first step.

Under torch's own first weights signals shrink at every layer: the output is all biases, the posterior all noise, and
for thousands of steps the decoder learns the mean spectrum only.
"""

import math
from typing import Any

import torch
from torch import nn

from mgeldm.codec.quietly import quietly

RESIDUAL_GAIN = 0.3
"""Of the branch beside a skip connection, so that fifteen of them do not add up."""
INPUT_GAIN = 4.0
"""Music is far quieter than unit variance."""
OUTPUT_GAIN = 0.02
POSTERIOR_BIAS = -4.0
"""Of the raw deviation: softplus(-4) = 0.018, beside means of about 1."""


@torch.no_grad()
def initialise(network: Any, latent_channels: int) -> None:
    """Set the weights of a stable-audio-tools Oobleck ``network`` to keep the variance from layer to layer.

    Draws from torch's global generator; fork and seed it first.
    """
    with quietly():
        # Slow to import, so only here.
        from stable_audio_tools.models.autoencoders import ResidualUnit

    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            _unit_gain(module)
    for module in network.modules():
        if isinstance(module, ResidualUnit):
            module.layers[-1].weight_g.mul_(RESIDUAL_GAIN)
    first, posterior, last = network.encoder.layers[0], network.encoder.layers[-1], network.decoder.layers[-2]
    first.weight_g.mul_(INPUT_GAIN)
    last.weight_g.mul_(OUTPUT_GAIN)
    posterior.weight_g[latent_channels:].mul_(0.1)
    posterior.bias[latent_channels:] = POSTERIOR_BIAS


def _unit_gain(module: Any) -> None:
    """Random directions, with norms that give unit variance for unit variance; no bias."""
    direction: torch.Tensor = module.weight_v
    nn.init.normal_(direction)
    if isinstance(module, nn.ConvTranspose1d):
        # Each output sample hears kernel / stride taps of every input channel.
        inputs = direction.shape[0] * direction.shape[2] / module.stride[0]
    else:
        inputs = direction.shape[1] * direction.shape[2]
    module.weight_g.copy_(direction.norm(dim=(1, 2), keepdim=True) / math.sqrt(inputs))
    if module.bias is not None:
        module.bias.zero_()
