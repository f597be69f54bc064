import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from manifests.errors import AudioError, ConfigError
from pipelines.runner import RunnerConfig, WorkerDied, run_units
from tests.support import workers

UNITS = list(range(7))

pytestmark = pytest.mark.ray


def test_every_unit_gives_its_result(on_ray: RunnerConfig) -> None:
    assert dict(run_units(UNITS, workers.build_square, on_ray)) == {n: n * n for n in UNITS}


@pytest.mark.parametrize(
    ("build", "message", "code"),
    [
        (workers.build_failing, "unit 2 is odd", "truncated"),
        (workers.build_broken, "no such model", "missing"),
    ],
)
def test_what_a_worker_or_its_making_raises_ends_the_job_as_it_is(
    on_ray: RunnerConfig, build: workers.Build, message: str, code: str
) -> None:
    with pytest.raises(AudioError) as caught:
        list(run_units(UNITS, build, on_ray))
    assert (str(caught.value), caught.value.code) == (message, code)


def test_warnings_of_workers_are_logged_here_once(on_ray: RunnerConfig, caplog: pytest.LogCaptureFixture) -> None:
    assert sorted(unit for _, unit in run_units([0, 1], workers.build_warning, on_ray)) == [0, 1]
    lines = [(record.name, record.levelname, record.getMessage()) for record in caplog.records]
    assert sorted(line for line in lines if line[0] == "tests.worker") == [
        ("tests.worker", "WARNING", "unit 0 is odd"),
        ("tests.worker", "WARNING", "unit 1 is odd"),
    ]
    assert any("numbers are getting large" in text for name, _, text in lines if name == "py.warnings")
    assert logging.getLogger("tests.worker").level == logging.NOTSET


def test_a_worker_that_dies_is_started_again(
    on_ray: RunnerConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build = partial(workers.build_dying, tmp_path, 1)
    assert dict(run_units(UNITS, build, on_ray)) == {n: n * n for n in UNITS}
    assert len(list(tmp_path.iterdir())) == 1
    assert "unit 3 killed its worker" in caplog.text


def test_a_unit_that_always_kills_its_worker_is_left_out_and_the_job_goes_on(
    on_ray: RunnerConfig, tmp_path: Path
) -> None:
    build = partial(workers.build_dying, tmp_path, 99)
    found = dict(run_units(UNITS, build, replace(on_ray, retries=1, workers=1)))
    dead = found.pop(3)
    assert found == {n: n * n for n in UNITS if n != 3}
    assert isinstance(dead, WorkerDied)
    assert dead.message.startswith("the worker that had it died 2 times; run with --runner local to see why")
    assert "\n" not in dead.message
    assert len(list(tmp_path.iterdir())) == 2


def test_workers_are_processes_and_more_than_fit_do_not_hang(on_ray: RunnerConfig) -> None:
    config = replace(on_ray, workers=5)
    processes = {result for _, result in run_units(list(range(8)), workers.build_process_ids, config)}
    assert len(processes) == 2
    assert os.getpid() not in processes


def test_cores_are_shared_out_as_math_threads(on_ray: RunnerConfig) -> None:
    assert dict(run_units([1], workers.build_threads, replace(on_ray, workers=1))) == {0: 2}


def test_torch_is_not_forced_on_workers(on_ray: RunnerConfig) -> None:
    assert dict(run_units([1], workers.build_modules, on_ray)) == {0: 0}


def test_gpus_that_are_not_there_are_refused(on_ray: RunnerConfig) -> None:
    with pytest.raises(ConfigError, match="asks for 1 GPUs, the Ray cluster has 0"):
        list(run_units(UNITS, workers.build_square, replace(on_ray, gpus_per_worker=1)))


def test_gpus_that_do_not_come_in_time_are_told(on_ray: RunnerConfig) -> None:
    config = replace(on_ray, max_gpus=2, wait_s=1.0)
    with pytest.raises(ConfigError, match=r"0 of 1 workers found room .* within 1 s; it has 2 CPUs and 0 GPUs"):
        list(run_units(UNITS, workers.build_square, config))


_GROWING = """
import functools, json
import ray
from ray.cluster_utils import Cluster
from pipelines.runner import RunnerConfig, WorkerDied, run_units
from tests.support import workers

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80 << 20})
config = RunnerConfig(address=cluster.address, min_gpus=1, max_gpus=2)
seen = []
for index, process in run_units(list(range(24)), functools.partial(workers.build_process_ids, 1.0), config):
    seen.append(process)
    if len(seen) == 1:
        cluster.add_node(num_cpus=2, num_gpus=4, object_store_memory=80 << 20)
print(json.dumps(seen))
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_workers_join_when_the_cluster_grows_up_to_the_most_that_was_asked_for(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if "RAY" not in key}
    done = subprocess.run(
        [sys.executable, "-c", _GROWING], env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert len(seen) == 24
    # The first alone, then both; the node that came would have had room for four.
    assert len(set(seen)) == 2
    assert len(set(seen[-4:])) == 2


@pytest.mark.slow
def test_a_cluster_of_our_own_is_quiet_and_workers_find_the_package(tmp_path: Path) -> None:
    code = (
        "import functools, sys\n"
        "from pipelines.runner import RunnerConfig, run_units\n"
        "from mgeldm.audio import resampled_frames\n"
        "build = functools.partial(functools.partial, resampled_frames, rate=2, target=4)\n"
        "print(sorted(run_units([1, 2, 3], build, RunnerConfig(workers=1))))\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH" and "RAY" not in key}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "[(0, 2), (1, 4), (2, 6)]\n"
