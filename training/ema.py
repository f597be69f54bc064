"""Exponential moving average of trainable weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from training.parallel import like, local


class WeightAverage:
    """``average <- decay * average + (1 - decay) * weight``, in float32, over the trainable parameters only.

    The decay of update ``n`` (from 1) is ``min(decay, (1 + n) / (10 + n))``, so that the initial weights are forgotten.
    Of sharded weights each process averages its share.
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
        weights = [local(parameter.detach()).float() for parameter in self._parameters.values()]
        torch._foreach_lerp_([local(value) for value in self.values.values()], weights, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the module's weights are the average; then again its own, to the bit."""
        own = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._set(self.values)
        try:
            yield
        finally:
            self._set(own)

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on from."""
        return {"updates": self.updates, **{f"value.{name}": value for name, value in self.values.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved average, of whole tensors. Raises KeyError when a parameter is missing."""
        self.updates = int(state["updates"])
        for name, value in self.values.items():
            value.copy_(like(torch.as_tensor(state[f"value.{name}"]), value))

    @torch.no_grad()
    def _set(self, values: dict[str, torch.Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])
