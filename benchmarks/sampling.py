"""Sampling: the fast solvers beside DDIM of 250 steps, and the network beside a plain one of the same weights."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.reference_transformer import reference_forward
from benchmarks.result import Result, example_data, median_seconds
from manifests.songs import read_songs
from mgeldm import MGELDM
from mgeldm.metrics import log_mel_l1
from mgeldm.model import PRESETS, JointTransformer
from mgeldm.sampling import SamplingConfig, sample
from pipelines.song_signals import decode_song

SECONDS = 10.24
WAYS = (
    SamplingConfig(sampler="ddim", steps=250),
    SamplingConfig(sampler="ddim", steps=25),
    SamplingConfig(sampler="dpm++2m", steps=20),
    SamplingConfig(sampler="dpm++2m", steps=25),
    SamplingConfig(sampler="dpm++2m", steps=30),
    SamplingConfig(sampler="heun", steps=13),
)


def run() -> Iterator[Result]:
    yield from _speed()
    yield from _quality()


def _quality() -> Iterator[Result]:
    """Extraction by the shipped model: log-mel L1 to the true source."""
    folder, model = example_data(), MGELDM.from_pretrained(device="cpu")
    song = next(s for s in read_songs(folder / "songs.parquet") if s.subset == "test" and s.corpus == "slakh2100")
    by_instrument: dict[str, list[str]] = {}
    for stem in song.usable_stems:
        by_instrument.setdefault(stem.instrument, []).append(stem.stem_id)
    rate, frames = model.rate, round(SECONDS * model.rate)
    signals, _ = decode_song(song, [stem.stem_id for stem in song.usable_stems], {rate: 1})
    mix = signals.cut([stem.stem_id for stem in song.usable_stems], rate, 0, frames).numpy()
    prompts = [name for name in ("drums", "bass", *by_instrument) if name in by_instrument][:2]
    figures = []
    for way in WAYS:
        begin, distances = time.perf_counter(), []
        for prompt in prompts:
            found = model.extract(mix, prompt, way)["source"]
            truth = signals.cut(by_instrument[prompt], rate, 0, frames)
            distances.append(float(log_mel_l1(torch.from_numpy(found), truth, rate)))
        figures.append((way, float(np.mean(distances)), (time.perf_counter() - begin) / len(prompts)))
    _, paper, _ = figures[0]
    for way, distance, seconds in figures[1:]:
        yield Result(
            name=f"sampling.{way.sampler}_{way.evaluations}_vs_ddim_250",
            value=distance / paper,
            unit="ratio of log-mel L1",
            goal=1.05 if way.sampler == "dpm++2m" else None,
            better="lower",
            detail={
                "log_mel_l1": round(distance, 4),
                "ddim_250": round(paper, 4),
                "seconds": round(seconds, 2),
                "ddim_250_seconds": round(figures[0][2], 2),
            },
        )


def _speed() -> Iterator[Result]:
    """One crop at guidance 2: ours, a batch of two, beside the plain network asked twice a step."""
    cuda = torch.cuda.is_available()
    device, preset, steps = ("cuda", "paper", 50) if cuda else ("cpu", "tiny", 10)
    model = JointTransformer(PRESETS[preset]).eval().requires_grad_(False).to(device)
    generator = torch.Generator().manual_seed(0)
    noise, given = (torch.randn(1, 3, 64, 80, generator=generator).to(device) for _ in range(2))
    embeddings = torch.randn(1, 3, 512, generator=generator).to(device)
    mask = torch.tensor([True, False, False], device=device)
    config = SamplingConfig(steps=steps)
    # A graph is worth its minutes of compilation where Python is slower than the device.
    fused = torch.compile(model, mode="reduce-overhead") if cuda else model

    def plain(latents: Tensor, timesteps: Tensor, conditions: Tensor) -> Tensor:
        parts = zip(latents.chunk(2), timesteps.chunk(2), conditions.chunk(2), strict=True)
        return torch.cat([reference_forward(model, *part) for part in parts])

    def sampled(network: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[], None]:
        def work() -> None:
            with torch.autocast(device, dtype=torch.bfloat16, enabled=cuda):
                sample(network, given, mask, embeddings, noise, config)
            if cuda:
                torch.cuda.synchronize()

        work()
        return work

    reference, ours = median_seconds(sampled(plain)), median_seconds(sampled(fused))
    inputs = noise.repeat(2, 1, 1, 1), torch.full((2, 3), 0.5, device=device), embeddings.repeat(2, 1, 1)
    with FlopCounterMode(display=False) as counter:
        model(*inputs)
    speed = counter.get_total_flops() * steps / ours
    peak = _peak(device, torch.bfloat16 if cuda else torch.float32)
    yield Result(
        name="sampling.network_vs_reference",
        value=reference / ours,
        unit="ratio",
        goal=4.0 if cuda else None,
        better="higher",
        detail={
            "device": torch.cuda.get_device_name() if cuda else "cpu",
            "preset": preset,
            "steps": steps,
            "ours_s": round(ours, 4),
            "reference_s": round(reference, 4),
            "gflop_per_evaluation": round(counter.get_total_flops() / 1e9, 2),
            "gflops": round(speed / 1e9, 1),
            "peak_gflops": round(peak / 1e9, 1),
            "share_of_peak": round(speed / peak, 3),
        },
    )


def _peak(device: str, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product."""
    size = 8192 if device == "cuda" else 1024
    matrix = torch.randn(size, size, device=device).to(dtype)

    def work() -> None:
        matrix @ matrix
        if device == "cuda":
            torch.cuda.synchronize()

    work()
    return 2 * size**3 / median_seconds(work, runs=5)
