"""Objects below a root that is an fsspec URL (``s3://bucket/prefix``): read in ranges, tried again, never copied.

Options of a file system come from fsspec's own configuration and the environment, so that every process of a job sees
the same: ``FSSPEC_S3_ENDPOINT_URL=http://host:9000``, ``FSSPEC_S3_ANON=true``, ``FSSPEC_S3='{"profile": "music"}'``.
"""

import hashlib
import io
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import reduce
from operator import or_
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, TypeVar
from urllib.parse import unquote

from manifests.errors import CorpusError

T = TypeVar("T")

# What one open object holds at most is their product, and a scan has all files of a song open; a block is one request.
BLOCK_BYTES = 1 << 20
BLOCKS = 4
CONNECTIONS = 64
"""To S3 at once, of one process, unless fsspec's configuration says otherwise; its client's 10 wait on latency."""
RETRY_DELAYS_S = (0.2, 1.0, 4.0)

# Asking again would not help.
_FINAL = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    ImportError,
    MemoryError,
    NotImplementedError,
    TypeError,
    ValueError,
)
_LOCAL = ("file", "local")
_S3 = ("s3", "s3a")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# What file systems call the time and the version of an object.
_TIMES = ("LastModified", "last_modified", "mtime", "modified", "updated", "created")
_TAGS = ("ETag", "etag", "md5Hash", "content_md5", "blob_id", "oid", "sha256", "checksum")

logger = logging.getLogger(__name__)


class Blob(Protocol):
    """Audio that is no file of its own on this machine; its text names it in full."""

    @property
    def suffix(self) -> str:
        """What tells the format, such as ``.flac``; "" where nothing does."""
        ...

    def open(self) -> BinaryIO:
        """The content, as a file to read and seek in. Raises OSError, FileNotFoundError when there is none."""
        ...


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One object."""

    root: str
    relative: str
    """Below the root, with forward slashes; see `is_below`."""

    def __str__(self) -> str:
        return f"{self.root}/{self.relative}"

    @property
    def suffix(self) -> str:
        """The suffix of its name."""
        return PurePosixPath(self.relative).suffix

    def open(self) -> BinaryIO:
        """The object as a file that fetches what is read in blocks. Raises OSError when it cannot be opened."""
        system, base = filesystem(self.root)
        path = joined(base, self.relative)
        options = {"block_size": BLOCK_BYTES, "cache_type": "blockcache", "cache_options": {"maxblocks": BLOCKS}}
        return _Patient(str(self), patiently(str(self), lambda: system.open(path, "rb", **options)))  # type: ignore[return-value]

    def state(self) -> tuple[int | None, int]:
        """Size and stamp (see `stamp`). Raises OSError when it cannot be asked for."""
        system, base = filesystem(self.root)
        info = patiently(str(self), lambda: system.info(joined(base, self.relative)))
        return info.get("size"), stamp(info)


def is_remote(root: str) -> bool:
    """Whether a root is an fsspec URL of something that is no local folder."""
    scheme = _SCHEME.match(root)
    return scheme is not None and scheme[1].lower() not in _LOCAL


def parse_root(text: str) -> Path | str:
    """A root as a person writes it: a URL stays a text, everything else is a folder."""
    if is_remote(text):
        return text.rstrip("/")
    return Path(re.sub(r"^(?:file|local)://", "", text))


def is_below(relative: str) -> bool:
    """Whether a key below a root is a plain path: nothing absolute, empty, ``.`` or ``..``, nor such in disguise."""
    parts = relative.split("/")
    return "\x00" not in relative and not any(unquote(part) in ("", ".", "..") for part in parts)


def filesystem(root: str) -> tuple[Any, str]:
    """The file system of a URL and the root's path in it. Raises CorpusError when nothing can reach it."""
    import fsspec

    options: dict[str, Any] = {}
    if root.partition("://")[0] in _S3:
        configured = [fsspec.config.conf.get(scheme, {}).get("config_kwargs", {}) for scheme in _S3]
        options["config_kwargs"] = reduce(or_, configured, {"max_pool_connections": CONNECTIONS})
    try:
        # A cached listing would hide what changed; fsspec itself keeps one system for each set of options.
        system, base = fsspec.core.url_to_fs(root, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        raise CorpusError(f"{root}: cannot be reached ({' '.join(str(error).split())})") from None
    return system, str(base).rstrip("/")


def joined(base: str, relative: str) -> str:
    """The path of an object in its file system."""
    return f"{base}/{relative}" if base else relative


def patiently(name: str, action: Callable[[], T], delays: Sequence[float] | None = None) -> T:
    """Do ``action``, and again after a while when it fails in a way that may pass. Raises OSError, FINAL ones at once.

    ``delays`` in seconds before the second attempt and each further one; None: `RETRY_DELAYS_S`.

    What libraries raise beside OSError (no connection, a broken answer) becomes an OSError in the end.
    """
    for delay in (*(RETRY_DELAYS_S if delays is None else delays), None):
        try:
            return action()
        except _FINAL:
            raise
        except Exception as error:
            if delay is None:
                if isinstance(error, OSError):
                    raise
                raise OSError(" ".join(str(error).split()) or type(error).__name__) from error
            logger.info("%s: %s; tried again in %g s", name, " ".join(str(error).split()), delay)
            time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def stamp(info: dict[str, Any]) -> int:
    """A number that changes with the object: nanoseconds of its last change, as far as the file system says.

    Object stores count whole seconds; where they give a version (ETag), its hash stands in the places below. Where
    there is no time it stands alone, and without either a hash of all that is said of the object does.
    """
    moment = next((info[key] for key in _TIMES if info.get(key) is not None), None)
    tag = next((str(info[key]).strip('"') for key in _TAGS if info.get(key)), None)
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            tag, moment = tag or str(moment), None
    if isinstance(moment, datetime):
        moment = moment.timestamp()
    if isinstance(moment, int | float):
        return int(moment) * 10**9 + (_number(tag) if tag else round(moment % 1 * 10**9)) % 10**9
    return _number(tag if tag else repr(sorted((key, str(value)) for key, value in info.items())))


def _number(text: str) -> int:
    """A hash of 62 bits: it fits a signed column."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 2


class _Patient(io.RawIOBase):
    """A remote file whose reads are tried again. Seeks cost nothing."""

    def __init__(self, name: str, file: Any) -> None:
        super().__init__()
        self._name, self._file = name, file
        self._position = 0
        self._size: int = file.seek(0, io.SEEK_END)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        position, wanted = self._position, min(len(view), max(0, self._size - self._position))
        if not wanted:
            return 0

        def fetched() -> bytes:
            self._file.seek(position)
            data = self._file.read(wanted)
            if not data:
                raise OSError(f"nothing came from byte {position} on")
            return bytes(data)

        data = patiently(self._name, fetched)
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def entries(root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Key below the root, and what the file system says of it, of every object; one recursive listing, keys sorted.

    Raises CorpusError when the root cannot be listed.
    """
    system, base = filesystem(root)
    try:
        found = patiently(root, lambda: system.find(base, detail=True))
    except Exception as error:
        raise CorpusError(
            f"{root}: cannot be listed ({' '.join(str(error).split()) or type(error).__name__})"
        ) from None
    for path in sorted(found):
        # Folders that are objects of their own say nothing.
        if found[path].get("type") != "directory" and not path.endswith("/") and path.rstrip("/") != base:
            yield str(path).removeprefix(base).removeprefix("/" if base else ""), found[path]
