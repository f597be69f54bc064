"""A checkpoint of the joint model: `model.safetensors` (averaged weights) + `config.json`."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from manifests.atomic import atomic_path, canonical_json, write_json
from manifests.errors import CheckpointError, StoreError
from manifests.shards import TRACKS, DatasetCard
from mgeldm.codec.base import Codec
from mgeldm.diffusion.schedule import PROCESSES, Objective
from mgeldm.embedder.base import Embedder
from mgeldm.model import JointConfig, JointTransformer
from mgeldm.model_folder import FolderKind, one_line
from mgeldm.state_dict import misfits

CHECKPOINT_VERSION = "1"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
_FOLDER = FolderKind(
    "a checkpoint",
    f"{CONFIG_FILE} and {WEIGHTS_FILE} (`mgeldm train` writes RUN/checkpoint)",
    "train, convert, copy or download it again",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """What stands in a checkpoint's ``config.json``."""

    model: JointConfig
    codec: dict[str, Any]
    """Identity and spec of the codec whose latents the model was trained on; see `check_identity`."""
    embedder: dict[str, Any]
    """Identity and spec of the embedder it was conditioned with."""
    prompt_template: str
    """Prompts are embedded as this, with the words in place of ``{}``."""
    crop_frames: int
    """Latent frames of a training example."""
    latent_mean: tuple[float, ...]
    """Per channel; the network sees ``(latents - mean) / std``."""
    latent_std: tuple[float, ...]
    silence_latent: tuple[float, ...] | None
    """The codec's answer to digital silence, per channel; None where the codec was not known."""
    objective: Objective = "v"
    """What the network predicts."""
    tracks: tuple[str, ...] = TRACKS
    """Names of the network's tracks, in order; others than mix, submix and source are stems of fixed instruments."""
    training: dict[str, Any] = field(default_factory=dict)
    """Steps, data sets and recipe."""

    def __post_init__(self) -> None:
        if self.objective not in PROCESSES:
            raise ValueError(f"objective {self.objective!r} is none of {', '.join(PROCESSES)}")
        if len(self.tracks) != self.model.tracks:
            raise ValueError(f"{len(self.tracks)} names of tracks ({', '.join(self.tracks)}) for {self.model.tracks}")

    @classmethod
    def of(
        cls,
        card: DatasetCard,
        model: JointConfig,
        crop_frames: int,
        training: dict[str, Any],
        objective: Objective = "v",
        tracks: tuple[str, ...] = TRACKS,
    ) -> "CheckpointConfig":
        """The configuration of a model trained on the data set of ``card``."""
        return cls(
            model=model,
            codec=card.codec,
            embedder=card.embedder,
            prompt_template=card.prompt_template,
            crop_frames=crop_frames,
            latent_mean=card.latent_mean,
            latent_std=card.latent_std,
            silence_latent=card.silence_latent,
            objective=objective,
            tracks=tracks,
            training=training,
        )


def save_checkpoint(folder: Path, config: CheckpointConfig, weights: dict[str, torch.Tensor]) -> None:
    """Write a checkpoint folder; ``config.json`` last, so that a folder with it is whole.

    Raises:
        StoreError: the disk is full or fails.
    """
    try:
        _write_checkpoint(folder, config, weights)
    except (OSError, SafetensorError) as error:
        reason = one_line(error)
        raise StoreError(
            f"{folder}: cannot be written ({reason}); free some space, and the same call goes on"
        ) from None


def _write_checkpoint(folder: Path, config: CheckpointConfig, weights: dict[str, torch.Tensor]) -> None:
    path = folder / CONFIG_FILE
    raw = {"version": CHECKPOINT_VERSION, **asdict(config)}
    if path.exists() and _without_training(path.read_text(encoding="utf-8")) != _without_training(canonical_json(raw)):
        # After a kill, weights must never lie beside the configuration of another model.
        path.unlink()
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    with atomic_path(folder / WEIGHTS_FILE) as temporary:
        save_file(tensors, temporary)
    write_json(path, raw)


def load_checkpoint(folder: Path) -> tuple[CheckpointConfig, JointTransformer]:
    """Read a checkpoint folder: its configuration and the network, in evaluation mode on the CPU.

    Raises:
        CheckpointError: the folder is missing, half written, of another version, or its weights do not fit.
    """
    path = folder / CONFIG_FILE
    raw = _FOLDER.json(path)
    if not isinstance(raw, dict) or raw.pop("version", None) != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"{path}: not a joint model checkpoint of version {CHECKPOINT_VERSION}; give the folder that `mgeldm "
            "train` or `mgeldm convert` wrote"
        )
    try:
        config = _config(raw)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else one_line(error)
        raise CheckpointError(f"{path}: not the configuration of a checkpoint ({reason}); {_FOLDER.again}") from None
    weights = _FOLDER.tensors(folder / WEIGHTS_FILE)
    # A billion weights need not be drawn to be thrown away.
    with torch.device("meta"):
        network = JointTransformer(config.model)
    if faults := misfits(network.state_dict(), weights):
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE}: the weights do not fit {CONFIG_FILE} beside them: {faults}; {_FOLDER.again}"
        )
    network.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    return config, network.eval().requires_grad_(False)


