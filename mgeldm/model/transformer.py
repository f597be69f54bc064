"""The joint diffusion transformer (arXiv 2505.23305, section 3 and appendix).

Letters: B batch, K tracks, C latent channels, L latent frames, N = L + 1 positions (the timestep token
first), E width per track, W = K E, G embedding length, F timestep features.

Modules are named so that the keys of the state dict are those of the released weights without their
`model_dit.` prefix; names that are digits are places in the original's sequences.
"""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgeldm.model.config import JointConfig


class TrackLinear(nn.Module):
    """One linear map per track: `[B, K, in]` -> `[B, K, out]`.

    Weights are laid out as those of a grouped 1x1 convolution, `[K out, in, 1]`.
    """

    def __init__(self, tracks: int, in_features: int, out_features: int, *, bias: bool) -> None:
        """Make the maps; values are drawn by `JointTransformer`."""
        super().__init__()
        self.tracks = tracks
        self.weight = nn.Parameter(torch.zeros(tracks * out_features, in_features, 1))
        self.bias = nn.Parameter(torch.zeros(tracks * out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map each track by its own matrix."""
        y = torch.einsum("bki,koi->bko", x, self.weight.view(self.tracks, -1, x.shape[-1]))
        return y if self.bias is None else y + self.bias.view(self.tracks, -1)


class FourierFeatures(nn.Module):
    """Cosines and sines of a timestep at learned frequencies: `[B, K]` -> `[B, K, F]`."""

    def __init__(self, features: int) -> None:
        """Make F / 2 frequencies; values are drawn by `JointTransformer`."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(features // 2, 1))

    def forward(self, t: Tensor) -> Tensor:
        """Features of each timestep."""
        # A broadcast product, not a matrix product: autocast would round the angle to bfloat16.
        angle = 2 * math.pi * t[..., None] * self.weight[:, 0]
        return torch.cat([angle.cos(), angle.sin()], dim=-1)


class RotaryPositions(nn.Module):
    """Cosines and sines that turn queries and keys by their position, for any number of positions."""

    inv_freq: Tensor

    def __init__(self, width: int) -> None:
        """Make the frequencies of `width` leading channels of a head."""
        super().__init__()
        exponent = torch.arange(0, width, 2, dtype=torch.float32) / width
        self.register_buffer("inv_freq", 10000.0**-exponent)

    def forward(self, positions: int) -> tuple[Tensor, Tensor]:
        """Cosine and sine tables `[N, width]` of positions 0 .. N - 1."""
        index = torch.arange(positions, device=self.inv_freq.device, dtype=self.inv_freq.dtype)
        angle = (index[:, None] * self.inv_freq).repeat(1, 2)
        return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the leading channels of `x [B, heads, N, d]` by tables `[N, rot]`, rot <= d; the rest stays."""
    lead, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = lead.chunk(2, dim=-1)
    turned = lead * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned.to(x.dtype), rest], dim=-1)


class Norm(nn.Module):
    """Normalisation of `[B, N, W]`, eps 1e-5: by track over all positions, or by position over all channels."""

    def __init__(self, config: JointConfig) -> None:
        """Start as plain normalisation."""
        super().__init__()
        self.groups = config.tracks if config.norm == "group" else None
        self.gamma = nn.Parameter(torch.ones(config.width))
        self.beta = nn.Parameter(torch.zeros(config.width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, then scale by gamma and shift by beta."""
        if self.groups is None:
            return F.layer_norm(x, self.gamma.shape, self.gamma, self.beta, 1e-5)
        return F.group_norm(x.transpose(1, 2), self.groups, self.gamma, self.beta, 1e-5).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention over all positions, with rotary positions on queries and keys."""

    def __init__(self, width: int, heads: int) -> None:
        """Make the projections."""
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Attend: `[B, N, W]` -> `[B, N, W]`."""
        batch, positions, width = x.shape
        qkv: Tensor = self.to_qkv(x)
        q, k, v = qkv.reshape(batch, positions, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v)
        out: Tensor = self.to_out(y.transpose(1, 2).flatten(2))
        return out


class SwiGLU(nn.Module):
    """Gated linear unit: one half of a projection, times SiLU of the other."""

    def __init__(self, width: int, inner: int) -> None:
        """Make the projection."""
        super().__init__()
        self.proj = nn.Linear(width, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """Gate: `[..., width]` -> `[..., inner]`."""
        projected: Tensor = self.proj(x)
        value, gate = projected.chunk(2, dim=-1)
        return value * F.silu(gate)


class FeedForward(nn.Module):
    """SwiGLU of four times the width, position by position."""

    def __init__(self, width: int) -> None:
        """Make both projections."""
        super().__init__()
        self.ff = nn.Sequential(OrderedDict([("0", SwiGLU(width, 4 * width)), ("2", nn.Linear(4 * width, width))]))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, N, W]` -> `[B, N, W]`."""
        y: Tensor = self.ff(x)
        return y


class Block(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by the tracks' embeddings."""

    def __init__(self, config: JointConfig) -> None:
        """Make one block."""
        super().__init__()
        modulation = TrackLinear(config.tracks, config.width_per_track, 6 * config.width_per_track, bias=False)
        self.to_scale_shift_gate = nn.Sequential(OrderedDict([("0", nn.SiLU()), ("2", modulation)]))
        self.pre_norm = Norm(config)
        self.self_attn = Attention(config.width, config.heads)
        self.ff_norm = Norm(config)
        self.ff = FeedForward(config.width)

    def forward(self, x: Tensor, condition: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map positions `[B, N, W]` under the tracks' conditions `[B, K, E]`."""
        parts = self.to_scale_shift_gate(condition).chunk(6, dim=-1)
        scale_sa, shift_sa, gate_sa, scale_ff, shift_ff, gate_ff = (part.flatten(1).unsqueeze(1) for part in parts)
        y: Tensor = self.self_attn(self.pre_norm(x) * (1 + scale_sa) + shift_sa, cos, sin)
        x = x + torch.sigmoid(1 - gate_sa) * y
        y = self.ff(self.ff_norm(x) * (1 + scale_ff) + shift_ff)
        return x + torch.sigmoid(1 - gate_ff) * y


class Trunk(nn.Module):
    """Projection in, the timestep token in front, all blocks, projection out."""

    def __init__(self, config: JointConfig) -> None:
        """Make `config.depth` blocks."""
        super().__init__()
        channels = config.tracks * config.latent_channels
        self.rotary_pos_emb = RotaryPositions(config.rotary_width)
        self.project_in = nn.Linear(channels, config.width, bias=False)
        self.project_out = nn.Linear(config.width, channels, bias=False)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.depth))

    def forward(self, x: Tensor, token: Tensor, condition: Tensor) -> Tensor:
        """Map frames `[B, L, K C]` with a token `[B, 1, W]` and conditions `[B, K, E]` to `[B, L, K C]`."""
        x = torch.cat([token, self.project_in(x)], dim=1)
        cos, sin = self.rotary_pos_emb(x.shape[1])
        for layer in self.layers:
            x = layer(x, condition, cos, sin)
        y: Tensor = self.project_out(x[:, 1:])
        return y


class JointTransformer(nn.Module):
    """Predicts v of all tracks at once, each track at its own noise level and with its own embedding.

    To load weights without drawing any, build under `torch.device("meta")` and use
    `load_state_dict(state_dict, assign=True)`. For reduced precision use `torch.autocast`: positions
    and timestep features then stay in float32.

    Attributes:
        config: The sizes it was made with.
    """

    def __init__(self, config: JointConfig, *, seed: int = 0) -> None:
        """Make the network with weights drawn from `seed` (any whole number from 0), alike on every device."""
        super().__init__()
        self.config = config
        tracks, width = config.tracks, config.width_per_track
        embedding, features = config.embedding_dim, config.timestep_features
        channels = tracks * config.latent_channels
        self.timestep_features = FourierFeatures(features)
        self.to_timestep_embed = _track_mlp(tracks, features, width, width, bias=True)
        self.to_global_embed = _track_mlp(tracks, embedding, embedding, width, bias=False)
        self.preprocess_conv = nn.Conv1d(channels, channels, 1, bias=False)
        self.postprocess_conv = nn.Conv1d(channels, channels, 1, bias=False)
        self.transformer = Trunk(config)
        initialise(self, seed)

    def forward(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        """Predict v.

        Args:
            latents: Noised latents `[B, K, C, L]`, any L from 1.
            timesteps: Noise level of each track `[B, K]`, in [0, 1]; 0 marks a given track.
            embeddings: Condition of each track `[B, K, G]`; zeros are the null condition.

        Returns:
            v `[B, K, C, L]`.

        Raises:
            ValueError: If a shape does not fit the configuration.
        """
        self._check(latents, timesteps, embeddings)
        token = self.to_timestep_embed(self.timestep_features(timesteps)).flatten(1).unsqueeze(1)
        x = latents.flatten(1, 2)
        x = self.preprocess_conv(x) + x
        y = self.transformer(x.transpose(1, 2), token, self.to_global_embed(embeddings)).transpose(1, 2)
        v: Tensor = self.postprocess_conv(y) + y
        return v.reshape(latents.shape)

    def _check(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> None:
        config, batch = self.config, latents.shape[0]
        fits = (
            latents.ndim == 4
            and latents.shape[1:3] == (config.tracks, config.latent_channels)
            and timesteps.shape == (batch, config.tracks)
            and embeddings.shape == (batch, config.tracks, config.embedding_dim)
        )
        if not fits:
            raise ValueError(
                f"joint network got latents {tuple(latents.shape)}, timesteps {tuple(timesteps.shape)}, embeddings "
                f"{tuple(embeddings.shape)}: it takes [B, {config.tracks}, {config.latent_channels}, L], "
                f"[B, {config.tracks}] and [B, {config.tracks}, {config.embedding_dim}]"
            )


def initialise(model: JointTransformer, seed: int) -> None:
    """Set every parameter as the original does before training.

    Matrices and biases are uniform within 1 / sqrt(inputs), timestep frequencies standard normal;
    what each block adds, the modulation and the outer convolutions are zero; then all is halved.
    Numbers are drawn on the CPU in the order of `named_parameters`, so a seed means the same weights
    everywhere; a model on the meta device is left as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    zero = ("self_attn.to_out.weight", "ff.ff.2.weight", "ff.ff.2.bias", "to_scale_shift_gate.2.weight")
    outer = ("preprocess_conv.weight", "postprocess_conv.weight")
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            owner, _, kind = name.rpartition(".")
            if parameter.is_meta:
                continue
            if name.endswith(zero) or name in outer or kind == "beta":
                parameter.zero_()
            elif kind == "gamma":
                parameter.fill_(0.5)
            elif owner == "timestep_features":
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
            else:
                bound = 0.5 / math.sqrt(parameters[f"{owner}.weight"].shape[1])
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


def _track_mlp(tracks: int, inputs: int, hidden: int, outputs: int, *, bias: bool) -> nn.Sequential:
    first = TrackLinear(tracks, inputs, hidden, bias=bias)
    last = TrackLinear(tracks, hidden, outputs, bias=bias)
    return nn.Sequential(OrderedDict([("1", first), ("2", nn.SiLU()), ("3", last)]))
