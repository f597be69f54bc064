"""The tasks over files: audio in, audio and one `results.json` out. One model, any number of inputs of any length.

Inputs are read, sampled and written as streams, several at a time. What is done is a row with a key over all that
decided it, so that the same command goes on where it was; a file under its final name is always whole.
"""

import hashlib
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path, PurePath
from typing import Any, Literal

from manifests.atomic import abandoned, check_writable, content_hash, write_json
from manifests.corpora.base import AUDIO_SUFFIXES
from manifests.errors import AudioError, ConfigError
from mgeldm import audio
from mgeldm.engine import Lane, Wish
from mgeldm.joint import MGELDM
from mgeldm.outputs import OutputConfig, Track
from mgeldm.progress import progress
from mgeldm.sampling import SamplingConfig
from mgeldm.signals import Form, Signal, added
from mgeldm.tasks import GENERATE, TASKS

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.json"
SAVE_EVERY_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FileConfig:
    """How files are gone through and written."""

    format: Literal["wav", "flac"] = "wav"
    """wav: 32-bit float, nothing is lost; flac: 24 bit, half the size, cut above full scale."""
    resume: bool = True
    """Whether what an earlier command did into the same folder, of the same input by the same model, is kept."""

    def __post_init__(self) -> None:
        if self.format not in ("wav", "flac"):
            raise ConfigError(f"format {self.format!r} is none of wav, flac")


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
    """Time from its begin to its end; that of others that were sampled with it is in it."""
    key: str = ""
    """Hash over input, prompt, sampling, form and model: equal keys, equal results."""
    reference: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def files(self) -> set[str]:
        """All files of the row, but for references."""
        return {*self.given.values(), *self.outputs.values()}


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
    output: OutputConfig | None = None,
    config: FileConfig | None = None,
) -> FileResults:
    """Extract, impute or accompany over audio files; write audio and ``results.json`` into ``out``.

    A folder among the inputs stands for all audio below it; what comes out lies in folders of the same names.
    ``extract`` and ``accompany`` answer each prompt by itself; ``impute`` adds one prompt's source before the next.
    An input that cannot be read becomes a failure, the others go on.

    Raises:
        PromptError: a prompt says nothing to the embedder; nothing has been done by then.
        ConfigError: ``out`` cannot be written, or the options do not belong to the task.
    """
    output = output or OutputConfig()
    if task != "extract" and (output.refine != "none" or output.consistent):
        raise ConfigError(f"{task}: refine and consistent belong to extract, which is given a mix")
    found = find_inputs(inputs, out)
    job = _Job(model, name, prompts, out, sampling, output, config or FileConfig(), list(found))
    names = output_names(list(found), found)
    with progress(0, task, "evaluations") as job.bar:
        waiting = [path for path in found if not job.is_done(task, path)]
        job.expect({path: job.header_length(path) for path in waiting}, len(prompts))
        lanes = (job.file(task, path, names[path]) for path in found)
        try:
            model.engine.drive(lanes, sampling, output.batch, job.bar.update)
        finally:
            results = job.close()  # also of a job that is interrupted
    return results


def generate_files(
    model: MGELDM,
    name: str,
    prompts: Sequence[str],
    seconds: float,
    out: Path,
    sampling: SamplingConfig,
    output: OutputConfig | None = None,
    config: FileConfig | None = None,
) -> FileResults:
    """Generate one mix per prompt into ``out``, with ``results.json``. Raises PromptError, AudioError, ConfigError."""
    form = model.form_of(seconds)
    output = output or OutputConfig()
    job = _Job(model, name, prompts, out, sampling, output, config or FileConfig())
    with progress(0, "generate", "evaluations") as job.bar:
        names = prompt_names(prompts)
        lanes = [job.mix(number, form, words) for number, words in enumerate(names)]
        job.expect({Path(words): form.frames for number, words in enumerate(names) if not job.has_mix(number, form)}, 1)
        try:
            model.engine.drive(lanes, sampling, output.batch, job.bar.update)
        finally:
            results = job.close()  # also of a job that is interrupted
    return results