def _config(raw: dict[str, Any]) -> CheckpointConfig:
    """Raises KeyError, TypeError, ValueError: something is missing, or is not what it should be."""
    vectors: dict[str, Any] = {name: tuple(raw[name]) for name in ("latent_mean", "latent_std")}
    tracks = tuple(raw.get("tracks", TRACKS))
    silence = raw["silence_latent"]
    vectors["silence_latent"] = None if silence is None else tuple(silence)
    config = CheckpointConfig(**{**raw, **vectors, "tracks": tracks, "model": JointConfig(**raw["model"])})
    for name, vector in vectors.items():
        numbers = vector is None or all(isinstance(value, int | float) and math.isfinite(value) for value in vector)
        if not numbers or (vector is not None and len(vector) != config.model.latent_channels):
            raise ValueError(f"{name} is not {config.model.latent_channels} numbers")
    if min(config.latent_std) <= 0:
        raise ValueError(f"latent_std has {min(config.latent_std)}: each must be above 0")
    if len(tracks) != config.model.tracks or not all(isinstance(track, str) for track in tracks):
        raise ValueError(f"tracks is {list(tracks)}: not {config.model.tracks} names")
    for name, part in (("codec", config.codec), ("embedder", config.embedder)):
        identity, spec = (part.get("identity", 0), part.get("spec")) if isinstance(part, dict) else (0, None)
        if not isinstance(identity, str | None) or (identity is None and not isinstance(spec, dict)):
            raise ValueError(f"{name} does not say which one it is")
    if type(config.crop_frames) is not int or config.crop_frames < 1:
        raise ValueError(f"crop_frames is {config.crop_frames!r}: it must be a whole number of at least 1")
    if not isinstance(config.prompt_template, str) or "{}" not in config.prompt_template:
        raise ValueError(f"prompt_template is {config.prompt_template!r}: it must hold {{}} for the words")
    return config


def _without_training(text: str) -> Any:
    """A configuration without what was said of the training; None when it is not readable."""
    try:
        return {key: value for key, value in json.loads(text).items() if key != "training"}
    except (ValueError, AttributeError):
        return None


def check_identity(config: CheckpointConfig, kind: str, part: Codec | Embedder, name: str) -> None:
    """Refuse a codec or embedder, called ``name``, other than the one the model was trained with.

    Weights that were converted may not tell which one that was: their identity is None. Then any will do that has what
    stands in the spec.

    Raises:
        CheckpointError: it is another one.
    """
    expected = {"codec": config.codec, "embedder": config.embedder}[kind]
    if expected["identity"] is None:
        wanted, found = expected["spec"], asdict(part.spec)
        if any(found.get(key) != value for key, value in wanted.items()):
            known = ", ".join(f"{key} {value}" for key, value in wanted.items())
            has = ", ".join(f"{key} {found.get(key)}" for key in wanted)
            made_for = f" ({expected['name']})" if expected.get("name") else ""
            raise CheckpointError(
                f"the model's {kind} has {known}{made_for}, but {kind} {name!r} has {has}; give the right one with "
                f"--{kind} FOLDER"
            )
    elif part.identity != expected["identity"]:
        raise CheckpointError(
            f"the model was trained with {kind} {expected['identity'][:12]}, but {kind} {name!r} is "
            f"{part.identity[:12]}; give the right one with --{kind} FOLDER"
        )


def check_tracks(folder: Path, config: CheckpointConfig) -> None:
    """Refuse a model that has other tracks than mix, submix and source. Raises CheckpointError."""
    if config.tracks != TRACKS:
        raise CheckpointError(
            f"{folder}: a model of the stems {', '.join(config.tracks)}, not of {', '.join(TRACKS)}; generate, impute, "
            "extract and accompany are not for it; sample its stems with mgeldm.sampling.sample (docs/training.md)"
        )


def part_of(folder: Path, kind: str, name: str) -> str:
    """The codec or embedder that ``name`` means: "default" is the one inside the checkpoint folder, if it has one."""
    own = folder / kind
    return str(own) if name == "default" and own.is_dir() else name
