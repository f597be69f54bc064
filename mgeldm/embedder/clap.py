"""CLAP as an embedder: `transformers.ClapModel` from the folder that its `save_pretrained` writes."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn
from torch.nn import functional as F

from manifests.atomic import content_hash
from manifests.errors import CheckpointError, PromptError
from mgeldm.codec.autoencoder import identity
from mgeldm.codec.quietly import quietly
from mgeldm.embedder.base import EmbedderSpec
from mgeldm.embedder.clap_mel import ClapMel, ClapMelConfig
from mgeldm.model_folder import FolderKind, one_line

MODEL_TYPE = "clap"
SMALL_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
WEIGHTS_PATTERNS = (("model*.safetensors", "model.safetensors.index.json"), ("pytorch_model*.bin",))
"""Weights, in one file or in many; the second kind is of old releases, and is read as plain tensors only."""

_FOLDER = FolderKind(
    "a CLAP", "what save_pretrained of both ClapModel and ClapProcessor write", "save it, copy or download it again"
)

# What the computation depends on, by names that do not change with transformers' version. Dropout, first weights and
# the temperature of training have no part in an embedding.
_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
    "projection_dim",
    "projection_hidden_act",
)
_AUDIO_FIELDS = (
    "window_size",
    "num_mel_bins",
    "spec_size",
    "hidden_act",
    "patch_size",
    "patch_stride",
    "hidden_size",
    "projection_dim",
    "depths",
    "num_attention_heads",
    "enable_fusion",
    "fusion_type",
    "patch_embed_input_channels",
    "flatten_patch_embeds",
    "patch_embeds_hidden_size",
    "enable_patch_layer_norm",
    "qkv_bias",
    "mlp_ratio",
    "aff_block_r",
    "num_hidden_layers",
    "projection_hidden_act",
    "layer_norm_eps",
)


class ClapEmbedder(nn.Module):
    """A CLAP model with its tokenizer and spectrogram, frozen.

    Audio is exactly the window that the model was trained on, so nothing is cropped at random and feature fusion, which
    is for longer audio, never sets in: models with it see the one spectrogram, as they do for audio that fits.
    """

    def __init__(self, model: Any, tokenizer: Any, mel: ClapMelConfig) -> None:
        """Wrap a `transformers.ClapModel` and its tokenizer.

        Raises:
            CheckpointError: the model does not take such spectrograms.
        """
        super().__init__()
        text, audio = model.config.text_config, model.config.audio_config
        longest = audio.spec_size * (audio.spec_size // audio.num_mel_bins)
        if mel.mels != audio.num_mel_bins or mel.frames > longest:
            raise CheckpointError(
                f"the feature extractor makes {mel.frames} frames of {mel.mels} mel bins, but the model takes up to "
                f"{longest} of {audio.num_mel_bins}"
            )
        self.model = model
        self.mel = ClapMel(mel)
        self.tokenizer = tokenizer
        # Positions are counted on from the padding token.
        self._longest_text = min(tokenizer.model_max_length, text.max_position_embeddings - text.pad_token_id - 1)
        self.spec = EmbedderSpec(
            sample_rate=mel.sample_rate, window_s=mel.window_s, dim=int(model.config.projection_dim)
        )
        config = {
            "model_type": MODEL_TYPE,
            "text": {name: getattr(text, name, None) for name in _TEXT_FIELDS},
            "audio": {name: getattr(audio, name, None) for name in _AUDIO_FIELDS},
            "mel": asdict(mel),
            "tokenizer": tokenizer_hash(tokenizer),
        }
        self.identity = identity(config, model.state_dict())
        self.eval().requires_grad_(False)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read the folder of a model saved with its processor; weights in float32. Opens no connection.

        Raises:
            CheckpointError: a file is missing or damaged, or weights are.
        """
        _check_files(folder)
        from transformers import AutoTokenizer, ClapFeatureExtractor, ClapModel

        try:
            # Layers draw first weights that are thrown away; the caller's generator stays where it was.
            with torch.random.fork_rng(devices=[]), quietly():
                model, found = ClapModel.from_pretrained(
                    folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
                )
                tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
                extractor = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
        except Exception as error:  # of transformers, tokenizers and safetensors, whose classes begin there
            raise CheckpointError(
                f"{folder}: not a readable CLAP folder ({one_line(error)}); {_FOLDER.again}"
            ) from None
        if missing := sorted(found["missing_keys"]):
            # transformers would go on with random ones.
            raise CheckpointError(
                f"{folder}: {len(missing)} weights of the model are missing ({', '.join(missing[:3])}"
                f"{', ...' if len(missing) > 3 else ''})"
            )
        try:
            return cls(model, tokenizer, ClapMelConfig.of(extractor))
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from None

    def embed_audio(self, wave: torch.Tensor) -> torch.Tensor:
        """Mono ``[B, T]`` float32 on the module's device, T exactly the window -> ``[B, D]`` float32 of unit length.

        Under autocast the network runs in its type, the spectrogram never.

        Raises:
            ValueError: another shape.
        """
        if wave.ndim != 2 or wave.shape[1] != self.spec.window:
            raise ValueError(
                f"embedder input is [B, {self.spec.window}] ({self.spec.window_s} s at {self.spec.sample_rate} Hz), "
                f"got {tuple(wave.shape)}; cut or pad it to one window"
            )
        mel = self.mel(wave)[:, None]
        # Nothing is longer than the window, so that of a fusion model's four spectrograms only the first is looked at.
        is_longer = torch.zeros(wave.shape[0], 1, dtype=torch.bool, device=wave.device)
        found = self.model.get_audio_features(input_features=mel, is_longer=is_longer).pooler_output
        return F.normalize(found.float(), dim=-1)

    def embed_text(self, texts: Sequence[str]) -> torch.Tensor:
        """``B`` prompts -> ``[B, D]`` float32 of unit length. Words past the model's longest text are cut off.

        Raises:
            PromptError: a prompt is empty.
        """
        if any(not text.strip() for text in texts):
            raise PromptError("the prompt is empty; say what is to be heard, such as: drums")
        device = next(self.model.parameters()).device
        if not texts:
            return torch.zeros(0, self.spec.dim, device=device)
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._longest_text, return_tensors="pt"
        )
        found = self.model.get_text_features(
            input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
        ).pooler_output
        return F.normalize(found.float(), dim=-1)


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash over what decides which tokens a text becomes, whichever files it was saved in."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    merges = json.loads(backend.to_str())["model"].get("merges", []) if backend is not None else []
    return content_hash(
        {
            "vocabulary": sorted(tokenizer.get_vocab().items()),
            "merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in merges],
            "special": [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id],
            "prefix_space": bool(getattr(tokenizer, "add_prefix_space", False)),
        }
    )


def _check_files(folder: Path) -> None:
    """Name what a folder lacks, or which file of it is damaged, in our words. Raises CheckpointError."""
    wanted = {
        "weights": [pattern for patterns in WEIGHTS_PATTERNS for pattern in patterns[:1]],
        "feature extractor": ["preprocessor_config.json", "processor_config.json"],
        "tokenizer": ["tokenizer.json", "vocab.json"],
    }
    for what, patterns in wanted.items():
        if not any(path.is_file() for pattern in patterns for path in folder.glob(pattern)):
            raise CheckpointError(
                f"{folder}: no {what} ({' or '.join(patterns)}); {_FOLDER.name} folder holds {_FOLDER.holds}; "
                f"{_FOLDER.again}"
            )
    # transformers does not say in which file something is wrong.
    for name in SMALL_FILES:
        if name.endswith(".json") and (folder / name).exists():
            _FOLDER.json(folder / name)
    for path in sorted(folder.glob("model*.safetensors")):
        _FOLDER.check_tensors(path)
