"""First weights of an Oobleck VAE that let the latents be heard from the first step.

Under torch's own first weights signals shrink at every layer: the output is all biases, the posterior all noise, and
for thousands of steps the decoder learns the mean spectrum only. And a phase is next to impossible to find by descent
from noise. So the weights keep the variance from layer to layer, and beside the random channels a narrow path carries
the low frequencies through the net as they are: averages on the way in, interpolation on the way out.
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
OUTPUT_GAIN = 0.004
POSTERIOR_BIAS = -4.0
"""Of the raw deviation: softplus(-4) = 0.018, beside means of about 1."""
PATH_GAIN = 0.5
PATH_LATENT_GAIN = 30.0
"""Brings the path's latents near unit variance."""
PATH_BRANCH_GAIN = 1e-3
"""What residual branches add to the path."""
PATH_SNAKE = 6.0
"""Logarithm of a snake's beta that makes it all but the identity: x + sin(x)^2 / exp(6)."""


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
    # The path must not take up a whole layer.
    if first.out_channels > 1:
        _low_band_path(network, min(latent_channels, posterior.in_channels) // 2)


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


def _low_band_path(network: Any, count: int) -> None:
    """Let ``count`` latents be the wave averaged over ``hop / count`` samples, and the decoder interpolate them.

    Strides average as long as the bandwidth allows; what is left of a stride becomes channels, one a phase.
    """
    encoder, decoder = network.encoder.layers, network.decoder.layers
    down, up = list(encoder[1:-2]), list(decoder[1:-3])
    strides = [block.layers[-1].stride[0] for block in down]
    width = math.prod(strides) // count
    _set_path(encoder[0], torch.eye(1), torch.tensor([0.0, 0.0, 0.0, PATH_GAIN, 0.0, 0.0, 0.0])[None])
    channels, averaged, plan = 1, 1, []
    for block, stride in zip(down, strides, strict=True):
        average = min(stride, width // averaged)
        phases, averaged = stride // average, averaged * average
        _leave_alone(block.layers[:3], block.layers[3], channels, channels)
        _set_path(block.layers[-1], torch.eye(channels), _windows(stride, average) / average)
        plan.append((channels, average, stride))
        channels *= phases
    encoder[-2].beta[:channels] = PATH_SNAKE
    decoder[-3].beta[:1] = PATH_SNAKE
    _set_path(encoder[-1], torch.eye(channels), torch.tensor([0.0, PATH_LATENT_GAIN, 0.0])[None])
    _set_path(decoder[0], torch.eye(channels), torch.tensor([0.0, 0.0, 0.0, 1 / PATH_LATENT_GAIN, 0.0, 0.0, 0.0])[None])
    for block, (inner, average, stride) in zip(up, plan[::-1], strict=True):
        _leave_alone(block.layers[2:], block.layers[0], inner, inner * stride // average)
        block.layers[1].weight_v[:, :inner] = 0.0  # no other channel leads into the path
        taps = _windows(stride, average) if average < stride else _triangle(stride)
        _set_path(block.layers[1], torch.eye(inner), taps)
    last = decoder[-2]
    last.weight_v.mul_(last.weight_g / last.weight_v.norm())
    last.weight_v[0, 0] = torch.tensor([0.0, 0.0, 0.0, 1 / PATH_GAIN, 0.0, 0.0, 0.0])
    last.weight_g.copy_(last.weight_v.norm(dim=(1, 2), keepdim=True))


def _windows(stride: int, average: int) -> torch.Tensor:
    """Taps ``[phases, 2 * stride]`` of a strided convolution that sum ``average`` samples each of its own stride."""
    taps = torch.zeros(stride // average, 2 * stride)
    for phase in range(len(taps)):
        begin = stride // 2 + phase * average
        taps[phase, begin : begin + average] = 1.0
    return taps


def _triangle(stride: int) -> torch.Tensor:
    """Taps ``[1, 2 * stride]`` of a transposed convolution that interpolates linearly."""
    return 1 - ((torch.arange(2 * stride) + 0.5 - stride).abs() / stride)[None]


def _set_path(conv: Any, channels: torch.Tensor, taps: torch.Tensor) -> None:
    """Set the first rows of a weight-normed convolution: row ``phase * n + c`` hears channel ``c`` with its taps only.

    Rows are output channels, of a transposed convolution input channels.
    """
    phases, count = len(taps), len(channels)
    weight = torch.zeros(phases * count, *conv.weight_v.shape[1:])
    weight[:, :count] = (channels[None, :, :, None] * taps[:, None, None, :]).flatten(0, 1)
    conv.weight_v[: len(weight)] = weight
    conv.weight_g[: len(weight)] = weight.norm(dim=(1, 2), keepdim=True)


def _leave_alone(units: Any, snake: Any, branch_channels: int, snake_channels: int) -> None:
    """Let residual branches add next to nothing to the first channels, and a snake pass them as they are."""
    for unit in units:
        unit.layers[-1].weight_g[:branch_channels].mul_(PATH_BRANCH_GAIN)
    snake.beta[:snake_channels] = PATH_SNAKE
