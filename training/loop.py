"""train: the joint model from a stream of shards. Plain PyTorch, one process or many, exact resume."""

import logging
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch

from manifests.errors import ConfigError
from mgeldm.checkpoint import check_identity
from mgeldm.codec import Codec, load_codec
from mgeldm.progress import progress
from training.ahead import load_ahead
from training.checkpoints import LAST
from training.config import TrainConfig
from training.guard import DIVERGED
from training.listening import samples
from training.noising import Examples, Noising
from training.parallel import Workers, workers
from training.preemption import Preemption
from training.randomness import Purpose
from training.run import Run
from training.run_files import METRICS_FILE, Metrics
from training.stem_tracks import windows_by_instrument
from training.stream import Batch, ShardSet, Stream, StreamState
from training.trackers import Trackers
from training.validation import Validation

logger = logging.getLogger(__name__)

Data = Sequence[tuple[Path | str, float | None]]
RECENT = 50
"""Steps behind the loss that the progress bar shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSummary:
    """What a training run ended with."""

    steps: int
    stopped: bool
    """Whether it was asked to end before its last step (SIGTERM); the same call goes on from there."""
    parameters: int
    loss: float | None
    """Mean training loss over the last tenth of the steps of this call, but for those without a finite one; None where
    there is none, such as in a run that was finished before."""
    first_loss: float | None
    """The same over its first tenth."""
    val_loss: float | None
    """None where no data set has a validation subset, or the run was stopped before a validation."""
    skipped: int
    """Steps that the guard kept from the weights, in all."""
    seconds: float
    data_wait: float
    """Share of the time of the steps of this call in which the network waited for data."""
    checkpoint: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch that is ready for the network."""

    examples: Examples
    state: StreamState


