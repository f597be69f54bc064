"""Validation on a fixed list of examples with fixed noise: the loss for each of the ways the model is used."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import nn

from mgeldm.diffusion.objective import v_loss
from mgeldm.diffusion.schedule import PROCESSES
from mgeldm.diffusion.timesteps import TimestepPatterns
from training.config import TrainConfig
from training.randomness import Purpose, generator
from training.stream import Float, ShardSet

SUBSET = "validation"
LARGEST = 64
"""Windows of a data set that are used."""
PATTERNS = {
    "generate": TimestepPatterns(all=1, mix_given=0, submix_given=0, source_given=0),
    "extract": TimestepPatterns(all=0, mix_given=1, submix_given=0, source_given=0),
    "impute": TimestepPatterns(all=0, mix_given=0, submix_given=1, source_given=0),
    "accompany": TimestepPatterns(all=0, mix_given=0, submix_given=0, source_given=1),
}


class Validation:
    """The same examples, noise and timesteps at every call."""

    def __init__(
        self, sets: Sequence[ShardSet], config: TrainConfig, normalise: Callable[[Float], torch.Tensor]
    ) -> None:
        """Take evenly spaced windows of each data set; their crops and conditions do not change.

        No condition is dropped, so that runs with more and with less dropout can be compared.
        """
        stream = replace(config.stream, condition_dropout=0.0)
        examples = []
        for place, shards in enumerate(sets):
            for number in np.linspace(0, len(shards.rows) - 1, min(LARGEST, len(shards.rows))).astype(int):
                rng = generator(stream.seed, Purpose.VALIDATION_EXAMPLE, place, int(number))
                examples.append(shards.example(shards.reader.read(shards.rows[number]), rng, stream))
        latents, embeddings = zip(*examples, strict=True)
        self._latents = normalise(np.stack(latents))
        self._embeddings = torch.from_numpy(np.stack(embeddings)).to(self._latents.device)
        self._seed, self._batch, self._process = config.seed, stream.batch, PROCESSES[config.objective]

    @classmethod
    def of(
        cls,
        data: Sequence[Path | str],
        trained: Sequence[ShardSet],
        config: TrainConfig,
        normalise: Callable[[Float], torch.Tensor],
    ) -> Self | None:
        """Over the data set folders that have a validation subset; None when there is none. Raises ShardError."""
        found = [
            ShardSet(path, SUBSET, config.stream.crop_frames)
            for path, shards in zip(data, trained, strict=True)
            if shards.card.subsets.get(SUBSET)
        ]
        return cls(found, config, normalise) if found else None

    @torch.no_grad()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        """``val_loss`` (mean over the tasks) and ``val_loss_TASK``."""
        figures = {}
        for number, (name, patterns) in enumerate(PATTERNS.items()):
            rng = generator(self._seed, Purpose.VALIDATION_NOISE, number)
            tau = patterns.sample(len(self._latents), rng).to(self._latents.device)
            noise = torch.from_numpy(rng.standard_normal(self._latents.shape, dtype=np.float32)).to(tau.device)
            noised = self._process.corrupt(self._latents, noise, tau)
            parts = zip(*(whole.split(self._batch) for whole in (noised, tau, self._embeddings)), strict=True)
            v = torch.cat([network(*part) for part in parts])
            figures[f"val_loss_{name}"] = v_loss(v, self._process.target(self._latents, noise, tau), tau).item()
        return {"val_loss": float(np.mean(list(figures.values()))), **figures}
