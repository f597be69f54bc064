"""Roots of corpora: a local folder, or anything fsspec reaches. Where audio lies, and how a remote root is listed.

Corpora list names and read small metadata files below a local folder. Of a remote root they get a skeleton: every
object as an empty file under its key, metadata files with their content, in a temporary folder.
"""

import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from manifests.cells import Cell
from manifests.errors import CorpusError
from manifests.remote import (
    Blob,
    RemoteFile,
    entries,
    filesystem,
    is_below,
    is_remote,
    joined,
    parse_root,
    patiently,
    stamp,
)
from manifests.songs import Stem, inside

METADATA_SUFFIXES = (".yaml", ".yml", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".xml", ".md")
METADATA_BYTES = 32 << 20

_BATCH = 256
_BATCH_BYTES = 64 << 20
_CELL = re.compile(r"(?P<table>.+?\.(?:parquet|arrow))#(?P<row>[0-9]{1,15})/(?P<column>.+)", re.DOTALL)

logger = logging.getLogger(__name__)

_origins: dict[Path, str] = {}


@dataclass(frozen=True, slots=True)
class OpenRoot:
    """A root that is ready to be listed."""

    root: str
    """What stands in the manifest: the resolved folder, or the URL."""
    folder: Path
    """Where a corpus lists."""
    states: Mapping[str, tuple[int | None, int]] = field(default_factory=dict)
    """Size and stamp of every remote object, by its path below the root."""

    def with_state(self, stem: Stem) -> Stem:
        """``stem`` with size and stamp of the object behind it, where the listing told."""
        found = self.states.get(container(stem.path))
        return replace(stem, size=found[0], mtime_ns=found[1]) if found else stem

    def named(self, text: str) -> str:
        """``text`` with the URL where it names the skeleton."""
        return text.replace(str(self.folder), self.root)


def locate(root: Path | str, relative: str) -> Path | Blob | None:
    """What lies at ``relative`` below a root, or None when that would leave the root.

    A path; for a remote root an object; for ``<table>.parquet#<row>/<column>`` (or ``.arrow``) the cell of a table.
    """
    root = str(root)
    place = RemoteFile(root, relative) if is_remote(root) else inside(Path(root), relative)
    if (match := _CELL.fullmatch(relative)) and not (isinstance(place, Path) and place.exists()):
        table = locate(root, match["table"])
        return Cell(table, int(match["row"]), match["column"]) if isinstance(table, Path | RemoteFile) else None
    return place if isinstance(place, Path) or (place and is_below(relative)) else None


def state(root: Path | str, relative: str) -> tuple[int | None, int] | None:
    """Size and modification stamp of the file or object behind ``relative``; None when it cannot be had.

    Of a cell they are the table's. Without a time the stamp is made of the object's ETag.
    """
    place = locate(root, relative)
    place = place.table if isinstance(place, Cell) else place
    try:
        if isinstance(place, Path):
            status = place.stat()
            return status.st_size, status.st_mtime_ns
        return place.state() if isinstance(place, RemoteFile) else None
    except (OSError, ValueError):
        return None


def container(relative: str) -> str:
    """The file that a path of the manifest lies in: itself, or the table of a cell."""
    match = _CELL.fullmatch(relative)
    return match["table"] if match else relative


def origin(folder: Path) -> str:
    """The root that a folder handed to a corpus stands for: the URL behind a skeleton, or the folder itself."""
    return _origins.get(folder, str(folder))


@contextmanager
def open_root(root: Path | str) -> Iterator[OpenRoot]:
    """Make a root ready to be listed; the skeleton of a remote one is gone afterwards.

    Raises:
        CorpusError: no such folder, or a URL that cannot be listed or has nothing below it.
    """
    if not is_remote(str(root)):
        yield _local(parse_root(str(root)))
        return
    url = str(root).rstrip("/")
    with tempfile.TemporaryDirectory(prefix="mgeldm-listing-") as temporary:
        # Called as the root's last part, for adapters that look at it.
        folder = Path(os.path.realpath(temporary)) / (
            re.sub(r"[^\w.-]", "_", url.rsplit("/", 1)[-1]).lstrip(".") or "_"
        )
        folder.mkdir()
        states = _skeleton(url, folder)
        if not states:
            raise CorpusError(f"{url}: nothing lies below it")
        _origins[folder] = url
        try:
            yield OpenRoot(url, folder, states)
        finally:
            del _origins[folder]


def _local(root: Path | str) -> OpenRoot:
    # Unlike Path.resolve, realpath takes links that go in a circle.
    folder = Path(os.path.realpath(root))
    if not os.path.isdir(folder):
        raise CorpusError(f"{root}: no such folder")
    if str(folder).encode("utf-8", "backslashreplace").decode() != str(folder):
        name = str(folder).encode("utf-8", "backslashreplace").decode()
        raise CorpusError(f"{name}: the path is not UTF-8, so that no table can hold it; rename it")
    return OpenRoot(str(folder), folder)


def _skeleton(url: str, folder: Path) -> dict[str, tuple[int | None, int]]:
    """Lay out the objects below ``url`` in ``folder``; size and stamp of each that was laid out.

    A key that is no plain path, or that a file system cannot hold, is warned of and left out.
    """
    found = dict(entries(url))
    parents = {parent for key in found for parent in _parents(key)}
    states: dict[str, tuple[int | None, int]] = {}
    metadata: list[tuple[str, int | None]] = []
    refused: list[str] = []
    for key, info in found.items():
        if not is_below(key) or key in parents:
            refused.append(key)
            continue
        path = folder / key
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("xb").close()
        except (OSError, ValueError):
            refused.append(key)
            continue
        states[key] = info.get("size"), stamp(info)
        if path.suffix.lower() in METADATA_SUFFIXES:
            metadata.append((key, info.get("size")))
    if refused:
        logger.warning(
            "%s: %d keys are left out, for they are no usable paths, such as %r", url, len(refused), refused[0]
        )
    for batch in _batches(url, metadata):
        for key, content in _contents(url, batch).items():
            (folder / key).write_bytes(content)
    return states


def _parents(key: str) -> Iterator[str]:
    while "/" in key:
        key = key.rsplit("/", 1)[0]
        yield key


def _batches(url: str, metadata: Iterable[tuple[str, int | None]]) -> Iterator[dict[str, int | None]]:
    batch: dict[str, int | None] = {}
    total = 0
    for key, size in metadata:
        if size == 0:
            continue
        if (size or 0) > METADATA_BYTES:
            logger.warning("%s/%s: has %d bytes, too many for metadata; it is not read", url, key, size)
            continue
        if len(batch) >= _BATCH or total + (size or 0) > _BATCH_BYTES:
            yield batch
            batch, total = {}, 0
        batch[key] = size
        total += size or 0
    if batch:
        yield batch


def _contents(url: str, sizes: Mapping[str, int | None]) -> dict[str, bytes]:
    """Content of small objects, fetched side by side where the file system can; what fails is warned of."""
    system, base = filesystem(url)
    paths = [joined(base, key) for key in sizes]
    contents: dict[str, bytes] = {}
    # Unlike `cat`, this takes names as they are, stars and brackets too; and with the size it need not ask for it.
    fetched = system.cat_ranges(paths, [0] * len(paths), list(sizes.values()), on_error="return")
    for key, path, content in zip(sizes, paths, fetched, strict=True):
        try:
            if not isinstance(content, bytes):
                content = patiently(f"{url}/{key}", partial(system.cat_file, path))
            contents[key] = content
        except Exception as error:
            logger.warning("%s/%s: cannot be read (%s)", url, key, " ".join(str(error).split()))
    return contents
