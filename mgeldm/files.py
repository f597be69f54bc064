"""The tasks over files: audio in, WAV files and one `results.json` out. One model, any number of inputs."""

import hashlib
import logging
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from manifests.atomic import write_json
from manifests.errors import AudioError
from mgeldm import audio
from mgeldm.joint import MGELDM
from mgeldm.progress import progress
from mgeldm.sampling import SamplingConfig

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileResult:
    """One use of the model: what was asked, and the files that came out (paths below the results' folder)."""

    task: str
    prompt: str
    input: str | None
    given: dict[str, str]
    outputs: dict[str, str]
    sampler: str
    steps: int
    guidance: float | tuple[float, ...]
    seed: int
    seconds: float
    """Time it took."""
    reference: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileResults:
    """Everything one command did."""

    model: str
    results: tuple[FileResult, ...]
    failures: tuple[dict[str, str], ...] = ()
    """Inputs that could not be read: ``input``, ``code``, ``message``."""


def run_on_files(
    task: str,
    model: MGELDM,
    name: str,
    inputs: Sequence[Path],
    prompts: Sequence[str],
    out: Path,
    sampling: SamplingConfig,
) -> FileResults:
    """Extract, impute or accompany over audio files; write WAVs at the codec's rate and ``results.json`` into ``out``.

    ``extract`` and ``accompany`` answer each prompt by itself; ``impute`` adds one prompt's source before the next.
    An input that cannot be read becomes a failure, the others go on.

    Raises:
        PromptError: a prompt says nothing to the embedder; nothing has been done by then.
    """
    for prompt in prompts:
        model.embed_prompt(prompt)
    done: list[FileResult] = []
    failures: list[dict[str, str]] = []
    names = output_names(inputs)
    with progress(len(inputs) * len(prompts) * sampling.evaluations, task, "evaluations") as bar:
        for path in inputs:
            try:
                wave = audio.load(path, model.rate, model.codec.spec.channels)
                done += _run_on_file(task, model, wave, path, names[path], prompts, out, sampling, bar)
            except AudioError as error:
                logger.error("%s", error)
                failures.append({"input": str(path), "code": error.code, "message": str(error)})
    results = FileResults(model=name, results=tuple(done), failures=tuple(failures))
    write_json(out / RESULTS_FILE, asdict(results))
    return results


def generate_files(
    model: MGELDM, name: str, prompts: Sequence[str], seconds: float, out: Path, sampling: SamplingConfig
) -> FileResults:
    """Generate one mix per prompt into ``out``, with ``results.json``. Raises PromptError and AudioError."""
    done = []
    for prompt in prompts:
        model.embed_prompt(prompt)
    with progress(len(prompts) * sampling.evaluations, "generate", "evaluations") as bar:
        for prompt, words in zip(prompts, prompt_names(prompts), strict=True):
            begin = time.monotonic()
            wave = model.generate(prompt, seconds, sampling, _Advance(bar, sampling.evaluations))
            file = f"generate-{words}-seed{sampling.seed}.wav"
            audio.save(out / file, wave, model.rate)
            done.append(_result("generate", prompt, None, {}, {"mix": file}, sampling, begin))
    results = FileResults(model=name, results=tuple(done))
    write_json(out / RESULTS_FILE, asdict(results))
    return results


def slug(text: str) -> str:
    """A file name part: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")[:60] or "x"


def output_names(inputs: Sequence[Path]) -> dict[Path, str]:
    """A name for each input, unique even where many files are called ``mix.flac``."""
    short = {path: slug(path.stem) for path in inputs}
    longer = {path: slug(f"{path.resolve().parent.name}-{path.stem}") for path in inputs}
    shorts, longers = Counter(short.values()), Counter(longer.values())
    names = {}
    for path in inputs:
        digest = hashlib.sha256(str(path.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:8]
        if shorts[short[path]] == 1:
            names[path] = short[path]
        else:
            names[path] = longer[path] if longers[longer[path]] == 1 else f"{longer[path]}-{digest}"
    return names


def prompt_names(prompts: Sequence[str]) -> list[str]:
    """A file name part for each prompt, unique even where two are one, or are spelt alike."""
    names: list[str] = []
    for prompt in prompts:
        name, number = slug(prompt), 1
        while (unique := name if number == 1 else f"{name}-{number}") in names:
            number += 1
        names.append(unique)
    return names


class _Advance:
    """Moves a bar from (done, total) calls; long audio makes the total grow."""

    def __init__(self, bar: Any, expected: int) -> None:
        self._bar, self._last, self._expected = bar, 0, expected

    def __call__(self, done: int, total: int) -> None:
        if total != self._expected:
            self._bar.total += total - self._expected
            self._expected = total
        self._bar.update(done - self._last)
        self._last = done


def _run_on_file(
    task: str,
    model: MGELDM,
    wave: audio.Wave,
    path: Path,
    name: str,
    prompts: Sequence[str],
    out: Path,
    sampling: SamplingConfig,
    bar: Any,
) -> list[FileResult]:
    given_track = {"extract": "mix", "impute": "submix", "accompany": "source"}[task]
    given = {given_track: f"{name}-{given_track}.wav"}
    audio.save(out / given[given_track], wave, model.rate)
    done = []
    for number, (prompt, words) in enumerate(zip(prompts, prompt_names(prompts), strict=True)):
        begin = time.monotonic()
        advance = _Advance(bar, sampling.evaluations)
        if task == "extract":
            tracks = model.extract(wave, prompt, sampling, advance)
        elif task == "impute":
            source = model.impute(wave, [prompt], sampling, advance, earlier=prompts[:number])[0]
            # The next prompt is imputed into what there is by now.
            wave = wave + source
            tracks = {"source": source, "mix": wave}
        else:
            submix = model.accompany(wave, prompt, sampling, advance)
            tracks = {"submix": submix, "mix": wave + submix}
        outputs = {track: f"{name}-{task}-{words}-{track}.wav" for track in tracks}
        for track, file in outputs.items():
            audio.save(out / file, tracks[track], model.rate)
        done.append(_result(task, prompt, str(path), given, outputs, sampling, begin))
    return done


def _result(
    task: str,
    prompt: str,
    path: str | None,
    given: dict[str, str],
    outputs: dict[str, str],
    sampling: SamplingConfig,
    begin: float,
) -> FileResult:
    return FileResult(
        task=task,
        prompt=prompt,
        input=path,
        given=given,
        outputs=outputs,
        sampler=sampling.sampler,
        steps=sampling.steps,
        guidance=sampling.guidance,
        seed=sampling.seed,
        seconds=round(time.monotonic() - begin, 3),
    )
