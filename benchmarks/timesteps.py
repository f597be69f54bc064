"""Whether a timestep for each track does its work: the same network, budget and seeds, with it and with one for all.

Validation losses of extraction and imputation, the given track clean, on the example corpora, or on the encoded data
set that ``TIMESTEPS_DATA`` names, for ``TIMESTEPS_STEPS`` steps.
"""

import os
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.result import Result, example_data
from mgeldm.diffusion.timesteps import TimestepPatterns
from training.config import load_recipe, recipe_path
from training.loop import train
from training.run_files import METRICS_FILE, read_metrics

SEEDS = (0, 1, 2)
STEPS = int(os.environ.get("TIMESTEPS_STEPS", "400"))
DATA = os.environ.get("TIMESTEPS_DATA", "")
WAYS = {
    "per track": TimestepPatterns(),
    "one for all": TimestepPatterns(all=1, mix_given=0, submix_given=0, source_given=0),
}
TASKS = ("extract", "impute")


def run() -> Iterator[Result]:
    losses = {(way, seed): validated(patterns, seed) for seed in SEEDS for way, patterns in WAYS.items()}
    for task in TASKS:
        by_way = {way: [losses[way, seed][f"val_loss_{task}"] for seed in SEEDS] for way in WAYS}
        per_track, one = (statistics.mean(by_way[way]) for way in WAYS)
        yield Result(
            name=f"timesteps.{task}",
            value=one / per_track,
            unit="x lower loss",
            goal=1.0,
            better="higher",
            detail={way: " ".join(f"{loss:.4f}" for loss in found) for way, found in by_way.items()}
            | {"steps": STEPS, "seeds": len(SEEDS), "data": Path(DATA).name or "example corpora"},
        )


def validated(patterns: TimestepPatterns, seed: int) -> dict[str, float]:
    """The last validation of a run of the recipe tiny."""
    recipe = load_recipe(recipe_path("tiny"))
    config = replace(
        recipe,
        steps=STEPS,
        validate_every=STEPS,
        save_every=STEPS,
        seed=seed,
        patterns=patterns,
        stream=replace(recipe.stream, seed=seed),
    )
    with tempfile.TemporaryDirectory() as folder:
        train(config, [(DATA or example_data() / "data", None)], Path(folder))
        return read_metrics(Path(folder) / METRICS_FILE)[-1]
