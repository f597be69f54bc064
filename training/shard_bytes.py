"""The bytes of samples, from disks or from far, with at most so many shards open and none of them kept in memory."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manifests.errors import ShardError
from manifests.remote import is_remote
from manifests.shards import SHARDS_FOLDER
from manifests.store import FETCH_BYTES, REQUESTS, Store, open_store
from training.shard_cache import Entry, ShardCache

OPEN_SHARDS = 256

Column = npt.NDArray[np.int64]


class ShardBytes:
    """Samples by their row in an index; safe for threads.

    A local sample is one read from an open file: pages of the operating system's cache, which are not this process's.
    Remote ones are asked for together, or, with ``whole``, their whole shards are fetched into the cache. What came
    from far is checked against the checksums of the index.
    """

    def __init__(self, data: Path | str, index: pa.Table, cache: ShardCache | None, whole: bool) -> None:
        names = index["root"].combine_chunks().dictionary_encode(), index["shard"].combine_chunks().dictionary_encode()
        roots, shards = (column.indices.to_numpy().astype(np.int64) for column in names)
        places, self.shards = np.unique(np.stack([roots, shards]), axis=1, return_inverse=True)
        """Number of each row's shard ``[rows]``."""
        stores = {root: open_store(root or data) for root in names[0].dictionary.to_pylist()}
        ordered = [stores[root] for root in names[0].dictionary.to_pylist()]
        self._places: list[tuple[Store, str]] = [
            (ordered[root], f"{SHARDS_FOLDER}/{names[1].dictionary[shard].as_py()}")
            for root, shard in places.T.tolist()
        ]
        self._offsets, self._sizes = (index[name].to_numpy() for name in ("offset", "size"))
        self._checksums = index["checksum"].combine_chunks()
        self._by_shard = np.argsort(self.shards, kind="stable")
        self._edges = np.searchsorted(self.shards[self._by_shard], np.arange(len(self._places) + 1))
        self._cache, self._whole = cache, whole
        self._open = lru_cache(OPEN_SHARDS)(self._opened)
        self._whole_entry = lru_cache(OPEN_SHARDS)(self._named)
        far = any(is_remote(store.root) for store in ordered)
        self._pool = ThreadPoolExecutor(REQUESTS, "fetch") if far else None
        self.largest_far = int((self._offsets + self._sizes).max()) if far else 0
        """Bytes of the largest shard, where some come from far."""

    def place(self, row: int) -> str:
        """The row's shard, for a person, and where its copy is."""
        store, _ = self._places[self.shards[row]]
        if not self._cache or not is_remote(store.root):
            return self._location(row)
        return f"{self._location(row)} (a copy of it is in the cache {self._cache.folder}, which may be removed)"

    def _location(self, row: int) -> str:
        store, name = self._places[self.shards[row]]
        return store.location(name)

    def read(self, rows: Sequence[int]) -> Iterator[bytes]:
        """The bytes of samples in the tar, in order. Raises ShardError or StoreError."""
        if not self._pool:
            return map(self._near, rows)
        far = self._far([row for row in rows if self._is_far(row)])
        return (next(far) if self._is_far(row) else self._near(row) for row in rows)

    def _near(self, row: int) -> bytes:
        try:
            content = self._open(int(self.shards[row])).read(int(self._sizes[row]), int(self._offsets[row]))
        except OSError as error:
            raise self._unreadable(row, error) from error
        self._check_length(row, content)
        return content

    def _opened(self, shard: int) -> "_Open":
        store, name = self._places[shard]
        return _Open(f"{store.root}/{name}")

    def _is_far(self, row: int) -> bool:
        return is_remote(self._places[self.shards[row]][0].root)

    def _far(self, rows: Sequence[int]) -> Iterator[bytes]:
        assert self._pool
        look = self._cached_whole if self._whole else self._cached
        contents = list(self._pool.map(look, rows)) if self._cache else [None] * len(rows)
        missing = [row for row, content in zip(rows, contents, strict=True) if content is None]
        fetched = self._fetched(missing)
        if self._cache and not self._whole:
            fetched = self._pool.map(self._kept, missing, fetched)
        for content in contents:
            yield next(fetched) if content is None else content

    def _cached_whole(self, row: int) -> bytes | None:
        """From the row's shard in the cache, which is fetched where it lacks; None where it cannot be kept."""
        assert self._cache
        shard, offset, size = int(self.shards[row]), int(self._offsets[row]), int(self._sizes[row])
        name, end = self._whole_entry(shard)
        read = partial(self._cache.read, name, end, offset, size, lambda entry: self._fill(entry, shard, end))
        try:
            try:
                return read()
            except ShardError:  # it may have been damaged on the way
                return read()
        except OSError as error:
            raise self._unreadable(row, error) from error

    def _cached(self, row: int) -> bytes | None:
        assert self._cache
        return self._cache.find(self._entry(row), int(self._sizes[row]))

    def _kept(self, row: int, content: bytes) -> bytes:
        assert self._cache
        size = len(content)
        return self._cache.read(self._entry(row), size, 0, size, lambda entry: entry.write(content)) or content

    def _entry(self, row: int) -> str:
        return f"{self._location(row)} {self._offsets[row]} {self._sizes[row]} {self._checksums[row]}"

    def _fetched(self, rows: Sequence[int]) -> Iterator[bytes]:
        """Samples as they come from far, asked for together, and checked."""
        by_store: dict[Store, list[int]] = {}
        for row in rows:
            by_store.setdefault(self._places[self.shards[row]][0], []).append(row)
        assert self._pool
        asked = self._pool.map(lambda store: store.read_ranges([self._range(row) for row in by_store[store]]), by_store)
        found = dict(zip(by_store, asked, strict=True))
        for row in rows:
            store = self._places[self.shards[row]][0]
            try:
                content = next(found[store])
                if not self._is_whole(row, content):  # it may have been damaged on the way
                    content = store.read_range(*self._range(row))
                    self._check(row, content)
            except OSError as error:
                raise self._unreadable(row, error) from error
            yield content

    def _range(self, row: int) -> tuple[str, int, int]:
        return self._places[self.shards[row]][1], int(self._offsets[row]), int(self._sizes[row])

    def _unreadable(self, row: int, error: OSError) -> ShardError:
        if isinstance(error, FileNotFoundError):
            return ShardError(f"{self._location(row)}: missing, though the index names it")
        return ShardError(f"{self._location(row)}: cannot be read ({error.strerror or error})")

    def _fill(self, entry: Entry, shard: int, end: int) -> None:
        store, name = self._places[shard]
        for start in range(0, end, FETCH_BYTES):
            entry.write(store.read_range(name, start, min(FETCH_BYTES, end - start)))
        for row in self._rows(shard).tolist():
            self._check(row, entry.read(int(self._offsets[row]), int(self._sizes[row])))

    def _check(self, row: int, content: bytes) -> None:
        self._check_length(row, content)
        if not self._is_whole(row, content):
            raise ShardError(
                f"{self._location(row)}: its sample at byte {self._offsets[row]} is damaged; verify the shards"
            )

    def _is_whole(self, row: int, content: bytes) -> bool:
        return hashlib.sha256(content).hexdigest() == self._checksums[row].as_py()

    def _check_length(self, row: int, content: bytes) -> None:
        if len(content) < self._sizes[row]:
            raise ShardError(
                f"{self._location(row)}: ends before its sample at byte {self._offsets[row]}; verify the shards"
            )

    def _named(self, shard: int) -> tuple[str, int]:
        """Name and length of a shard in the cache: as much of it as the index names, with the checksums of that."""
        rows = self._rows(shard)
        end = int((self._offsets[rows] + self._sizes[rows]).max())
        checksums = "".join(self._checksums.take(pa.array(rows)).to_pylist())
        return f"{self._location(int(rows[0]))} {end} {hashlib.sha256(checksums.encode()).hexdigest()}", end

    def _rows(self, shard: int) -> Column:
        return self._by_shard[self._edges[shard] : self._edges[shard + 1]]


class _Open:
    """A file that is closed when nobody reads from it any more."""

    def __init__(self, path: str) -> None:
        self._number = os.open(path, os.O_RDONLY)

    def read(self, size: int, offset: int) -> bytes:
        """So many bytes, fewer at the end."""
        return os.pread(self._number, size, offset)

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            os.close(self._number)
