import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from manifests.atomic import TEMPORARY_PREFIX
from manifests.errors import ShardError
from pipelines.clean import gc
from tests.support.sealed import sealed_sample, write_sealed

UNUSED = "toy-train-0123456789ab"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    write_sealed(data, {UNUSED: [sealed_sample(7)]})
    return write_sealed(data, {"toy-train-000000000000": [sealed_sample(0)]})


def files(data: Path) -> set[str]:
    return {path.relative_to(data).as_posix() for path in data.rglob("*") if path.is_file()}


def dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_leftovers_go(data: Path) -> None:
    whole = files(data)
    kept = {"notes.txt", "shards/mine.json", "shards/mine.tar", ".tmp-mine", f"{TEMPORARY_PREFIX}{os.getpid()}-a.tar"}
    kept.add("shards/backup-202611250130.tar")  # no unit of this data set would be called so
    left = {
        f"{TEMPORARY_PREFIX}{dead()}-index.parquet": "gone",
        f"shards/{TEMPORARY_PREFIX}{os.getpid()}-b.tar": "older than a day",
        "shards/toy-train-111111111111.tar": "shard without a sidecar",
        "shards/toy-train-222222222222.json": "sidecar without a shard",
    }
    for name in (*kept, *left):
        (data / name).write_bytes(b"123")
    day = time.time() - 25 * 3600
    os.utime(data / f"shards/{TEMPORARY_PREFIX}{os.getpid()}-b.tar", (day, day))
    (data / "shards/mine.json").unlink()
    kept.remove("shards/mine.json")
    summary = gc(data, dry_run=True)
    assert {found.file for found in summary.removed} == left.keys()
    assert all(left[found.file] in found.reason for found in summary.removed)
    assert summary.bytes == 3 * len(left)
    assert files(data) == whole | kept | left.keys()
    assert gc(data) == summary
    assert files(data) == whole | kept
    assert gc(data).removed == ()


def test_a_shard_that_the_index_names_stays_though_its_sidecar_is_lost(data: Path) -> None:
    (data / "shards/toy-train-000000000000.json").unlink()
    assert gc(data).removed == ()


def test_a_sidecar_of_a_unit_without_samples_stays(data: Path) -> None:
    write_sealed(data, {"toy-train-333333333333": [], "toy-train-000000000000": [sealed_sample(0)]})
    assert (data / "shards/toy-train-333333333333.json").exists()
    assert not (data / "shards/toy-train-333333333333.tar").exists()
    assert gc(data).removed == ()
    sidecar = data / "shards/toy-train-333333333333.json"
    sidecar.write_text(sidecar.read_text().replace('"size": 0', '"size": 1'))
    assert [found.file for found in gc(data).removed] == ["shards/toy-train-333333333333.json"]


def test_whole_shards_of_another_plan_go_only_when_asked(data: Path) -> None:
    whole = files(data)
    assert gc(data).removed == ()
    size = (data / f"shards/{UNUSED}.tar").stat().st_size + (data / f"shards/{UNUSED}.json").stat().st_size
    summary = gc(data, unused=True)
    assert [found.file for found in summary.removed] == [f"shards/{UNUSED}.json", f"shards/{UNUSED}.tar"]
    assert summary.bytes == size
    assert files(data) == whole - {f"shards/{UNUSED}.json", f"shards/{UNUSED}.tar"}


def test_without_an_index_nothing_counts_as_unused(data: Path, tmp_path: Path) -> None:
    (data / "index.parquet").unlink()
    with pytest.raises(ShardError, match="finish encode first"):
        gc(data, unused=True)
    with pytest.raises(ShardError, match="no data set is there"):
        gc(tmp_path / "nowhere")
