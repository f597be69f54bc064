"""A tiny CLAP model with random weights and a byte-level tokenizer, saved as transformers saves them."""

from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, RobertaTokenizer

MERGES = ["d r", "dr u", "dru m", "b a", "s s", "ba ss", "\u0120 b"]


def tiny_config(*, fusion: bool = False, **audio: Any) -> ClapConfig:
    """Two stages of 8 and 16 channels, one text layer, 16 dimensions."""
    return ClapConfig(
        text_config={
            "vocab_size": 300,
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "max_position_embeddings": 34,
        },
        audio_config={
            "depths": [1, 1],
            "num_attention_heads": [1, 2],
            "patch_embeds_hidden_size": 8,
            "hidden_size": 16,
            "enable_fusion": fusion,
            "fusion_type": "aff_2d" if fusion else None,
        }
        | audio,
        projection_dim=16,
    )


def tiny_model(config: ClapConfig | None = None, seed: int = 0) -> ClapModel:
    """Random weights, large enough that inputs make a difference."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ClapModel(config or tiny_config()).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        # As after training on decibels.
        norm = model.audio_model.audio_encoder.batch_norm
        norm.running_mean.fill_(-40.0)
        norm.running_var.fill_(400.0)
    return model


def tiny_tokenizer() -> RobertaTokenizer:
    """Byte-level BPE: every text can be spelt."""
    names = [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
        *sorted(ByteLevel.alphabet()),
        *(pair.replace(" ", "") for pair in MERGES),
    ]
    vocabulary = {name: index for index, name in enumerate([*names, "<mask>"])}
    return RobertaTokenizer(vocab=vocabulary, merges=[tuple(pair.split()) for pair in MERGES])


def tiny_extractor(*, fusion: bool = False, **changes: Any) -> ClapFeatureExtractor:
    """The released models' settings: 10 s at 48 kHz, 64 bins from 50 Hz to 14 kHz."""
    settings = {"truncation": "fusion" if fusion else "rand_trunc", "frequency_min": 50, "frequency_max": 14_000}
    return ClapFeatureExtractor(**settings | changes)


def write_clap(
    folder: Path,
    *,
    model: ClapModel | None = None,
    extractor: ClapFeatureExtractor | None = None,
    fusion: bool = False,
    **saving: Any,
) -> Path:
    """A folder as `save_pretrained` writes it. Returns it."""
    (model or tiny_model(tiny_config(fusion=fusion))).save_pretrained(folder, **saving)
    ClapProcessor(extractor or tiny_extractor(fusion=fusion), tiny_tokenizer()).save_pretrained(folder)
    return folder
