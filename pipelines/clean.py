"""gc: remove what killed jobs left in a data set. Other files, a user's own among them, are never touched."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from manifests.atomic import TEMPORARY_PREFIX, abandoned
from manifests.errors import ShardError
from manifests.shards import INDEX_FILE, SHARDS_FOLDER, read_index
from manifests.store import Store, open_store
from manifests.units import FAILURES_FILE, parse_sidecar, read_failures, read_units

OLD_S = 24 * 3600.0
"""A temporary file of this age is left over, though some process has the number of the one that wrote it."""

# As `manifests.units.unit_name` makes them.
_UNIT = re.compile(r"(?P<stem>(?P<kind>.+)-[0-9a-f]{12})\.(?P<suffix>tar|json)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A file that no sample needs; ``file`` is below the data set."""

    file: str
    bytes: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanSummary:
    """What was removed, or would be."""

    removed: tuple[Leftover, ...]
    bytes: int


def gc(data: Path | str, *, dry_run: bool = False, unused: bool = False) -> CleanSummary:
    """Remove leftovers of killed jobs: temporary files, shards without a sidecar and sidecars without a shard.

    Halves go only where a unit of this data set may have that name, and the index does not name them.

    Not while a job writes into ``data``: a shard has no sidecar for a moment. ``unused`` also removes sealed shards
    that neither index nor failures name, of which data sets made by `merge` and `select` may still read.

    Raises:
        ShardError: there is no data set, or ``unused`` is asked for without an index.
        ManifestError, StoreError: a table or a listing cannot be read, or a file not removed.
    """
    store = open_store(data)
    if not store.sizes() and not store.sizes(SHARDS_FOLDER):
        raise ShardError(f"{data}: no data set is there")
    found = [*_temporaries(store), *_halves(data, store)]
    if unused:
        found += _unused(data, store, {leftover.file for leftover in found})
    if not dry_run:
        for leftover in found:
            store.remove(leftover.file)
    return CleanSummary(removed=tuple(found), bytes=sum(leftover.bytes for leftover in found))


def _temporaries(store: Store) -> Iterator[Leftover]:
    for folder in ("", f"{SHARDS_FOLDER}/"):
        for name, size in sorted(store.sizes(folder.rstrip("/")).items()):
            if abandoned(name) is not None:
                yield Leftover(file=folder + name, bytes=size, reason="the process that wrote it is gone")
            elif re.match(rf"{re.escape(TEMPORARY_PREFIX)}[1-9][0-9]*-", name) and _age(store, folder + name) > OLD_S:
                yield Leftover(file=folder + name, bytes=size, reason="older than a day")


def _age(store: Store, name: str) -> float:
    """Seconds since a file of a folder was changed; 0 in a remote store, which holds no file half written."""
    path = Path(store.root) / name
    return time.time() - path.stat().st_mtime if path.is_file() else 0.0


def _halves(data: Path | str, store: Store) -> Iterator[Leftover]:
    sizes = store.sizes(SHARDS_FOLDER)
    kinds = {f"{unit.corpus}-{unit.subset}" for unit in read_units(data)}
    named = {row.shard for row in read_index(data) if not row.root} if store.exists(INDEX_FILE) else set()
    for name in sorted(sizes):
        unit = _UNIT.fullmatch(name)
        if not unit or unit["kind"] not in kinds or f"{unit['stem']}.tar" in named:
            continue
        if unit["suffix"] == "tar" and f"{unit['stem']}.json" not in sizes:
            yield Leftover(file=f"{SHARDS_FOLDER}/{name}", bytes=sizes[name], reason="shard without a sidecar")
        elif unit["suffix"] == "json" and f"{unit['stem']}.tar" not in sizes and not _is_shardless(data, unit["stem"]):
            yield Leftover(file=f"{SHARDS_FOLDER}/{name}", bytes=sizes[name], reason="sidecar without a shard")


def _unused(data: Path | str, store: Store, found: set[str]) -> Iterator[Leftover]:
    if not store.exists(INDEX_FILE) or not store.exists(FAILURES_FILE):
        raise ShardError(
            f"{data}: without an index and failures nothing says which shards are used; finish encode first"
        )
    named = {row.shard.removesuffix(".tar") for row in read_index(data) if not row.root}
    named |= {failure.unit for failure in read_failures(data)}
    for name, size in sorted(store.sizes(SHARDS_FOLDER).items()):
        unit = _UNIT.fullmatch(name)
        file = f"{SHARDS_FOLDER}/{name}"
        if unit and unit["stem"] not in named and file not in found and _is_sealed(data, unit["stem"]):
            yield Leftover(file=file, bytes=size, reason="the index names no sample in it")


def _is_shardless(data: Path | str, name: str) -> bool:
    """Whether the sidecar says that no window could be encoded."""
    try:
        return parse_sidecar(data, name).size == 0
    except ShardError:
        return False


def _is_sealed(data: Path | str, name: str) -> bool:
    """Whether the sidecar is one of ours."""
    try:
        return parse_sidecar(data, name).shard == f"{name}.tar"
    except ShardError:
        return False