def train(
    config: TrainConfig,
    data: Data,
    out: Path,
    *,
    resume: bool = True,
    stop: Path | None = None,
    after_step: Callable[[Run], None] | None = None,
) -> TrainSummary:
    """Train a joint model on the train subset of the data set folders ``data``, blended by their weights (see `blend`).

    Writes ``out/checkpoint`` (averaged weights), ``out/best`` (by validation), ``metrics.jsonl``, ``recipe.json`` and
    the state from which the same call goes on, to the bit; without ``resume`` that is dropped. Latents are normalised
    by the first data set's card where the recipe says so. Processes that torchrun or Ray has started find each other
    and train together; the first of them writes. SIGTERM, and the file ``stop`` once it is there, end training after
    the step under way or the one after it, with all saved; a validation that is due then is left to the run that goes
    on. ``after_step`` is called in each process after every step.

    Raises:
        ShardError: a data set cannot be used.
        ConfigError: the data sets do not go together, a batch cannot be divided, or training diverged.
        CheckpointError: ``out`` holds the state of another recipe or other data.
    """
    begin = time.monotonic()
    with workers(config.device) as group, Preemption(stop if group.first else None) as preemption:
        sets, stream = open_data(config, data, group)
        run = Run(config, sets, stream.shares, out, group)
        position = run.begin(resume) or stream.start()
        validation = Validation.of([path for path, _ in data], sets, config, run.mean, run.std, group)
        if config.listen_every and not validation:
            raise ConfigError(f"listen_every {config.listen_every} needs data with a validation subset, to listen to")
        losses: list[float] = []
        validated: dict[str, float] = {}
        waited = Clock()

        def validate() -> None:
            assert validation
            with run.averaged() as network:
                validated.update(validation(network))
            told.write(run.step, validated)
            check_validation(run.step, validated["val_loss"])
            run.keep_best(validated["val_loss"])

        with ExitStack() as stack:
            bar = stack.enter_context(progress(config.steps, "train", "steps", initial=run.step, quiet=not group.first))
            told = stack.enter_context(reports(run))
            batches = stack.enter_context(closing(prepared(stream, position, config, group)))
            if run.unvalidated and validation:
                validate()
            while run.step < config.steps:
                with waited.apart():
                    batch = next(batches)
                figures = run.train_step(batch.examples, stop=preemption.asked)
                losses.append(figures["loss"])
                if after_step:
                    after_step(run)
                bar.set_postfix(loss=f"{np.mean(losses[-RECENT:]):.4f}", refresh=False)
                bar.update()
                last = run.step == config.steps
                if run.step % config.log_every == 0 or last or "skipped" in figures:
                    told.write(run.step, figures)
                run.guard.check()
                due = validation is not None and (run.step % config.validate_every == 0 or last)
                if run.stopping and not last:  # there may be seconds left
                    run.save(batch.state, unvalidated=due)
                    break
                if due:
                    validate()
                if validation and config.listen_every and run.step % config.listen_every == 0:
                    told.listen(run, validation)
                # A stretch of steps that do not pass may be the end: what was saved before it stays until one passes.
                if (run.step % config.save_every == 0 and not run.guard.in_a_row) or last:
                    run.save(batch.state)
        if not validated and validation and not run.stopping:
            with run.averaged() as network:
                validated = validation(network)
        stopped = run.stopping and run.step < config.steps
        if stopped:
            logger.info("asked to end: saved at step %d; the same call goes on from there", run.step)
    tenth = max(1, len(losses) // 10)
    return TrainSummary(
        steps=run.step,
        stopped=stopped,
        parameters=run.parameters,
        loss=_mean(losses[-tenth:]),
        first_loss=_mean(losses[:tenth]),
        val_loss=validated.get("val_loss"),
        skipped=run.guard.skipped,
        seconds=time.monotonic() - begin,
        data_wait=waited.share,
        checkpoint=str(out / LAST),
    )


def open_data(config: TrainConfig, data: Data, group: Workers | None = None) -> tuple[list[ShardSet], Stream]:
    """The train subsets of data set folders and the stream that blends them. Raises ShardError and ConfigError."""
    rank, world = (group.rank, group.world) if group else (0, 1)
    config.share(world)
    sets = [config.open(path, "train") for path, _ in data]
    windows_by_instrument(sets, config.stems.instruments)  # refuses those that none has
    config.stream.look_at_cache(sets)
    return sets, Stream(sets, [weight for _, weight in data], config.stream, rank, world)


def prepared(
    stream: Stream, position: StreamState, config: TrainConfig, group: Workers
) -> Generator[Prepared, None, None]:
    """Batches of this process with their noise, on its device; a thread makes them ahead until this is closed."""
    noising = Noising(seed=config.seed, purpose=Purpose.NOISE, patterns=config.timesteps)

    def prepare(batch: Batch) -> Prepared:
        examples = noising.examples(batch.latents, batch.embeddings, batch.present, batch.elements)
        return Prepared(examples.pinned() if group.device.type == "cuda" else examples, batch.state)

    # The thread itself takes the next one, so that its delays and errors come at its own turn.
    with (
        closing(stream.batches(position)) as batches,
        closing(load_ahead(lambda _: prepare(next(batches)), count(), 2)) as ready,
    ):
        for batch in ready:
            yield Prepared(batch.examples.to(group.device), batch.state)


class Reports:
    """Where the first process tells figures; the others' tell nobody."""

    def __init__(
        self, metrics: Metrics | None = None, trackers: Trackers | None = None, codec: Codec | None = None
    ) -> None:
        self._metrics, self._trackers, self._codec = metrics, trackers, codec

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Tell figures of a step."""
        if self._metrics and self._trackers:
            self._metrics.write(step, figures)
            self._trackers.write(step, figures)

    def listen(self, run: Run, validation: Validation) -> None:
        """Sample each task and make it sound; other processes with all weights go on and wait at their next step."""
        if self._codec or run.config.parallel == "fsdp":
            with run.averaged() as network, torch.no_grad():
                waves = samples(network, validation.tasks, self._codec, run.config.objective, run.mean, run.std)
            if self._trackers:
                self._trackers.audio(run.step, waves)


@contextmanager
def reports(run: Run) -> Iterator[Reports]:
    """The reports of a run that is at its beginning, or goes on. Once nothing can be refused it takes the folder over.

    Raises:
        ConfigError: a tracker is not installed.
        CheckpointError: the codec that is to make sound is not that of the data.
    """
    config, out, step = run.config, run.out, run.step
    if not run.group.first:
        yield Reports()
        return
    codec = None
    if config.listen_every:
        codec = load_codec(config.codec).to(run.device)
        check_identity(run.checkpoint, "codec", codec, config.codec)
    trackers = Trackers(out, tensorboard=config.tensorboard, wandb=config.wandb, step=step, recipe=asdict(config))
    with trackers:
        run.take_over()
        with Metrics(out / METRICS_FILE, step, validated=not run.unvalidated) as metrics:
            yield Reports(metrics, trackers, codec)


class Clock:
    """The share of some parts in a stretch of time that begins after the first of them."""

    def __init__(self) -> None:
        self._parts, self._begin = 0.0, 0.0

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Around a part."""
        begin = time.perf_counter()
        yield
        if self._begin:
            self._parts += time.perf_counter() - begin
        else:
            self._begin = time.perf_counter()

    @property
    def share(self) -> float:
        """Of the parts so far."""
        return self._parts / (time.perf_counter() - self._begin) if self._begin else 0.0


def check_validation(step: int, loss: float) -> None:
    """End a run whose averaged network says nothing any more, before it is saved. Raises ConfigError."""
    if not math.isfinite(loss):
        raise ConfigError(f"step {step}: the validation loss is {loss:g}: {DIVERGED}")


def _mean(losses: Sequence[float]) -> float | None:
    finite = [loss for loss in losses if math.isfinite(loss)]
    return float(np.mean(finite)) if finite else None
