"""Tiny codec, embedder and joint model folders with random weights, the same on every run."""

from pathlib import Path

import torch

from mgeldm import MGELDM
from mgeldm.checkpoint import CheckpointConfig, save_checkpoint
from mgeldm.codec import load_codec
from mgeldm.codec.autoencoder import AutoencoderCodec, oobleck_config, save_codec
from mgeldm.embedder import load_embedder
from mgeldm.embedder.dual import DualConfig, DualEncoder
from mgeldm.model import JointConfig, JointTransformer

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


def write_joint(root: Path, codec: Path, embedder: Path) -> Path:
    """A joint model with crops of 16 frames for a codec and an embedder of these, copies of them in its folder."""
    shape = JointConfig(width_per_track=32, depth=1, heads=3, timestep_features=8, latent_channels=8, embedding_dim=16)
    config = CheckpointConfig(
        model=shape,
        codec={"identity": load_codec(str(codec)).identity},
        embedder={"identity": load_embedder(str(embedder)).identity},
        prompt_template="the sound of {}",
        crop_frames=16,
        latent_mean=(0.0,) * 8,
        latent_std=(1.0,) * 8,
        silence_latent=(0.0,) * 8,
    )
    save_checkpoint(root / "bare", config, JointTransformer(shape, seed=0).state_dict())
    made = MGELDM.from_pretrained(root / "bare", codec=str(codec), embedder=str(embedder), device="cpu")
    made.save_pretrained(root / "whole", with_codec=True, with_embedder=True)
    return root / "whole"
