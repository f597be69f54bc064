"""Atomic writes: a file under its final name is always whole."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manifests.errors import ConfigError

TEMPORARY_PREFIX = ".tmp-"
_TEMPORARY = re.compile(
    rf"{re.escape(TEMPORARY_PREFIX)}(?P<pid>[1-9][0-9]*)-(?:(?P<began>[0-9]+)-)?(?P<final>.+)", re.DOTALL
)

_ENDED = -1


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success sync it and rename it to ``path``, on error remove it."""
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, since some writers choose the format by it.
    temporary = final.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{_began(os.getpid()) or 0}-{final.name}")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)  # some writers make files that only their owner can read
        os.replace(temporary, final)
        sync_folder(final.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it becomes ``path``, on error it is removed.

    ``path`` is not there yet, or is an empty folder. Files are written into it with `atomic_path`, so that they are
    synced. What a killed process left of the same folder is removed.
    """
    final = Path(path).resolve()
    final.parent.mkdir(parents=True, exist_ok=True)
    for left in final.parent.glob(f"{TEMPORARY_PREFIX}*"):
        if left.is_dir() and abandoned(left.name) == final.name:
            shutil.rmtree(left, ignore_errors=True)
    temporary = final.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{_began(os.getpid()) or 0}-{final.name}")
    temporary.mkdir()
    try:
        yield temporary
        sync_folder(temporary)
        os.replace(temporary, final)
        sync_folder(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def abandoned(name: str) -> str | None:
    """What the temporary ``name`` would have become; None for another file, or while its process may be alive.

    A process on another machine counts as dead. So does one that began at another time than the writer: in containers
    the few numbers there are come again.
    """
    match = _TEMPORARY.fullmatch(name)
    if match is None:
        return None
    pid = int(match["pid"])
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return match["final"]
    except PermissionError:
        pass  # somebody else's
    began = _began(pid)
    return match["final"] if began == _ENDED or (began and int(match["began"] or 0) not in (0, began)) else None


def _began(pid: int) -> int | None:
    """When a process began, in the kernel's ticks; `_ENDED` while nobody has asked how it ended; None if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return _ENDED if fields[0] in (b"Z", b"X") else int(fields[19])


def check_writable(folder: Path) -> None:
    """Make ``folder`` and try to write there, before hours of work are put into it. Raises ConfigError."""
    if re.fullmatch(r"[a-z][a-z0-9+.-]+:", folder.parts[0] if folder.parts else ""):
        raise ConfigError(f"{folder}: a URL, where a folder is needed, of this machine or one that all machines share")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from None


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as readable JSON, keys sorted, atomically."""
    write_bytes(path, readable_json(value))


def readable_json(value: Any) -> bytes:
    """JSON for people too: indented, keys sorted."""
    return (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def canonical_json(value: Any) -> str:
    """One text for one value: sorted keys, no spaces. The base of every identity hash."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def content_hash(value: Any, digits: int = 64) -> str:
    """Hex SHA-256 of ``canonical_json(value)``, cut to ``digits``."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:digits]
