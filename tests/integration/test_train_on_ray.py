"""Training on Ray: two processes on CPUs, one of which fails on the way."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from manifests.errors import ConfigError, ShardError
from tests.support.shards import write_dataset
from tests.support.training import SIX_STEPS, metrics
from training.loop import train
from training.on_ray import _absolute, _check_resources, _signals, train_on_ray

CONFIG = replace(SIX_STEPS, steps=8, save_every=3, validate_every=4)


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in metrics(out) if "loss" in row]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    ray.init(num_cpus=4, include_dashboard=False, logging_level="warning")
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_one_of_which_fails_give_the_curve_of_one_process(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_dataset(tmp_path / "data", {"train": 9, "validation": 3}, frames=12)
    train(CONFIG, [(data, None)], tmp_path / "alone")
    out = tmp_path / "ray"
    train(replace(CONFIG, steps=2, seed=1), [(data, None)], out)  # another run, which is to be given up
    failed = tmp_path / "failed"

    def failing_step(run: object) -> None:
        """Ends the process of rank 1 after step 5, once."""
        if os.environ["RANK"] == "1" and getattr(run, "step", 0) == 5 and not failed.exists():
            failed.touch()
            os._exit(1)

    summary = train_on_ray(CONFIG, [(data, None)], out, cpu_workers=2, after_step=failing_step, resume=False)
    assert failed.exists()
    assert (summary.steps, summary.stopped) == (8, False)
    np.testing.assert_allclose(losses(out), losses(tmp_path / "alone"), atol=1e-5)
    assert sorted(path.name for path in out.iterdir()) == [
        "best", "checkpoint", "metrics.jsonl", "ray", "recipe.json", "state.pt"
    ]  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
def test_what_a_process_refuses_is_not_tried_again_and_gives_up_no_earlier_run(
    cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_dataset(tmp_path / "data", {"train": 9, "validation": 3}, frames=12)
    out = tmp_path / "ray"
    train(replace(CONFIG, steps=2), [(data, None)], out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"^wandb 'mine': the package is not installed"):
        train_on_ray(replace(CONFIG, wandb="mine"), [(data, None)], out, cpu_workers=1, resume=False)
    assert "start anew" not in caplog.text
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name for path in out.iterdir()} - {path.name for path in before} == {"best", "checkpoint", "ray"}


@pytest.mark.ray
@pytest.mark.slow
def test_sigterm_to_the_one_that_started_it_saves_and_ends(cluster: None, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", {"train": 9}, frames=12)
    out, driver = tmp_path / "ray", os.getpid()

    def stopping_step(run: object) -> None:
        if getattr(run, "step", 0) == 3:
            os.kill(driver, signal.SIGTERM)
        while getattr(run, "step", 0) == 3 and not (out / ".ray-stop").exists():
            time.sleep(0.01)

    config = replace(CONFIG, steps=1000, save_every=1000)
    summary = train_on_ray(config, [(data, None)], out, cpu_workers=2, after_step=stopping_step)
    # The step after it has been asked to.
    assert (summary.steps, summary.stopped) == (4, True)
    assert torch.load(out / "state.pt", weights_only=True)["step"] == 4
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint",
        "metrics.jsonl",
        "ray",
        "recipe.json",
        "state.pt",
    ]


def test_what_cannot_be_divided_is_refused_before_ray_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be divided among 3 processes"):
        train_on_ray(CONFIG, [(tmp_path, None)], tmp_path / "out", nodes=1, gpus_per_node=3)
    with pytest.raises(ConfigError, match="0 nodes of 1 GPUs are no process"):
        train_on_ray(replace(CONFIG, steps=1), [(tmp_path, None)], tmp_path / "out", nodes=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_devices_that_are_not_there(cluster: None, caplog: pytest.LogCaptureFixture) -> None:
    _check_resources(4, "CPU", growing=False)
    with pytest.raises(ConfigError, match=r"^2 processes need a GPU each, and this machine gives Ray 0; ask for fewer"):
        _check_resources(2, "GPU", growing=False)
    assert caplog.records == []
    _check_resources(9, "CPU", growing=True)
    assert [record.getMessage() for record in caplog.records] == [
        "the cluster has 4 CPUs, and 9 are needed: waiting until it has them"
    ]


def test_a_state_is_given_up_only_for_data_that_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "state.pt").write_text("hours of work")
    with pytest.raises(ShardError, match="missing"):
        train_on_ray(CONFIG, [(tmp_path / "nowhere", None)], tmp_path, cpu_workers=1, resume=False)
    assert (tmp_path / "state.pt").read_text() == "hours of work"


def test_sigterm_asks_those_at_work_and_ends_where_none_is(tmp_path: Path) -> None:
    stop, running = tmp_path / "stop", tmp_path / "running"
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), _signals(stop, running):
        os.kill(os.getpid(), signal.SIGTERM)
    assert not stop.exists()
    running.touch()
    with _signals(stop, running):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.exists()
    with pytest.raises(KeyboardInterrupt), _signals(stop, running):
        sys.exit(0)  # as Ray does at SIGINT
    assert signal.getsignal(signal.SIGTERM) is before


def test_paths_are_those_of_the_one_that_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "codec").mkdir()
    found = _absolute(replace(CONFIG, codec="codec", stream=replace(CONFIG.stream, cache="cache")))
    assert (found.codec, found.stream.cache) == (str(tmp_path / "codec"), str(tmp_path / "cache"))
    assert _absolute(CONFIG) == CONFIG
