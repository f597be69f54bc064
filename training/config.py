"""The recipe of a joint model: typed, one YAML file, every key checked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml

from manifests.errors import ConfigError
from manifests.shards import TRACKS
from mgeldm.diffusion.schedule import TAU_MIN, Objective
from mgeldm.diffusion.timesteps import SubsetPatterns, TimestepPatterns
from mgeldm.model.config import PRESETS, JointConfig
from training.parallel import Parallel
from training.schedules import Schedule
from training.stream import ShardSet, StreamConfig

RECIPES = Path(__file__).with_name("recipes")


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """What a recipe changes of the preset's network; None leaves it as it is."""

    width_per_track: int | None = None
    """Width that each track adds to the transformer."""
    depth: int | None = None
    """Blocks."""
    heads: int | None = None
    """Attention heads."""
    norm: Literal["group", "layer"] | None = None
    """"group" (the paper) or "layer"."""


@dataclass(frozen=True, kw_only=True)
class Stems:
    """Fixed instruments as the tracks, in place of mix, submix and source."""

    instruments: tuple[str, ...] = ()
    """The tracks: the source of a window's split that has this instrument alone as its source; (): no stems."""
    given: tuple[float, ...] = (1.0,)
    """Weights of none, any one, any two, ... of the tracks being given; (1,) is one timestep for all tracks."""


