"""Sizes of the joint network, named presets, and the sizes of a released checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal

from torch import Tensor

MIN_HEAD_WIDTH = 32


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """Sizes of a `JointTransformer`.

    Attributes:
        tracks: Tracks modelled together, K (mix, submix, source).
        latent_channels: Channels of the codec's latents, C.
        width_per_track: Width each track adds to the transformer, E; its width is W = K E.
        embedding_dim: Length of one conditioning embedding, G.
        timestep_features: Fourier features of one timestep, F; even.
        depth: Transformer blocks.
        heads: Attention heads; W / heads must be a multiple of 4 of at least 32, the least that rotary positions turn.
        norm: "group" normalises each track's channels over all positions (the paper), "layer" all channels
            at each position.

    Raises:
        ValueError: On sizes that make no network.
    """

    tracks: int = 3
    latent_channels: int = 64
    width_per_track: int
    embedding_dim: int = 512
    timestep_features: int = 256
    depth: int
    heads: int
    norm: Literal["group", "layer"] = "group"

    def __post_init__(self) -> None:
        """Refuse sizes that make no network."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "norm" and (not isinstance(value, int) or value < 1):
                raise ValueError(f"model {field.name} is {value!r}: it must be a whole number of at least 1")
        if self.timestep_features % 2:
            raise ValueError(
                f"model timestep_features is {self.timestep_features}: it must be even (cosines and sines)"
            )
        if self.width % self.heads or self.head_width < MIN_HEAD_WIDTH or self.head_width % 4:
            raise ValueError(
                f"model width {self.width} (tracks x width_per_track) over {self.heads} heads gives "
                f"{self.width / self.heads:g} channels a head: choose heads so that this is a multiple of 4, "
                f"at least {MIN_HEAD_WIDTH}"
            )
        if self.norm not in ("group", "layer"):
            raise ValueError(f"model norm is {self.norm!r}: it must be 'group' or 'layer'")

    @property
    def width(self) -> int:
        """Width of the transformer, W = K E."""
        return self.tracks * self.width_per_track

    @property
    def head_width(self) -> int:
        """Channels of one attention head."""
        return self.width // self.heads

    @property
    def rotary_width(self) -> int:
        """Leading channels of a head that rotary positions turn."""
        return max(self.head_width // 2, MIN_HEAD_WIDTH)


PRESETS: dict[str, JointConfig] = {
    "tiny": JointConfig(width_per_track=64, depth=6, heads=6),
    "small": JointConfig(width_per_track=128, depth=12, heads=12),
    "base": JointConfig(width_per_track=256, depth=16, heads=24),
    "paper": JointConfig(width_per_track=512, depth=24, heads=48),
}
"""Named sizes, all for C = 64 and G = 512 (change with `dataclasses.replace`).

| name | width | depth | parameters |
| --- | --- | --- | --- |
| tiny | 192 | 6 | 5.1 M |
| small | 384 | 12 | 33.3 M |
| base | 768 | 16 | 172.0 M |
| paper | 1536 | 24 | 1,023.1 M (the released weights) |
"""


def official_config(
    state_dict: Mapping[str, Tensor], *, heads: int | None = None, norm: Literal["group", "layer"] = "group"
) -> JointConfig:
    """Read the sizes of a released network off the shapes of its weights.

    Args:
        state_dict: The entries below `model_dit.` of the released file, that prefix taken off.
        heads: Attention heads, which no shape tells; as many as give each 32 channels, as in the released weights (48).
        norm: Kind of normalisation, which no shape tells either.

    Returns:
        The configuration whose `JointTransformer` loads this state dict.

    Raises:
        ValueError: If a weight that tells a size is missing, or the sizes make no network.
    """
    try:
        width = state_dict["transformer.project_in.weight"].shape[0]
        per_track = state_dict["transformer.layers.0.to_scale_shift_gate.2.weight"].shape[1]
        channels = state_dict["preprocess_conv.weight"].shape[0]
        embedding_dim = state_dict["to_global_embed.1.weight"].shape[1]
        features = 2 * state_dict["timestep_features.weight"].shape[0]
    except KeyError as missing:
        raise ValueError(
            f"not the weights of a joint network: {missing} is missing among {len(state_dict)} entries; "
            "pass those below 'model_dit.', without that prefix"
        ) from missing
    except IndexError:
        raise ValueError("not the weights of a joint network: one that tells a size has too few dimensions") from None
    if not 0 < per_track <= width:
        raise ValueError(f"a width of {width} is not made of tracks of width {per_track} each")
    tracks = width // per_track
    return JointConfig(
        tracks=tracks,
        latent_channels=channels // tracks,
        width_per_track=per_track,
        embedding_dim=embedding_dim,
        timestep_features=features,
        depth=sum(key.endswith(".to_scale_shift_gate.2.weight") for key in state_dict),
        heads=max(1, width // MIN_HEAD_WIDTH) if heads is None else heads,
        norm=norm,
    )
