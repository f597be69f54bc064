import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.spec import AbstractBufferedFile

from manifests import remote, store
from manifests.atomic import TEMPORARY_PREFIX, abandoned
from manifests.errors import ConfigError, StoreError
from manifests.store import Store, open_place, open_store
from tests.support.remote import Faulty, faulty

ROOTS = ("folder", "faulty://data/set")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Faulty]]:
    monkeypatch.setattr(remote, "RETRY_DELAYS_S", (0.0, 0.0))
    monkeypatch.setattr(store, "WRITE_DELAYS_S", (0.0, 0.0))
    with faulty() as system:
        yield system


@pytest.fixture(params=ROOTS)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(tmp_path / "data" if request.param == "folder" else request.param)


def test_what_is_written_is_read_in_whole_and_in_parts(place: Store) -> None:
    place.write("shards/a.tar", b"0123456789")
    place.write("card.json", b"{}")
    place.write("shards/a.tar", b"0123456789abc")
    assert place.read("shards/a.tar") == b"0123456789abc"
    assert [place.read_range("shards/a.tar", *part) for part in ((0, 2), (3, 4), (11, 9), (13, 1), (40, 2))] == [
        b"01",
        b"3456",
        b"bc",
        b"",
        b"",
    ]
    assert place.map("shards/a.tar")[2:5] == b"234"
    assert (place.sizes(), place.sizes("shards"), place.sizes("none")) == ({"card.json": 2}, {"a.tar": 13}, {})
    assert (place.exists("card.json"), place.exists("none")) == (True, False)
    place.remove("card.json")
    place.remove("card.json")
    assert place.sizes() == {}
    for read in (place.read, place.map, lambda name: place.read_range(name, 1, 1)):
        with pytest.raises(FileNotFoundError):
            read("card.json")
    assert place.location("a") == f"{place.root}/a"


def test_a_file_that_is_not_finished_is_not_there(place: Store) -> None:
    place.write("a", b"old")
    with suppress(RuntimeError), place.create("a") as file:
        file.write(b"new")
        raise RuntimeError
    assert (place.sizes(), place.read("a")) == ({"a": 3}, b"old")
    with place.create("a") as file:
        file.write(b"new one")
        file.seek(0)
        assert file.read(3) == b"new"
        assert place.read("a") == b"old"
    assert place.sizes() == {"a": 7}


