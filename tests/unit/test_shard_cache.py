"""The cache of what comes from far: its bound, its sharing, what it does on a bad disk; and the stream behind it."""

import errno
import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import fsspec
import numpy as np
import pytest

from manifests.errors import ConfigError, ShardError
from manifests.store import Store
from tests.support.remote import upload
from tests.support.shards import write_dataset
from training.shard_cache import Entry, ShardCache
from training.stream import Batch, Stream, StreamConfig


def filled(cache: ShardCache, name: str, content: bytes) -> bool:
    """Read an entry; whether it had to be filled."""
    fills: list[str] = []

    def fill(entry: Entry) -> None:
        fills.append(name)
        entry.write(content)

    assert cache.read(name, len(content), 1, 3, fill) == content[1:4]
    return bool(fills)


def held(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file() and path.name != "total")


class TestCache:
    def test_an_entry_is_filled_once_for_all(self, tmp_path: Path) -> None:
        assert filled(ShardCache(tmp_path, 100), "a", b"0123456789")
        assert not filled(ShardCache(tmp_path, 100), "a", b"0123456789")
        assert filled(ShardCache(tmp_path, 100), "b", b"9876543210")

    def test_the_bound_holds_and_what_was_read_last_stays(self, tmp_path: Path) -> None:
        cache = ShardCache(tmp_path, 100)
        for number in range(30):
            filled(cache, f"{number}", bytes(10))
            assert held(tmp_path) <= 100
            for path in tmp_path.glob("[0-9a-f]*"):  # an hour passes
                state = path.stat()
                if path.is_file():
                    os.utime(path, (state.st_atime, state.st_mtime - 3600))
            assert not filled(cache, "0", bytes(10))
        assert not filled(cache, "29", bytes(10))
        assert filled(cache, "3", bytes(10))

    def test_many_at_once_fill_an_entry_once(self, tmp_path: Path) -> None:
        caches = [ShardCache(tmp_path, 10_000) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            fills = list(pool.map(lambda n: filled(caches[n % 8], f"{n // 8}", bytes(50)), range(80)))
        assert sum(fills) == 10

    def test_what_killed_processes_were_filling_makes_room_at_once(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            if not (child := os.fork()):
                ShardCache(tmp_path, 100).read(name, 45, 0, 3, lambda _: os.kill(os.getpid(), signal.SIGKILL))  # type: ignore[arg-type, return-value]
            assert os.waitpid(child, 0)[1] == signal.SIGKILL
        assert held(tmp_path) == 90
        cache = ShardCache(tmp_path, 100)
        assert filled(cache, "c", bytes(45))
        assert not filled(cache, "c", bytes(45))
        assert held(tmp_path) <= 100

    def test_what_is_being_filled_counts_and_stays(self, tmp_path: Path) -> None:
        cache, other = ShardCache(tmp_path, 100), ShardCache(tmp_path, 100)
        during: list[bytes | None] = []

        def fill(entry: Entry) -> None:
            entry.write(bytes(60))
            during.extend(other.read("b", 50, 0, 3, lambda entry: entry.write(bytes(50))) for _ in range(2))
            during.append(other.read("c", 40, 0, 3, lambda entry: entry.write(bytes(40))))

        assert cache.read("a", 60, 0, 3, fill) == bytes(3)
        assert during == [None, None, bytes(3)]
        assert held(tmp_path) == 100

    def test_an_entry_that_gets_its_name_while_others_are_counted_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        cache, other = ShardCache(tmp_path, 100), ShardCache(tmp_path, 100)
        filling, counting, listed = threading.Event(), threading.Event(), os.scandir

        def fill(entry: Entry) -> None:
            entry.write(bytes(40))
            filling.set()
            counting.wait(10)

        class Slowly:
            """A listing after which the one that is filled has all the time to end."""

            def __init__(self, folder: Path) -> None:
                self._found = list(listed(folder))

            def __enter__(self) -> list["os.DirEntry[str]"]:
                counting.set()
                thread.join(0.5)
                return self._found

            def __exit__(self, *_: object) -> None:
                pass

        thread = threading.Thread(target=cache.read, args=("a", 40, 0, 3, fill))
        thread.start()
        assert filling.wait(10)
        (tmp_path / "total").write_text("")  # the next to come counts
        monkeypatch.setattr(os, "scandir", Slowly)
        other.read("b", 40, 0, 3, lambda entry: entry.write(bytes(40)))
        monkeypatch.undo()
        thread.join(10)
        other.read("c", 40, 0, 3, lambda entry: entry.write(bytes(40)))
        assert held(tmp_path) <= 100

    def test_an_entry_larger_than_the_cache_is_not_kept(self, tmp_path: Path) -> None:
        assert ShardCache(tmp_path, 5).read("a", 10, 0, 10, lambda entry: entry.write(bytes(10))) is None
        assert held(tmp_path) == 0

    def test_a_full_disk_is_one_warning(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache = ShardCache(tmp_path, 100)
        filled(cache, "a", b"0123456789")

        def full(*_: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with caplog.at_level(logging.WARNING):
            for name in ("b", "c"):
                assert cache.read(name, 10, 0, 10, lambda entry: entry.write(bytes(10))) is None
        assert [record.getMessage() for record in caplog.records] == [
            f"{tmp_path}: nothing more is cached (No space left on device); reading goes on without"
        ]
        assert not filled(cache, "a", b"0123456789")
        assert (cache.find("a", 10), cache.find("b", 10)) == (b"0123456789", None)
        assert held(tmp_path) == 10

    def test_what_fill_raises_passes_and_leaves_nothing(self, tmp_path: Path) -> None:
        def broken(entry: Entry) -> None:
            entry.write(b"half")
            raise ShardError("damaged")

        cache = ShardCache(tmp_path, 100)
        with pytest.raises(ShardError, match="damaged"):
            cache.read("a", 10, 0, 10, broken)
        assert held(tmp_path) == 0
        assert filled(cache, "a", b"0123456789")

    def test_an_entry_cut_short_is_filled_anew(self, tmp_path: Path) -> None:
        cache = ShardCache(tmp_path, 100)
        filled(cache, "a", b"0123456789")
        (entry,) = (path for path in tmp_path.iterdir() if path.is_file() and path.name != "total")
        os.truncate(entry, 4)
        assert filled(cache, "a", b"0123456789")

    def test_a_cache_of_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="0 bytes"):
            ShardCache(tmp_path, 0)


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("near") / "data", {"train": 20}, per_shard=4)


@pytest.fixture
def far(near: Path) -> Iterator[str]:
    upload(near, "memory://streamed/data")
    yield "memory://streamed/data"
    fsspec.filesystem("memory").rm("/streamed", recursive=True)


def take(data: Path | str, config: StreamConfig, count: int) -> list[Batch]:
    batches = (stream := Stream([config.open(data, "train")], None, config)).batches(stream.start())
    taken = list(islice(batches, count))
    batches.close()
    return taken


@pytest.mark.parametrize("order", ["shuffled", "shards"])
@pytest.mark.parametrize("cache_gb", [None, 1e-9, 2e-5, 1.0])
def test_the_stream_from_far_is_that_of_the_folder(
    near: Path, far: str, tmp_path: Path, order: str, cache_gb: float | None
) -> None:
    config = StreamConfig(
        batch=6,
        order=order,  # type: ignore[arg-type]
        buffer_shards=2,
        workers=2,
        cache="" if cache_gb is None else str(tmp_path / "cache"),
        cache_gb=cache_gb or 1.0,
    )
    for one, other in zip(take(near, config, 10), take(far, config, 10), strict=True):
        assert (one.keys, one.state) == (other.keys, other.state)
        np.testing.assert_array_equal(one.latents, other.latents)
        np.testing.assert_array_equal(one.embeddings, other.embeddings)
    if cache_gb:
        assert held(tmp_path / "cache") <= cache_gb * 1e9


@pytest.mark.parametrize("order", ["shuffled", "shards"])
def test_what_is_cached_is_not_fetched_again(far: str, tmp_path: Path, order: str) -> None:
    config = StreamConfig(batch=20, order=order, cache=str(tmp_path / "cache"))  # type: ignore[arg-type]
    opened = config.open(far, "train")
    stream = Stream([opened], None, config)
    assert len(list(islice(stream.batches(stream.start()), 1))) == 1
    fsspec.filesystem("memory").rm("/streamed/data/shards", recursive=True)
    assert len(list(islice(stream.batches(stream.start()), 2))) == 2
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ShardError, match="missing, though the index names it"):
        list(islice(stream.batches(stream.start()), 1))


@pytest.mark.parametrize("order", ["shuffled", "shards"])
def test_what_is_cached_of_other_content_under_the_same_names_is_not_taken(
    near: Path, far: str, tmp_path: Path, order: str
) -> None:
    config = StreamConfig(batch=20, order=order, cache=str(tmp_path / "cache"))  # type: ignore[arg-type]
    take(far, config, 1)
    other = write_dataset(tmp_path / "other", {"test": 4, "train": 20}, per_shard=4)
    upload(other, far)
    (one,), (before,), (now,) = (take(data, config, 1) for data in (other, near, far))
    assert (one.latents != before.latents).any()
    np.testing.assert_array_equal(one.latents, now.latents)


@pytest.mark.parametrize("order", ["shuffled", "shards"])
@pytest.mark.parametrize("cached", [True, False])
def test_damage_on_the_way_is_never_trained_on(far: str, tmp_path: Path, order: str, cached: bool) -> None:
    system = fsspec.filesystem("memory")
    for path in system.ls("/streamed/data/shards", detail=False):
        content = bytearray(system.cat_file(path))
        content[1500] ^= 1
        system.pipe_file(path, bytes(content))
    config = StreamConfig(batch=20, order=order, cache=str(tmp_path / "cache") if cached else "")  # type: ignore[arg-type]
    with pytest.raises(ShardError, match="is damaged; verify the shards"):
        take(far, config, 1)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("order", ["shuffled", "shards"])
def test_what_was_damaged_on_the_way_once_is_fetched_again(
    near: Path, far: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str, cached: bool
) -> None:
    config = StreamConfig(batch=20, order=order, cache=str(tmp_path / "cache") if cached else "")  # type: ignore[arg-type]
    read_range, reads = Store.read_range, []

    def damaged_once(self: Store, name: str, start: int, size: int) -> bytes:
        content = read_range(self, name, start, size)
        reads.append(name)
        return content if len(reads) > 1 else bytes(100) + content[100:]

    monkeypatch.setattr(Store, "read_range", damaged_once)
    for one, other in zip(take(near, config, 2), take(far, config, 2), strict=True):
        np.testing.assert_array_equal(one.latents, other.latents)
    assert len(reads) > 1


@pytest.mark.parametrize(
    ("cache_gb", "buffer", "sets", "needed"),
    [
        (1.0, 2, 1, ""),
        (1.4e-4, 9, 1, ""),
        (1.4e-4, 9, 2, "0.000266"),
        (6e-5, 9, 1, "0.000133"),
        (1e-5, 1, 1, "5.32e-05"),
    ],
)
def test_a_cache_that_cannot_hold_the_shards_that_are_read_from(
    far: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, cache_gb: float, buffer: int, sets: int, needed: str
) -> None:
    config = StreamConfig(order="shards", buffer_shards=buffer, cache=str(tmp_path), cache_gb=cache_gb)
    opened = [config.open(far, "train")] * sets
    assert opened[0].largest_far_shard == 26_624
    config.look_at_cache(opened)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == bool(needed)
    if needed:
        assert said[0].startswith(
            f"{', '.join([far] * sets)}: shards that are read from at a time have up to {needed} GB"
        )
        assert "raise it to 0.01, or lower stream.buffer_shards" in said[0]


def test_a_damaged_copy_in_the_cache_is_named(far: str, tmp_path: Path) -> None:
    config = StreamConfig(batch=20, cache=str(tmp_path))
    take(far, config, 1)
    for path in tmp_path.glob("[0-9a-f]*"):
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(ShardError, match=rf"a copy of it is in the cache {tmp_path}, which may be removed"):
        take(far, config, 1)
