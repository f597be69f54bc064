"""Data sets in buckets, on stores that fail and on disks that are full."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from manifests import remote, store
from manifests.atomic import TEMPORARY_PREFIX
from manifests.errors import ConfigError, ShardError, StoreError
from manifests.shards import SHARDS_FOLDER, ShardReader, read_card, read_index, write_card, write_index
from manifests.splits import read_splits
from manifests.store import open_store
from mgeldm.cli import main
from pipelines.encode import encode, preview
from pipelines.encode_config import EncodeConfig
from pipelines.runner import RunnerConfig
from pipelines.scan import scan
from pipelines.split import SplitConfig, split
from pipelines.verify import verify
from tests.support.remote import Traffic, flaky, s3_server, upload
from training.stream import ShardSet, Stream, StreamConfig

pytestmark = pytest.mark.usefixtures("one_thread")

BUCKET = "latents"
LOCAL = RunnerConfig(runner="local")


@dataclass(frozen=True)
class Job:
    songs: Path
    splits: Path
    config: EncodeConfig

    def encode(self, out: Path | str) -> int:
        """Shards that were encoded."""
        summary = encode(self.splits, self.songs, out, config=self.config, runner=LOCAL)
        assert summary.failures == {}
        return summary.encoded

    def command(self, out: str) -> list[str]:
        models = ["--codec", self.config.codec, "--embedder", self.config.embedder]
        sizes = ["--embed_hop_s", "0.2", "--windows_per_shard", "4", "--device", "cpu", "--runner", "local"]
        return ["encode", str(self.splits), "--songs", str(self.songs), "--out", out, *models, *sizes]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RETRY_DELAYS_S", (0.0, 0.0))
    monkeypatch.setattr(store, "WRITE_DELAYS_S", (0.0, 0.0))


@pytest.fixture(scope="module")
def traffic() -> Iterator[Traffic]:
    with s3_server(BUCKET) as traffic:
        yield traffic


@pytest.fixture(scope="module")
def job(slakh: Path, tiny_models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("anywhere")
    scan([("slakh2100", slakh)], folder / "songs.parquet", runner=LOCAL)
    plan = SplitConfig(window_s=1.024, hop_s=0.9, min_song_s=1.0)
    split(folder / "songs.parquet", folder / "splits.parquet", config=plan)
    codec, embedder = map(str, tiny_models)
    config = EncodeConfig(codec=codec, embedder=embedder, embed_hop_s=0.2, windows_per_shard=4, device="cpu")
    return Job(folder / "songs.parquet", folder / "splits.parquet", config)


@pytest.fixture(scope="module")
def near(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set in a folder; read only."""
    out = tmp_path_factory.mktemp("near") / "data"
    assert job.encode(out) > 1
    return out


@pytest.fixture(scope="module")
def far(near: Path, traffic: Traffic) -> str:
    """The data set in a bucket; read only."""
    return upload(near, f"s3://{BUCKET}/far")


def everything(data: Path | str) -> dict[str, bytes]:
    found = open_store(data)
    names = [*found.sizes(), *(f"{SHARDS_FOLDER}/{name}" for name in found.sizes(SHARDS_FOLDER))]
    return {name: found.read(name) for name in names}


def shards(data: Path) -> list[str]:
    return sorted(path.name for path in (data / SHARDS_FOLDER).glob("*.tar"))


def test_a_bucket_gets_the_bytes_of_the_folder_and_a_second_run_encodes_nothing(
    job: Job, near: Path, traffic: Traffic
) -> None:
    url = f"s3://{BUCKET}/encoded"
    assert preview(job.splits, job.songs, url, job.config)["shards_to_encode"] == len(shards(near))
    assert open_store(url).sizes() == {}
    assert job.encode(url) == len(shards(near))
    assert everything(url) == everything(near)
    assert verify(url).problems == verify(url).notes == ()
    assert preview(job.splits, job.songs, url, job.config)["shards_to_encode"] == 0
    traffic.requests.clear()
    assert job.encode(url) == 0
    assert not [path for method, path, _ in traffic.requests if method == "PUT" and path.endswith(".tar")]
    # Sidecars are read; no shard is asked for.
    assert not [path for method, path, _ in traffic.requests if method in ("GET", "HEAD") and path.endswith(".tar")]
    assert everything(url) == everything(near)


