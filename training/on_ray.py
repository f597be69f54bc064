"""Training on a Ray cluster: Ray Train starts the processes; when one fails, all start anew from the last save."""

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from manifests.atomic import check_writable, write_json
from manifests.errors import ConfigError, MGELDMError, StoreError
from training.config import TrainConfig
from training.loop import TrainSummary, train
from training.preemption import Preemption
from training.run import Run
from training.run_files import STATE_FILE

logger = logging.getLogger(__name__)

FAILURES = 10
"""So many times the processes are started anew after one of them has failed."""
_RESULT, _STOP = ".ray-summary.json", ".ray-stop"


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
    """`train` by one process for each GPU of the cluster at ``address`` (None: a cluster of this machine alone).

    Every node must see ``out`` and local data sets under the same path. ``cpu_workers`` above 0 trains on so many
    processes without GPUs. SIGTERM to this process ends all of them, with all saved: Ray sends no signals on, so they
    look for a file in ``out``. The others are as in `train`.

    Raises:
        MGELDMError: as `train`; what a process refuses is not tried again.
        ConfigError: the batch cannot be divided among the processes, or they failed too often.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    workers = cpu_workers or nodes * gpus_per_node
    if workers < 1:
        raise ConfigError(f"{nodes} nodes of {gpus_per_node} GPUs are no process; give at least one of each")
    config.share(workers)
    check_writable(out)
    out = out.absolute()
    result, stop = out / _RESULT, out / _STOP
    result.unlink(missing_ok=True)
    if not resume:
        (out / STATE_FILE).unlink(missing_ok=True)
    job = {
        "config": config,
        "data": [(path.absolute() if isinstance(path, Path) else path, weight) for path, weight in data],
        "out": out,
        "result": result,
        "stop": stop,
        "after_step": after_step,
    }
    started = not ray.is_initialized()
    if started:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=True)
    stop.unlink(missing_ok=True)
    try:
        with Preemption(stop):  # after Ray has set its own
            for left in reversed(range(failures + 1)):
                # Ray itself would start anew what fails the same way each time, too.
                once = RunConfig(
                    name=out.name, storage_path=str(out / "ray"), failure_config=FailureConfig(max_failures=0)
                )
                trainer = TorchTrainer(
                    _work,
                    train_loop_config=job,
                    torch_config=TorchConfig(backend="gloo" if cpu_workers else "nccl"),
                    scaling_config=ScalingConfig(num_workers=workers, use_gpu=not cpu_workers),
                    run_config=once,
                )
                try:
                    trainer.fit()
                    break
                except ray.train.TrainingFailedError as error:
                    if refusal := _refusal(error):
                        raise refusal from None
                    reason = " ".join(str(error).split())[-400:]
                    if not left:
                        raise ConfigError(f"{out}: training on Ray failed ({reason})") from None
                    logger.warning("%s: a process failed (%s); all start anew from the last save", out, reason)
    finally:
        stop.unlink(missing_ok=True)
        if started:
            ray.shutdown()
    summary = TrainSummary(**json.loads(result.read_text(encoding="utf-8")))
    result.unlink()
    return summary


def _refusal(failed: Exception) -> MGELDMError | None:
    """What a process refused, which it would refuse each time; None where it died, or a disk or a store failed it."""
    failures = getattr(failed, "worker_failures", {}).values()
    causes = [getattr(failure, "_base_exc", failure) for failure in failures]  # Ray wraps what user code raises
    return next((e for e in causes if isinstance(e, MGELDMError) and not isinstance(e, StoreError)), None)


def _work(job: dict[str, Any]) -> None:
    """What each process does; one that is started anew goes on from the last save."""
    summary = train(job["config"], job["data"], job["out"], stop=job["stop"], after_step=job["after_step"])
    if os.environ.get("RANK", "0") == "0":
        write_json(job["result"], asdict(summary))
