"""What a command is asked for, and what of it is to be done: rows to be, their keys, their files."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from manifests.atomic import content_hash
from manifests.errors import ConfigError
from mgeldm import audio
from mgeldm.files.naming import find_inputs, given_target, mix_target, output_names, prompt_names, target
from mgeldm.files.results import FileResult, Place, Store, agree, claims
from mgeldm.joint import MGELDM
from mgeldm.outputs import OutputConfig
from mgeldm.sampling import SamplingConfig
from mgeldm.signals import Form
from mgeldm.tasks import ACCOMPANY, EXTRACT, IMPUTE, Task


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
class Ask:
    """A row to be: one prompt for one input, or for none."""

    place: Place
    path: Path | None
    prompt: str
    key: str
    outputs: dict[str, str]
    given: dict[str, str]
    given_key: str

    @property
    def claims(self) -> dict[str, str]:
        """Its files, each with the key of what will be in it."""
        return claims(self.outputs, self.key, self.given, self.given_key)


class Order:
    """A task, its prompts, and all options."""

    def __init__(
        self,
        task: Task,
        model: MGELDM,
        prompts: Sequence[str],
        sampling: SamplingConfig,
        output: OutputConfig | None = None,
        config: FileConfig | None = None,
    ) -> None:
        """Take an order.

        Raises:
            PromptError: a prompt says nothing to the embedder.
            ConfigError: options do not belong to the task.
        """
        self.task, self.model, self.prompts, self.sampling = task, model, list(prompts), sampling
        self.output, self.config = output or OutputConfig(), config or FileConfig()
        if task is not EXTRACT and (self.output.refine != "none" or self.output.consistent):
            raise ConfigError("refine and consistent belong to extract, which is given a mix")
        self.words = [model.embed_prompt(prompt) for prompt in prompts]

    @property
    def tracks(self) -> tuple[str, ...]:
        """Tracks that come out; of what is added to the input, their mix too."""
        return (*self.task.kept, "mix") if self.task in (IMPUTE, ACCOMPANY) else self.task.kept

    def of_files(self, names: Mapping[Path, str]) -> list[Ask]:
        """The rows of inputs, each with its name."""
        suffix, words = self.config.format, prompt_names(self.prompts)
        asks = []
        for place, (path, name) in enumerate(names.items()):
            given = {str(self.task.given): given_target(name, str(self.task.given), suffix)}
            stamp = _stamp(path)
            for number, prompt in enumerate(self.prompts):
                ask = Ask(
                    place=(place, number),
                    path=path,
                    prompt=prompt,
                    key=self._key(stamp, self._asked(number)),
                    outputs={
                        track: target(name, self.task.name, words[number], track, suffix) for track in self.tracks
                    },
                    given=given,
                    given_key=self._given_key(stamp),
                )
                asks.append(ask)
        return asks

    def of_mixes(self, form: Form) -> list[Ask]:
        """The rows of mixes from nothing."""
        words = prompt_names(self.prompts)
        return [
            Ask(
                place=(0, number),
                path=None,
                prompt=prompt,
                key=self._key([form.frames], self._asked(number)),
                outputs={"mix": mix_target(words[number], self.sampling.seed, self.config.format)},
                given={},
                given_key="",
            )
            for number, prompt in enumerate(self.prompts)
        ]

    def starts(self, length: int) -> list[int]:
        """First frames of the crops that sound of so many samples takes."""
        return self.model.engine.starts(length, self.sampling.overlap) if length else []

    def cost(self, length: int) -> int:
        """Evaluations for one prompt, of sound of so many samples."""
        return len(self.starts(length)) * self.sampling.evaluations

    def forms(self, path: Path) -> tuple[Form, Form]:
        """An input in the codec's form, and in its own, as its header says; of 0 frames where that does not.

        Raises:
            AudioError: it cannot be read.
        """
        info, spec = audio.probe(path), self.model.codec.spec
        frames = info.frames or 0
        codec = Form(
            rate=spec.sample_rate,
            channels=spec.channels,
            frames=audio.resampled_frames(frames, info.sample_rate, spec.sample_rate),
        )
        return codec, Form(rate=info.sample_rate, channels=info.channels, frames=frames)

    def sampled(self, missing: Sequence[int], codec: Form, origin: Form) -> list[int]:
        """Prompts of an input that have to be sampled for those that are missing.

        Of what is imputed one after another those before them too, unless the mixes that were written are what the next
        source is made for, to the last bit.
        """
        if self.task is not IMPUTE or not missing or self.is_exact(codec, origin):
            return list(missing)
        return list(range(max(missing) + 1))

    def is_exact(self, codec: Form, origin: Form) -> bool:
        """Whether files hold just what the codec said."""
        return self.config.format == "wav" and self.output.form(codec, origin) == codec

    def _asked(self, number: int) -> Any:
        """What is asked by a prompt: one that comes again asks for a row of its own, and a chain for all before it."""
        prompts = self.prompts[: number + 1]
        return prompts if self.task is IMPUTE else [prompts[-1], prompts[:-1].count(prompts[-1])]

    def _key(self, *asked: Any) -> str:
        output = {name: value for name, value in asdict(self.output).items() if name != "batch"}
        options = [asdict(self.sampling), output, self.config.format]
        model = [self._identity, self.model.precision, self.model.compiled]
        return content_hash([self.task.name, *asked, options, model], 32)

    def _given_key(self, stamp: Any) -> str:
        spec, output = self.model.codec.spec, self.output
        form = [output.output_rate, output.output_channels, self.config.format, spec.sample_rate, spec.channels]
        return content_hash(["given", stamp, form], 32)

    @cached_property
    def _identity(self) -> str:
        return self.model.identity


class Plan:
    """What of an order is there by the folder's results, and what is to be done."""

    def __init__(self, order: Order, asks: Sequence[Ask], store: Store) -> None:
        """Compare.

        Raises:
            ConfigError: a file would be written over that is an input, or no command's own.
        """
        self.asks = {ask.place: ask for ask in asks}
        self.kept: dict[Place, FileResult] = {}
        if order.config.resume:
            self.kept = {ask.place: row for ask in asks if (row := store.find(ask.key))}
        while clashing := self._clashing(store):
            # The names that it has by an earlier command are given to something else now.
            self.kept = {place: row for place, row in self.kept.items() if place not in clashing}
        self.targets = self._targets(store)
        _check_targets(self.targets, [ask.path for ask in asks if ask.path], store)

    @property
    def inputs(self) -> dict[int, Path]:
        """Inputs by their numbers."""
        return {place[0]: ask.path for place, ask in self.asks.items() if ask.path}

    def missing(self, number: int = 0) -> list[int]:
        """Prompts that are to be answered for an input."""
        return [place[1] for place in self.asks if place[0] == number and place not in self.kept]

    def _targets(self, store: Store) -> dict[str, str]:
        """Files to be written, each with the key of what will be in it."""
        missing = [ask for place, ask in self.asks.items() if place not in self.kept]
        given = {file: ask.given_key for ask in missing for file in ask.given.values()}
        return {
            **{file: key for file, key in given.items() if not store.holds(file, key)},
            **{file: ask.key for ask in missing for file in ask.outputs.values()},
        }

    def _clashing(self, store: Store) -> set[Place]:
        targets = self._targets(store)
        return {place for place, row in self.kept.items() if not agree(row.claims, targets)}


