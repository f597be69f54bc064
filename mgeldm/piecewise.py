"""A function that hears only its surroundings, applied to a stream of any length in bounded memory."""

from collections.abc import Callable

import torch
from torch import Tensor


class Piecewise:
    """Applies a local function along the last axis, piece by piece with context on both sides, and trims.

    The function maps ``[..., n * unit_in]`` to ``[..., n * unit_out]``. What comes out does not depend on how the input
    was cut into blocks, and equals one pass over all of it where an output depends on no more than the context.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        *,
        unit_in: int,
        unit_out: int,
        context: int,
        chunk: int,
        in_silence: bool = False,
    ) -> None:
        """Prepare for one stream.

        Args:
            function: What is applied.
            unit_in: Samples of input a unit.
            unit_out: Samples of output a unit.
            context: Units on each side of a piece that have a part in it.
            chunk: Units of output a piece.
            in_silence: Whether the function hears zeros beyond both ends, or the ends themselves.
        """
        self._function, self._unit_in, self._unit_out = function, unit_in, unit_out
        self._context, self._chunk, self._in_silence = context, chunk, in_silence
        self._kept: Tensor | None = None
        self._low = -context if in_silence else 0
        """Unit that the kept input begins with."""
        self._next = 0
        """First unit of the output to come."""

    def push(self, block: Tensor) -> list[Tensor]:
        """Take in ``[..., n]``, any n; returns the pieces of output that are ready."""
        if self._kept is None:
            self._kept = block.new_zeros(*block.shape[:-1], -self._low * self._unit_in)
        self._kept = torch.cat([self._kept, block], dim=-1)
        available = self._low + self._kept.shape[-1] // self._unit_in
        ready = []
        while self._next + self._chunk + self._context <= available:
            ready.append(self._piece(self._next + self._chunk))
        if ready:
            low = max(self._low, self._next - self._context)
            # A copy, so that a long block does not stay in memory for its end.
            self._kept = self._kept[..., (low - self._low) * self._unit_in :].clone()
            self._low = low
        return ready

    def finish(self) -> list[Tensor]:
        """The end of the input: returns the rest of the output, the last unit filled with zeros."""
        if self._kept is None:
            return []
        total = self._low - (-self._kept.shape[-1] // self._unit_in)
        end = total + (self._context if self._in_silence else 0)
        missing = (end - self._low) * self._unit_in - self._kept.shape[-1]
        self._kept = torch.nn.functional.pad(self._kept, (0, missing))
        ready = []
        while self._next < total:
            ready.append(self._piece(min(self._next + self._chunk, total)))
        return ready

    def _piece(self, end: int) -> Tensor:
        """Output from where it stands to unit ``end``."""
        assert self._kept is not None
        available = self._low + self._kept.shape[-1] // self._unit_in
        low, high = max(self._low, self._next - self._context), min(available, end + self._context)
        out = self._function(self._kept[..., (low - self._low) * self._unit_in : (high - self._low) * self._unit_in])
        piece = out[..., (self._next - low) * self._unit_out : (end - low) * self._unit_out]
        self._next = end
        return piece
