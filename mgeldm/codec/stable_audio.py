"""Reading what stable-audio-tools writes: model configurations, and checkpoints in all their wrappings."""

import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from manifests.errors import CheckpointError

CONFIG_FILE = "model_config.json"
WEIGHTS_FILES = ("model.safetensors", "model.ckpt")

PREFIXES = (
    # A training checkpoint with averaged weights has both; its own export takes the average.
    "autoencoder_ema.ema_model.",
    "autoencoder.",
    "pretransform.model.",
    "diffusion.pretransform.model.",
    "",
)
"""What stands before ``encoder.`` and ``decoder.``: AE training (mean, plain), diffusion model, its training, AE."""


def is_stable_audio(folder: Path) -> bool:
    """Whether a folder is laid out as stable-audio-tools and its releases are, and not as ours."""
    return (folder / CONFIG_FILE).is_file()


def read_stable_audio(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Configuration and weights of the autoencoder in a folder with `model_config.json` and its checkpoint.

    The folder may be that of the autoencoder, or of a latent diffusion model that works on one.

    Raises:
        CheckpointError: a file is missing or unreadable, or there is no autoencoder in it.
    """
    config = read_config(folder / CONFIG_FILE)
    for name in WEIGHTS_FILES:
        if (folder / name).exists():
            return config, read_weights(folder / name)
    found = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".ckpt"))
    if len(found) != 1:
        listing = f"it has {', '.join(path.name for path in found)}" if found else "it has no checkpoint at all"
        raise CheckpointError(f"{folder}: expected {' or '.join(WEIGHTS_FILES)} beside {CONFIG_FILE}; {listing}")
    return config, read_weights(found[0])


def read_config(path: Path) -> dict[str, Any]:
    """The autoencoder's configuration out of a model configuration. Raises CheckpointError."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: missing; weights do not tell strides and channels, so put the model's {CONFIG_FILE} beside them"
        ) from None
    except (ValueError, OSError) as error:
        raise CheckpointError(
            f"{path}: not a readable model configuration ({error}); it is half written or damaged: copy or download "
            "it again"
        ) from None
    try:
        return autoencoder_config(raw)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def autoencoder_config(raw: Any) -> dict[str, Any]:
    """The configuration of an autoencoder from its own or from that of a model that works on its latents.

    Latents are the autoencoder's own: a ``scale`` that the diffusion model divides them by is left out, for each of our
    models is trained on latents normalised per channel.

    Raises:
        CheckpointError: there is no autoencoder in it.
    """
    kind, model = (raw.get("model_type"), raw.get("model")) if isinstance(raw, dict) else (None, None)
    if kind == "autoencoder":
        inner = model
    else:
        pretransform = model.get("pretransform") if isinstance(model, dict) else None
        if not isinstance(pretransform, dict) or pretransform.get("type") != "autoencoder":
            raise CheckpointError(f"model_type is {kind!r}, without an autoencoder as pretransform; it gives no codec")
        inner = pretransform.get("config")
    return {"model_type": "autoencoder", "sample_rate": raw.get("sample_rate"), "model": inner}


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The autoencoder's weights out of a `.safetensors` file or a pickled checkpoint, with their names in it.

    No pickle beyond plain tensors is read.

    Raises:
        CheckpointError: the file is missing, damaged, holds more than weights, or no autoencoder, or two.
    """
    try:
        if path.suffix == ".safetensors" and path.is_file():
            # A diffusion model is many times its autoencoder: read only what is wanted.
            with safe_open(path, framework="pt") as file:
                prefix = autoencoder_prefix(file.keys(), path)
                return {key.removeprefix(prefix): file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(path, error) from None
    return autoencoder_weights(read_state(path), path)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a `.safetensors` file or a pickled checkpoint, by name; mapped into memory where that can be.

    No pickle beyond plain tensors is read.

    Raises:
        CheckpointError: the file is missing or damaged, or holds more than weights.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: a folder; give the checkpoint file in it")
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; give the checkpoint file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except SafetensorError as error:
        raise _damaged(path, error) from None
    except Exception as error:  # pickle raises anything, for a file that is cut or no checkpoint
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(
            f"{path}: not a checkpoint of plain tensors ({reason}); if it is half written or damaged, copy or download "
            "it again; else save its state_dict alone, as unwrap_model.py of stable-audio-tools does"
        ) from None
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    named = state.items() if isinstance(state, dict) else ()
    weights = {key: value for key, value in named if isinstance(key, str) and isinstance(value, torch.Tensor)}
    if not weights:
        raise CheckpointError(f"{path}: no weights in it; save the model's state_dict there")
    return weights


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: not a readable checkpoint ({error}); it is half written or damaged: copy or download it again"
    )


def autoencoder_weights(state: Mapping[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The autoencoder's weights among those of a file, the prefix taken off. Raises CheckpointError."""
    prefix = autoencoder_prefix(state, path)
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def autoencoder_prefix(keys: Iterable[str], path: Path) -> str:
    """What stands before the names of the autoencoder's weights, told by the names alone. Raises CheckpointError."""
    names = list(keys)
    found = [
        prefix
        for prefix in PREFIXES
        if all(any(name.startswith(prefix + part) for name in names) for part in ("encoder.", "decoder."))
    ]
    if found[:2] == list(PREFIXES[:2]):
        found.pop(1)
    if not found:
        raise CheckpointError(
            f"{path}: no weights of an autoencoder; expected names with encoder. and decoder. after one of "
            f"{', '.join(filter(None, PREFIXES))} or nothing; it has {', '.join(sorted(names)[:3]) or 'none'}"
        )
    if len(found) > 1:
        raise CheckpointError(f"{path}: two autoencoders, under {found[0]!r} and {found[1]!r}; keep one of them")
    return found[0]


