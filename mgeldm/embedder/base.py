"""What every embedder is."""

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderSpec:
    """The shape of an embedder."""

    sample_rate: int
    window_s: float
    """The only length of audio it takes."""
    dim: int
    """Length of an embedding."""

    @property
    def window(self) -> int:
        """Samples of a window."""
        return round(self.window_s * self.sample_rate)


class Embedder(Protocol):
    """Sound and words in one space: what sounds like its words lies near them. Deterministic."""

    @property
    def spec(self) -> EmbedderSpec:
        """Rate, window and dimension."""
        ...

    @property
    def identity(self) -> str:
        """Hex hash over configuration and weights."""
        ...

    def embed_audio(self, wave: torch.Tensor) -> torch.Tensor:
        """Mono ``[B, T]`` float32 in [-1, 1], T exactly the window -> ``[B, D]`` of unit length."""
        ...

    def embed_text(self, texts: list[str]) -> torch.Tensor:
        """``B`` prompts -> ``[B, D]`` of unit length. Raises PromptError for one that says nothing."""
        ...
