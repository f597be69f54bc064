"""The road from an S3 bucket: the same manifest, plan and shards as from a folder, and no more traffic than needed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest

from manifests.errors import AudioError
from manifests.remote import BLOCK_BYTES, RemoteFile
from manifests.roots import locate, state
from manifests.shards import ShardReader
from manifests.songs import Song, read_songs
from manifests.splits import read_splits
from mgeldm import audio
from mgeldm.cli import main
from pipelines.encode import encode
from pipelines.encode_config import EncodeConfig
from pipelines.scan import preview, scan
from pipelines.song_signals import decode_song
from pipelines.split import SplitConfig, split
from tests.support.datasets import STEMS, hf_rows, write_hf, write_hf_layout
from tests.support.remote import Traffic, s3_server, upload, without_state
from tests.support.scans import LOCAL, codes, scanned
from tests.support.sounds import sound, write_sound, write_streams
from training.waveforms import read_stem

BUCKET = "music"
AUDIO = (".flac", ".wav", ".m4a", ".mp4", ".parquet")


@pytest.fixture(scope="module")
def traffic() -> Iterator[Traffic]:
    with s3_server(BUCKET) as made:
        yield made


@pytest.fixture(scope="module")
def slakh_url(traffic: Traffic, slakh: Path) -> str:
    return upload(slakh, f"s3://{BUCKET}/corpora/slakh")


@pytest.fixture(scope="module")
def folders_url(traffic: Traffic, folders: tuple[Path, Path]) -> str:
    return upload(folders[1], f"s3://{BUCKET}/corpora/folders")


def comparable(songs: dict[str, Song]) -> dict[str, Song]:
    return {name: without_state(song) for name, song in songs.items()}


def test_the_manifest_is_that_of_the_folder(
    slakh: Path, slakh_url: str, folders: tuple[Path, Path], folders_url: str, tmp_path: Path
) -> None:
    for name, root, url in (("slakh2100", slakh, slakh_url), (str(folders[0]), folders[1], folders_url)):
        far = scanned(name, url, tmp_path / f"{root.name}-far.parquet")
        near = scanned(name, root, tmp_path / f"{root.name}-near.parquet")
        assert comparable(far) == comparable(near)
        assert {song.root for song in far.values()} == {url}
        for song, other in zip(far.values(), near.values(), strict=True):
            assert [stem.size for stem in song.stems] == [stem.size for stem in other.stems]
            # What the listing says of an object is what the object says of itself.
            assert [(stem.size, stem.mtime_ns) for stem in song.stems] == [state(url, stem.path) for stem in song.stems]
        assert preview([(name, url)]) == preview([(name, root)])


def test_an_unchanged_bucket_is_listed_and_no_audio_is_read(slakh_url: str, traffic: Traffic, tmp_path: Path) -> None:
    first = scanned("slakh2100", slakh_url, tmp_path / "songs.parquet")
    traffic.requests.clear()
    assert scanned("slakh2100", slakh_url, tmp_path / "songs.parquet") == first
    assert not [path for _, path, _ in traffic.requests if path.endswith(AUDIO)]
    # One listing, and the metadata of each song.
    assert len(traffic.requests) == 1 + len(first)


def test_what_changes_in_a_bucket_is_measured_again(slakh: Path, traffic: Traffic, tmp_path: Path) -> None:
    url = upload(slakh, f"s3://{BUCKET}/changing")
    before = scanned("slakh2100", url, tmp_path / "songs.parquet")
    # As long as the old one and written within the same second.
    song, stem = "train/Track00001", "stems/S00.flac"
    content = (slakh / "train/Track00002" / stem).read_bytes()
    content += bytes((slakh / song / stem).stat().st_size - len(content)) if len(content) < 1 << 20 else b""
    fsspec.filesystem("s3").pipe_file(f"{BUCKET}/changing/{song}/{stem}", content)
    fsspec.filesystem("s3").rm_file(f"{BUCKET}/changing/test/Track00004/{stem}")
    traffic.requests.clear()
    after = scanned("slakh2100", url, tmp_path / "songs.parquet")
    assert after[song].stems[0].fingerprint == before["train/Track00002"].stems[0].fingerprint
    assert ("no_audio", None) in codes(after["test/Track00004"])
    assert after["train/Track00002"].stems == before["train/Track00002"].stems
    assert not any("Track00002" in path and path.endswith(AUDIO) for _, path, _ in traffic.requests)
    # Encode finds the bucket changed since the scan.
    old = before[song]
    _, errors = decode_song(old, [stem.stem_id for stem in old.stems], {16_000: 1})
    assert {name: error.code for name, error in errors.items()} == {"S00": "changed"}
    gone = before["test/Track00004"]
    _, errors = decode_song(gone, ["S00", "S01"], {16_000: 1})
    assert {name: error.code for name, error in errors.items()} == {"S00": "missing"}
    assert f"{url}/test/Track00004/{stem}" in str(errors["S00"])


def test_a_header_costs_a_block_and_a_stretch_a_few(traffic: Traffic, tmp_path: Path) -> None:
    wave = sound("long", seconds=60, rate=48_000, channels=2)
    root = tmp_path / "long"
    write_sound(root / "a.wav", wave, 48_000, "FLOAT")
    write_streams(root / "a.mp4", [wave, wave[::-1]], 48_000, "flac")
    url = upload(root, f"s3://{BUCKET}/long")
    for name, stream in (("a.wav", None), ("a.mp4", 1)):
        far, near = locate(url, name), root / name
        assert isinstance(far, RemoteFile)
        assert near.stat().st_size > 8 * BLOCK_BYTES
        traffic.requests.clear()
        assert audio.probe(far, stream) == audio.probe(near, stream)
        assert traffic.fetched(AUDIO) <= 2 * BLOCK_BYTES
        traffic.requests.clear()
        stretch = audio.read(far, stream, 1_440_000, 48_000)
        np.testing.assert_array_equal(stretch, audio.read(near, stream, 1_440_000, 48_000))
        assert traffic.fetched(AUDIO) <= 5 * BLOCK_BYTES
        traffic.requests.clear()
        np.testing.assert_array_equal(audio.read(far, stream), audio.read(near, stream))
        assert traffic.fetched(AUDIO) <= near.stat().st_size + 2 * BLOCK_BYTES


def test_a_cut_file_is_read_once_and_is_truncated(traffic: Traffic, tmp_path: Path) -> None:
    path = write_sound(tmp_path / "cut/a.wav", sound("cut", seconds=30, rate=48_000), 48_000, "FLOAT")
    path.write_bytes(path.read_bytes()[: 5 * BLOCK_BYTES])
    url = upload(path.parent, f"s3://{BUCKET}/cut")
    traffic.requests.clear()
    far = RemoteFile(url, "a.wav")
    with pytest.raises(AudioError) as caught:
        audio.read(far)
    assert caught.value.code == "truncated"
    assert f"{url}/a.wav" in str(caught.value)
    assert traffic.fetched(AUDIO) <= path.stat().st_size


def test_shards_from_a_bucket_are_those_from_the_folder(
    slakh: Path, slakh_url: str, tiny_models: tuple[Path, Path], tmp_path: Path
) -> None:
    codec, embedder = tiny_models
    config = EncodeConfig(codec=str(codec), embedder=str(embedder), embed_hop_s=0.2, windows_per_shard=4, device="cpu")
    plan = SplitConfig(window_s=1.024, hop_s=0.9, min_song_s=1.0)
    readers = []
    for name, root in (("near", slakh), ("far", slakh_url)):
        songs, splits, out = (tmp_path / name / part for part in ("songs.parquet", "splits.parquet", "data"))
        scan([("slakh2100", root)], songs, runner=LOCAL)
        split(songs, splits, config=plan)
        assert not encode(splits, songs, out, config=config, runner=LOCAL).failures
        readers.append((read_splits(splits).windows, ShardReader(out), read_songs(songs)))
    (windows, near, _), (others, far, songs_far) = readers
    assert windows == others
    assert len(windows) > 4
    for window in windows:
        np.testing.assert_array_equal(near[window.window_id].latents, far[window.window_id].latents)
        np.testing.assert_array_equal(near[window.window_id].embeddings, far[window.window_id].embeddings)
    song = songs_far[0]
    crop = read_stem(song, song.stems[0], 0.25, 4_000, 8_000)
    near_song = Song(**{**{name: getattr(song, name) for name in song.__slots__}, "root": str(slakh)})
    np.testing.assert_array_equal(crop, read_stem(near_song, song.stems[0], 0.25, 4_000, 8_000))
    assert np.abs(crop).max() > 0.001


def test_a_hugging_face_data_set_is_read_in_place(traffic: Traffic, tmp_path: Path) -> None:
    layout = str(write_hf_layout(tmp_path / "hf.yaml"))
    root = write_hf(tmp_path / "hf", {"train": hf_rows([f"song {n}" for n in range(8)], seconds=30.0)})
    url = upload(root, f"s3://{BUCKET}/hf")
    traffic.requests.clear()
    far = scanned(layout, url, tmp_path / "far.parquet")
    assert comparable(far) == comparable(scanned(layout, root, tmp_path / "near.parquet"))
    size = (root / "data/train-00000-of-00001.parquet").stat().st_size
    assert size > 8 * BLOCK_BYTES
    assert traffic.fetched(AUDIO) < 2 * size
    traffic.requests.clear()
    assert scanned(layout, url, tmp_path / "far.parquet") == far
    # Ids, names and where content is; not the content.
    assert traffic.fetched(AUDIO) < size / 2
    assert {stem.stem_id for stem in far["song 3"].stems} == set(STEMS)


def test_the_command_line_takes_urls(slakh_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "songs.parquet"
    arguments = ["scan", "slakh2100", f"{slakh_url}/", "--out", str(out), "--json", "--runner", "local"]
    assert main([*arguments, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["stems"] == 16
    assert not out.exists()
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["songs"] == 4
    assert {song.root for song in read_songs(out)} == {slakh_url}
    assert main(["scan", "slakh2100", f"s3://{BUCKET}/none", "--out", str(out)]) == 2
    assert f"s3://{BUCKET}/none: nothing lies below it" in capsys.readouterr().err
    assert main(["scan", "slakh2100", "s3://no-such-bucket/x", "--out", str(out)]) == 2
    assert "s3://no-such-bucket/x" in capsys.readouterr().err


@pytest.mark.ray
def test_workers_of_ray_read_the_bucket(slakh: Path, slakh_url: str, tmp_path: Path) -> None:
    # A cluster of its own: workers get the environment that it was started in.
    out = tmp_path / "far.parquet"
    command = [sys.executable, "-m", "mgeldm.cli", "scan", "slakh2100", slakh_url, "--out", str(out), "--workers", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    near = scanned("slakh2100", slakh, tmp_path / "near.parquet")
    assert [without_state(song) for song in read_songs(out)] == [*comparable(near).values()]
