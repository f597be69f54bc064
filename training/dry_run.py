"""What a training would take: parameters, memory, work a step, data, and time from a few real steps."""

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mgeldm.devices import choose_device
from mgeldm.model import JointConfig, JointTransformer
from training.config import TrainConfig
from training.loop import Data, open_data, prepared
from training.parallel import Workers
from training.run import Run
from training.stem_tracks import windows_by_instrument

Calibrate = Literal["auto", "always", "never"]
STEPS = 20
"""Steps that are timed, after some to warm up."""
_WARM = 3
_AFFORDABLE = 1e11
"""FLOPs of a step up to which "auto" times them on a CPU: about a minute."""
_FLOAT32 = 4


def dry_run(config: TrainConfig, data: Data, *, calibrate: Calibrate = "auto", processes: int = 1) -> dict[str, Any]:
    """What `train` would do in so many ``processes``, without doing it.

    Memory is that of each process, in bytes: weights, gradients, AdamW's moments, averaged weights, and what is kept
    for the gradient, which is counted by a forward pass over tensors that have shapes and no values.

    Raises:
        ShardError: a data set cannot be used.
        ConfigError: the data sets do not go together, or the batch cannot be divided.
    """
    share = config.share(processes)
    sets, stream = open_data(config, data)
    card, seen = sets[0].card, config.steps * config.stream.batch
    model = config.network(card.codec["spec"]["latent_channels"], card.embedder["spec"]["dim"])
    forward, activations = forward_cost(config, model, share // config.accumulate)
    flops = 3 * forward * config.accumulate * processes
    parameters = count_parameters(model)
    held = processes if config.parallel == "fsdp" else 1
    memory = {
        "weights": _FLOAT32 * parameters // held,
        "gradients": _FLOAT32 * parameters // held,
        "optimizer": 2 * _FLOAT32 * parameters // held,
        "average": _FLOAT32 * parameters // held,
        "activations": activations,
    }
    crop_hours = config.stream.crop_frames / card.frames_per_second / 3600
    # One that is given twice, with two weights, is there once.
    apart = {str(path): s for (path, _), s in zip(data, sets, strict=True)}
    samples = {path: len(s) for path, s in apart.items()}
    corpora = sum((Counter(s.corpora) for s in apart.values()), Counter())
    epochs = dict.fromkeys(apart, 0.0)
    for (path, _), s, part in zip(data, sets, stream.shares, strict=True):
        epochs[str(path)] += seen * float(part) / len(s)
    stems = windows_by_instrument(sets, config.stems.instruments)
    shown: dict[str, Any] = {
        "parameters": parameters,
        "steps": config.steps,
        "batch": config.stream.batch,
        "processes": processes,
        "crop_seconds": 3600 * crop_hours,
        "memory": memory,
        "memory_total": sum(memory.values()),
        "tokens_a_step": config.stream.batch * (config.stream.crop_frames + 1),
        "flops_a_step": flops,
        "samples": samples,
        "corpora": dict(sorted(corpora.items())),
        **({"stems": stems} if stems else {}),
        "epochs": {path: round(count, 3) for path, count in epochs.items()},
        "hours_seen": seen * crop_hours,
    }
    if calibrate == "never" or (calibrate == "auto" and not torch.cuda.is_available() and flops > _AFFORDABLE):
        shown["expected_hours"] = "not measured; --calibrate always times steps"
        return shown
    seconds = seconds_a_step(replace(config, stream=replace(config.stream, batch=share)), data)
    return shown | {"seconds_a_step": seconds, "expected_hours": seconds * config.steps / 3600}


def count_parameters(model: JointConfig) -> int:
    """Parameters of a network of these sizes."""
    with torch.device("meta"):
        network = JointTransformer(model)
    return sum(parameter.numel() for parameter in network.parameters())


def forward_cost(config: TrainConfig, model: JointConfig, batch: int) -> tuple[int, int]:
    """FLOPs of a forward pass over ``batch`` examples, and bytes that it keeps for the gradient, weights apart."""
    kept: dict[int, int] = {}
    with FakeTensorMode():
        network = JointTransformer(model)
        weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
        if config.recompute:
            for layer in network.transformer.layers:
                layer.forward = _recomputed(layer)  # type: ignore[method-assign]
        latents = torch.zeros(batch, model.tracks, model.latent_channels, config.stream.crop_frames)
        tau, embeddings = torch.zeros(latents.shape[:2]), torch.zeros(*latents.shape[:2], model.embedding_dim)
        alive = []  # a storage that was freed could come again under the same number

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                kept[storage._cdata] = storage.nbytes()
                alive.append(tensor)
            return tensor

        bfloat16 = config.precision == "bfloat16"
        autocast = torch.autocast("cpu", torch.bfloat16) if bfloat16 else nullcontext()
        with FlopCounterMode(display=False) as flops, autocast:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                v = network(latents, tau, embeddings)
            del v
    return flops.get_total_flops(), sum(kept.values())


def seconds_a_step(config: TrainConfig, data: Data) -> float:
    """Mean time of a step of a process by itself, data included, over `STEPS` real ones. Nothing of them is kept."""
    group = Workers(choose_device(config.device))
    with tempfile.TemporaryDirectory() as folder:
        sets, stream = open_data(config, data)
        run = Run(config, sets, stream.shares, Path(folder), group)
        batches = prepared(stream, stream.start(), config, group)
        try:
            for number in range(_WARM + STEPS):
                if number == _WARM:
                    begin = time.perf_counter()
                batch = next(batches)
                run.train_step(batch.examples)
            return (time.perf_counter() - begin) / STEPS
        finally:
            batches.close()


def _recomputed(layer: nn.Module) -> Callable[..., Any]:
    forward = layer.forward
    return lambda *args: checkpoint(forward, *args, use_reentrant=False)
