from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.cells import Audio, Cell, open_table
from manifests.errors import AudioError
from manifests.remote import RemoteFile
from mgeldm import audio
from tests.support.datasets import RATE, encoded
from tests.support.sounds import sound, write_sound

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_arrow(path: Path, table: pa.Table) -> Path:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    return path


def write(path: Path, table: pa.Table) -> Path:
    if path.suffix == ".arrow":
        return write_arrow(path, table)
    pq.write_table(table, path, row_group_size=4)
    return path


def content(row: int) -> dict[str, Any] | None:
    """Every kind of cell: content and name, content alone, a name alone, nothing in it, nothing."""
    data = f"content {row}".encode()
    kinds = [
        {"bytes": data, "path": f"{row}.wav"},
        {"bytes": data, "path": None},
        {"bytes": None, "path": "a/b.wav"},
        {"bytes": None, "path": None},
        None,
    ]
    return kinds[row % 5]


def table(rows: int = 11) -> pa.Table:
    return pa.table(
        {
            "id": [f"song {row}" for row in range(rows)],
            "info": pa.array([{"path": str(row)} for row in range(rows)]),
            "a.b": pa.array([content(row) for row in range(rows)], STRUCT),
            "full": pa.array([{"bytes": bytes([row]), "path": None} for row in range(rows)], STRUCT),
            "raw": pa.array([bytes([row]) if row % 2 else None for row in range(rows)], pa.binary()),
        }
    )


@pytest.fixture(params=["x.parquet", "x.arrow"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / request.param, table())


def test_rows_tell_where_content_is_without_it(file: Path) -> None:
    opened = open_table(file)
    assert len(opened) == 11
    assert opened.columns == ["id", "info", "a.b", "full", "raw"]
    rows = list(opened.rows(["id", "info", "a.b", "full", "raw"]))
    assert [row["id"] for row in rows] == [f"song {row}" for row in range(11)]
    assert [row["info"] for row in rows] == [{"path": str(row)} for row in range(11)]
    kinds = [Audio(b"", "0.wav"), Audio(b"", None), Audio(None, "a/b.wav"), Audio(None, None), Audio(None, None)]
    assert [row["a.b"] for row in rows[:5]] == kinds
    assert rows[5]["a.b"] == Audio(b"", "5.wav")
    assert {row["full"] for row in rows} == {Audio(b"", None)}
    assert [row["raw"].content for row in rows[:3]] == [None, b"", None]


def test_cells_are_read_in_any_order(file: Path) -> None:
    for row in (0, 5, 5, 6, 1, 10, 0, 9, 2, 3, 4):
        found = open_table(file).audio("a.b", row)
        expected = content(row) or {"bytes": None, "path": None}
        assert found == Audio(expected["bytes"], expected["path"])
        assert open_table(file).audio("full", row) == Audio(bytes([row]), None)


def test_a_cell_is_a_file(file: Path) -> None:
    cell = Cell(file, 1, "a.b")
    assert str(cell) == f"{file}#1/a.b"
    with cell.open() as handle:
        assert handle.read() == b"content 1"
    for row, column in ((2, "a.b"), (3, "a.b"), (4, "a.b"), (11, "a.b"), (0, "none")):
        with pytest.raises(FileNotFoundError):
            Cell(file, row, column).open()
    with pytest.raises(OSError, match="no content"):
        Cell(file, 0, "info").open()


def test_the_suffix_is_that_of_the_name_or_of_the_content(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.m4a", sound("cell"), 44_100)
    cells = [
        {"bytes": b"", "path": "x/y.FLAC"},
        {"bytes": path.read_bytes(), "path": None},
        {"bytes": b"\x1aE\xdf\xa3....", "path": "noname"},
        {"bytes": b"RIFF", "path": None},
    ]
    file = write(tmp_path / "x.parquet", pa.table({"a": pa.array(cells, STRUCT)}))
    assert [Cell(file, row, "a").suffix for row in range(4)] == [".FLAC", ".mp4", ".mka", ""]
    np.testing.assert_array_equal(audio.read(Cell(file, 1, "a")), audio.read(path))


def test_a_table_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    for data in (b"1", b"22"):
        write(file, pa.table({"a": pa.array([{"bytes": data, "path": None}], STRUCT)}))
        assert open_table(file).audio("a", 0).content == data


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_what_is_no_table_is_an_audio_error(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    with pytest.raises(AudioError) as caught:
        audio.probe(Cell(file, 0, "a"))
    assert caught.value.code == "missing"
    file.write_bytes(b"no table at all")
    with pytest.raises(AudioError) as caught:
        audio.probe(Cell(file, 0, "a"))
    assert caught.value.code == "unreadable"
    assert str(file) in str(caught.value)


def test_a_damaged_table_is_an_audio_error(tmp_path: Path) -> None:
    waves = [{"bytes": encoded(sound(row, seconds=1)), "path": None} for row in range(8)]
    file = write(tmp_path / "x.parquet", pa.table({"a": pa.array(waves, STRUCT)}))
    data = bytearray(file.read_bytes())
    data[10 : len(data) // 3] = bytes(len(data) // 3 - 10)
    file.write_bytes(data)
    with pytest.raises(AudioError) as caught:
        audio.read(Cell(file, 0, "a"))
    assert caught.value.code == "unreadable"


def test_a_remote_table_is_read_in_place(tmp_path: Path) -> None:
    waves = [sound(row, seconds=1) for row in range(6)]
    cells = [{"bytes": encoded(wave), "path": None} for wave in waves]
    file = write(tmp_path / "x.parquet", pa.table({"a": pa.array(cells, STRUCT)}))
    fsspec.filesystem("memory").pipe_file("/c/x.parquet", file.read_bytes())
    far = RemoteFile("memory://c", "x.parquet")
    for row in (3, 0, 5):
        np.testing.assert_array_equal(audio.read(Cell(far, row, "a")), audio.read(Cell(file, row, "a")))
        assert audio.probe(Cell(far, row, "a")).sample_rate == RATE
    with pytest.raises(AudioError) as caught:
        audio.read(Cell(RemoteFile("memory://c", "y.parquet"), 0, "a"))
    assert caught.value.code == "missing"
    fsspec.filesystem("memory").pipe_file("/c/x.arrow", b"1")
    with pytest.raises(AudioError, match="save it as Parquet"):
        audio.read(Cell(RemoteFile("memory://c", "x.arrow"), 0, "a"))
