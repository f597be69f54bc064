"""A training struck at random steps by SIGKILL, SIGTERM and SIGINT, and resumed: bitwise the undisturbed run."""

import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.result import Result
from tests.support.shards import write_dataset
from tests.support.training_processes import SAME, command, rows, strike, write_recipe
from tests.support.training_processes import run as train_to_end

STRIKES = int(os.environ.get("TRAINING_STRIKES", "20"))
STEPS = 150


def run() -> Iterator[Result]:
    begin, draws = time.monotonic(), random.Random(0)
    with tempfile.TemporaryDirectory(prefix="drill-") as folder:
        data = write_dataset(Path(folder) / "data", {"train": 9, "validation": 3}, frames=12)
        recipe = write_recipe(Path(folder) / "toy.yaml", steps=STEPS)
        straight, struck = Path(folder) / "straight", Path(folder) / "struck"
        train_to_end(command(recipe, data, straight))
        steps = []
        for number in range(STRIKES):
            strike(command(recipe, data, struck), struck, number, draws, 12)
            steps.append(int(rows(struck)[-1]["step"]))
        train_to_end(command(recipe, data, struck))
        differing = [name for name in SAME if (straight / name).read_bytes() != (struck / name).read_bytes()]
    yield Result(
        name="training.strikes_survived",
        value=0 if differing else STRIKES,
        unit="strikes",
        goal=float(STRIKES),
        better="higher",
        detail={
            "steps": STEPS,
            "struck_after_step": " ".join(map(str, steps)),
            "files_that_differ": " ".join(differing) or "none",
            "seconds": round(time.monotonic() - begin),
        },
    )
