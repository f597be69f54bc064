"""The joint network written plainly, over the same weights: what the fused one is measured against.

As the original does it: queries, keys and values by matrices of their own, attention written out, tracks one after the
other in Python.
"""

import torch
from torch import Tensor

from mgeldm.model import JointTransformer
from mgeldm.model.transformer import Block, FeedForward, Norm, TrackLinear


def reference_forward(model: JointTransformer, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
    """v `[B, K, C, L]`; arguments as those of the network, whose normalisation must be that by group."""
    angle = 2 * torch.pi * timesteps[..., None] * model.timestep_features.weight[:, 0]
    features = torch.cat([angle.cos(), angle.sin()], dim=-1)
    token = _track_mlp(model.to_timestep_embed, features).flatten(1)[:, None]
    condition = _track_mlp(model.to_global_embed, embeddings)
    x = latents.flatten(1, 2)
    x = (model.preprocess_conv(x) + x).transpose(1, 2)
    x = torch.cat([token, model.transformer.project_in(x)], dim=1)
    positions = torch.arange(x.shape[1], device=x.device)
    angles = (positions[:, None] * model.transformer.rotary_pos_emb.inv_freq).repeat(1, 2)
    for block in model.transformer.layers:
        assert isinstance(block, Block)
        x = _block(block, x, condition, angles)
    y = model.transformer.project_out(x[:, 1:]).transpose(1, 2)
    return (model.postprocess_conv(y) + y).reshape(latents.shape)


def _block(block: Block, x: Tensor, condition: Tensor, angles: Tensor) -> Tensor:
    linear = block.to_scale_shift_gate[1]
    assert isinstance(linear, TrackLinear)
    parts = [part.chunk(6, dim=-1) for part in _each_track(linear, torch.nn.functional.silu(condition))]
    scale_sa, shift_sa, gate_sa, scale_ff, shift_ff, gate_ff = (
        torch.cat([track[number] for track in parts], dim=-1)[:, None] for number in range(6)
    )
    y = _attention(block, _norm(block.pre_norm, x) * (1 + scale_sa) + shift_sa, angles)
    x = x + torch.sigmoid(1 - gate_sa) * y
    y = _feed_forward(block.ff, _norm(block.ff_norm, x) * (1 + scale_ff) + shift_ff)
    return x + torch.sigmoid(1 - gate_ff) * y


def _attention(block: Block, x: Tensor, angles: Tensor) -> Tensor:
    batch, positions, width = x.shape
    attention = block.self_attn
    q, k, v = (
        (x @ weight.T).reshape(batch, positions, attention.heads, -1).transpose(1, 2)
        for weight in attention.to_qkv.weight.chunk(3)
    )
    q, k = _turned(q, angles), _turned(k, angles)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    y = scores.softmax(dim=-1).to(v.dtype) @ v
    return attention.to_out(y.transpose(1, 2).reshape(batch, positions, width))


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    lead, rest = x[..., : angles.shape[-1]], x[..., angles.shape[-1] :]
    first, second = lead.chunk(2, dim=-1)
    return torch.cat([lead * angles.cos() + torch.cat([-second, first], dim=-1) * angles.sin(), rest], dim=-1).to(
        x.dtype
    )


def _norm(norm: Norm, x: Tensor) -> Tensor:
    assert norm.groups is not None
    normed = []
    for part in x.chunk(norm.groups, dim=-1):
        centred = part - part.mean(dim=(1, 2), keepdim=True)
        normed.append(centred / (centred.square().mean(dim=(1, 2), keepdim=True) + 1e-5).sqrt())
    return torch.cat(normed, dim=-1) * norm.gamma + norm.beta


def _feed_forward(feed: FeedForward, x: Tensor) -> Tensor:
    gated, out = feed.ff
    weight, gate = gated.proj.weight.chunk(2)
    bias, gate_bias = gated.proj.bias.chunk(2)
    return out((x @ weight.T + bias) * torch.nn.functional.silu(x @ gate.T + gate_bias))


def _track_mlp(layers: torch.nn.Sequential, x: Tensor) -> Tensor:
    first, _, last = layers
    assert isinstance(first, TrackLinear)
    assert isinstance(last, TrackLinear)
    hidden = torch.stack(_each_track(first, x), dim=1)
    return torch.stack(_each_track(last, torch.nn.functional.silu(hidden)), dim=1)


def _each_track(linear: TrackLinear, x: Tensor) -> list[Tensor]:
    weights = linear.weight[..., 0].chunk(linear.tracks)
    biases = [0.0] * linear.tracks if linear.bias is None else linear.bias.chunk(linear.tracks)
    return [x[:, track] @ weights[track].T + biases[track] for track in range(linear.tracks)]
