"""The road with released kinds of models: 44.1 kHz stereo latents and CLAP embeddings, encoded and used."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from manifests.shards import ShardReader, read_card, read_prompts
from manifests.splits import read_splits
from mgeldm import MGELDM
from mgeldm.checkpoint import CheckpointConfig, save_checkpoint
from mgeldm.codec import load_codec
from mgeldm.embedder import ClapEmbedder, load_embedder
from mgeldm.model import JointConfig, JointTransformer
from mgeldm.sampling import SamplingConfig
from pipelines.encode import encode
from pipelines.encode_config import EncodeConfig
from pipelines.runner import RunnerConfig
from pipelines.scan import scan
from pipelines.split import SplitConfig, split
from pipelines.verify import verify
from tests.support.clap import tiny_extractor, write_clap
from tests.support.models import write_codec

LOCAL = RunnerConfig(runner="local")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A codec folder as stable-audio-tools lays it out, and a CLAP folder whose window is one second."""
    folder = tmp_path_factory.mktemp("models")
    codec = write_codec(folder / "codec", audio_channels=2, sample_rate=44_100)
    (codec / "config.json").rename(codec / "model_config.json")
    return codec, write_clap(folder / "clap", extractor=tiny_extractor(max_length_s=1))


def test_encode_verify_and_use(slakh: Path, models: tuple[Path, Path], tmp_path: Path) -> None:
    codec_name, embedder_name = map(str, models)
    config = EncodeConfig(codec=codec_name, embedder=embedder_name, embed_hop_s=0.02, device="cpu")
    scan([("slakh2100", slakh)], tmp_path / "songs.parquet", runner=LOCAL)
    plan = SplitConfig(window_s=1.024, hop_s=10.0, min_song_s=1.0)
    split(tmp_path / "songs.parquet", tmp_path / "splits.parquet", config=plan)
    data = tmp_path / "data"
    summary = encode(tmp_path / "splits.parquet", tmp_path / "songs.parquet", data, config=config, runner=LOCAL)
    assert summary.failures == {}
    assert summary.samples == len(read_splits(tmp_path / "splits.parquet").windows) >= 3
    assert verify(data).problems == ()

    codec, clap, card = load_codec(codec_name), load_embedder(embedder_name), read_card(data)
    assert isinstance(clap, ClapEmbedder)
    assert (card.codec["identity"], card.codec["spec"]["channels"]) == (codec.identity, 2)
    assert (card.embedder["identity"], card.embedder["spec"]["sample_rate"]) == (clap.identity, 48_000)
    sample = ShardReader(data)[ShardReader(data).rows[0].key]
    frames = round(1.024 * 44_100 / 256)
    assert sample.latents.shape[1:] == (8, frames)
    assert sample.embeddings.shape[1:] == (2, 16)
    np.testing.assert_allclose(np.linalg.norm(sample.embeddings.astype(np.float32), axis=-1), 1, atol=2e-3)
    prompts = read_prompts(data)
    for text in list(prompts)[:3]:
        expected = clap.embed_text([f"the sound of {text}"])[0].numpy()
        np.testing.assert_allclose(prompts[text], expected, atol=1e-3)

    shape = JointConfig(width_per_track=32, depth=1, heads=3, timestep_features=8, latent_channels=8, embedding_dim=16)
    checkpoint = CheckpointConfig.of(card, shape, 64, {})
    save_checkpoint(tmp_path / "model", checkpoint, JointTransformer(shape, seed=0).state_dict())
    assert json.loads((tmp_path / "model" / "config.json").read_text())["codec"]["identity"] == codec.identity
    model = MGELDM.from_pretrained(tmp_path / "model", codec=codec_name, embedder=embedder_name, device="cpu")
    mix = (0.1 * torch.randn(2, 44_100, generator=torch.Generator().manual_seed(0))).numpy()
    found = model.extract(mix, "drums", SamplingConfig(steps=2))
    assert {track: wave.shape for track, wave in found.items()} == {"source": (2, 44_100), "submix": (2, 44_100)}
    assert all(np.isfinite(wave).all() for wave in found.values())
