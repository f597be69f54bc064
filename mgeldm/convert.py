"""Released weights to folders of ours: the paper's checkpoint, and autoencoders of stable-audio-tools."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from manifests.atomic import atomic_folder, check_writable
from manifests.errors import CheckpointError, ConfigError
from manifests.shards import TRACKS
from mgeldm.checkpoint import CheckpointConfig, save_checkpoint
from mgeldm.codec.autoencoder import AutoencoderCodec, read_codec, save_codec
from mgeldm.codec.loading import codec_folder
from mgeldm.codec.long import silence_latent
from mgeldm.codec.stable_audio import autoencoder_weights, oobleck_of_weights, read_config, read_state
from mgeldm.embedder import load_embedder
from mgeldm.model import JointConfig, JointTransformer, official_config
from mgeldm.state_dict import misfits

NETWORK_PREFIX = "model_dit."
CODEC_PREFIX = "pretransform.model."
CODEC_FOLDER = "codec"
SAMPLE_RATE = 16_000
"""Of the released codec; no weight tells it."""
CROP_FRAMES = 100
"""What the released weights were trained on."""
PROMPT_TEMPLATE = "the sound of {}"
"""Likewise."""
EMBEDDER_NAME = "LAION CLAP, HTSAT-base, trained on music and AudioSet"
"""What the released weights are conditioned with; its own weights are not in the file."""


def convert(
    file: Path,
    out: Path,
    *,
    heads: int | None = None,
    norm: Literal["group", "layer"] | None = None,
    codec: str | None = None,
    embedder: str | None = None,
    model_config: Path | None = None,
    crop_frames: int | None = None,
    prompt_template: str | None = None,
) -> dict[str, Any]:
    """Read ``file`` as what its names say it is, and write the folder ``out``: a checkpoint or a codec.

    All is looked at before anything is written, and the folder appears whole or not at all.

    Args:
        file: The paper's `unwrapped_DiT.ckpt`, or an autoencoder of stable-audio-tools, wrapped or not; `.safetensors`
            files with the same names in them do too. Read as plain tensors, never as a pickle of more.
        out: Folder to write, which may not hold anything yet. A checkpoint gets its codec in a folder inside.
        heads: Joint model: attention heads, which no shape tells; one for 32 channels if not given.
        norm: Joint model: kind of normalisation, which no shape tells either; group if not given.
        codec: Joint model: a codec instead of the one in the file; "none" leaves it out, and it must be named at every
            use.
        embedder: Joint model: the embedder to pin. Without one, any will do that has the right dimension.
        model_config: The `model_config.json` of the autoencoder in the file. Without it the paper's kind is read off
            the weights of a joint model; an autoencoder alone needs it.
        crop_frames: Joint model: latent frames of a training example; 100 if not given.
        prompt_template: Joint model: prompts are embedded as this, with the words in place of ``{}``; "the sound of {}"
            if not given.

    Returns:
        What was written, by name.

    Raises:
        CheckpointError: The file, or what is given with it, is damaged, of another make, or does not go together.
        ConfigError: An option does not go with the file, or makes no sense, or ``out`` cannot be written.
    """
    _check_out(out)
    state = read_state(file)
    network = _below(NETWORK_PREFIX, state)
    options = {
        "heads": heads,
        "norm": norm,
        "codec": codec,
        "embedder": embedder,
        "crop_frames": crop_frames,
        "prompt_template": prompt_template,
    }
    if not network:
        return _convert_autoencoder(file, out, state, model_config, options)
    crop_frames = CROP_FRAMES if crop_frames is None else crop_frames
    prompt_template = PROMPT_TEMPLATE if prompt_template is None else prompt_template
    if crop_frames < 1:
        raise ConfigError(f"--crop-frames {crop_frames}: at least 1")
    if "{}" not in prompt_template:
        raise ConfigError(f"--prompt-template {prompt_template!r}: it must hold {{}} for the words")
    if codec is not None and model_config is not None:
        raise ConfigError(
            f"--model-config describes the codec in {file.name}, but --codec {codec} does not take that one; leave one "
            "of them away"
        )
    model = _network_config(file, network, heads, norm or "group")
    conditions = _embedder(embedder, model)
    found = None if codec == "none" else _codec_of_checkpoint(file, state, codec, model_config, model)
    spec = {"latent_channels": model.latent_channels} if found is None else found.spec
    config = CheckpointConfig(
        model=model,
        codec={"identity": found.identity if found else None, "spec": spec},
        embedder=conditions,
        prompt_template=prompt_template,
        crop_frames=crop_frames,
        # The original feeds the codec's latents as they are.
        latent_mean=(0.0,) * model.latent_channels,
        latent_std=(1.0,) * model.latent_channels,
        silence_latent=found.silence if found else None,
        training={"converted_from": file.name},
    )
    with atomic_folder(out) as folder:
        if found:
            found.save(folder / CODEC_FOLDER)
        save_checkpoint(folder, config, network)
    return {
        "checkpoint": str(out),
        "parameters": sum(value.numel() for key, value in network.items() if not key.endswith("inv_freq")),
        **{name: getattr(model, name) for name in ("width", "depth", "heads", "latent_channels", "embedding_dim")},
        "codec": found.identity if found else "not in it: name one at every use",
        "embedder": conditions["identity"] or f"any of dimension {model.embedding_dim}; made for {EMBEDDER_NAME}",
    }


def _convert_autoencoder(
    file: Path,
    out: Path,
    state: Mapping[str, torch.Tensor],
    model_config: Path | None,
    options: Mapping[str, object],
) -> dict[str, Any]:
    """A file without a joint model to a codec folder; ``options`` are those that belong to a joint model."""
    weights = autoencoder_weights(state, file)
    if given := [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]:
        raise ConfigError(
            f"{file}: no joint model (no names begin with {NETWORK_PREFIX}) but an autoencoder alone; leave away "
            f"{', '.join(given)}, of which it has no use"
        )
    if model_config is None:
        raise ConfigError(f"{file}: an autoencoder alone; name its configuration with --model-config CONFIG.json")
    found = _FoundCodec.of(str(file), read_config(model_config), weights)
    with atomic_folder(out) as folder:
        found.save(folder)
    return {"codec": str(out), "identity": found.identity, **found.spec}


@dataclass(frozen=True, slots=True)
class _FoundCodec:
    """A codec that was built and tried."""

    config: dict[str, Any]
    weights: Mapping[str, torch.Tensor]
    identity: str
    spec: dict[str, Any]
    silence: tuple[float, ...]

    @classmethod
    def of(cls, source: str, config: dict[str, Any], weights: Mapping[str, torch.Tensor]) -> "_FoundCodec":
        """Build it. Raises CheckpointError, with the name of where it comes from."""
        try:
            codec = AutoencoderCodec.frozen(config, dict(weights))
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from None
        silence = tuple(silence_latent(codec).tolist())
        return cls(config, weights, codec.identity, asdict(codec.spec), silence)

    def save(self, folder: Path) -> None:
        """Write its folder."""
        # Weights as they are: the identity is that of the original, however it is wrapped.
        save_codec(folder, self.config, dict(self.weights), dtype=None)


def _check_out(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        raise ConfigError(f"{out}: there is something in this folder; remove it, or give another --out")
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: a file; give --out the folder to write")
    check_writable(out.parent)


def _below(prefix: str, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _network_config(
    file: Path, network: Mapping[str, torch.Tensor], heads: int | None, norm: Literal["group", "layer"]
) -> JointConfig:
    try:
        config = official_config(network, heads=heads, norm=norm)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from None
    if config.tracks != len(TRACKS):
        raise CheckpointError(
            f"{file}: a network of {config.tracks} tracks; one of {', '.join(TRACKS)} can be converted"
        )
    with torch.device("meta"):
        wanted = JointTransformer(config).state_dict()
    if faults := misfits(wanted, network):
        raise CheckpointError(f"{file}: not the whole of a joint network: {faults}")
    return config


def _embedder(name: str | None, model: JointConfig) -> dict[str, Any]:
    if name is None:
        return {"identity": None, "spec": {"dim": model.embedding_dim}, "name": EMBEDDER_NAME}
    found = load_embedder(name)
    if found.spec.dim != model.embedding_dim:
        raise CheckpointError(
            f"embedder {name!r} has {found.spec.dim} dimensions, the model takes {model.embedding_dim}; it was made "
            f"for {EMBEDDER_NAME}"
        )
    return {"identity": found.identity, "spec": asdict(found.spec)}


def _codec_of_checkpoint(
    file: Path,
    state: Mapping[str, torch.Tensor],
    name: str | None,
    model_config: Path | None,
    model: JointConfig,
) -> _FoundCodec:
    """The codec named, or the one in the file. Raises CheckpointError: there is none, or it does not fit the model."""
    if name is not None:
        found = _FoundCodec.of(f"--codec {name}", *read_codec(codec_folder(name)))
    elif any(key.startswith(CODEC_PREFIX) for key in state):
        weights = autoencoder_weights(state, file)
        try:
            config = read_config(model_config) if model_config else oobleck_of_weights(weights, SAMPLE_RATE)
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from None
        found = _FoundCodec.of(str(file), config, weights)
    else:
        raise CheckpointError(
            f"{file}: no codec in it (no names begin with {CODEC_PREFIX}); give one with --codec FOLDER, or leave it "
            "out with --codec none"
        )
    if (channels := found.spec["latent_channels"]) != model.latent_channels:
        raise CheckpointError(
            f"{file}: the codec has {channels} latent channels, the model takes {model.latent_channels}; give the "
            "right codec with --codec FOLDER"
        )
    return found
