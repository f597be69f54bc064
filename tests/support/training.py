"""A training that takes a second, and what a run in this process consists of."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from mgeldm.codec import load_codec
from tests.support.models import write_codec
from tests.support.shards import CHANNELS, write_dataset
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


def audible(folder: Path, train: int = 4, frames: int = 80) -> tuple[Path, Path]:
    """A data set with three validation windows, and the folder of the codec that its latents are of."""
    made = write_codec(folder / "codec", latent_channels=CHANNELS)
    codec = load_codec(str(made))
    known = {"identity": codec.identity, "spec": asdict(codec.spec)}
    subsets = {"train": train, "validation": 3}
    return write_dataset(folder / "data", subsets, frames=frames, codec=known, latent_mean=(0.0,) * CHANNELS), made


def metrics(out: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