# Without slots, like the other configurations with nested ones: jsonargparse reads the defaults of those from __dict__.
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the joint model is trained."""

    preset: str = "tiny"
    """Size of the network: tiny, small, base or paper."""
    model: ModelSize = field(default_factory=ModelSize)
    steps: int = 1000
    """Optimiser steps in all."""
    objective: Objective = "v"
    """What the network predicts: "v" (the paper) or "rf", rectified flow."""
    learning_rate: float = 1e-3
    """Peak of AdamW's learning rate (paper: 5e-5)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moments."""
    weight_decay: float = 1e-3
    """AdamW's weight decay."""
    schedule: Schedule = "inverse_sqrt"
    """Learning rate after its warm-up: "inverse_sqrt" (the paper), "cosine", or "wsd": stable, then down."""
    warmup: int = 100
    """Steps in which the rate rises to its peak."""
    decay_share: float = 0.1
    """Last part of the steps in which "wsd" falls to 0."""
    clip: float = 1.0
    """Largest gradient norm."""
    spike: float = 10.0
    """A step with so many times the usual gradient norm is skipped, as is one that is not finite; 0: only these."""
    patience: int = 10
    """So many skipped steps in a row end the run."""
    ema: float = 0.999
    """Decay of the averaged weights, which are what is saved (paper: 0.9999)."""
    seed: int = 0
    """Seed of the initial weights, noise and timesteps; the stream has its own."""
    present: tuple[str, ...] = TRACKS
    """Tracks that the data has; the loss is never on another. ["mix"] learns from mixtures only."""
    normalise: bool = True
    """Bring each latent channel to mean 0 and deviation 1 by the data set's card; false: as the codec made them."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the network's arithmetic; weights, their average, loss and optimiser are float32 always."""
    accumulate: int = 1
    """Parts that each process cuts its share of a batch into, one after the other: less memory, the same gradient."""
    compile: bool = False
    """Compile the network: minutes at the start, then faster steps on a GPU."""
    recompute: bool = False
    """Keep no activations inside the blocks but compute them again for the gradient: slower, far less memory."""
    parallel: Parallel = "ddp"
    """Among several processes: "ddp", each with all weights, or "fsdp" (FSDP2), each with its share of them."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:1"; among several processes each takes a GPU of its own."""
    save_every: int = 500
    """Steps between checkpoints."""
    keep_last: int = 1
    """Checkpoints that are kept; the best by validation is kept besides."""
    validate_every: int = 250
    """Steps between validations, where the data has a validation subset."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too."""
    wandb: str = ""
    """Project of Weights & Biases to send the metrics to; needs `pip install wandb`."""
    listen_every: int = 0
    """Steps between audio samples of each task for TensorBoard; 0: none."""
    codec: str = "default"
    """Codec folder or hub id that makes samples audible, if not the one shipped."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    patterns: TimestepPatterns = field(default_factory=TimestepPatterns)
    stems: Stems = field(default_factory=Stems)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ConfigError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}")
        counts = ("steps", "save_every", "keep_last", "validate_every", "log_every", "warmup", "patience", "accumulate")
        for name in counts:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} {getattr(self, name)} must be a number above 0")
        for value in (self.ema, *self.betas):
            if not 0 <= value < 1:
                raise ConfigError(f"a decay of {value} (ema, betas) must be at least 0 and below 1")
        if not 0 <= self.seed < 2**63 or not 0 <= self.weight_decay < math.inf:
            raise ConfigError(
                f"seed {self.seed} must be at least 0 and below 2**63, weight_decay {self.weight_decay} a number of at "
                "least 0"
            )
        if not 0 <= self.spike < math.inf or self.listen_every < 0 or not 0 < self.decay_share <= 1:
            raise ConfigError(
                f"spike {self.spike} and listen_every {self.listen_every} must be at least 0, decay_share "
                f"{self.decay_share} above 0 and at most 1"
            )
        if self.listen_every and not self.tensorboard:
            raise ConfigError(f"listen_every {self.listen_every} needs tensorboard")
        self._check_stems()
        self._check_present()

    def _check_present(self) -> None:
        if not self.present or set(self.present) - set(TRACKS):
            raise ConfigError(f"present {list(self.present)}: give one or more of {', '.join(TRACKS)}")
        for track in TRACKS:
            if track not in self.present and getattr(self.patterns, f"{track}_given"):
                raise ConfigError(f"patterns.{track}_given must be 0, since {track!r} is not among present")
        if not self.patterns.all and len(self.present) == 1:
            raise ConfigError(f"patterns.all must be above 0, since only {self.present[0]!r} is present")

    def _check_stems(self) -> None:
        instruments, given = list(self.stems.instruments), list(self.stems.given)
        if not instruments:
            if self.stems != Stems():
                raise ConfigError(f"stems.given {given}: name the tracks, stems.instruments")
            return
        if len(set(instruments)) < len(instruments):
            raise ConfigError(f"stems.instruments {instruments}: name each instrument once")
        if self.present != TRACKS:
            raise ConfigError(
                f"stems.instruments {instruments} and present {list(self.present)}: choose one; which stems are "
                "present is told by each window"
            )
        if replace(self.patterns, tau_min=TAU_MIN) != TimestepPatterns():
            raise ConfigError("patterns are those of mix, submix and source; with stems.instruments use stems.given")
        if self.listen_every:
            raise ConfigError(
                f"listen_every {self.listen_every} lets mix, submix and source be heard; with stems it must be 0"
            )
        try:
            _ = self.timesteps
        except ValueError as error:
            raise ConfigError(f"stems.given: {error}") from None

    @property
    def tracks(self) -> tuple[str, ...]:
        """Names of the network's tracks, in order."""
        return self.stems.instruments or TRACKS

    @property
    def timesteps(self) -> TimestepPatterns | SubsetPatterns:
        """Which tracks are given in training, and how much the others are noised."""
        if not self.stems.instruments:
            return self.patterns
        return SubsetPatterns(tracks=len(self.tracks), weights=self.stems.given, tau_min=self.patterns.tau_min)

    def open(self, data: Path | str, subset: str) -> ShardSet:
        """A subset of a data set as these tracks. Raises ManifestError and ShardError."""
        return self.stream.open(data, subset, present=self.present, stems=self.stems.instruments)

    def network(self, latent_channels: int, embedding_dim: int) -> JointConfig:
        """The network's configuration for a data set. Raises ConfigError when the sizes make no network."""
        preset, tracks = PRESETS[self.preset], len(self.tracks)
        # Each track adds its width and its heads.
        sizes: dict[str, Any] = {"tracks": tracks, "heads": max(1, preset.heads * tracks // preset.tracks)}
        sizes |= {key: value for key, value in asdict(self.model).items() if value is not None}
        try:
            return replace(preset, latent_channels=latent_channels, embedding_dim=embedding_dim, **sizes)
        except ValueError as error:
            raise ConfigError(str(error)) from None

    def share(self, world: int) -> int:
        """Examples of a batch for each of ``world`` processes. Raises ConfigError when it cannot be divided."""
        if self.stream.batch % (world * self.accumulate):
            raise ConfigError(
                f"stream.batch {self.stream.batch} cannot be divided among {world} processes in {self.accumulate} "
                f"parts each (accumulate); choose a multiple of {world * self.accumulate}"
            )
        return self.stream.batch // world


def recipe_path(name: str) -> Path:
    """A recipe by path, or by the name of one shipped with the package. Raises ConfigError."""
    path = Path(name)
    if path.is_file():
        return path
    if (shipped := RECIPES / f"{name.removesuffix('.yaml')}.yaml").is_file():
        return shipped
    known = ", ".join(sorted(found.stem for found in RECIPES.glob("*.yaml")))
    raise ConfigError(f"{name}: no such recipe; give a YAML file, or one of {known}")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a recipe; ``overrides`` such as ``stream.batch=8`` replace its values.

    Raises:
        ConfigError: a key is unknown, a value is missing or of the wrong type, or the file is no YAML mapping.
    """
    # Slow to import, and only needed here.
    from jsonargparse import ArgumentError, ArgumentParser

    values = flat(read_yaml(path)) | dict(_override(text) for text in overrides)
    known = flat(asdict(TrainConfig()))
    for key, value in values.items():
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"{path}: a recipe has no {key!r}; {hint}it has {', '.join(known)}")
        if value is None:
            raise ConfigError(f"{path}: {key} has no value")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TrainConfig)
    try:
        parsed = parser.instantiate(parser.parse_object(values))
        return TrainConfig(**{entry.name: parsed[entry.name] for entry in fields(TrainConfig)})
    except (ArgumentError, ValueError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping. Raises ConfigError."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of options, got {type(raw).__name__}")
    return raw


def flat(raw: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    values: dict[str, Any] = {}
    for key, value in raw.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values


def _override(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"{text!r} replaces nothing; write KEY=VALUE, such as stream.batch=8")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r}: the value is not readable ({' '.join(str(error).split())})") from None
