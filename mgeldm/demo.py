"""The demo: from songs on disk to extracted stems and a report, on the two corpora in `examples/`.

It only chains the stages that the other commands run. Like the command line it may import everything; nobody but the
command line imports it.
"""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from manifests.atomic import write_json
from manifests.errors import ConfigError
from manifests.songs import Song, read_songs
from mgeldm import audio
from mgeldm.files import FileResult, FileResults, amend, generate_files, run_on_files, slug
from mgeldm.joint import MGELDM
from mgeldm.metrics import log_mel_l1
from mgeldm.sampling import SamplingConfig
from pipelines.encode import encode
from pipelines.encode_config import EncodeConfig
from pipelines.report import report
from pipelines.runner import RunnerConfig
from pipelines.scan import scan
from pipelines.song_signals import decode_song
from pipelines.split import SplitConfig, split
from training.config import load_recipe, recipe_path
from training.loop import train

logger = logging.getLogger(__name__)

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """What the demo does."""

    examples: str = str(EXAMPLES)
    """Folder with the two small corpora."""
    runner: Literal["ray", "local"] = "ray"
    """Where scan and encode run."""
    recipe: str = "tiny"
    """Recipe of the joint model."""
    steps: int = 500
    """Training steps; more sound better."""
    sampling_steps: int = 50
    """Network evaluations of each result."""
    seed: int = 0
    """Seed of the plan, the training and the results."""


def demo(out: Path, config: DemoConfig | None = None) -> dict[str, Any]:
    """Run the whole road into the folder ``out`` and return its summary, which is written as ``summary.json`` too.

    Raises:
        ConfigError: the example corpora are not there.
    """
    config = config or DemoConfig()
    examples = Path(config.examples)
    if not (examples / "minislakh").is_dir():
        raise ConfigError(f"{examples}: no example corpora here; run from a clone of the repository, or set --examples")
    out.mkdir(parents=True, exist_ok=True)
    clock = _Clock()
    runner = RunnerConfig(runner=config.runner)
    songs, splits, data, run = out / "songs.parquet", out / "splits.parquet", out / "data", out / "run"
    sources = [
        ("slakh2100", examples / "minislakh"),
        (str(examples / "everything-is-free.yaml"), examples / "everything-is-free"),
    ]
    scanned = clock("scan", lambda: scan(sources, songs, runner=runner))
    plan = SplitConfig(window_s=10.24, hop_s=5.12, seed=config.seed)
    planned = clock("split", lambda: split(songs, splits, config=plan))
    encoded = clock("encode", lambda: encode(splits, songs, data, config=EncodeConfig(), runner=runner))
    recipe = load_recipe(recipe_path(config.recipe), [])
    recipe = replace(recipe, steps=config.steps, seed=config.seed, stream=replace(recipe.stream, seed=config.seed))
    trained = clock("train", lambda: train(recipe, [(data, None)], run))
    sampling = SamplingConfig(steps=config.sampling_steps, seed=config.seed)
    model = MGELDM.from_pretrained(trained.checkpoint)
    song = _held_out(read_songs(songs), examples)
    clock("extract, impute, generate", lambda: _use(model, song, out / "audio", sampling, plan.window_s))
    summary = {
        "title": "MGE-LDM demo",
        "seconds": clock.seconds,
        "counts": {
            "songs": scanned.songs,
            "stems": scanned.stems,
            "windows": planned.windows,
            "splits": planned.splits,
            "shards": encoded.shards,
            "training steps": trained.steps,
            "problems": scanned.problems | encoded.failures,
        },
        "figures": {
            "training loss, first tenth of the steps": trained.first_loss,
            "training loss, last tenth of the steps": trained.loss,
            "validation loss": trained.val_loss,
        },
        "look": [{"path": path, "how": how} for path, how in _look(out)],
    }
    write_json(out / "summary.json", summary)
    clock("report", lambda: report(out, out / "report.html"))
    write_json(out / "summary.json", summary)
    return summary


def _held_out(songs: Iterable[Song], examples: Path) -> Song:
    """The first test song of the synthetic corpus with two instruments or more. Raises ConfigError."""
    for song in songs:
        if song.subset == "test" and song.corpus == "slakh2100" and len({s.instrument for s in song.usable_stems}) > 1:
            return song
    raise ConfigError(f"{examples / 'minislakh'}: no test song with two instruments, which the demo extracts")


