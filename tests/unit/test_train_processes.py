"""Training by real processes: the same curve as by one, ends by signals, and what they go on to."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.support.shards import write_dataset

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "a", {"train": 9, "validation": 3}, frames=12)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "toy.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def command(recipe: Path, data: Path, out: Path, *options: str, processes: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    words = ["-m", "training", str(recipe), "--data", str(data), "--out", str(out), *options]
    return [sys.executable, *(launcher if processes > 1 else []), *words]


def start(words: list[str]) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        words, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )


def run(words: list[str]) -> dict[str, Any]:
    """The summary that a command prints."""
    process = start(words)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err[-3000:]
    summary: dict[str, Any] = json.loads(out.splitlines()[-1])
    return summary


def rows(out: Path) -> list[dict[str, float]]:
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in rows(out) if "loss" in row]


@pytest.fixture(scope="module")
def alone(recipe: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of one process."""
    out = tmp_path_factory.mktemp("alone")
    assert run(command(recipe, data, out))["steps"] == 50
    return out


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--accumulate", "2"], ["--parallel", "fsdp"]], ids=["ddp", "parts", "fsdp"])
def test_two_processes_give_the_curve_of_one(
    recipe: Path, data: Path, alone: Path, tmp_path: Path, options: list[str]
) -> None:
    run(command(recipe, data, tmp_path, *options, processes=2))
    assert len(losses(tmp_path)) == 50
    np.testing.assert_allclose(losses(tmp_path), losses(alone), rtol=0, atol=1e-5)
    for ours, theirs in zip(rows(tmp_path), rows(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_the_number_of_processes_may_change_on_the_way(recipe: Path, data: Path, alone: Path, tmp_path: Path) -> None:
    for steps, processes, options in (
        (14, 2, ["--parallel", "fsdp"]),
        (28, 1, []),
        (35, 2, ["--parallel", "fsdp"]),
        (50, 2, []),
    ):
        run(command(recipe, data, tmp_path, "--steps", str(steps), *options, processes=processes))
    np.testing.assert_allclose(losses(tmp_path), losses(alone), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_struck_at_random_steps_and_resumed_the_run_is_bitwise_the_same(
    recipe: Path, data: Path, alone: Path, tmp_path: Path
) -> None:
    draws = random.Random(0)
    for strike in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        at = (rows(tmp_path)[-1]["step"] if rows(tmp_path) else 0) + draws.randint(1, 9)
        process = start(command(recipe, data, tmp_path))
        while process.poll() is None and not any(row["step"] >= at for row in rows(tmp_path)[-1:]):
            time.sleep(0.002)
        process.send_signal(strike)
        out, err = process.communicate(timeout=60)
        if strike is signal.SIGTERM:
            assert process.returncode == 0, err
            summary = json.loads(out)
            assert summary["stopped"]
            assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == summary["steps"]
    assert run(command(recipe, data, tmp_path))["steps"] == 50
    for name in ("metrics.jsonl", "checkpoint/model.safetensors", "best/model.safetensors", "recipe.json"):
        assert (tmp_path / name).read_bytes() == (alone / name).read_bytes(), name


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_saves_and_ends_both(recipe: Path, data: Path, tmp_path: Path) -> None:
    process = start(command(recipe, data, tmp_path, "--steps", "100000", processes=2))
    while process.poll() is None and len(rows(tmp_path)) < 5:
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err[-3000:]
    assert json.loads(out.splitlines()[-1])["stopped"]
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == rows(tmp_path)[-1]["step"]


@pytest.mark.slow
def test_a_batch_that_cannot_be_divided_is_refused_in_one_line(recipe: Path, data: Path, tmp_path: Path) -> None:
    process = start(command(recipe, data, tmp_path / "run", "--stream.batch", "5", processes=2))
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    told = [line for line in err.splitlines() if line.startswith("training: ")]
    assert told == [
        "training: stream.batch 5 cannot be divided among 2 processes in 1 parts each (accumulate); "
        "choose a multiple of 2"
    ]
    assert not (tmp_path / "run").exists()