def plan_files(order: Order, inputs: Sequence[Path], store: Store) -> Plan:
    """The plan for inputs. Raises ConfigError."""
    found = find_inputs(inputs, store.out, store.files)
    return Plan(order, order.of_files(output_names(list(found), found, store.names)), store)


def plan_mixes(order: Order, form: Form, store: Store) -> Plan:
    """The plan for mixes from nothing. Raises ConfigError."""
    return Plan(order, order.of_mixes(form), store)


def _check_targets(targets: Iterable[str], inputs: Sequence[Path], store: Store) -> None:
    given, own = {path.resolve() for path in inputs}, store.files
    reasons = []
    for file in targets:
        path = store.out / file
        if path.resolve() in given:
            reasons.append(f"{path}: is an input")
        elif file not in own and os.path.lexists(path):
            reasons.append(f"{path}: is no result of an earlier command")
    if reasons:
        more = f" (and so would {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise ConfigError(f"{reasons[0]}, and would be written over{more}; choose another --out, or move it away")


def _stamp(path: Path) -> list[Any]:
    """What tells that an input is the same as before."""
    place = os.fsencode(os.path.abspath(path)).hex()
    try:
        status = path.stat()
    except OSError:
        return [place]
    return [place, status.st_size, status.st_mtime_ns]
