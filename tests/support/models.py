"""Tiny codec and embedder folders with random weights, the same on every run."""

from pathlib import Path

import torch

from mgeldm.codec.autoencoder import AutoencoderCodec, oobleck_config, save_codec
from mgeldm.embedder.dual import DualConfig, DualEncoder

WORDS = ("backing", "bass", "drums", "guitar", "of", "piano", "sound", "synthesizer", "the", "vocals")


def write_codec(folder: Path, *, audio_channels: int = 1, sample_rate: int = 16_000, latent_channels: int = 8) -> Path:
    """A codec of hop 256. Returns its folder."""
    config = oobleck_config(
        channels=2,
        sample_rate=sample_rate,
        audio_channels=audio_channels,
        latent_channels=latent_channels,
        strides=(2, 4, 4, 8),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoencoderCodec(config).network
    save_codec(folder, config, network.state_dict())
    return folder


def write_embedder(folder: Path, *, sample_rate: int = 16_000, window_s: float = 0.512) -> Path:
    """An embedder of 16 dimensions that knows `WORDS`. Returns its folder."""
    config = DualConfig(
        words=WORDS,
        instruments=("bass", "drums"),
        sample_rate=sample_rate,
        window_s=window_s,
        dim=16,
        mels=16,
        fft=256,
        hop=128,
        widths=(4, 8),
        text_width=8,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        DualEncoder(config).save(folder)
    return folder