def test_a_big_file_is_fetched_in_parts(place: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FETCH_BYTES", 4)
    place.write("a", b"0123456789")
    assert place.map("a")[:] == b"0123456789"
    place.write("empty", b"")
    with pytest.raises(ValueError, match="empty"):
        place.map("empty")


class Paged(AbstractFileSystem):
    """One object of 20 MB, in a store that has no request of its own for a range, as the hub's."""

    protocol = "paged"
    fetched: ClassVar[list[tuple[int, int]]] = []

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        return {"name": path, "size": 20_000_000, "type": "file"}

    def _open(self, path: str, mode: str = "rb", **options: Any) -> AbstractBufferedFile:
        return PagedFile(self, path, mode, **options)


class PagedFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        Paged.fetched.append((start, end))
        return bytes(end - start)


def test_no_more_is_fetched_than_is_read() -> None:
    fsspec.register_implementation("paged", Paged, clobber=True)
    place = open_store("paged://data/set")
    Paged.fetched.clear()
    assert place.read_range("a.tar", 1000, 500) == bytes(500)
    assert len(place.read("a.tar")) == 20_000_000
    assert Paged.fetched == [(1000, 1500), (0, 20_000_000)]


class Together(AsyncFileSystem):
    """What ``faulty://`` holds, in a store that answers when as many requests have come as a test waits for."""

    protocol = "together"
    wanted: ClassVar[int] = 0
    under_way: ClassVar[list[str]] = []
    come: ClassVar[asyncio.Event | None] = None
    calls: ClassVar[int] = 0
    broken: ClassVar[bool] = False

    async def _cat_ranges(self, *words: Any, **options: Any) -> Any:
        Together.calls += 1
        if Together.broken:
            raise RuntimeError("no call for many")
        return await super()._cat_ranges(*words, **options)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        Together.under_way.append(path)
        Together.come = Together.come or asyncio.Event()
        if len(Together.under_way) >= Together.wanted:
            Together.come.set()
        await asyncio.wait_for(Together.come.wait(), 10)
        return Faulty().cat_file(path, start, end)

    async def _info(self, path: str, **options: Any) -> dict[str, Any]:
        return dict(Faulty().info(path))


@pytest.mark.parametrize("root", [*ROOTS, "together://data/set"])
def test_many_ranges_are_read_in_their_order_and_what_fails_fails_at_its_turn(
    root: str, tmp_path: Path, impatient: type[Faulty], monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec.register_implementation("together", Together, clobber=True)
    Together.wanted, Together.come, Together.calls = 4, None, 0
    Together.under_way.clear()
    place = open_store(tmp_path / "data" if root == "folder" else root)
    writer = place if root == "folder" else open_store(ROOTS[1])
    for name in "ab":
        writer.write(name, f"{name}0123456789".encode())
    impatient.faults["b"] = [ConnectionResetError("reset by peer")]
    ranges = [("a", 0, 3), ("b", 2, 4), ("a", 9, 9), ("b", 40, 2)]
    assert list(place.read_ranges(ranges)) == [b"a01", b"1234", b"89", b""]
    assert list(place.read_ranges([])) == []
    if root.startswith("together"):  # which would have waited in vain for one after the other
        assert sorted(Together.under_way)[:4] == ["data/set/a", "data/set/a", "data/set/b", "data/set/b"]
        assert Together.calls == 2
    Together.wanted = 0
    monkeypatch.setattr(Together, "broken", True)
    assert list(place.read_ranges(ranges)) == [b"a01", b"1234", b"89", b""]
    monkeypatch.setattr(Together, "broken", False)
    found = place.read_ranges([("a", 1, 1), ("none", 0, 1), ("b", 1, 1)])
    assert next(found) == b"0"
    with pytest.raises(FileNotFoundError):
        next(found)
    if root != "folder":
        impatient.faults["b"] = [PermissionError(errno.EACCES, "Access Denied")] * 2
        with pytest.raises(StoreError, match=rf"^{root}/b: cannot be read \(Access Denied\)"):
            list(place.read_ranges([("a", 1, 1), ("b", 1, 1)]))


def test_a_store_that_answers_one_by_one_is_asked_from_threads(
    impatient: type[Faulty], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, asked, meeting, gate = open_store(ROOTS[1]), [], threading.Barrier(3), threading.Event()
    place.write("a", b"0123456789")
    cat_file = Faulty.cat_file

    def meet(system: Faulty, path: str, start: int, end: int, **options: Any) -> bytes:
        asked.append(start)
        if start < 3:
            meeting.wait(10)
        if start == 4:
            gate.wait(10)
        return cat_file(system, path, start, end, **options)

    monkeypatch.setattr(Faulty, "cat_file", meet)
    assert list(place.read_ranges([("a", start, 1) for start in range(3)])) == [b"0", b"1", b"2"]
    monkeypatch.setattr(store, "REQUESTS", 1)
    asked.clear()
    place = open_store(ROOTS[1])
    found = place.read_ranges([("a", 5, 1), *[("none", start, 1) for start in (3, 4, 7, 8)]])
    assert next(found) == b"5"
    with pytest.raises(FileNotFoundError):
        next(found)
    gate.set()
    assert list(place.read_ranges([("a", 6, 1)])) == [b"6"]
    assert asked == [5, 3, 4, 6]  # nobody waits for the others any more


def test_the_root_may_be_a_file_url(tmp_path: Path) -> None:
    open_store(f"file://{tmp_path}/data").write("a", b"1")
    assert (tmp_path / "data" / "a").read_bytes() == b"1"
    for path in (tmp_path / "data" / "a", f"file://{tmp_path}/data/a"):
        found, name = open_place(path)
        assert (found.root, name, found.read(name)) == (str(tmp_path / "data"), "a", b"1")
    found, name = open_place("faulty://data/set/shards/a.tar")
    assert (found.root, name) == ("faulty://data/set/shards", "a.tar")


def test_faults_that_pass_are_waited_for_and_others_are_one_line(
    impatient: type[Faulty], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = open_store(ROOTS[1])
    reset = ConnectionResetError("reset\nby peer")
    impatient.faults["a"] = [reset, reset]
    place.write("a", b"1")
    impatient.faults["a"] = [reset, reset]
    assert place.read("a") == b"1"
    for fault, count in ((reset, 3), (PermissionError(errno.EACCES, "Access Denied"), 1)):
        impatient.faults["a"] = [fault] * count
        with pytest.raises(
            StoreError, match=r"^faulty://data/set/a: cannot be written \(.*\); once .* goes on"
        ) as caught:
            place.write("a", b"2")
        assert "\n" not in str(caught.value)
        impatient.faults["a"] = [fault] * count
        with pytest.raises(StoreError, match=r"^faulty://data/set/a: cannot be read \("):
            place.read("a")
    assert place.read("a") == b"1"
    impatient.faults["shards"] = [PermissionError(errno.EACCES, "Access Denied")]
    with pytest.raises(ConfigError, match=r"^faulty://data/set: cannot be written \(Access Denied\); choose another"):
        place.check_writable("shards")
    place.check_writable("shards")
    assert place.sizes("shards") == {}


def test_what_arrives_short_is_put_again(impatient: type[Faulty], monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    def cut(self: Faulty, path: str, value: bytes, **options: object) -> None:
        sent.append(value)
        MemoryFileSystem.pipe_file(self, path, value[: len(sent) + 1])

    monkeypatch.setattr(Faulty, "pipe_file", cut)
    open_store(ROOTS[1]).write("a", b"123")
    assert sent == [b"123"] * 2
    assert open_store(ROOTS[1]).read("a") == b"123"
    with pytest.raises(StoreError, match="6 bytes arrived of 9"):
        open_store(ROOTS[1]).write("a", b"123456789")
    assert open_store(ROOTS[1]).sizes() == {}


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = open_store(tmp_path / "data")
    place.write("a", b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"data/a: cannot be written \(No space left on device\)"):
            place.write("a", b"new")
    assert (place.sizes(), place.read("a")) == ({"a": 3}, b"old")


def test_temporaries_of_dead_processes_are_told_from_others() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    assert abandoned(f"{TEMPORARY_PREFIX}{child}-a.tar") == "a.tar"
    assert abandoned(f"{TEMPORARY_PREFIX}{10**30}-a-b.tar") == "a-b.tar"
    for name in (
        f"{TEMPORARY_PREFIX}{os.getpid()}-a.tar",
        f"{TEMPORARY_PREFIX}1-a",
        f"{TEMPORARY_PREFIX}probe",
        "a.tar",
    ):
        assert abandoned(name) is None


def test_a_file_that_goes_while_its_folder_is_listed_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    scandir = os.scandir

    @contextmanager
    def one_goes(folder: Path) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(folder) as entries:
            found = list(entries)
        (tmp_path / "b").unlink()
        yield found

    monkeypatch.setattr(os, "scandir", one_goes)
    assert open_store(tmp_path).sizes().keys() == {"a", "c"}
