"""Running the units of a job: in this process, or on Ray. Same units, same results.

A worker is built once per process by ``build()`` (this is where models are loaded) and called with one unit at a time.
Bad input is the worker's to record in its result; an exception that leaves it is a defect and ends the job.
"""

import logging
import logging.handlers
import math
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from manifests.errors import ConfigError
from manifests.ray_address import ALONE, ray_address

U = TypeVar("U")
R = TypeVar("R")

# Units and results are paths and rows; what is big goes through files.
OBJECT_STORE_BYTES = 256 << 20
RESTART_POLL_S = 0.1
_DETAIL_LENGTH = 300

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerConfig:
    """Where and how wide a job runs."""

    runner: Literal["ray", "local"] = "ray"
    """"ray": actors on a Ray cluster, started here if there is none; "local": this process, one unit at a time."""
    workers: int = 0
    """Number of Ray actors; 0: one per CPU (or per GPU where the stage asks for one)."""
    gpus_per_worker: float = 0.0
    """GPUs that each actor asks Ray for; 1 where ``min_gpus`` or ``max_gpus`` is given."""
    min_gpus: float = 0.0
    """The job begins when it has so many GPUs."""
    max_gpus: float = 0.0
    """Most GPUs at a time. Actors for which there is no room yet are a demand that lets the cluster grow; without work
    left they go, so that it can shrink. 0: the GPUs that are there at the start."""
    wait_s: float = 900.0
    """How long to wait for the first worker, or for ``min_gpus`` GPUs."""
    address: str | None = None
    """Address of a running Ray cluster; None: that of RAY_ADDRESS, or else one is started on this machine."""
    retries: int = 3
    """How often a unit is given out again after its actor died."""

    def __post_init__(self) -> None:
        for name in ("workers", "retries", "gpus_per_worker", "min_gpus", "max_gpus", "wait_s"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} {getattr(self, name)} must not be negative")
        if self.max_gpus and self.max_gpus < max(self.min_gpus, self.gpus_each):
            raise ConfigError(
                f"max_gpus {self.max_gpus:g} is less than min_gpus {self.min_gpus:g}, or than what one worker takes"
            )

    @property
    def gpus_each(self) -> float:
        """GPUs of an actor."""
        return self.gpus_per_worker or float(bool(self.min_gpus or self.max_gpus))


@dataclass(frozen=True, slots=True)
class WorkerDied:
    """In place of the result of a unit that killed its worker more than ``RunnerConfig.retries`` times."""

    message: str


def run_units(
    units: Sequence[U], build: Callable[[], Callable[[U], R]], config: RunnerConfig
) -> Iterator[tuple[int, R | WorkerDied]]:
    """Yield ``(index of the unit, its result)`` as units finish.

    ``build`` must be picklable (a module-level class or a `functools.partial`). On Ray, what workers log is logged
    here when their unit is done.

    Raises:
        ConfigError: the Ray cluster cannot be reached, lacks GPUs, or starts no worker.
        Exception: whatever ``build`` or a worker raised.
    """
    if not units:
        return
    if config.runner == "local":
        work = build()
        for index, unit in enumerate(units):
            yield index, work(unit)
    else:
        yield from _run_on_ray(units, build, config)


def connect(config: RunnerConfig) -> None:
    """Connect to the Ray cluster of ``config``, or start one on this machine; once per process.

    Raises:
        ConfigError: no cluster answers at the address.
    """
    import ray

    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # At each start Ray says as a warning that its tokens are on, which is what they should be.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    address = ray_address(config.address)
    try:
        ray.init(
            address=address,
            object_store_memory=OBJECT_STORE_BYTES if address == ALONE else None,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
        )
    except OSError as error:
        raise ConfigError(f"{address}: no Ray cluster answers ({_line(error)})") from error


