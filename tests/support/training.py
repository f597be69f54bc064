"""A training that takes a second, and what a run in this process consists of."""

import json
from pathlib import Path

import torch

from training.config import ModelSize, TrainConfig
from training.loop import Prepared, open_data, prepared
from training.parallel import Workers
from training.run import Run
from training.stream import StreamConfig

ALONE = Workers(torch.device("cpu"))
SIX_STEPS = TrainConfig(
    steps=6,
    warmup=2,
    ema=0.9,
    device="cpu",
    save_every=2,
    validate_every=3,
    log_every=1,
    model=ModelSize(width_per_track=32, depth=1, heads=3),
    stream=StreamConfig(crop_frames=6, batch=4),
)


def made(config: TrainConfig, data: Path, out: Path) -> tuple[Run, Prepared]:
    """A run at its beginning and its first batch."""
    sets, stream = open_data(config, [(data, None)])
    batches = prepared(stream, stream.start(), config, ALONE)
    batch = next(batches)
    batches.close()
    return Run(config, sets, stream.shares, out, ALONE), batch


def metrics(out: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