def table(summary: dict[str, Any]) -> str:
    """The summary as text: seconds per stage, counts, problems, and how to look at what was made."""
    rows = [("stage", "seconds"), *((name, f"{value:.1f}") for name, value in summary["seconds"].items())]
    rows.append(("total", f"{sum(summary['seconds'].values()):.1f}"))
    counts = [(key, str(value)) for key, value in summary["counts"].items() if key != "problems"]
    problems = [(f"problem: {code}", str(count)) for code, count in summary["counts"]["problems"].items()]
    figures = [(key, "-" if value is None else f"{value:.4f}") for key, value in summary["figures"].items()]
    lines = [
        _columns(rows),
        _columns([("found", "count"), *counts, *(problems or [("problems", "0")])]),
        _columns([("figure", "value"), *figures]),
        "To look at what was made:",
    ]
    lines += [f"  {entry['path']}\n      {entry['how']}" for entry in summary["look"]]
    return "\n\n".join(lines[:3]) + "\n\n" + "\n".join(lines[3:])


class _Clock:
    """Runs stages and keeps their seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, stage: Callable[[], R]) -> R:
        logger.info("%s ...", name)
        begin = time.monotonic()
        result = stage()
        self.seconds[name] = round(time.monotonic() - begin, 2)
        return result


def _use(model: MGELDM, song: Song, out: Path, sampling: SamplingConfig, seconds: float) -> None:
    """Extract two stems from a held-out song's mix, impute one into its submix, generate one mix; with references."""
    rate = model.rate
    names = [stem.stem_id for stem in song.usable_stems]
    signals, _ = decode_song(song, names, {rate: model.codec.spec.channels})
    frames = round(seconds * rate)

    def cut(stems: Iterable[str]) -> audio.Wave:
        return signals.cut(stems, rate, 0, frames).numpy()

    by_instrument: dict[str, list[str]] = {}
    for stem in song.usable_stems:
        by_instrument.setdefault(stem.instrument, []).append(stem.stem_id)
    first, second = [name for name in ("drums", "bass", *by_instrument) if name in by_instrument][:2]
    inputs = out / "inputs"
    audio.save(inputs / "mix.wav", cut(names), rate)
    missing = by_instrument[second]
    audio.save(inputs / f"without-{slug(second)}.wav", cut(name for name in names if name not in missing), rate)
    audio.save(inputs / "mix.wav", cut(names), rate)
    label = str(Path("..") / "run" / "checkpoint")
    extracted = run_on_files("extract", model, label, [inputs / "mix.wav"], [first, second], out / "extract", sampling)
    imputed = run_on_files(
        "impute", model, label, [inputs / f"without-{slug(second)}.wav"], [second], out / "impute", sampling
    )
    references = {name: cut(by_instrument[name]) for name in (first, second)}
    mix = cut(names)
    _with_references(extracted, out / "extract", references, mix, rate)
    _with_references(imputed, out / "impute", references, mix, rate)
    words = "bass, drums, guitar and piano"
    generate_files(model, label, [words], seconds, out / "generate", sampling)


def _with_references(
    results: FileResults, folder: Path, references: dict[str, audio.Wave], mix: audio.Wave, rate: int
) -> None:
    """Add the true source and the log-mel L1 to it, beside that of the mix taken for the source."""

    def distance(estimate: audio.Wave, reference: audio.Wave) -> float:
        return round(float(log_mel_l1(torch.from_numpy(estimate), torch.from_numpy(reference), rate)), 3)

    completed: list[FileResult] = []
    for result in results.results:
        truth = references[result.prompt]
        file = f"reference-{slug(result.prompt)}.wav"
        audio.save(folder / file, truth, rate)
        estimate = audio.read(folder / result.outputs["source"])
        silence = np.zeros_like(truth)
        figures = {
            "log-mel L1 to the true source": distance(estimate, truth),
            "of the mix": distance(mix, truth),
            "of silence": distance(silence, truth),
        }
        completed.append(replace(result, reference={"source": file}, figures=figures))
    amend(folder, completed)


def _look(out: Path) -> list[tuple[str, str]]:
    def python(code: str) -> str:
        return f'.venv/bin/python -c "from manifests import *; print({code})"'

    return [
        ("report.html", "open it in a browser: spectrograms, players, loss curve"),
        ("songs.parquet", python(f"read_songs('{out}/songs.parquet')[0]")),
        (
            "splits.parquet",
            python(f"read_splits('{out}/splits.parquet').windows[0]"),
        ),
        ("data/README.md", "the data set card: codec, embedder, counts, licences"),
        ("data/shards", f".venv/bin/mgeldm shards verify {out}/data; each .tar opens with tar and numpy"),
        ("run/checkpoint", f"cat {out}/run/checkpoint/config.json"),
        ("run/metrics.jsonl", f"tail -3 {out}/run/metrics.jsonl"),
        ("audio", f"listen to {out}/audio/*/*.wav; each folder's results.json says what was asked"),
    ]


def _columns(rows: list[tuple[str, str]]) -> str:
    left, right = max(len(a) for a, _ in rows), max(len(b) for _, b in rows)
    head, *body = [f"{a.ljust(left)}  {b.rjust(right)}" for a, b in rows]
    return "\n".join([head, "-" * len(head), *body])
