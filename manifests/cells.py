"""Audio in the cells of tables: the files of Hugging Face data sets, read in place.

An audio column is a struct of ``bytes`` and ``path`` (the `datasets` type, undecoded), or plain binary or text. Tables
are Parquet files, local or remote, and local Arrow streams (``save_to_disk``).
"""

import io
import os
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.remote import RemoteFile

OPEN_TABLES = 8
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Audio:
    """What an audio cell holds."""

    content: bytes | None
    """The encoded file."""
    path: str | None
    """Its name, or where it lies when there is no content."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One audio cell of a table."""

    table: Path | RemoteFile
    row: int
    column: str

    def __str__(self) -> str:
        return f"{self.table}#{self.row}/{self.column}"

    @property
    def suffix(self) -> str:
        """The suffix of the name beside the content; else what the content's first bytes say of a container, or ""."""
        audio = self._audio()
        start = (audio.content or b"")[:8]
        if audio.path and (suffix := PurePosixPath(audio.path).suffix):
            return suffix
        return ".mp4" if start[4:] == b"ftyp" else ".mka" if start[:4] == b"\x1aE\xdf\xa3" else ""

    def open(self) -> BinaryIO:
        """The content. Raises OSError: no such table, row or column, or a cell without content."""
        audio = self._audio()
        if audio.content is None:
            raise FileNotFoundError(f"{self}: the cell has no content")
        return io.BytesIO(audio.content)

    def _audio(self) -> Audio:
        return open_table(self.table).audio(self.column, self.row)


def open_table(file: Path | RemoteFile) -> "Table":
    """The table in a file; a few stay open. Raises OSError when it cannot be read."""
    if isinstance(file, Path):
        status = os.stat(file)
        return _open_table(file, (status.st_size, status.st_mtime_ns))
    return _open_table(file, file.state())


@lru_cache(maxsize=OPEN_TABLES)
def _open_table(file: Path | RemoteFile, state: tuple[int | None, int]) -> "Table":
    return Table(file)


