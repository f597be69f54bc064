"""What a command would do: counted, and timed by a few evaluations on the device. Nothing is written."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from manifests.errors import AudioError
from mgeldm.engine import Wish
from mgeldm.files.order import FileConfig, Order, Plan, plan_files, plan_mixes
from mgeldm.files.results import Store, failure
from mgeldm.joint import MGELDM
from mgeldm.outputs import OutputConfig, Track
from mgeldm.sampling import SamplingConfig
from mgeldm.signals import Form, Signal
from mgeldm.tasks import GENERATE, IMPUTE, TASKS

CALIBRATION_STEPS = (1, 6)
CALIBRATIONS = 3
_SAMPLE_BYTES = {"wav": 4, "flac": 3}
"""A FLAC of 24 bit is never longer than its samples, and about half as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a command would do."""

    inputs: int
    """Inputs that can be read, by their headers; what is damaged further in is found when they are read."""
    hours: float
    """Of these, or of the mixes to be generated."""
    failures: tuple[dict[str, str], ...]
    """Inputs that cannot be read: ``input``, ``code``, ``message``."""
    done: int
    """Answers that are there by earlier commands."""
    answers: int
    """Answers to be made: one for each prompt and input."""
    outputs: tuple[str, ...]
    """Files to be written."""
    bytes: int
    """Of these; of FLAC, at most."""
    evaluations: int
    """Of the network, each for one example."""
    device: str
    seconds: float
    """What it takes on this device, by a few evaluations and the codec's work on one crop."""


def preview_files(
    task: str,
    model: MGELDM,
    inputs: Sequence[Path],
    prompts: Sequence[str],
    out: Path,
    sampling: SamplingConfig,
    output: OutputConfig | None = None,
    config: FileConfig | None = None,
) -> Preview:
    """What `run_on_files` would do. Raises as it does, and writes nothing."""
    order = Order(TASKS[task], model, prompts, sampling, output, config)
    plan = plan_files(order, inputs, Store(out))
    forms: dict[int, tuple[Form, Form]] = {}
    failures = []
    for number, path in plan.inputs.items():
        try:
            forms[number] = _forms(order, path)
        except AudioError as error:
            failures.append(failure(path, error))
    seconds = sum(origin.frames / origin.rate for _, origin in forms.values())
    return _preview(order, plan, forms, seconds, tuple(failures))


def preview_generate(
    model: MGELDM,
    prompts: Sequence[str],
    seconds: float,
    out: Path,
    sampling: SamplingConfig,
    output: OutputConfig | None = None,
    config: FileConfig | None = None,
) -> Preview:
    """What `generate_files` would do. Raises as it does, and writes nothing."""
    form = model.form_of(seconds)
    order = Order(GENERATE, model, prompts, sampling, output, config)
    plan = plan_mixes(order, form, Store(out))
    return _preview(order, plan, {0: (form, form)}, len(prompts) * form.frames / form.rate, ())


def _preview(
    order: Order,
    plan: Plan,
    forms: dict[int, tuple[Form, Form]],
    seconds: float,
    failures: tuple[dict[str, str], ...],
) -> Preview:
    answers = crops = together = bytes_ = 0
    files: dict[str, None] = {}
    for number, (codec, origin) in forms.items():
        missing = plan.missing(number)
        answers += len(missing)
        starts = order.starts(codec.frames)
        crops += len(order.sampled(missing, codec, origin)) * len(starts)
        # Of one sound at a time: prompts, unless each waits for the last, and chunks, where these do not.
        prompts = min(len(missing), 1) if order.task is IMPUTE else len(missing)
        together += prompts * (1 if order.sampling.overlap else len(starts))
        wanted = order.output.form(codec, origin)
        named = (file for prompt in missing for file in plan.asks[number, prompt].claims)
        written = dict.fromkeys(file for file in named if file in plan.targets)
        bytes_ += len(written) * wanted.frames * wanted.channels * _SAMPLE_BYTES[order.config.format]
        files |= written
    evaluations = crops * order.sampling.evaluations
    return Preview(
        inputs=0 if order.task is GENERATE else len(forms),
        hours=seconds / 3600,
        failures=failures,
        done=len(plan.kept),
        answers=answers,
        outputs=tuple(files),
        bytes=bytes_,
        evaluations=evaluations,
        device=str(order.model.device),
        seconds=_calibrated(order, min(order.output.batch, together)) * crops if crops else 0.0,
    )


def _forms(order: Order, path: Path) -> tuple[Form, Form]:
    """By the header, or, where that does not say how long it is, by decoding it."""
    codec, origin = order.forms(path)
    if origin.frames:
        return codec, origin
    signal = order.model.open(path)
    return signal.form, signal.origin


def _calibrated(order: Order, batch: int) -> float:
    """Seconds that a crop takes for one prompt where ``batch`` are sampled at a time, by the way that tasks go."""
    model, spec = order.model, order.model.codec.spec
    form = Form(rate=spec.sample_rate, channels=spec.channels, frames=model.config.crop_frames * spec.hop)
    noise = np.random.default_rng(0).normal(0, 0.1, (form.channels, form.frames)).astype(np.float32)
    signal = Signal(blocks=lambda: iter([noise.copy()]), form=form, peak=1.0, origin=form)

    def spent(sampling: SamplingConfig) -> float:
        wishes = [
            Wish(
                prompt=str(number),
                words=order.words[0],
                tracks={name: Track(_nowhere, form, form) for name in order.task.kept},
            )
            for number in range(batch)
        ]
        given = None if order.task is GENERATE else signal
        lane = model.engine.lane(order.task, given, form.frames, wishes, sampling, order.output)
        begin = time.perf_counter()
        model.engine.drive([lane], sampling, batch)
        return time.perf_counter() - begin

    few, more = (replace(order.sampling, steps=steps) for steps in CALIBRATION_STEPS)
    spent(few)  # what only the first call takes
    # What else the machine does only adds.
    short, long = (min(spent(sampling) for _ in range(CALIBRATIONS)) for sampling in (few, more))
    each = max(0.0, long - short) / (more.evaluations - few.evaluations)
    return (short + each * (order.sampling.evaluations - few.evaluations)) / batch


def _nowhere(_: object) -> None:
    """Sound that nobody wants."""
