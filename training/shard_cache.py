"""A local cache of what came from far, of bounded size, for all processes of a machine.

An entry is a file whose name is a hash of what it holds, so that it can never be stale, and that appears whole. What
was not read for longest goes first. Two that fill the same entry at once fill it once. A disk that is full or refuses
ends nothing: one warning, and no more is put into the cache.
"""

import fcntl
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from manifests.errors import ConfigError

Fill = Callable[["Entry"], None]

logger = logging.getLogger(__name__)

_TOTAL = "total"
_TEMPORARY = "temporary-"
_LOCKS = "locks"
_STRIPES = 64
_ROOM = 0.9
"""Share of the limit that is left after old entries had to go, so that few fills have to look at all of them."""
_TOUCH_S = 60.0
"""An entry that is read again so soon is as fresh as it was."""


class ShardCache:
    """Entries below a folder that any number of threads and processes share."""

    def __init__(self, folder: Path | str, limit: int) -> None:
        """Keep at most ``limit`` bytes in ``folder``. Raises ConfigError when the limit makes no sense."""
        if limit < 1:
            raise ConfigError(f"a cache of {limit} bytes holds nothing; give it more, or no cache")
        self.folder, self.limit = Path(folder), limit
        self._broken = False
        try:
            (self.folder / _LOCKS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._give_up(error)

    def find(self, name: str, size: int) -> bytes | None:
        """The whole entry ``name`` of ``size`` bytes; None where there is none."""
        return _read(self._path(name), size, 0, size)

    def read(self, name: str, size: int, start: int, count: int, fill: Fill) -> bytes | None:
        """``count`` bytes from ``start`` on of the entry ``name``; ``fill`` writes its ``size`` bytes where it lacks.

        None where it cannot be kept: it is larger than the cache, or the disk is full or refuses. Whatever ``fill``
        raises itself passes through, and leaves no entry.
        """
        path = self._path(name)
        content = _read(path, size, start, count)
        if content is not None or self._broken or size > self.limit:
            return content
        try:
            with self._locked(f"{_LOCKS}/{int(path.name[:8], 16) % _STRIPES}"):
                # Somebody else may have had the lock, and filled it.
                content = _read(path, size, start, count)
                return self._filled(path, size, start, count, fill) if content is None else content
        except _CannotKeep as error:
            self._give_up(error)
            return None

    def _path(self, name: str) -> Path:
        return self.folder / hashlib.sha256(name.encode()).hexdigest()[:40]

    def _filled(self, path: Path, size: int, start: int, count: int, fill: Fill) -> bytes | None:
        if (reserved := self._reserve(size)) is None:
            return None
        file, temporary = reserved
        try:
            fill(Entry(file))
            with _keeping():
                os.fsync(file)
            # Who counts the entries must not miss one that changes its name meanwhile.
            with self._locked(_TOTAL), _keeping():
                os.replace(temporary, path)
                return os.pread(file, count, start)
        finally:
            os.close(file)
            with suppress(OSError):
                os.unlink(temporary)

    def _reserve(self, size: int) -> tuple[int, str] | None:
        """A temporary file that counts as large as the entry will be; None where what is being filled takes all room.

        The total is kept in a file; what is really there is counted where it is too much.
        """
        with self._locked(_TOTAL) as total_file, _keeping():
            text = os.pread(total_file, 32, 0)
            total = (int(text) if text.isdigit() else self.limit) + size
            if total > self.limit:
                total = self._evict(size) + size
            if total > self.limit:
                return None
            os.ftruncate(total_file, 0)
            os.pwrite(total_file, str(total).encode(), 0)
            file, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=self.folder)
            fcntl.flock(file, fcntl.LOCK_EX)  # until it is whole, or its process is gone
            os.ftruncate(file, size)
            return file, temporary

    def _evict(self, size: int) -> int:
        """Remove what was not read for longest until ``size`` bytes more leave some room; what is left in bytes."""
        found: list[tuple[float, int, str]] = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.is_file() and entry.name != _TOTAL:
                        state = entry.stat()
                        found.append((state.st_mtime, state.st_size, entry.path))
        left = sum(bytes_ for _, bytes_, _ in found)
        if left + size <= self.limit:
            return left
        for _, bytes_, path in sorted(found):
            if left + size <= self.limit * _ROOM:
                break
            if os.path.basename(path).startswith(_TEMPORARY) and not _abandoned(path):
                continue
            with suppress(FileNotFoundError):
                os.unlink(path)
            left -= bytes_
        return left

    @contextmanager
    def _locked(self, name: str) -> Iterator[int]:
        # Each holder opens the file anew, for a lock belongs to what was opened: so threads exclude each other too.
        with _keeping():
            file = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with _keeping():
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _give_up(self, error: Exception) -> None:
        if not self._broken:
            self._broken = True
            logger.warning("%s: nothing more is cached (%s); reading goes on without", self.folder, error)


class _CannotKeep(Exception):
    """The disk of the cache refuses."""


@contextmanager
def _keeping() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _CannotKeep(error.strerror or str(error)) from error


class Entry:
    """An entry that is being filled. Its own failures are told from those of what fills it."""

    def __init__(self, file: int) -> None:
        self._file = file

    def write(self, content: bytes) -> None:
        """Add to the end."""
        rest = memoryview(content)
        with _keeping():
            while rest:
                rest = rest[os.write(self._file, rest) :]

    def read(self, start: int, count: int) -> bytes:
        """What was written, for a check."""
        with _keeping():
            return os.pread(self._file, count, start)


def _abandoned(path: str) -> bool:
    """Whether nobody fills a temporary entry any more."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(file)


def _read(path: Path, size: int, start: int, count: int) -> bytes | None:
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        state = os.fstat(file)
        if state.st_size != size:
            return None
        if time.time() - state.st_mtime > _TOUCH_S:
            with suppress(OSError):
                os.utime(file)
        return os.pread(file, count, start)
    except OSError:
        return None
    finally:
        os.close(file)
