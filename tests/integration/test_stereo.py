"""44.1 kHz stereo end to end: songs to shards, a short training, and a source out of a stereo file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from manifests.shards import ShardReader, read_card
from manifests.songs import read_songs
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
from pipelines.song_signals import decode_song
from pipelines.split import SplitConfig, split
from tests.support.models import write_codec, write_embedder
from training.config import TrainConfig
from training.loop import train
from training.stream import StreamConfig

RATE, HOP = 44_100, 256
LOCAL = RunnerConfig(runner="local")
TINY = JointConfig(width_per_track=32, depth=1, heads=3, timestep_features=8)


def test_songs_to_a_stereo_source(slakh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", TINY)
    codec_folder = write_codec(tmp_path / "codec", audio_channels=2, sample_rate=RATE)
    embedder_folder = write_embedder(tmp_path / "embedder")
    songs, splits, data = tmp_path / "songs.parquet", tmp_path / "splits.parquet", tmp_path / "data"
    scan([("slakh2100", slakh)], songs, runner=LOCAL)
    split(songs, splits, config=SplitConfig(window_s=1.024, hop_s=10.0, min_song_s=1.0))
    config = EncodeConfig(codec=str(codec_folder), embedder=str(embedder_folder), embed_hop_s=0.02, device="cpu")
    assert encode(splits, songs, data, config=config, runner=LOCAL).failures == {}

    stream = StreamConfig(crop_frames=64, batch=2)
    trained = train(TrainConfig(steps=3, device="cpu", stream=stream), [(data, None)], tmp_path / "run")
    codec = load_codec(str(codec_folder))
    assert read_card(data).codec["spec"]["channels"] == 2
    names = {"codec": str(codec_folder), "embedder": str(embedder_folder)}
    model = MGELDM.from_pretrained(trained.checkpoint, device="cpu", **names)
    assert (model.rate, model.codec.spec.channels, model.config.crop_frames) == (RATE, 2, 64)

    # What the tasks encode is what was encoded for training, away from the ends of the window.
    reader = ShardReader(data)
    sample = reader[reader.rows[0].key]
    song = next(song for song in read_songs(songs) if song.song_id == sample.meta["song_id"])
    stems = [stem.stem_id for stem in song.usable_stems]
    signals, _ = decode_song(song, stems, {RATE: 2})
    mix = signals.cut(stems, RATE, 0, round(song.duration_s * RATE)).numpy()
    audio.save(tmp_path / "mix.wav", mix, RATE)
    signal = open_signal(tmp_path / "mix.wav", RATE, 2)
    latents = encode_long(codec, torch.from_numpy(signal.whole())).numpy()
    begin = round(sample.meta["start_s"] * RATE / HOP)
    assert begin * HOP == pytest.approx(sample.meta["start_s"] * RATE, abs=0.5)
    window = latents[:, begin : begin + sample.latents.shape[-1]]
    assert np.abs(window).max() > 0.1
    inside = slice(codec.spec.context // HOP, -codec.spec.context // HOP)
    np.testing.assert_allclose(sample.latents[0][:, inside], window[:, inside], atol=2e-3, rtol=2e-3)

    model.save_pretrained(tmp_path / "model", with_codec=True, with_embedder=True)
    out = tmp_path / "out"
    asked = ["extract", tmp_path / "mix.wav", "--prompt", "drums", "--model", tmp_path / "model", "--out", out]
    assert main([*map(str, asked), "--steps", "2", "--device", "cpu"]) == 0
    source = audio.read(out / "mix-extract-drums-source.wav")
    info = audio.probe(out / "mix-extract-drums-source.wav")
    assert (info.sample_rate, source.shape) == (RATE, mix.shape)
    assert np.isfinite(source).all()
    assert not np.allclose(source[0], source[1]), "two channels of their own"
    alone = model.extract(mix, "drums", SamplingConfig(steps=2))["source"]
    np.testing.assert_allclose(source, alone, atol=1e-5)
    assert model.extract(mix.mean(axis=0), "drums", SamplingConfig(steps=1))["source"].shape == (mix.shape[1],)
