"""Doing what a command is asked for: a lane for each input, its files, its rows."""

import logging
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import IO, Any

from manifests.errors import AudioError
from mgeldm import audio
from mgeldm.chain import Chain
from mgeldm.engine import Lane, Wish
from mgeldm.files.order import Ask, FileConfig, Order, Plan, plan_files, plan_mixes
from mgeldm.files.results import FileResult, FileResults, Store, failure, printable
from mgeldm.joint import MGELDM
from mgeldm.outputs import OutputConfig, Track
from mgeldm.progress import progress
from mgeldm.sampling import SamplingConfig
from mgeldm.signals import Adder, Form, Signal
from mgeldm.tasks import ACCOMPANY, GENERATE, IMPUTE, TASKS

logger = logging.getLogger(__name__)


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
        ConfigError: ``out`` cannot be written, a file would be written over that is not a command's own, or the options
            do not belong to the task; nothing has been done by then.
    """
    order = Order(TASKS[task], model, prompts, sampling, output, config)
    store = Store(out)
    plan = plan_files(order, inputs, store)
    with progress(0, task, "evaluations") as bar:
        return _Job(order, plan, store, name, bar).run()


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
    order = Order(GENERATE, model, prompts, sampling, output, config)
    store = Store(out)
    plan = plan_mixes(order, form, store)
    with progress(0, GENERATE.name, "evaluations") as bar:
        return _Job(order, plan, store, name, bar, form).run()


class _Job:
    """One command at work."""

    def __init__(self, order: Order, plan: Plan, store: Store, name: str, bar: Any, form: Form | None = None) -> None:
        self._order, self._plan, self._store, self._name, self._bar, self._form = order, plan, store, name, bar, form
        self._engine, self._out = order.model.engine, store.out
        self._expected: dict[int, int] = {}

    def run(self) -> FileResults:
        """Do what is missing; ``results.json`` tells of it also where that is interrupted."""
        plan, order = self._plan, self._order
        self._store.begin(self._name, plan.targets)
        for place, row in plan.kept.items():
            self._store.add(place, row)
        if self._form:
            lanes = (self._mix(plan.asks[0, number], self._form) for number in plan.missing())
            self._expected = {0: len(plan.missing()) * order.cost(self._form.frames)}
        else:
            waiting = [number for number in plan.inputs if plan.missing(number)]
            lanes = (self._input(number, plan.inputs[number]) for number in waiting)
            self._expected = {number: self._by_header(number, plan.inputs[number]) for number in waiting}
        self._bar.total = sum(self._expected.values())
        self._bar.refresh()
        try:
            self._engine.drive(lanes, order.sampling, order.output.batch, self._bar.update)
        finally:
            results = self._store.close()
        return results

    def _by_header(self, number: int, path: Path) -> int:
        """Evaluations that an input takes, as far as its header tells."""
        try:
            codec, origin = self._order.forms(path)
        except AudioError:
            return 0
        return len(self._order.sampled(self._plan.missing(number), codec, origin)) * self._order.cost(codec.frames)

    def _expect(self, number: int, evaluations: int) -> None:
        """Correct the bar's total, where a header did not say how long the sound is."""
        self._bar.total += evaluations - self._expected[number]
        self._expected[number] = evaluations
        self._bar.refresh()

    def _input(self, number: int, path: Path) -> Lane:
        """All that is missing of one input."""
        asks = [self._plan.asks[number, prompt] for prompt in self._plan.missing(number)]
        try:
            signal = self._order.model.open(path)
            sampled = self._order.sampled(self._plan.missing(number), signal.form, signal.origin)
            self._expect(number, len(sampled) * self._order.cost(signal.form.frames))
            self._write_given(asks[0], signal)
            if self._order.task is IMPUTE:
                yield from self._one_after_another(number, signal, sampled)
            else:
                yield from self._each(asks, signal)
        except AudioError as error:
            logger.error("%s", error)
            self._expect(number, 0)
            self._store.fail(number, failure(path, error))

    def _each(self, asks: Sequence[Ask], signal: Signal) -> Lane:
        """Each prompt by itself, all at a time."""
        begin, order = time.monotonic(), self._order
        with ExitStack() as stack:
            tracks = [self._tracks(stack, ask.outputs, signal.form, self._wanted(signal)) for ask in asks]
            wishes = [
                Wish(
                    prompt=ask.prompt,
                    words=order.words[ask.place[1]],
                    tracks=_with_mix(files, signal) if order.task is ACCOMPANY else files,
                )
                for ask, files in zip(asks, tracks, strict=True)
            ]
            yield from self._engine.lane(order.task, signal, signal.form.frames, wishes, order.sampling, order.output)
            if order.task is ACCOMPANY:
                for track in (track for files in tracks for track in files.values()):
                    track.finish()
        for ask in asks:
            self._store.add(ask.place, self._row(ask, begin))

    def _one_after_another(self, number: int, signal: Signal, sampled: Sequence[int]) -> Lane:
        """One prompt after the other, each into what there is by then."""
        order, plan = self._order, self._plan
        missing = plan.missing(number)
        wanted = self._wanted(signal)
        chain = Chain(
            self._engine,
            signal,
            order.prompts[: max(missing) + 1],
            order.words,
            order.sampling,
            batch=order.output.batch,
            room=self._room,
        )
        with closing(chain):
            for prompt in range(max(missing) + 1):
                ask = plan.asks[number, prompt]
                if prompt not in sampled:
                    if prompt + 1 in sampled:
                        chain.submix = order.model.open(self._out / plan.kept[ask.place].outputs["mix"])
                    continue
                begin = time.monotonic()
                with ExitStack() as stack:
                    files = self._tracks(stack, ask.outputs, signal.form, wanted) if prompt in missing else {}
                    yield from chain.lane(prompt, files.get("source"), files.get("mix"))
                if files:
                    self._store.add(ask.place, self._row(ask, begin))

    def _mix(self, ask: Ask, form: Form) -> Lane:
        """One mix from words."""
        begin, order = time.monotonic(), self._order
        with ExitStack() as stack:
            tracks = self._tracks(stack, ask.outputs, form, form)
            wish = Wish(prompt=ask.prompt, words=order.words[ask.place[1]], tracks=tracks)
            yield from self._engine.lane(GENERATE, None, form.frames, [wish], order.sampling, order.output)
        self._store.add(ask.place, self._row(ask, begin))

    def _write_given(self, ask: Ask, signal: Signal) -> None:
        """The input as the model hears it, in the form of the outputs, for listening beside them."""
        for file in ask.given.values():
            if self._store.holds(file, ask.given_key):
                continue
            with ExitStack() as stack:
                track = self._tracks(stack, {"": file}, signal.form, self._wanted(signal))[""]
                for block in signal.blocks():
                    track.push(block)
                track.finish()

    def _wanted(self, signal: Signal) -> Form:
        return self._order.output.form(signal.form, signal.origin)

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

    def _room(self) -> IO[bytes]:
        """Where the results go there is room for what is half done; without a name, nothing is left of it."""
        return tempfile.TemporaryFile(dir=self._out)

    def _row(self, ask: Ask, begin: float) -> FileResult:
        sampling = self._order.sampling
        return FileResult(
            task=self._order.task.name,
            prompt=ask.prompt,
            input=None if ask.path is None else printable(str(ask.path)),
            given=ask.given,
            outputs=ask.outputs,
            sampler=sampling.sampler,
            steps=sampling.steps,
            guidance=sampling.guidance,
            seed=sampling.seed,
            precision=self._order.model.precision,
            seconds=round(time.monotonic() - begin, 3),
            key=ask.key,
            given_key=ask.given_key,
        )


def _with_mix(files: Mapping[str, Track], signal: Signal) -> dict[str, Track]:
    """The submix goes to its own file and, with the signal added, to that of the mix."""
    adder = Adder(signal)

    def take(block: audio.Wave) -> None:
        files["submix"].push(block)
        files["mix"].push(adder.push(block))

    return {"submix": Track(take, signal.form, signal.form)}
