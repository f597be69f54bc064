"""44.1 kHz stereo end to end: songs to shards, a short training, and a source out of a stereo file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from manifests.shards import ShardReader, read_card
from mgeldm import MGELDM, audio
from mgeldm.cli import main
from mgeldm.codec import load_codec
from mgeldm.codec.long import encode_long
from mgeldm.model.config import PRESETS, JointConfig
from mgeldm.sampling import SamplingConfig
from mgeldm.signals import open_signal
from pipelines.encode import encode
from pipelines.encode_config import EncodeConfig
from pipelines.runner import RunnerConfig
from pipelines.scan import scan
from pipelines.split import SplitConfig, split
from tests.support.corpora import write_layout
from tests.support.models import write_codec, write_embedder
from tests.support.sounds import sound, write_sound
from training.config import TrainConfig
from training.loop import train
from training.stream import StreamConfig

RATE, HOP = 44_100, 256
LOCAL = RunnerConfig(runner="local")
TINY = JointConfig(width_per_track=32, depth=1, heads=3, timestep_features=8)


def write_songs(root: Path) -> dict[str, np.ndarray]:
    """Two songs of two stems, each with another sound on the left than on the right. Returns their mixes."""
    mixes = {}
    for song in ("one", "two"):
        waves = {
            label: np.concatenate([sound(song, label, side, seconds=2.0, rate=RATE) for side in ("left", "right")])
            for label in ("drums", "bass")
        }
        for label, wave in waves.items():
            write_sound(root / song / f"{label}.wav", wave, RATE, "FLOAT")
        mixes[song] = waves["drums"] + waves["bass"]
    return mixes


def test_songs_to_a_stereo_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    codec_folder = write_codec(tmp_path / "codec", audio_channels=2, sample_rate=RATE)
    embedder_folder = write_embedder(tmp_path / "embedder")
    songs, splits, data = tmp_path / "songs.parquet", tmp_path / "splits.parquet", tmp_path / "data"
    mixes = write_songs(tmp_path / "songs")
    scan([(str(write_layout(tmp_path / "layout.yaml", subsets={})), tmp_path / "songs")], songs, runner=LOCAL)
    split(songs, splits, config=SplitConfig(window_s=1.024, hop_s=10.0, min_song_s=1.0))
    config = EncodeConfig(codec=str(codec_folder), embedder=str(embedder_folder), embed_hop_s=0.02, device="cpu")
    assert encode(splits, songs, data, config=config, runner=LOCAL).failures == {}

    stream = StreamConfig(crop_frames=64, batch=2)
    trained = train(
        TrainConfig(steps=100, device="cpu", learning_rate=1e-2, warmup=10, ema=0.0, stream=stream),
        [(data, None)],
        tmp_path / "run",
    )
    codec = load_codec(str(codec_folder))
    assert read_card(data).codec["spec"]["channels"] == 2
    names = {"codec": str(codec_folder), "embedder": str(embedder_folder)}
    model = MGELDM.from_pretrained(trained.checkpoint, device="cpu", **names)
    assert (model.rate, model.codec.spec.channels, model.config.crop_frames) == (RATE, 2, 64)

    # What the tasks encode is what was encoded for training, away from the ends of the window: left and right in place.
    reader = ShardReader(data)
    sample = reader[reader.rows[0].key]
    mix = mixes[sample.meta["song_id"].rpartition("/")[2]]
    audio.save(tmp_path / "mix.wav", mix, RATE)
    inside = slice(codec.spec.context // HOP, -codec.spec.context // HOP)
    begin = round(sample.meta["start_s"] * RATE / HOP)
    assert begin * HOP == pytest.approx(sample.meta["start_s"] * RATE, abs=0.5)

    def window(wave: np.ndarray) -> np.ndarray:
        latents = encode_long(codec, torch.from_numpy(wave * np.float32(sample.meta["gain"]))).numpy()
        return latents[:, begin : begin + sample.latents.shape[-1]][:, inside]

    signal = open_signal(tmp_path / "mix.wav", RATE, 2)
    np.testing.assert_array_equal(signal.whole(), mix)
    assert np.abs(window(mix)).max() > 0.1
    np.testing.assert_allclose(sample.latents[0][:, inside], window(mix), atol=1e-3, rtol=2e-3)
    for other in (mix[::-1].copy(), np.repeat(mix.mean(axis=0, keepdims=True), 2, axis=0)):
        assert np.abs(window(other) - window(mix)).max() > 0.01

    model.save_pretrained(tmp_path / "model", with_codec=True, with_embedder=True)
    out = tmp_path / "out"
    asked = ["extract", tmp_path / "mix.wav", "--prompt", "drums", "--model", tmp_path / "model", "--out", out]
    assert main([*map(str, asked), "--steps", "2", "--device", "cpu"]) == 0
    source = audio.read(out / "mix-extract-drums-source.wav")
    info = audio.probe(out / "mix-extract-drums-source.wav")
    assert (info.sample_rate, source.shape) == (RATE, mix.shape)
    assert np.isfinite(source).all()
    np.testing.assert_array_equal(audio.read(out / "mix-mix.wav"), mix)
    few = SamplingConfig(steps=2)
    np.testing.assert_allclose(source, model.extract(mix, "drums", few)["source"], atol=1e-5)
    swapped = model.extract(mix[::-1].copy(), "drums", few)["source"]
    assert np.abs(swapped - source).max() > 1e-4, "which sound is on which side is heard"
    assert model.impute(mix, ["drums"], few)[0].shape == model.accompany(mix, "drums", few).shape == mix.shape
    assert model.generate("drums", 1.5, few).shape == (2, round(1.5 * RATE))
    assert model.extract(mix.mean(axis=0), "drums", SamplingConfig(steps=1))["source"].shape == (mix.shape[1],)