def slug(text: str) -> str:
    """A file name part: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")[:60] or "x"


def find_inputs(inputs: Sequence[Path], out: Path) -> dict[Path, PurePath]:
    """Every input file once, and the folder below the results' where its outputs belong.

    A folder stands for the audio files below it, hidden ones and results left out.

    Raises:
        ConfigError: a folder holds none.
    """
    found: dict[Path, PurePath] = {}
    for given in inputs:
        if not given.is_dir():
            found.setdefault(given, PurePath())
            continue
        files = [
            path
            for path in sorted(given.rglob("*"))
            if path.suffix.lower() in AUDIO_SUFFIXES
            and path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(given).parts)
            and not path.resolve().is_relative_to(out.resolve())
        ]
        if not files:
            raise ConfigError(f"{given}: no audio below this folder ({' '.join(AUDIO_SUFFIXES)})")
        for path in files:
            found.setdefault(path, path.relative_to(given).parent)
    return found


def output_names(inputs: Sequence[Path], folders: Mapping[Path, PurePath] | None = None) -> dict[Path, str]:
    """A name for each input, unique even where many files are called ``mix.flac``; in its folder, if it has one."""
    folders = folders or {}
    place = {path: folders.get(path, PurePath()) for path in inputs}
    short = {path: (place[path] / slug(path.stem)).as_posix() for path in inputs}
    longer = {path: (place[path] / slug(f"{path.resolve().parent.name}-{path.stem}")).as_posix() for path in inputs}
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


class _Job:
    """One command: its options, its rows, and the lanes of its inputs."""

    def __init__(
        self,
        model: MGELDM,
        name: str,
        prompts: Sequence[str],
        out: Path,
        sampling: SamplingConfig,
        output: OutputConfig,
        config: FileConfig,
        inputs: Sequence[Path] = (Path(),),
    ) -> None:
        self.bar: Any = None
        self._order = {str(path): place for place, path in enumerate(inputs)}
        self._model, self._name, self._out = model, name, out
        self._sampling, self._output, self._format = sampling, output, config.format
        self._prompts = list(prompts)
        self._words = {prompt: model.embed_prompt(prompt) for prompt in prompts}
        self._identity = model.identity
        self._expected: dict[Path, int] = {}
        self._rows: dict[tuple[str, int], FileResult] = {}
        self._failures: list[dict[str, str]] = []
        self._saved = time.monotonic()
        check_writable(out)
        for path in out.rglob(".tmp-*"):
            if abandoned(path.name) is not None:
                path.unlink(missing_ok=True)
        self._earlier = {row.key: row for row in _read_rows(out / RESULTS_FILE)}
        self._resume = config.resume

    def expect(self, lengths: Mapping[Path, int], prompts: int) -> None:
        """Set the bar's total from the lengths of inputs, in samples of the codec."""
        self._expected = {path: prompts * self._cost(length) for path, length in lengths.items()}
        self.bar.total = sum(self._expected.values())
        self.bar.refresh()

    def header_length(self, path: Path) -> int:
        """Length of an input by its header, in samples of the codec; 0 where it does not say."""
        try:
            info = audio.probe(path)
        except AudioError:
            return 0
        return audio.resampled_frames(info.frames or 0, info.sample_rate, self._model.rate)

    def is_done(self, task: str, path: Path) -> bool:
        """Whether all that is asked of an input was done before."""
        return all(self._done(self._key(task, path, number)) for number in range(len(self._prompts)))

    def has_mix(self, number: int, form: Form) -> bool:
        """Whether the mix of a prompt was generated before."""
        return self._done(self._mix_key(number, form)) is not None

    def file(self, task: str, path: Path, name: str) -> Lane:
        """All that is asked of one input."""
        try:
            keys = [self._key(task, path, number) for number in range(len(self._prompts))]
            missing = [number for number, key in enumerate(keys) if not self._kept(path, number, key)]
            if missing:
                signal = self._model.open(path)
                self._expect_length(path, len(missing) * self._cost(signal.form.frames))
                steps = self._impute if task == "impute" else self._each
                yield from steps(task, path, name, signal, keys, missing)
        except AudioError as error:
            logger.error("%s", error)
            self._expect_length(path, 0)
            self._failures.append({"input": str(path), "code": error.code, "message": str(error)})

    def mix(self, number: int, form: Form, words: str) -> Lane:
        """One mix from words."""
        key = self._mix_key(number, form)
        if self._kept(Path(), number, key):
            return
        begin, prompt = time.monotonic(), self._prompts[number]
        outputs = {"mix": f"generate-{words}-seed{self._sampling.seed}.{self._format}"}
        with ExitStack() as stack:
            wish = Wish(prompt=prompt, words=self._words[prompt], tracks=self._tracks(stack, outputs, form, form))
            yield from self._model.engine.lane(GENERATE, None, form.frames, [wish], self._sampling, self._output)
        self._add(Path(), number, self._row("generate", prompt, None, {}, outputs, key, begin))

    def close(self) -> FileResults:
        """Write ``results.json``; earlier rows stay in it as long as their files are theirs."""
        return self._save(force=True)

    def _each(
        self, task: str, path: Path, name: str, signal: Signal, keys: Sequence[str], missing: Sequence[int]
    ) -> Lane:
        """Each prompt by itself, all at a time."""
        begin, kept = time.monotonic(), TASKS[task]
        given = self._given(task, name, signal)
        wanted = self._output.form(signal.form, signal.origin)
        names = prompt_names(self._prompts)
        outputs = {number: self._names(name, task, names[number], kept.kept) for number in missing}
        with ExitStack() as stack:
            wishes = [
                Wish(
                    prompt=self._prompts[number],
                    words=self._words[self._prompts[number]],
                    tracks=self._tracks(stack, outputs[number], signal.form, wanted),
                )
                for number in missing
            ]
            yield from self._model.engine.lane(kept, signal, signal.form.frames, wishes, self._sampling, self._output)
        for number in missing:
            files = outputs[number]
            if task == "accompany":
                files |= self._names(name, task, names[number], ("mix",))
                self._write_sum(files, "submix", signal)
            self._add(path, number, self._row(task, self._prompts[number], path, given, files, keys[number], begin))

    def _impute(
        self, task: str, path: Path, name: str, signal: Signal, keys: Sequence[str], missing: Sequence[int]
    ) -> Lane:
        """One prompt after the other, each into what there is by then."""
        given = self._given(task, name, signal)
        original = signal.origin
        for number, (prompt, words) in enumerate(zip(self._prompts, prompt_names(self._prompts), strict=True)):
            begin, files = time.monotonic(), self._names(name, task, words, ("source", "mix"))
            if number in missing:
                wanted = self._output.form(signal.form, original)
                with ExitStack() as stack:
                    wish = Wish(
                        prompt=prompt,
                        words=self._words[prompt],
                        tracks=self._tracks(stack, {"source": files["source"]}, signal.form, wanted),
                        repeat=self._prompts[:number].count(prompt),
                    )
                    length = signal.form.frames
                    yield from self._model.engine.lane(
                        TASKS[task], signal, length, [wish], self._sampling, self._output
                    )
                self._write_sum(files, "source", replace(signal, origin=original))
                self._add(path, number, self._row(task, prompt, path, given, files, keys[number], begin))
            signal = self._model.open(self._out / self._rows[str(path), number].outputs["mix"])

    def _given(self, task: str, name: str, signal: Signal) -> dict[str, str]:
        """The input as the model hears it, in the form of the outputs, for listening beside them."""
        track = str(TASKS[task].given)
        given = {track: f"{name}-{track}.{self._format}"}
        self._write(given[track], signal)
        return given

    def _write_sum(self, files: Mapping[str, str], track: str, signal: Signal) -> None:
        """The mix of the input and a track that was written."""
        self._write(files["mix"], added(signal, self._model.open(self._out / files[track])))

    def _write(self, file: str, signal: Signal) -> None:
        wanted = self._output.form(signal.form, signal.origin)
        with ExitStack() as stack:
            track = self._tracks(stack, {"": file}, signal.form, wanted)[""]
            for block in signal.blocks():
                track.push(block)
            track.finish()

    def _tracks(self, stack: ExitStack, files: Mapping[str, str], form: Form, wanted: Form) -> dict[str, Track]:
        """Files that are there, whole, once the stack is left."""
        return {
            name: Track(
                stack.enter_context(audio.writing(self._out / file, wanted.rate, wanted.channels, wanted.frames)).write,
                form,
                wanted,
            )
            for name, file in files.items()
        }

    def _names(self, name: str, task: str, words: str, tracks: Sequence[str]) -> dict[str, str]:
        return {track: f"{name}-{task}-{words}-{track}.{self._format}" for track in tracks}

    def _key(self, task: str, path: Path, number: int) -> str:
        """Of an input and a prompt; of what is imputed one after another, of all prompts up to it."""
        try:
            status = path.stat()
            stamp = [str(path.resolve()), status.st_size, status.st_mtime_ns]
        except OSError:
            stamp = [str(path)]
        prompts = self._prompts[: number + 1] if task == "impute" else self._prompts[number]
        return self._hash(task, stamp, prompts)

    def _mix_key(self, number: int, form: Form) -> str:
        return self._hash("generate", [form.frames], self._prompts[number])

    def _hash(self, *asked: Any) -> str:
        output = {key: value for key, value in asdict(self._output).items() if key != "batch"}
        return content_hash([*asked, asdict(self._sampling), output, self._format, self._identity], 32)

    def _done(self, key: str) -> FileResult | None:
        """The row of an earlier command whose files are all there."""
        row = self._earlier.get(key) if self._resume else None
        return row if row and all((self._out / file).is_file() for file in row.files) else None

    def _kept(self, path: Path, number: int, key: str) -> bool:
        row = self._done(key)
        if row:
            self._rows[str(path), number] = row
        return row is not None

    def _cost(self, length: int) -> int:
        return len(self._model.engine.starts(length)) * self._sampling.evaluations if length else 0

    def _expect_length(self, path: Path, evaluations: int) -> None:
        """Correct the bar's total, where a header did not say how long the sound is."""
        self.bar.total += evaluations - self._expected.get(path, 0)
        self._expected[path] = evaluations
        self.bar.refresh()

    def _row(
        self,
        task: str,
        prompt: str,
        path: Path | None,
        given: dict[str, str],
        outputs: dict[str, str],
        key: str,
        begin: float,
    ) -> FileResult:
        return FileResult(
            task=task,
            prompt=prompt,
            input=None if path is None else str(path),
            given=given,
            outputs=outputs,
            sampler=self._sampling.sampler,
            steps=self._sampling.steps,
            guidance=self._sampling.guidance,
            seed=self._sampling.seed,
            seconds=round(time.monotonic() - begin, 3),
            key=key,
        )

    def _add(self, path: Path, number: int, row: FileResult) -> None:
        self._rows[str(path), number] = row
        self._save()

    def _save(self, force: bool = False) -> FileResults:
        order = self._order
        places = sorted(self._rows, key=lambda place: (order[place[0]], place[1]))
        rows = tuple(self._rows[place] for place in places)
        failures = tuple(sorted(self._failures, key=lambda failure: order[failure["input"]]))
        results = FileResults(model=self._name, results=rows, failures=failures)
        if force or time.monotonic() - self._saved > SAVE_EVERY_S:
            taken = {file for row in rows for file in row.outputs.values()}
            stay = tuple(
                row
                for row in self._earlier.values()
                if not taken & {*row.outputs.values()} and all((self._out / file).is_file() for file in row.files)
            )
            write_json(self._out / RESULTS_FILE, asdict(replace(results, results=(*rows, *stay))))
            self._saved = time.monotonic()
        return results


def _read_rows(path: Path) -> Iterator[FileResult]:
    """The rows of an earlier ``results.json``; what is no such row is left out."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["results"]
    except FileNotFoundError:
        return
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s: not readable (%s); everything is done anew", path, error)
        return
    known = {entry.name for entry in fields(FileResult)}
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict) and row.keys() <= known and row.get("key"):
            yield FileResult(**row)