def oobleck_of_weights(state: Mapping[str, torch.Tensor], sample_rate: int) -> dict[str, Any]:
    """The configuration of an Oobleck autoencoder, read off its weights, for files that come without one.

    Of its convolutions' shapes: channels, multiples, latent size, and strides, which are half of the kernels. No weight
    tells the sample rate, nor the tanh at the end, which the released ones do without.

    Raises:
        CheckpointError: these are not the weights of an Oobleck.
    """
    try:
        channels, inputs, _ = state["encoder.layers.0.weight_v"].shape
        downs: list[torch.Size] = []
        while (key := f"encoder.layers.{len(downs) + 1}.layers.4.weight_v") in state:
            downs.append(state[key].shape)
        encoded = state[f"encoder.layers.{len(downs) + 2}.weight_v"].shape[0]
        latent = state["decoder.layers.0.weight_v"].shape[1]
    except (KeyError, ValueError):
        raise CheckpointError(
            "the autoencoder's layers are not those of an Oobleck; give its configuration with --model-config"
        ) from None
    if not downs or encoded not in (latent, 2 * latent):
        raise CheckpointError(
            f"the autoencoder encodes to {encoded} channels in {len(downs)} levels and decodes from {latent}; give its "
            "configuration with --model-config"
        )
    strides = [kernel // 2 for _, _, kernel in downs]
    shared = {
        "channels": channels,
        "c_mults": [out // channels for out, _, _ in downs],
        "strides": strides,
        "use_snake": "encoder.layers.1.layers.0.layers.0.alpha" in state,
    }
    return {
        "model_type": "autoencoder",
        "sample_rate": sample_rate,
        "model": {
            "encoder": {"type": "oobleck", "config": {"in_channels": inputs, "latent_dim": encoded, **shared}},
            "decoder": {
                "type": "oobleck",
                "config": {"out_channels": inputs, "latent_dim": latent, "final_tanh": False, **shared},
            },
            "bottleneck": {"type": "vae" if encoded == 2 * latent else "none"},
            "latent_dim": latent,
            "downsampling_ratio": math.prod(strides),
            "io_channels": inputs,
        },
    }