def _run_on_ray(
    units: Sequence[U], build: Callable[[], Callable[[U], R]], config: RunnerConfig
) -> Iterator[tuple[int, R | WorkerDied]]:
    import ray

    connect(config)
    count, threads = _width(ray.cluster_resources(), len(units), config)
    least = min(count, math.ceil(config.min_gpus / config.gpus_each)) if config.min_gpus else 1
    died = (ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError)
    actor_class: Any = ray.remote(num_cpus=1, num_gpus=config.gpus_each, max_restarts=-1)(_Actor)
    actors = [actor_class.remote(build, threads, logging.getLogger().level) for _ in range(count)]
    # An actor gets its first unit once it runs: one that the cluster has no room for must not sit on a unit.
    running: dict[Any, tuple[Any, int | None]] = {actor.ready.remote(): (actor, None) for actor in actors}
    pending, deaths, done = deque(range(len(units))), Counter[int](), 0
    free: list[Any] = []
    begun, deadline = False, time.monotonic() + config.wait_s
    try:
        while done < len(units):
            found, _ = ray.wait(list(running), timeout=None if begun else max(0.0, deadline - time.monotonic()))
            if not found:
                raise ConfigError(
                    f"{len(free)} of {least} workers found room on the Ray cluster within {config.wait_s:g} s; it has "
                    f"{_said(ray.cluster_resources())}"
                )
            actor, index = running.pop(found[0])
            answer: tuple[R, list[logging.LogRecord]] | None = None
            try:
                answer = ray.get(found[0])
            except died as error:
                if index is not None:
                    deaths[index] += 1
                    told = f"unit {index} killed its worker, which is started again ({_line(error)})"
                    if deaths[index] <= config.retries:
                        logger.warning("%s", told)
                        pending.appendleft(index)
                    else:
                        logger.error("%s; it is left out", told)
                        done += 1
                        yield index, WorkerDied(_dead(deaths[index], error))
                elif isinstance(error, ray.exceptions.ActorDiedError):
                    raise ConfigError(f"the Ray cluster cannot start a worker ({_line(error)})") from error
                # While it is started again, an actor refuses calls: one death would count as many.
                time.sleep(RESTART_POLL_S)
                running[actor.ready.remote()] = (actor, None)
                continue
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from error
            free.append(actor)
            begun = begun or len(free) >= least
            while begun and free:
                actor = free.pop()
                if pending:
                    upcoming = pending.popleft()
                    running[actor.call.remote(units[upcoming])] = (actor, upcoming)
                else:
                    ray.kill(actor)
            if index is not None and answer is not None:
                result, records = answer
                _log_again(records)
                done += 1
                yield index, result
    finally:
        for actor in actors:
            ray.kill(actor)


def _width(resources: Mapping[str, float], units: int, config: RunnerConfig) -> tuple[int, int]:
    """Number of actors, and math threads for each: more than its share of the cores would fight the other actors."""
    cores, gpus = resources.get("CPU", 1), resources.get("GPU", 0)
    if gpus < config.gpus_each and not config.max_gpus:
        raise ConfigError(
            f"each worker asks for {config.gpus_each:g} GPUs, the Ray cluster has {gpus:g}; max_gpus lets it grow"
        )
    there = gpus / config.gpus_each if config.gpus_each else cores
    room = config.max_gpus / config.gpus_each if config.max_gpus else there
    count = max(1, min(config.workers or int(room), units))
    return count, max(1, int(cores) // max(1, min(count, int(there))))


def _said(resources: Mapping[str, float]) -> str:
    return " and ".join(f"{resources.get(kind, 0):g} {kind}s" for kind in ("CPU", "GPU"))


def _dead(times: int, error: Exception) -> str:
    return (
        f"the worker that had it died {times} times; run with --runner local to see why, or, if memory ran out, with "
        f"fewer --workers ({_line(error)[:_DETAIL_LENGTH]})"
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _log_again(records: list[logging.LogRecord]) -> None:
    for record in records:
        target = logging.getLogger(record.name)
        if target.isEnabledFor(record.levelno):
            target.handle(record)


class _Records(logging.handlers.QueueHandler):
    """Keeps log records, made picklable, until they are taken."""

    def __init__(self) -> None:
        super().__init__(queue=None)  # type: ignore[arg-type]
        self._records: list[logging.LogRecord] = []

    def enqueue(self, record: logging.LogRecord) -> None:
        self._records.append(record)

    def take(self) -> list[logging.LogRecord]:
        taken, self._records = self._records, []
        return taken


class _Actor:
    """A worker on Ray. It is built by the first call, so that an error in ``build`` is raised like one of a unit."""

    def __init__(self, build: Callable[[], Callable[[Any], Any]], threads: int, level: int) -> None:
        self._build = build
        self._threads = threads
        self._work: Callable[[Any], Any] | None = None
        self._records = _Records()
        logging.captureWarnings(True)
        logging.getLogger().addHandler(self._records)
        logging.getLogger().setLevel(level)

    def ready(self) -> None:
        """Return once the actor runs."""

    def call(self, unit: Any) -> tuple[Any, list[logging.LogRecord]]:
        """The result of a unit, and what was logged meanwhile."""
        if self._work is None:
            self._work = self._build()
            # A stage that does without torch must not wait for its import.
            if torch := sys.modules.get("torch"):
                torch.set_num_threads(self._threads)
        return self._work(unit), self._records.take()
