"""The network as the tasks call it: in full precision or bfloat16, plain or compiled."""

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from manifests.errors import ConfigError
from mgeldm.devices import check_compiler
from mgeldm.sampling import VelocityModel

Precision: TypeAlias = Literal["float32", "bfloat16"]


def prepared(network: VelocityModel, device: torch.device, precision: Precision, compiled: bool) -> VelocityModel:
    """The network, run under autocast if it is not to be exact, and compiled at its first use if that is asked for.

    Latents and velocities stay float32 in between, as do timesteps and positions inside.

    Raises:
        ConfigError: there is no such precision, or nothing to compile with.
    """
    if precision not in get_args(Precision):
        raise ConfigError(f"precision {precision!r} is none of {', '.join(get_args(Precision))}")
    forward = network
    if compiled:
        check_compiler(device)
        forward = torch.compile(network)
    if precision == "float32":
        return forward

    def cast(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return forward(latents, timesteps, embeddings)

    return cast
