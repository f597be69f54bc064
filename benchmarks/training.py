"""Steps of the joint model: against a plain uncompiled step of the same network, against the peak of the machine, and
the share of the time that it waits for data.

On a GPU the network is the paper's at its batch and the data wait that of `base`; on a CPU both are `tiny`.
"""

import copy
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.reference_transformer import reference_forward
from benchmarks.result import Result, example_data, median_seconds
from mgeldm.diffusion import V, v_loss
from mgeldm.model import JointTransformer
from training.config import TrainConfig, load_recipe, recipe_path
from training.dry_run import count_parameters, forward_cost
from training.loop import open_data, prepared, train
from training.noising import Examples
from training.parallel import Workers
from training.run import Run

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
RECIPE = os.environ.get("TRAINING_RECIPE", "t1" if CUDA else "tiny")
STEPS = 20 if CUDA else 5


def run() -> Iterator[Result]:
    recipe = load_recipe(recipe_path(RECIPE))
    config = replace(recipe, compile=True, precision="bfloat16" if CUDA else "float32", device=DEVICE.type)
    ours, examples, network = our_step(config)
    seconds = timed(ours)
    plain = timed(plain_step(network, examples))
    flops = 3 * forward_cost(config, network.config, config.stream.batch)[0]
    peak = peak_flops()
    about = {
        "recipe": RECIPE,
        "parameters": count_parameters(network.config),
        "batch": config.stream.batch,
        "device": torch.cuda.get_device_name() if CUDA else "CPU",
        "precision": config.precision,
    }
    yield Result(
        name="training.steps_per_second",
        value=1 / seconds,
        unit="steps/s",
        goal=None,
        better="higher",
        detail=about,
    )
    yield Result(
        name="training.against_plain_step",
        value=plain / seconds,
        unit="x faster",
        goal=2.0 if CUDA else None,
        better="higher",
        detail=about | {"ours_ms": round(1e3 * seconds, 2), "plain_ms": round(1e3 * plain, 2)},
    )
    yield Result(
        name="training.flop_utilisation",
        value=flops / seconds / peak,
        unit="of the measured peak",
        goal=0.45 if CUDA else None,
        better="higher",
        detail=about | {"tflops_a_step": round(flops / 1e12, 3), "peak_tflops": round(peak / 1e12, 2)},
    )
    yield data_wait()


def our_step(config: TrainConfig) -> tuple[Callable[[], object], Examples, JointTransformer]:
    """The loop's step on one batch, that batch, and a copy of the network as it began."""
    group, data = Workers(DEVICE), [(example_data() / "data", None)]
    sets, stream = open_data(config, data)
    with tempfile.TemporaryDirectory() as folder:
        plain = Run(replace(config, compile=False), sets, stream.shares, Path(folder), group).network
        compiled = Run(config, sets, stream.shares, Path(folder), group)
    batches = prepared(stream, stream.start(), config, group)
    batch = next(batches)
    batches.close()
    return lambda: compiled.train_step(batch.examples), batch.examples, plain


def plain_step(network: JointTransformer, examples: Examples) -> Callable[[], object]:
    """A step as it is commonly written: uncompiled, attention by hand, on a GPU under fp16 autocast."""
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-5, weight_decay=1e-3, foreach=False, fused=False)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=CUDA)

    def step() -> float:
        optimizer.zero_grad()
        noisy = V.corrupt(examples.latents.float(), examples.noise, examples.tau)
        target = V.target(examples.latents.float(), examples.noise, examples.tau)
        with torch.autocast(DEVICE.type, torch.float16, enabled=CUDA):
            v = reference_forward(network, noisy, examples.tau, examples.embeddings)
        loss = v_loss(v.float(), target, examples.tau)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            for mean, parameter in zip(average.parameters(), network.parameters(), strict=True):
                mean.mul_(0.9999).add_(parameter, alpha=1e-4)
        return loss.item()

    return step


def timed(step: Callable[[], object]) -> float:
    """Median seconds of a step, over several groups of them, after some to warm up."""
    for _ in range(3):
        step()

    def several() -> None:
        for _ in range(STEPS):
            step()
        if CUDA:
            torch.cuda.synchronize()

    return median_seconds(several, 3) / STEPS


def peak_flops() -> float:
    """FLOPs a second of large matrix products, the best of several."""
    size, kind = (8192, torch.bfloat16) if CUDA else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=DEVICE, dtype=kind) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        for _ in range(5):
            a @ b
        if CUDA:
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - begin) / 5)
    return 2 * size**3 / best


def data_wait() -> Result:
    name = "base" if CUDA else "tiny"
    recipe = load_recipe(recipe_path(name))
    steps = 200 if CUDA else 30
    config = replace(recipe, steps=steps, save_every=steps, validate_every=10 * steps, device=DEVICE.type)
    with tempfile.TemporaryDirectory() as folder:
        summary = train(config, [(example_data() / "data", None)], Path(folder))
    return Result(
        name="training.data_wait",
        value=summary.data_wait,
        unit="of the time",
        goal=0.01,
        better="lower",
        detail={"recipe": name, "steps": steps, "seconds": round(summary.seconds, 1)},
    )
