"""Where a data set lies: a folder, or below an fsspec URL (``s3://bucket/data``). A file under its name is whole.

Names are paths below the root with ``/`` between their parts. Whatever fails is tried again with back-off where it may
pass (remote stores), and is then one line that names the file. A file that is not there is a FileNotFoundError.
"""

import mmap
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from fsspec import AbstractFileSystem

from manifests import atomic
from manifests.atomic import TEMPORARY_PREFIX, atomic_path
from manifests.errors import ConfigError, StoreError
from manifests.remote import filesystem, is_remote, joined, parse_root, patiently

FETCH_BYTES = 8 << 20
"""One request of a file that is fetched whole."""
REQUESTS = 16
"""Requests that are under way at once where a store cannot be asked for many by one call."""
WRITE_DELAYS_S = (0.5, 2.0, 8.0, 30.0)
"""Before a write is tried again: beside the patience of the store's own client, since work of minutes hangs on it."""


class Store(ABC):
    """The files of one data set."""

    root: str
    """The folder or the URL."""

    def location(self, name: str) -> str:
        """The full path or URL of a file, for a person."""
        return f"{self.root}/{name}"

    def write(self, name: str, content: bytes) -> None:
        """Write a file atomically. Raises StoreError."""
        with self.create(name) as file:
            file.write(content)

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """A temporary file, to write and seek in, that becomes ``name`` at the end; after an error nothing is left.

        Raises:
            StoreError: it cannot be written, such as on a full disk or without the right to.
        """
        try:
            with self._creating(name) as file:
                yield file
        except OSError as error:
            raise StoreError(
                f"{self.location(name)}: cannot be written ({_reason(error)}); once that is mended, the same command "
                "goes on where it was"
            ) from error

    def read(self, name: str) -> bytes:
        """The content of a file. Raises FileNotFoundError or StoreError."""
        with self._reading(name):
            return self._read(name, None, None)

    def read_range(self, name: str, start: int, size: int) -> bytes:
        """``size`` bytes from ``start`` on, fewer at the file's end. Raises FileNotFoundError or StoreError."""
        with self._reading(name):
            return self._read(name, start, size)

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> Iterator[bytes]:
        """`read_range` of each (name, start, size), in order; from far, they are asked for together, and at once.

        What fails raises at its turn.
        """
        return (self.read_range(*one) for one in ranges)

    def map(self, name: str) -> mmap.mmap:
        """The whole file in mapped memory: a local one as it lies, a remote one fetched into a temporary file.

        Raises:
            FileNotFoundError, StoreError: it cannot be read.
            ValueError: it is empty.
        """
        with self._reading(name):
            return self._map(name)

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Name -> bytes of every file directly in a folder, temporaries too; none where there is no such folder.

        Names are without the folder. Raises StoreError.
        """
        with self._reading(folder):
            try:
                return self._sizes(folder)
            except FileNotFoundError:
                return {}

    def remove(self, name: str) -> None:
        """Remove a file if it is there. Raises StoreError."""
        try:
            self._remove(name)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StoreError(f"{self.location(name)}: cannot be removed ({_reason(error)})") from error

    def exists(self, name: str) -> bool:
        """Whether there is such a file. Raises StoreError."""
        try:
            with self._reading(name):
                self._size(name)
        except FileNotFoundError:
            return False
        return True

    @abstractmethod
    def check_writable(self, folder: str) -> None:
        """Try to write in a folder, before hours of work are put into it. Raises ConfigError."""

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise StoreError(f"{self.location(name)}: cannot be read ({_reason(error)})") from error

    # Each of these raises OSError.

    @abstractmethod
    def _creating(self, name: str) -> AbstractContextManager[BinaryIO]: ...

    @abstractmethod
    def _read(self, name: str, start: int | None, size: int | None) -> bytes: ...

    @abstractmethod
    def _map(self, name: str) -> mmap.mmap: ...

    @abstractmethod
    def _size(self, name: str) -> int: ...

    @abstractmethod
    def _sizes(self, folder: str) -> dict[str, int]: ...

    @abstractmethod
    def _remove(self, name: str) -> None: ...


class _Folder(Store):
    def __init__(self, root: Path) -> None:
        self._path, self.root = root, str(root)

    def check_writable(self, folder: str) -> None:
        atomic.check_writable(self._path / folder)

    @contextmanager
    def _creating(self, name: str) -> Iterator[BinaryIO]:
        with atomic_path(self._path / name) as temporary, open(temporary, "w+b") as file:
            yield file

    def _read(self, name: str, start: int | None, size: int | None) -> bytes:
        with open(self._path / name, "rb") as file:
            file.seek(start or 0)
            return file.read(-1 if size is None else size)

    def _map(self, name: str) -> mmap.mmap:
        with open(self._path / name, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _size(self, name: str) -> int:
        return (self._path / name).stat().st_size

    def _sizes(self, folder: str) -> dict[str, int]:
        found: dict[str, int] = {}
        with os.scandir(self._path / folder) as entries:
            for entry in entries:
                # A temporary may be gone by now.
                with suppress(FileNotFoundError):
                    if entry.is_file():
                        found[entry.name] = entry.stat().st_size
        return found

    def _remove(self, name: str) -> None:
        (self._path / name).unlink()


class _Url(Store):
    """Objects are written by one PUT (large ones in parts that nobody sees before the last), so they are whole too."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._system, self._base = filesystem(root)
        # Where a store has no request for a range, a file is opened for each, which reads megabytes ahead.
        own = self._system.async_impl or type(self._system).cat_file is not AbstractFileSystem.cat_file
        self._exactly = {} if own else {"cache_type": "none"}

    def check_writable(self, folder: str) -> None:
        probe = f"{folder}/{TEMPORARY_PREFIX}probe"
        try:
            patiently(self.location(probe), lambda: self._system.pipe_file(self._path(probe), b"mgeldm"))
            self._remove(probe)
        except OSError as error:
            raise ConfigError(f"{self.root}: cannot be written ({_reason(error)}); choose another place") from error

    @contextmanager
    def _creating(self, name: str) -> Iterator[BinaryIO]:
        # It has no name and is gone with the process, however that ends.
        with tempfile.TemporaryFile() as file:
            yield file  # type: ignore[misc]
            file.seek(0)
            content = file.read()
        path = self._path(name)

        def put() -> None:
            self._system.pipe_file(path, content)
            if (size := self._system.info(path)["size"]) != len(content):
                self._system.rm_file(path)
                raise OSError(f"{size} bytes arrived of {len(content)}")

        patiently(self.location(name), put, WRITE_DELAYS_S)

    def _read(self, name: str, start: int | None, size: int | None) -> bytes:
        path, end = self._path(name), None if size is None else (start or 0) + size

        def get() -> bytes:
            try:
                return bytes(self._system.cat_file(path, start=start, end=end, **self._exactly))
            except OSError:
                # Stores refuse a range that begins behind the end.
                if start and start >= self._system.info(path)["size"]:
                    return b""
                raise

        return patiently(self.location(name), get)

    def read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> Iterator[bytes]:
        contents = self._gathered(ranges)
        left = [one for one, content in zip(ranges, contents, strict=True) if content is None]
        return self._in_turn(contents, [self._pool.submit(self.read_range, *one) for one in left])

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(REQUESTS, "fetch")

    @staticmethod
    def _in_turn(contents: Sequence[bytes | None], left: Sequence[Future[bytes]]) -> Iterator[bytes]:
        later = iter(left)
        try:
            for content in contents:
                yield next(later).result() if content is None else content
        finally:
            for one in left:
                one.cancel()

    def _gathered(self, ranges: Sequence[tuple[str, int, int]]) -> list[bytes | None]:
        """What comes at the first attempt, by one call, which costs far less than one for each; None where it fails."""
        if not self._system.async_impl:
            return [None] * len(ranges)
        paths = [self._path(name) for name, _, _ in ranges]
        starts, ends = [start for _, start, _ in ranges], [start + size for _, start, size in ranges]
        try:
            found = self._system.cat_ranges(paths, starts, ends, on_error="return")
        except Exception:  # each says itself what is wrong when it is asked for alone
            return [None] * len(ranges)
        return [bytes(content) if isinstance(content, bytes | bytearray) else None for content in found]

    def _map(self, name: str) -> mmap.mmap:
        length = self._size(name)
        with tempfile.TemporaryFile() as file:
            for start in range(0, length, FETCH_BYTES):
                file.write(self._read(name, start, FETCH_BYTES))
            file.flush()
            if file.tell() != length:
                raise OSError(f"{file.tell()} bytes came of {length}")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _size(self, name: str) -> int:
        return int(patiently(self.location(name), lambda: self._system.info(self._path(name)))["size"])

    def _sizes(self, folder: str) -> dict[str, int]:
        path = joined(self._base, folder) if folder else self._base
        found = patiently(self.location(folder), lambda: self._system.ls(path, detail=True))
        # A folder that is an object of its own says nothing.
        files = (info for info in found if info["type"] == "file" and info["name"].strip("/") != path.strip("/"))
        return {info["name"].rsplit("/", 1)[-1]: info["size"] for info in files}

    def _remove(self, name: str) -> None:
        patiently(self.location(name), lambda: self._system.rm_file(self._path(name)))

    def _path(self, name: str) -> str:
        return joined(self._base, name)


def open_store(root: Path | str) -> Store:
    """The files below a folder or URL. Raises CorpusError for a URL that nothing here can reach."""
    place = parse_root(str(root))
    return _Folder(place) if isinstance(place, Path) else _Url(place)


def open_place(path: Path | str) -> tuple[Store, str]:
    """The store of the folder that a file lies in, and the file's name there."""
    if is_remote(str(path)):
        folder, _, name = str(path).rpartition("/")
        return open_store(folder), name
    local = parse_root(str(path))
    assert isinstance(local, Path)
    return open_store(local.parent), local.name


def _reason(error: BaseException | None) -> str:
    """What is wrong, without the name of a file."""
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    return " ".join(text.split()) or type(error).__name__
