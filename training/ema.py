"""Exponential moving average of trainable weights."""

import torch
from torch import nn


class WeightAverage:
    """``average <- decay * average + (1 - decay) * weight``, in float32, over the trainable parameters only.

    The decay of update ``n`` (from 1) is ``min(decay, (1 + n) / (10 + n))``, so that the initial weights are forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        """Begin with the module's weights as the average. Raises ValueError for a decay outside [0, 1)."""
        if not 0 <= decay < 1:
            raise ValueError(f"EMA decay {decay} must lie in [0, 1)")
        self.decay = decay
        self.updates = 0
        self._parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.values = {name: p.detach().float().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the module's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = [parameter.detach().float() for parameter in self._parameters.values()]
        torch._foreach_lerp_(list(self.values.values()), weights, 1 - decay)

    def state_dict(self) -> dict[str, torch.Tensor | int]:
        """Everything to go on from."""
        return {"updates": self.updates, **{f"value.{name}": value for name, value in self.values.items()}}

    def load_state_dict(self, state: dict[str, torch.Tensor | int]) -> None:
        """Take up a saved average. Raises KeyError when a parameter is missing."""
        self.updates = int(state["updates"])
        for name, value in self.values.items():
            value.copy_(torch.as_tensor(state[f"value.{name}"]))
