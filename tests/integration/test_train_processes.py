"""Training by real processes: the same curve as by one, ends by signals, and what they go on to."""

import json
import os
import random
import shlex
import shutil
import signal
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from manifests.shards import SHARDS_FOLDER, read_index
from tests.support.shards import write_dataset
from tests.support.training import audible
from tests.support.training_processes import SAME, STRIKES, command, losses, rows, run, start, strike, write_recipe
from training.stream import Stream, StreamConfig


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return audible(tmp_path_factory.mktemp("data"), train=9, frames=12)


@pytest.fixture(scope="module")
def data(heard: tuple[Path, Path]) -> Path:
    return heard[0]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe") / "toy.yaml")


@pytest.fixture(scope="module")
def alone(recipe: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of one process."""
    out = tmp_path_factory.mktemp("alone")
    assert run(command(recipe, data, out))["steps"] == 50
    return out


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--accumulate", "2"], ["--parallel", "fsdp"]], ids=["ddp", "fsdp"])
def test_two_processes_give_the_curve_of_one(
    recipe: Path, data: Path, alone: Path, tmp_path: Path, options: list[str]
) -> None:
    run(command(recipe, data, tmp_path, *options, processes=2))
    assert len(losses(tmp_path)) == 50
    np.testing.assert_allclose(losses(tmp_path), losses(alone), rtol=0, atol=1e-5)
    for ours, theirs in zip(rows(tmp_path), rows(alone), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_the_number_of_processes_may_change_on_the_way(
    recipe: Path, heard: tuple[Path, Path], alone: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data, codec = heard
    for steps, processes, options in (
        (14, 2, ["--parallel", "fsdp", "--tensorboard", "true", "--listen_every", "7", "--codec", str(codec)]),
        (28, 1, []),
        (50, 2, []),
    ):
        run(command(recipe, data, tmp_path, "--steps", str(steps), *options, processes=processes))
    np.testing.assert_allclose(losses(tmp_path), losses(alone), rtol=0, atol=1e-5)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"audio": 0})
    events.Reload()
    samples = {tag: [event.step for event in events.Audio(tag)] for tag in events.Tags()["audio"]}
    assert len(samples) == 8, "of the sharded network too, which all processes must run together"
    assert samples["extract/source"] == samples["generate/mix"] == [7, 14]


@pytest.mark.slow
def test_processes_that_see_different_folders_do_not_train(
    recipe: Path, data: Path, alone: Path, tmp_path: Path
) -> None:
    shutil.copytree(alone, tmp_path / "0")
    words = command(recipe, data, tmp_path / "RANK", processes=2)
    begin = words.index("-m", 2)
    inner = shlex.join([sys.executable, *words[begin:]]).replace("/RANK", '/"$RANK"')
    process = start([*words[:begin], "--no-python", "bash", "-c", f"exec {inner}"])
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "processes find states of different steps, 0 to 50; --out must be one folder that all of them see" in err
    assert not rows(tmp_path / "1")


@pytest.mark.slow
def test_struck_at_random_steps_and_resumed_the_run_is_bitwise_the_same(
    recipe: Path, data: Path, alone: Path, tmp_path: Path
) -> None:
    draws = random.Random(0)
    for number, kind in enumerate(STRIKES):
        status, printed = strike(command(recipe, data, tmp_path), tmp_path, number, draws, 9)
        if kind is signal.SIGINT:
            assert status == 130
        if kind is signal.SIGTERM:
            assert status == 0
            summary = json.loads(printed)
            assert summary["stopped"]
            assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == summary["steps"]
    assert run(command(recipe, data, tmp_path))["steps"] == 50
    for name in SAME:
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


@pytest.mark.slow
def test_what_one_process_alone_meets_is_told_by_it(recipe: Path, tmp_path: Path) -> None:
    """The first example of the second process is damaged; the first process would come to it long after."""
    data = write_dataset(tmp_path / "data", {"train": 40}, frames=12)
    config = StreamConfig(crop_frames=6, batch=2)
    stream = Stream([config.open(data, "train")], None, config, rank=1, world=2)
    with closing(stream.batches(stream.start())) as batches:
        (key,) = next(batches).keys
    first, row = read_index(data)[0], next(row for row in read_index(data) if row.key == key)
    assert key != first.key, "which each process reads to begin with"
    shard = data / SHARDS_FOLDER / row.shard
    content = bytearray(shard.read_bytes())
    content[row.latents_offset : row.latents_offset + 4] = b"torn"
    shard.write_bytes(content)
    options = ["--stream.batch", "2", "--steps", "1"]
    process = start(command(recipe, data, tmp_path / "run", *options, processes=2))
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    # The other process's progress may stand before it.
    told = [line.partition("training: ")[2] for line in err.splitlines()]
    assert any(row.key in line and row.shard in line for line in told), err[-3000:]