@pytest.mark.parametrize("suffix", [".json", ".tar"])
def test_a_unit_without_sidecar_or_shard_is_made_again(job: Job, near: Path, suffix: str, traffic: Traffic) -> None:
    url = upload(near, f"s3://{BUCKET}/lost{suffix}")
    lost, *kept = shards(near)
    open_store(url).remove(f"{SHARDS_FOLDER}/{lost.removesuffix('.tar')}{suffix}")
    traffic.requests.clear()
    assert job.encode(url) == 1
    put = [path.rpartition("/")[2] for method, path, _ in traffic.requests if method == "PUT"]
    assert lost in put
    assert not {*kept} & {*put}
    assert everything(url) == everything(near)


@pytest.mark.parametrize("seed", range(3))
def test_a_store_that_fails_at_random_ends_with_the_same_bytes(job: Job, near: Path, seed: int) -> None:
    url, errors, summary = "flaky://data", [], None
    names = {name.removesuffix(".tar") for name in shards(near)}
    with flaky(seed, rate=0.07) as system:
        while summary is None:
            before = {*system.store}
            sealed = {name for name in names if shard_files(name) <= before}
            system.done.clear()
            try:
                summary = encode(job.splits, job.songs, url, config=job.config, runner=LOCAL)
            except (StoreError, ConfigError) as error:
                errors.append(str(error))
            assert len(errors) < 100
            # What is sealed is not touched again, and no sidecar stands without its shard at any moment.
            assert not {path for name in sealed for path in shard_files(name)} & {path for _, path in system.done}
            there = before
            for deed, path in system.done:
                (there.add if deed == "put" else there.discard)(path)
                for name in names:
                    assert shard_files(name) & there != {f"/data/{SHARDS_FOLDER}/{name}.json"}
        system.rate, system.down = 0.0, 0
        assert len(errors) > 1
        assert not [message for message in errors if "\n" in message or "flaky://data" not in message]
        assert everything(url) == everything(near)
        assert verify(url).problems == ()


def shard_files(name: str) -> set[str]:
    return {f"/data/{SHARDS_FOLDER}/{name}{suffix}" for suffix in (".tar", ".json")}


