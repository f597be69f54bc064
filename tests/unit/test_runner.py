from collections.abc import Iterator

import pytest

from manifests.errors import AudioError, ConfigError
from pipelines.runner import RunnerConfig, run_units
from tests.support import workers

LOCAL = RunnerConfig(runner="local")
UNITS = list(range(7))


def test_every_unit_gives_its_result() -> None:
    assert dict(run_units(UNITS, workers.build_square, LOCAL)) == {n: n * n for n in UNITS}


def test_no_units_start_nothing() -> None:
    assert list(run_units([], workers.build_broken, LOCAL)) == []
    assert list(run_units([], workers.build_broken, RunnerConfig(address="nowhere:1"))) == []


def test_what_a_worker_raises_ends_the_job_as_it_is() -> None:
    with pytest.raises(AudioError) as caught:
        list(run_units(UNITS, workers.build_failing, LOCAL))
    assert (str(caught.value), caught.value.code) == ("unit 2 is odd", "truncated")


def test_what_building_a_worker_raises_ends_the_job_as_it_is() -> None:
    with pytest.raises(AudioError) as caught:
        list(run_units(UNITS, workers.build_broken, LOCAL))
    assert (str(caught.value), caught.value.code) == ("no such model", "missing")


def test_results_come_as_they_are_ready() -> None:
    results: Iterator[tuple[int, int]] = run_units(UNITS, workers.build_failing, LOCAL)
    assert [next(results), next(results)] == [(0, 0), (1, 1)]


def test_numbers_must_not_be_negative() -> None:
    with pytest.raises(ConfigError, match="workers -1"):
        RunnerConfig(workers=-1)
    with pytest.raises(ConfigError, match="retries -2"):
        RunnerConfig(retries=-2)
    with pytest.raises(ConfigError, match="max_gpus 2 is less than min_gpus 3"):
        RunnerConfig(min_gpus=3, max_gpus=2)
    with pytest.raises(ConfigError, match="max_gpus 1 is less"):
        RunnerConfig(gpus_per_worker=2, max_gpus=1)
    with pytest.raises(ConfigError, match="wait_s nan"):
        RunnerConfig(wait_s=float("nan"))
    assert RunnerConfig().gpus_each == 0
    assert RunnerConfig(max_gpus=4).gpus_each == 1
    assert RunnerConfig(gpus_per_worker=0.5).gpus_each == 0.5


def test_an_address_where_nobody_listens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
        with pytest.raises(ConfigError, match=f"{address}: no Ray cluster answers .*refused"):
            list(run_units(UNITS, workers.build_square, RunnerConfig(address=address)))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:2")
    with pytest.raises(ConfigError, match=r"127.0.0.1:2: no Ray cluster answers"):
        list(run_units(UNITS, workers.build_square, RunnerConfig()))
