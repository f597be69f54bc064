"""Training by real processes, and strikes against them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
STRIKES = (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT)
"""In turn."""
SAME = ("metrics.jsonl", "checkpoint/model.safetensors", "best/model.safetensors", "recipe.json")
"""Files that must be the same, byte for byte, as without strikes."""
RECIPE: dict[str, Any] = {
    "steps": 50,
    "learning_rate": 1e-3,
    "warmup": 10,
    "ema": 0.9,
    "device": "cpu",
    "save_every": 7,
    "validate_every": 20,
    "log_every": 1,
    "model": {"width_per_track": 32, "depth": 1, "heads": 3},
    "stream": {"crop_frames": 6, "batch": 4},
}


def write_recipe(path: Path, **changes: Any) -> Path:
    """A recipe that takes seconds."""
    path.write_text(yaml.safe_dump(RECIPE | changes))
    return path


def command(recipe: Path, data: Path, out: Path, *options: str, processes: int = 1) -> list[str]:
    """The words that start a training."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    words = ["-m", "training", str(recipe), "--data", str(data), "--out", str(out), *options]
    return [sys.executable, *(launcher if processes > 1 else []), *words]


def start(words: Sequence[str]) -> "subprocess.Popen[str]":
    """Start a training."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        words,
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background of a shell, they and all that they start are deaf to SIGINT.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def run(words: Sequence[str]) -> dict[str, Any]:
    """Train to the end. Returns the summary that is printed."""
    process = start(words)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    summary: dict[str, Any] = json.loads(out.splitlines()[-1])
    return summary


def rows(out: Path) -> list[dict[str, float]]:
    """The metrics so far."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses(out: Path) -> list[float]:
    """Training losses so far."""
    return [row["loss"] for row in rows(out) if "loss" in row]


def strike(words: Sequence[str], out: Path, number: int, draws: random.Random, furthest: int) -> tuple[int, str]:
    """Train on, and strike some steps later. Returns the exit status and what was printed."""
    reached = rows(out)[-1]["step"] if rows(out) else 0
    at = reached + draws.randint(1, furthest)
    process = start(words)
    while process.poll() is None and not any(row["step"] >= at for row in rows(out)[-1:]):
        time.sleep(0.002)
    process.send_signal(STRIKES[number % len(STRIKES)])
    printed, _ = process.communicate(timeout=60)
    return process.returncode, printed