def test_what_cannot_be_written_is_said_before_any_work(
    job: Job, traffic: Traffic, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("pipelines.encode.run_units", lambda *_: pytest.fail("work was begun"))
    for out, reason in (
        ("s3://no-such-bucket/data", "s3://no-such-bucket/data: cannot be written"),
        (f"{tmp_path}/file/data", "cannot be written"),
        ("nosuch://bucket/data", "nosuch://bucket/data: cannot be reached"),
    ):
        assert main(job.command(out)) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mgeldm encode: ")]
        assert reason in line


def test_a_full_disk_ends_the_job_with_one_line_and_leaves_nothing(
    job: Job, near: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, room = tmp_path / "data", [sum(path.stat().st_size for path in (near / SHARDS_FOLDER).glob("*")) // 2]

    class Disk:
        """A file on a disk with so much room."""

        def __init__(self, file: Any) -> None:
            self._file = file

        def write(self, content: bytes) -> int:
            room[0] -= len(content)
            if room[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(self._file.write(content))

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def __enter__(self) -> "Disk":
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

    with monkeypatch.context() as patch:
        patch.setattr(store, "open", lambda *arguments: Disk(open(*arguments)), raising=False)  # noqa: SIM115
        assert main(job.command(str(out))) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mgeldm encode: ")]
    assert f"{out}/{SHARDS_FOLDER}/" in line
    assert "cannot be written (No space left on device); once that is mended, the same command goes on" in line
    left = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    whole = everything(near)
    assert left.items() <= whole.items()
    sealed = sum(name.endswith(".json") for name in left)
    assert 0 < sealed < len(shards(near))
    assert job.encode(out) == len(shards(near)) - sealed
    assert everything(out) == whole


def test_temporaries_of_dead_runs_are_removed_where_the_file_stands(job: Job, near: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    shutil.copytree(near, out)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    gone = [f"{SHARDS_FOLDER}/{TEMPORARY_PREFIX}{child}-{shards(near)[0]}", f"{TEMPORARY_PREFIX}{child}-index.parquet"]
    kept = [
        f"{SHARDS_FOLDER}/{TEMPORARY_PREFIX}{os.getppid()}-{shards(near)[0]}",
        f"{SHARDS_FOLDER}/{TEMPORARY_PREFIX}{child}-other.tar",
    ]
    for name in (*gone, *kept):
        (out / name).touch()
    assert job.encode(out) == 0
    assert everything(out).keys() - everything(near).keys() == {*kept}


def test_samples_of_a_bucket_are_one_request_each(near: Path, far: str, traffic: Traffic) -> None:
    here, there = ShardReader(near), ShardReader(far)
    assert there.rows == here.rows
    traffic.requests.clear()
    for key in here:
        np.testing.assert_array_equal(there[key].latents, here[key].latents)
        np.testing.assert_array_equal(there[key].embeddings, here[key].embeddings)
        assert there[key].meta == here[key].meta
    assert len(traffic.requests) == 3 * len(here)
    assert traffic.fetched((".tar",)) == 3 * sum(row.size for row in here.rows)


def test_damage_in_a_bucket_is_named(near: Path, traffic: Traffic) -> None:
    url = upload(near, f"s3://{BUCKET}/damaged")
    first, second, *_ = shards(near)
    content = (near / SHARDS_FOLDER / first).read_bytes()
    open_store(url).write(f"{SHARDS_FOLDER}/{first}", content[:700])
    open_store(url).remove(f"{SHARDS_FOLDER}/{second}")
    reader = ShardReader(url)
    rows = {row.shard: row for row in reader.rows}
    with pytest.raises(ShardError, match=f"{url}/shards/{first}: ends before sample"):
        reader.read(rows[first])
    with pytest.raises(ShardError, match=f"{url}/shards/{second}: missing"):
        reader.read(rows[second])
    codes = {(problem.file, problem.code) for problem in verify(url).problems}
    assert (f"{SHARDS_FOLDER}/{second}", "missing") in codes
    assert (f"{SHARDS_FOLDER}/{first}", "sidecar") in codes


def test_an_index_over_other_data_sets_reads_and_verifies(near: Path, far: str, tmp_path: Path) -> None:
    """As merge and select make it: every second sample, half of the shards from a folder, half from a bucket."""
    rows = read_index(near)
    names = shards(near)
    chosen = [replace(row, root=far if names.index(row.shard) % 2 else str(near)) for row in rows[::2]]
    assert len({row.root for row in chosen}) == 2
    out = tmp_path / "selected"
    write_index(out, chosen)
    shutil.copy(near / "prompts.safetensors", out)
    shutil.copy(near / "failures.parquet", out)
    write_card(out, read_card(near))
    reader, whole = ShardReader(out), ShardReader(near)
    assert sorted(reader) == sorted(row.key for row in chosen)
    for key in reader:
        np.testing.assert_array_equal(reader[key].latents, whole[key].latents)
    report = verify(out)
    assert {problem.file for problem in report.problems} == {"dataset.json"}  # it counts all samples
    assert (report.samples, report.shards, report.notes) == (len(chosen), len({row.shard for row in chosen}), ())
    write_index(out, [*chosen[1:], replace(chosen[0], checksum="0" * 64)])
    codes = {(problem.file, problem.code) for problem in verify(out).problems}
    assert (f"{chosen[0].root}/{SHARDS_FOLDER}/{chosen[0].shard}", "checksum") in codes
    assert (f"{chosen[0].root}/{SHARDS_FOLDER}/{chosen[0].shard}", "sidecar") in codes


def test_the_stream_of_a_bucket_is_that_of_the_folder(near: Path, far: str) -> None:
    config = StreamConfig(crop_frames=8, batch=3)
    streams = [Stream([ShardSet(data, "train", 8)], None, config) for data in (near, far)]
    for _, one, other in zip(range(4), *(s.batches(s.start()) for s in streams), strict=False):
        assert (one.keys, one.state) == (other.keys, other.state)
        np.testing.assert_array_equal(one.latents, other.latents)
        np.testing.assert_array_equal(one.embeddings, other.embeddings)
        assert np.abs(one.latents).max() > 0


def test_the_command_line_takes_urls_of_data_sets(
    job: Job, near: Path, traffic: Traffic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"s3://{BUCKET}/commands/data"
    assert main([*job.command(f"{url}/"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["encoded"] == len(shards(near))
    assert main(["shards", "verify", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == len(read_splits(job.splits).windows)
    train = ["train", "tiny", "--stream.crop_frames", "8", "--out", str(tmp_path / "run"), "--dry-run", "--json"]
    assert main([*train, "--data", url, "--data", f"file://{near}=0.3"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"].keys() == {url, str(near)}
    fsspec.filesystem("s3").rm_file(f"{BUCKET}/commands/data/shards/{shards(near)[0]}")
    assert main(["shards", "verify", url]) == 1
    assert main(["shards", "verify", f"s3://{BUCKET}/none"]) == 2
    assert f"s3://{BUCKET}/none: no such folder" in capsys.readouterr().err
