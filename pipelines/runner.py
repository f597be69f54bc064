"""Running the units of a job: in this process, or on Ray. Same units, same results.

A worker is built once per process by ``build()`` (this is where models are loaded) and called with one unit at a time.
Bad input is the worker's to record in its result; an exception that leaves it is a defect and ends the job.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from manifests.errors import ConfigError

U = TypeVar("U")
R = TypeVar("R")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """Where and how wide a job runs."""

    runner: Literal["ray", "local"] = "ray"
    """"ray": actors on a Ray cluster, started here if there is none; "local": this process, one unit at a time."""
    workers: int = 0
    """Number of Ray actors; 0: one per CPU (or per GPU where the stage asks for one)."""
    gpus_per_worker: float = 0.0
    """GPUs that each actor asks Ray for."""
    address: str | None = None
    """Address of a running Ray cluster; None starts one on this machine."""
    retries: int = 3
    """How often a unit is given out again after its actor died."""

    def __post_init__(self) -> None:
        if self.workers < 0 or self.retries < 0:
            raise ConfigError(f"workers {self.workers} and retries {self.retries} must not be negative")


def run_units(
    units: Sequence[U], build: Callable[[], Callable[[U], R]], config: RunnerConfig
) -> Iterator[tuple[int, R]]:
    """Yield ``(index of the unit, its result)`` as units finish.

    ``build`` must be picklable (a module-level class or a `functools.partial`).
    """
    if not units:
        return
    if config.runner == "local":
        work = build()
        for index, unit in enumerate(units):
            yield index, work(unit)
    else:
        yield from _run_on_ray(units, build, config)


def _run_on_ray(
    units: Sequence[U], build: Callable[[], Callable[[U], R]], config: RunnerConfig
) -> Iterator[tuple[int, R]]:
    import ray

    connect(config)
    resources = ray.cluster_resources()
    available = resources.get("GPU", 0) / config.gpus_per_worker if config.gpus_per_worker else resources.get("CPU", 1)
    count = max(1, min(config.workers or int(available), len(units)))
    # One math thread per core that the actor was given: more would fight the other actors.
    threads = max(1, int(resources.get("CPU", 1)) // count)

    @ray.remote(num_cpus=1, num_gpus=config.gpus_per_worker, max_restarts=-1, max_task_retries=0)
    class Actor:
        def __init__(self) -> None:
            _limit_threads(threads)
            self.work = build()

        def call(self, unit: Any) -> Any:
            return self.work(unit)

    actors = [Actor.remote() for _ in range(count)]
    pending = list(enumerate(units))[::-1]
    deaths = [0] * len(units)
    running: dict[Any, tuple[Any, int]] = {}
    try:
        for actor in actors:
            _give(actor, pending, units, running)
        while running:
            ready, _ = ray.wait(list(running), num_returns=1)
            actor, index = running.pop(ready[0])
            try:
                result = ray.get(ready[0])
            except ray.exceptions.RayActorError as error:
                deaths[index] += 1
                if deaths[index] > config.retries:
                    raise RuntimeError(f"unit {index} killed its worker {deaths[index]} times: {error}") from error
                logger.warning("a worker died on unit %d and is started again (%s)", index, type(error).__name__)
                pending.append((index, units[index]))
                _give(actor, pending, units, running)
                continue
            _give(actor, pending, units, running)
            yield index, result
    finally:
        for actor in actors:
            ray.kill(actor)


def _give(
    actor: Any, pending: list[tuple[int, Any]], units: Sequence[Any], running: dict[Any, tuple[Any, int]]
) -> None:
    if pending:
        index, unit = pending.pop()
        running[actor.call.remote(unit)] = (actor, index)


def connect(config: RunnerConfig) -> None:
    """Connect to the Ray cluster of ``config``, or start one on this machine; once per process."""
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(
        address=config.address,
        include_dashboard=False,
        logging_level=logging.WARNING,
        log_to_driver=True,
        configure_logging=False,
    )


def _limit_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
