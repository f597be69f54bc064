"""Released weights to folders of ours: the paper's checkpoint, and autoencoders of stable-audio-tools."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch

from manifests.errors import CheckpointError, ConfigError
from mgeldm.checkpoint import CheckpointConfig, save_checkpoint
from mgeldm.codec import load_codec
from mgeldm.codec.autoencoder import read_codec, save_codec
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
EMBEDDER_NAME = "LAION CLAP, HTSAT-base, trained on music and AudioSet"
"""What the released weights are conditioned with; its own weights are not in the file."""


def convert(
    file: Path,
    out: Path,
    *,
    heads: int | None = None,
    norm: Literal["group", "layer"] = "group",
    codec: str | None = None,
    embedder: str | None = None,
    model_config: Path | None = None,
    crop_frames: int = CROP_FRAMES,
    prompt_template: str = "the sound of {}",
) -> dict[str, Any]:
    """Read ``file`` as what its names say it is, and write the folder ``out``: a checkpoint or a codec.

    Args:
        file: The paper's `unwrapped_DiT.ckpt`, or an autoencoder of stable-audio-tools, wrapped or not; `.safetensors`
            files with the same names in them do too. Read as plain tensors, never as a pickle of more.
        out: Folder to write. A checkpoint gets its codec in a folder of its own inside.
        heads: Attention heads, which no shape tells; None: one for 32 channels.
        norm: Kind of normalisation, which no shape tells either.
        codec: A codec instead of the one in the file; "none" leaves it out, and it must be named at every use.
        embedder: The embedder to pin. Without one, any will do that has the right dimension.
        model_config: The autoencoder's `model_config.json`. Without it the paper's kind is read off the weights.
        crop_frames: Latent frames of a training example.
        prompt_template: Prompts are embedded as this, with the words in place of ``{}``.

    Returns:
        What was written, by name.

    Raises:
        CheckpointError: The file, or what is given with it, is damaged, of another make, or does not go together.
        ConfigError: An option does not go with the file, or makes no sense.
    """
    if crop_frames < 1 or "{}" not in prompt_template:
        raise ConfigError(
            f"crop_frames {crop_frames} must be at least 1, and {prompt_template!r} hold {{}} for the words"
        )
    state = read_state(file)
    network = {
        key.removeprefix(NETWORK_PREFIX): value for key, value in state.items() if key.startswith(NETWORK_PREFIX)
    }
    if network:
        model = _network_config(file, network, heads, norm)
        # All is looked at before anything is written.
        conditions = _embedder(embedder, model)
        spec, silence = _codec_of_checkpoint(file, state, codec, model_config, model, out / CODEC_FOLDER)
        config = CheckpointConfig(
            model=model,
            codec=spec,
            embedder=conditions,
            prompt_template=prompt_template,
            crop_frames=crop_frames,
            # The original feeds the codec's latents as they are.
            latent_mean=(0.0,) * model.latent_channels,
            latent_std=(1.0,) * model.latent_channels,
            silence_latent=silence,
            training={"converted_from": file.name},
        )
        save_checkpoint(out, config, network)
        return {
            "checkpoint": str(out),
            "parameters": sum(value.numel() for key, value in network.items() if not key.endswith("inv_freq")),
            **{name: getattr(model, name) for name in ("width", "depth", "heads", "latent_channels", "embedding_dim")},
            "codec": spec["identity"] or "not in it: name one at every use",
            "embedder": conditions["identity"] or f"any of dimension {model.embedding_dim}; made for {EMBEDDER_NAME}",
        }
    if (codec, embedder, heads) != (None, None, None):
        raise ConfigError(
            f"{file}: no joint model (no names begin with {NETWORK_PREFIX}); --heads, --codec, --embedder say nothing"
        )
    weights = autoencoder_weights(state, file)
    if model_config is None:
        raise ConfigError(f"{file}: an autoencoder alone; name its configuration with --model-config CONFIG.json")
    found = _write_codec(file, out, read_config(model_config), weights)
    return {"codec": str(out), "identity": found["identity"], **found["spec"]}


def _network_config(
    file: Path, network: Mapping[str, torch.Tensor], heads: int | None, norm: Literal["group", "layer"]
) -> JointConfig:
    try:
        config = official_config(network, heads=heads, norm=norm)
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{file}: {error}") from None
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
    out: Path,
) -> tuple[dict[str, Any], tuple[float, ...] | None]:
    """Write the codec; returns identity and spec, and the latent of silence."""
    if name == "none":
        return {"identity": None, "spec": {"latent_channels": model.latent_channels}}, None
    if name is not None:
        config, weights = read_codec(codec_folder(name))
    elif any(key.startswith(CODEC_PREFIX) for key in state):
        weights = autoencoder_weights(state, file)
        try:
            config = read_config(model_config) if model_config else oobleck_of_weights(weights, SAMPLE_RATE)
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from None
    else:
        raise CheckpointError(
            f"{file}: no codec in it (no names begin with {CODEC_PREFIX}); give one with --codec FOLDER, or leave it "
            "out with --codec none"
        )
    found = _write_codec(file, out, config, weights)
    if found["spec"]["latent_channels"] != model.latent_channels:
        raise CheckpointError(
            f"{file}: the codec has {found['spec']['latent_channels']} latent channels, the model takes "
            f"{model.latent_channels}; give the right codec with --codec FOLDER"
        )
    return found, tuple(silence_latent(load_codec(str(out))).tolist())


def _write_codec(file: Path, out: Path, config: dict[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Write a codec folder that can be read; returns identity and spec."""
    # As they are: the identity is that of the original, however it is wrapped.
    save_codec(out, config, dict(weights), dtype=None)
    try:
        codec = load_codec(str(out))
    except CheckpointError as error:
        (out / "config.json").unlink()
        raise CheckpointError(f"{file}: {error}") from None
    return {"identity": codec.identity, "spec": asdict(codec.spec)}
