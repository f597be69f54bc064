"""The recipe of a joint model: typed, one YAML file, every key checked."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from manifests.errors import ConfigError
from mgeldm.diffusion.schedule import Objective
from mgeldm.diffusion.timesteps import TimestepPatterns
from mgeldm.model.config import PRESETS, JointConfig
from training.stream import StreamConfig

RECIPES = Path(__file__).with_name("recipes")


# Without slots, like the other configurations with nested ones: jsonargparse reads the defaults of those from __dict__.
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the joint model is trained."""

    preset: str = "tiny"
    """Size of the network: tiny, small, base or paper."""
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
    warmup: int = 100
    """Steps of linear warm-up, then the rate falls with the inverse square root of the step."""
    clip: float = 1.0
    """Largest gradient norm."""
    ema: float = 0.999
    """Decay of the averaged weights, which are what is saved (paper: 0.9999)."""
    seed: int = 0
    """Seed of the initial weights, noise and timesteps; the stream has its own."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:1"."""
    save_every: int = 500
    """Steps between checkpoints."""
    validate_every: int = 250
    """Steps between validations, where the data has a validation subset."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    stream: StreamConfig = field(default_factory=StreamConfig)
    patterns: TimestepPatterns = field(default_factory=TimestepPatterns)

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ConfigError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}")
        for name in ("steps", "save_every", "validate_every", "log_every", "warmup"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} {getattr(self, name)} must be above 0")
        for value in (self.ema, *self.betas):
            if not 0 <= value < 1:
                raise ConfigError(f"a decay of {value} (ema, betas) must be at least 0 and below 1")
        if self.seed < 0 or self.weight_decay < 0:
            raise ConfigError(f"seed {self.seed} and weight_decay {self.weight_decay} must not be negative")

    def model(self, latent_channels: int, embedding_dim: int) -> JointConfig:
        """The network's configuration for a data set."""
        return replace(PRESETS[self.preset], latent_channels=latent_channels, embedding_dim=embedding_dim)


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

    values = _flat(read_yaml(path)) | dict(_override(text) for text in overrides)
    known = _flat(asdict(TrainConfig()))
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{path}: a recipe has no {key!r}; it has {', '.join(known)}")
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


def _flat(raw: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    values: dict[str, Any] = {}
    for key, value in raw.items():
        values |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values


def _override(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(f"{text!r} replaces nothing; write KEY=VALUE, such as stream.batch=8")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r}: the value is not readable ({' '.join(str(error).split())})") from None
