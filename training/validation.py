"""Validation on a fixed list of examples with fixed noise: the loss for each of the ways the model is used."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from mgeldm.diffusion.schedule import PROCESSES
from mgeldm.diffusion.timesteps import SubsetPatterns, TimestepPatterns
from training.config import TrainConfig
from training.noising import Examples, Noising, Patterns, noised, track_errors
from training.parallel import Workers
from training.randomness import Purpose, uniforms
from training.stream import ShardSet

SUBSET = "validation"
LARGEST = 64
"""Windows of a data set that are used."""
PATTERNS = {
    "generate": TimestepPatterns(all=1, mix_given=0, submix_given=0, source_given=0),
    "extract": TimestepPatterns(all=0, mix_given=1, submix_given=0, source_given=0),
    "impute": TimestepPatterns(all=0, mix_given=0, submix_given=1, source_given=0),
    "accompany": TimestepPatterns(all=0, mix_given=0, submix_given=0, source_given=1),
}
GIVEN = {"generate": None, "extract": "mix", "impute": "submix", "accompany": "source"}
BINS = ("0.00", "0.25", "0.50", "0.75")
"""Lower ends of the bins of noise levels."""

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


class Validation:
    """The same examples, noise and timesteps at every call, for any number of processes.

    Each process takes every so many-th example, the last filled up with examples that do not count, so that all do the
    same work.
    """

    def __init__(
        self, sets: Sequence[ShardSet], config: TrainConfig, mean: Tensor, std: Tensor, workers: Workers
    ) -> None:
        """Take evenly spaced windows of each data set; their crops and conditions do not change.

        No condition is dropped, so that runs with more and with less dropout can be compared.
        """
        self._mean, self._std, self._workers, self._tracks = mean, std, workers, config.tracks
        self._batch, self._process = max(1, config.stream.batch // workers.world), PROCESSES[config.objective]
        seed = config.stream.seed
        chosen = [
            (place, int(number))
            for place, shards in enumerate(sets)
            for number in np.linspace(0, len(shards) - 1, min(LARGEST, len(shards))).astype(int)
        ]
        filled = -(-len(chosen) // workers.world) * workers.world
        mine = range(workers.rank, filled, workers.world)
        examples = []
        for number in mine:
            place, row = chosen[number % len(chosen)]
            shards = sets[place]
            levels = uniforms(seed, Purpose.VALIDATION_EXAMPLE, place, first=row, count=1, width=shards.levels)
            examples.append(shards.drawn(np.array([row]), levels, 0.0))
        latents, embeddings, present = (np.concatenate(part) for part in zip(*examples, strict=True))
        real = torch.tensor([float(number < len(chosen)) for number in mine])[:, None]
        self.tasks: dict[str, Examples] = {}
        for name, (task, patterns) in _tasks(config).items():
            noising = Noising(seed=config.seed, purpose=Purpose.VALIDATION_NOISE, patterns=patterns)
            made = noising.examples(latents, embeddings, present, [len(PATTERNS) * number + task for number in mine])
            self.tasks[name] = replace(made, counted=made.counted * real).to(workers.device)

    @classmethod
    def of(
        cls,
        data: Sequence[Path | str],
        trained: Sequence[ShardSet],
        config: TrainConfig,
        mean: Tensor,
        std: Tensor,
        workers: Workers,
    ) -> Self | None:
        """Over the data set folders that have a validation subset; None when there is none. Raises ShardError."""
        found = [
            config.open(path, SUBSET)
            for path, shards in zip(data, trained, strict=True)
            if shards.card.subsets.get(SUBSET)
        ]
        return cls(found, config, mean, std, workers) if found else None

    @torch.no_grad()
    def __call__(self, network: Network) -> dict[str, float]:
        """``val_loss`` (mean over the tasks), and ``val_loss_`` of each task, track and bin of noise levels."""
        shape = len(self.tasks), len(self._tracks), len(BINS)
        errors, counts = (torch.zeros(shape, device=self._workers.device, dtype=torch.float64) for _ in range(2))
        for task, examples in enumerate(self.tasks.values()):
            for part in examples.split(-(-len(examples.tau) // self._batch)):
                noisy, target = noised(part, self._process, self._mean, self._std)
                error = track_errors(network(noisy, part.tau, part.embeddings), target)
                bins = (part.tau * len(BINS)).long().clamp(max=len(BINS) - 1)
                for number in range(len(BINS)):
                    here = part.counted * (bins == number)
                    # Not a product: what is predicted of a given track may be anything, even infinite.
                    errors[task, :, number] += torch.where(here > 0, error, 0.0).sum(dim=0)
                    counts[task, :, number] += here.sum(dim=0)
        errors, counts = self._workers.total(torch.stack([errors, counts])).cpu()
        tasks = {name: (errors[n], counts[n]) for n, name in enumerate(self.tasks)}
        parts = {name: (errors[:, n], counts[:, n]) for n, name in enumerate(self._tracks)}
        parts |= {f"from_{name}": (errors[..., n], counts[..., n]) for n, name in enumerate(BINS)}
        figures = {
            name: (error.sum() / count.sum()).item() for name, (error, count) in (tasks | parts).items() if count.any()
        }
        mean = float(np.mean([value for name, value in figures.items() if name in tasks]))
        return {"val_loss": mean} | {f"val_loss_{name}": value for name, value in figures.items()}


def _tasks(config: TrainConfig) -> dict[str, tuple[int, Patterns]]:
    """The ways in which a model of these tracks is used: a number for each, and which tracks are given."""
    if stems := len(config.stems.instruments):
        weights = {"generate": (1.0,), "impute": (0.0, *[1.0] * (stems - 1))}
        return {
            name: (task, SubsetPatterns(tracks=stems, weights=given))
            for task, (name, given) in enumerate(weights.items())
            if any(given)
        }
    return {
        name: (task, patterns)
        for task, (name, patterns) in enumerate(PATTERNS.items())
        if GIVEN[name] is None or (GIVEN[name] in config.present and len(config.present) > 1)
    }