class Table:
    """Rows of one file. Cells are read one by one: reading on is cheap, going back begins the row group again."""

    def __init__(self, file: Path | RemoteFile) -> None:
        """Raises OSError when ``file`` is no table."""
        self._file = file
        self._lock = threading.Lock()
        with self._as_os_error():
            self._parts: _Parquet | _Arrow = _Arrow(file) if str(file).endswith(".arrow") else _Parquet(file)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self._parts.schema.names)

    def __len__(self) -> int:
        return int(self._parts.starts[-1])

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The rows with ``columns``; an audio column as `Audio`, whose content is left out: ``b""`` where there is any.

        Raises OSError when the table is damaged.
        """
        starts = self._parts.starts
        for part in range(len(starts) - 1):
            with self._as_os_error(), self._lock:
                found = {name: self._without_content(part, name) for name in columns}
            for row in range(starts[part + 1] - starts[part]):
                yield {name: values[row] for name, values in found.items()}

    def audio(self, column: str, row: int) -> Audio:
        """An audio cell. Raises OSError when there is none such or the table is damaged."""
        if column not in self._parts.schema.names or not 0 <= row < len(self):
            raise FileNotFoundError(f"{self._file}: has no column {column!r} with a row {row}")
        with self._as_os_error(), self._lock:
            value = self._parts.value(column, row)
        if isinstance(value, dict):
            return Audio(value.get("bytes"), value.get("path"))
        if value is not None and not isinstance(value, bytes | str):
            raise OSError(f"{self._file}: column {column!r} holds {type(value).__name__}, no audio")
        return Audio(value, None) if isinstance(value, bytes) else Audio(None, value)

    def _without_content(self, part: int, name: str) -> list[Any]:
        kind = self._parts.schema.field(name).type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return [Audio(b"" if there else None, None) for there in self._parts.present(part, name)]
        if not (pa.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}):
            return self._parts.leaf(part, name)
        pairs = zip(self._parts.present(part, name, "bytes"), self._parts.leaf(part, name, "path"), strict=True)
        return [Audio(b"" if there else None, path) for there, path in pairs]

    @contextmanager
    def _as_os_error(self) -> Iterator[None]:
        try:
            yield
        except pa.ArrowException as error:
            raise OSError(f"{self._file}: not a readable table ({' '.join(str(error).split())})") from None


class _Parquet:
    """Row groups; a column of one is streamed, so that the memory needed is that of a page and a value."""

    def __init__(self, file: Path | RemoteFile) -> None:
        source = file if isinstance(file, Path) else pa.PythonFile(file.open(), mode="r")
        self._file = pq.ParquetFile(source, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        self.schema: pa.Schema = self._file.schema_arrow
        groups = [self._file.metadata.row_group(group) for group in range(self._file.num_row_groups)]
        self.starts = [0, *accumulate(group.num_rows for group in groups)]
        self._cursors: dict[str, tuple[int, Any, Iterator[pa.Array]]] = {}

    def value(self, column: str, row: int) -> Any:
        """The value at a row. The one read last is kept, and from it the next ones are read."""
        group = bisect_right(self.starts, row) - 1
        # Taken out, so that an error leaves no cursor of unknown place.
        at, value, rest = self._cursors.pop(column, (-1, None, iter(())))
        if not self.starts[group] <= at <= row:
            at, rest = self.starts[group] - 1, self._singles(group, column)
        while at < row:
            at, array = at + 1, next(rest)
            value = array[0].as_py() if at == row else None
        self._cursors[column] = at, value, rest
        return value

    def leaf(self, part: int, name: str, leaf: str | None = None) -> list[Any]:
        """Values of a column, or of one field of a column of structs, in row group ``part``."""
        column = self._file.read_row_group(part, columns=[_path(name, leaf)]).column(0)
        return list((pc.struct_field(column, leaf) if leaf else column).to_pylist())

    def present(self, part: int, name: str, leaf: str | None = None) -> list[bool]:
        """Where a column of bytes holds any; the header tells, unless some rows do and others do not."""
        group = self._file.metadata.row_group(part)
        chunks = map(group.column, range(group.num_columns))
        chunk = next(chunk for chunk in chunks if chunk.path_in_schema == _path(name, leaf))
        nulls = chunk.statistics.null_count if chunk.statistics and chunk.statistics.has_null_count else None
        if nulls in (0, group.num_rows):
            return [nulls == 0] * group.num_rows
        singles = self._singles(part, _path(name, leaf))
        return [(pc.struct_field(array, leaf) if leaf else array).null_count == 0 for array in singles]

    def _singles(self, group: int, path: str) -> Iterator[pa.Array]:
        return (batch.column(0) for batch in self._file.iter_batches(1, row_groups=[group], columns=[path]))


class _Arrow:
    """A stream of record batches in a local file, mapped into memory."""

    def __init__(self, file: Path | RemoteFile) -> None:
        if not isinstance(file, Path):
            raise OSError(f"{file}: an Arrow file is read from a local disk only; save it as Parquet")
        with pa.memory_map(str(file)) as source:
            self._table = pa.ipc.open_stream(source).read_all()
        self.schema: pa.Schema = self._table.schema
        self.starts = [0, self._table.num_rows]

    def value(self, column: str, row: int) -> Any:
        """The value at a row."""
        return self._table[column][row].as_py()

    def leaf(self, part: int, name: str, leaf: str | None = None) -> list[Any]:
        """Values of a column, or of one field of a column of structs."""
        return list(self._leaf(name, leaf).to_pylist())

    def present(self, part: int, name: str, leaf: str | None = None) -> list[bool]:
        """Where a column of bytes holds any."""
        return list(self._leaf(name, leaf).is_valid().to_pylist())

    def _leaf(self, name: str, leaf: str | None) -> pa.ChunkedArray:
        return pc.struct_field(self._table[name], leaf) if leaf else self._table[name]


def _path(name: str, leaf: str | None) -> str:
    return f"{name}.{leaf}" if leaf else name
