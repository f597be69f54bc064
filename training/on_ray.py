"""Training on a Ray cluster: Ray Train starts the processes; when one fails, all start anew from the last save."""

import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Any

from manifests.atomic import check_writable, write_json
from manifests.errors import ConfigError, MGELDMError, StoreError
from manifests.ray_address import ALONE, ray_address
from mgeldm.model_folder import one_line
from training.config import TrainConfig
from training.loop import TrainSummary, open_data, train
from training.run import Run

logger = logging.getLogger(__name__)

FAILURES = 10
"""So many times the processes are started anew after one of them has failed."""
_RESULT, _STOP, _RUNNING, _FRESH = ".ray-summary.json", ".ray-stop", ".ray-running", ".ray-fresh"


def train_on_ray(
    config: TrainConfig,
    data: Sequence[tuple[Path | str, float | None]],
    out: Path,
    *,
    resume: bool = True,
    address: str | None = None,
    nodes: int = 1,
    gpus_per_node: int = 1,
    cpu_workers: int = 0,
    failures: int = FAILURES,
    after_step: Callable[[Run], None] | None = None,
) -> TrainSummary:
    """`train` by one process for each GPU of the cluster at ``address`` (None: see `ray_address`).

    Every node must see ``out`` and local data sets under the same path. ``cpu_workers`` above 0 trains on so many
    processes without GPUs. SIGTERM to this process ends all of them, with all saved: Ray sends no signals on, so they
    look for a file in ``out``. The others are as in `train`.

    Raises:
        MGELDMError: as `train`; what a process refuses is not tried again.
        ConfigError: the batch cannot be divided among the processes, there is no device for each, or they failed too
            often.
        KeyboardInterrupt: by SIGINT, and by SIGTERM while no process is training.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    workers = process_count(nodes, gpus_per_node, cpu_workers)
    config.share(workers)
    check_writable(out)
    out, config = out.absolute(), _absolute(config)
    data = [(path.absolute() if isinstance(path, Path) else path, weight) for path, weight in data]
    open_data(config, data)  # what is wrong with them is said before anything is started, or given up
    result, stop, running = (out / name for name in (_RESULT, _STOP, _RUNNING))
    started = not ray.is_initialized()
    if started:
        address = ray_address(address)
    result.unlink(missing_ok=True)
    job = {"config": config, "data": data, "out": out, "after_step": after_step}
    if started:
        try:
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=True)
        except OSError as error:
            raise ConfigError(f"{address}: no Ray cluster answers ({one_line(error)})") from None
    stop.unlink(missing_ok=True)
    fresh = out / _FRESH
    if resume:
        fresh.unlink(missing_ok=True)
    else:
        fresh.touch()
    try:
        _check_resources(workers, "CPU" if cpu_workers else "GPU", growing=not started or address != ALONE)
        for left in reversed(range(failures + 1)):
            running.unlink(missing_ok=True)
            # Ray itself would start anew what fails the same way each time, too.
            once = RunConfig(name=out.name, storage_path=str(out / "ray"), failure_config=FailureConfig(max_failures=0))
            trainer = TorchTrainer(
                _work,
                train_loop_config=job,
                torch_config=TorchConfig(backend="gloo" if cpu_workers else "nccl"),
                scaling_config=ScalingConfig(num_workers=workers, use_gpu=not cpu_workers),
                run_config=once,
            )
            try:
                with _signals(stop, running):
                    trainer.fit()
                break
            except ray.train.TrainingFailedError as error:
                if refusal := _refusal(error):
                    raise refusal from None
                if stop.exists():
                    raise KeyboardInterrupt from None
                reason = _reason(error)
                if not left:
                    raise ConfigError(f"{out}: training on Ray failed ({reason})") from None
                logger.warning("%s: %s; all start anew from the last save", out, reason)
    finally:
        for mark in (stop, running, fresh):
            mark.unlink(missing_ok=True)
        if started:
            ray.shutdown()
    summary = TrainSummary(**json.loads(result.read_text(encoding="utf-8")))
    result.unlink()
    return summary


def process_count(nodes: int, gpus_per_node: int, cpu_workers: int) -> int:
    """Processes of a job. Raises ConfigError where there would be none."""
    if min(nodes, gpus_per_node) < 1 and not cpu_workers:
        raise ConfigError(f"{nodes} nodes of {gpus_per_node} GPUs are no process; give at least one of each")
    if cpu_workers < 0:
        raise ConfigError(f"{cpu_workers} processes without GPUs are none; give at least one, or 0 to train on GPUs")
    return cpu_workers or nodes * gpus_per_node


def _absolute(config: TrainConfig) -> TrainConfig:
    """The recipe for processes that Ray starts in folders of its own."""
    cache = config.stream.cache and str(Path(config.stream.cache).absolute())
    codec = str(Path(config.codec).absolute()) if Path(config.codec).is_dir() else config.codec
    return replace(config, codec=codec, stream=replace(config.stream, cache=cache))


def _check_resources(workers: int, kind: str, *, growing: bool) -> None:
    """Look for a device for each process, for which Ray would wait for ever. Raises ConfigError."""
    import ray

    there = int(ray.cluster_resources().get(kind, 0))
    if there >= workers:
        return
    if not growing:
        raise ConfigError(
            f"{workers} processes need a {kind} each, and this machine gives Ray {there}; ask for fewer "
            "(--nodes, --gpus-per-node, or --cpu-workers for none), or name a cluster with --address"
        )
    logger.warning("the cluster has %d %ss, and %d are needed: waiting until it has them", there, kind, workers)


@contextmanager
def _signals(stop: Path, running: Path) -> Iterator[None]:
    """Within, SIGTERM asks the processes to save and end, and interrupts where none is at work; as SIGINT always does,
    of which Ray makes an exit without an error."""

    def told(number: int, frame: FrameType | None) -> None:
        if not running.exists():
            raise KeyboardInterrupt
        stop.touch()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, told)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refusal(failed: Exception) -> MGELDMError | None:
    """What a process refused, which it would refuse each time; None where it died, or a disk or a store failed it."""
    failures = getattr(failed, "worker_failures", {}).values()
    causes = [getattr(failure, "_base_exc", failure) for failure in failures]  # Ray wraps what user code raises
    return next((e for e in causes if isinstance(e, MGELDMError) and not isinstance(e, StoreError)), None)


def _reason(failed: Exception) -> str:
    """What ended a process, in one line."""
    for rank, failure in getattr(failed, "worker_failures", {}).items():
        cause = getattr(failure, "_base_exc", None)
        text = f"{type(cause).__name__}: {cause}" if cause else str(failure)
        return f"process {rank} has ended: {' '.join(text.split())[:300]}"
    return " ".join(str(failed).split())[:300]


def _work(job: dict[str, Any]) -> None:
    """What each process does; one that is started anew goes on from the last save."""
    out, first = job["out"], os.environ.get("RANK", "0") == "0"
    fresh = out / _FRESH
    if first:
        (out / _RUNNING).touch()

    def stepped(run: Run) -> None:
        if first:  # an earlier run is given up by now, and who is started anew goes on from this one
            fresh.unlink(missing_ok=True)
        if job["after_step"]:
            job["after_step"](run)

    summary = train(job["config"], job["data"], out, resume=not fresh.exists(), stop=out / _STOP, after_step=stepped)
    if first:
        write_json(out / _RESULT, asdict(summary))
