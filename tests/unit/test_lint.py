"""Each kind of damage of a manifest is found, and told with its song; a sound one is left in peace."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.errors import ManifestError
from manifests.lint import CODES, Finding, lint_songs
from manifests.songs import SONGS_SCHEMA, Problem, Song, song_rows, write_songs
from tests.support.large import large_songs
from tests.support.songs import made_song, made_stem

META = {"mgeldm.songs.version": "2"}
SONG = replace(
    made_song("c/1", [made_stem("drums", seconds=30.3), made_stem("bass", offset_frames=16_000)]),
    mixture="mix.wav",
    mixture_audio=made_stem("mixture"),
    sketch=b"\x10\x80" * 303,
)


def found(path: Path, rows: list[dict[str, Any]], schema: pa.Schema = SONGS_SCHEMA) -> list[Finding]:
    pq.write_table(pa.Table.from_pylist(rows, schema=schema).replace_schema_metadata(META), path)
    return list(lint_songs(path))


def rows(*songs: Song) -> list[dict[str, Any]]:
    return list(song_rows(songs).to_pylist())


def test_a_sound_manifest_has_no_findings(tmp_path: Path) -> None:
    lone = Song(song_id="d/1", corpus="d", root="/", subset="test", problems=(Problem(code="no_stems"),))
    write_songs(tmp_path / "songs.parquet", [SONG, lone, *large_songs(30)])
    assert list(lint_songs(tmp_path / "songs.parquet")) == []


DAMAGE: dict[str, tuple[str, str, Callable[[dict[str, Any]], Any]]] = {
    "subset": ("subset", "'training'", lambda row: row.update(subset="training")),
    "id of another corpus": ("song_id", "does not begin with d/", lambda row: row.update(corpus="d")),
    "extra is no JSON": ("extra", "Expecting", lambda row: row.update(extra="{")),
    "extra is a list": ("extra", "no object", lambda row: row.update(extra="[1]")),
    "negative duration": ("duration", "-1", lambda row: row.update(duration_s=-1.0)),
    "no number": ("duration", "nan", lambda row: row.update(duration_s=float("nan"))),
    "frames without a rate": ("duration", "None", lambda row: row.update(sample_rate=None)),
    "frames of another duration": ("duration", "are not 30.3 s", lambda row: row.update(frames=480_000)),
    "a rate of 0": ("duration", "at 0 Hz", lambda row: row.update(sample_rate=0)),
    "stems longer than the song": (
        "duration",
        "stem drums of 30.30 s",
        lambda row: row.update(duration_s=30.0, frames=480_000),
    ),
    "half a sketch frame": ("sketch", "3 bytes", lambda row: row.update(sketch=b"abc")),
    "two stems of one id": ("stem_id", "'bass'", lambda row: row["stems"][0].update(stem_id="bass")),
    "rate of a stem": ("rate", "sample_rate 12", lambda row: row["stems"][0].update(sample_rate=12, activity=b"")),
    "no channels": ("rate", "channels 0", lambda row: row["stems"][0].update(channels=0)),
    "negative frames": ("rate", "frames -5", lambda row: row["stems"][1].update(frames=-5, activity=b"")),
    "negative stream": ("rate", "stream -1", lambda row: row["stems"][1].update(stream=-1)),
    "negative channel": ("rate", "channel -1", lambda row: row["stems"][1].update(channel=-1)),
    "loud beyond reason": ("level", "lufs 99.0", lambda row: row["stems"][0].update(lufs=99.0)),
    "loudness is no number": ("level", "lufs nan", lambda row: row["stems"][0].update(lufs=float("nan"))),
    "peak": ("level", "peak_dbfs 900.0", lambda row: row["stems"][0].update(peak_dbfs=900.0)),
    "share": ("level", "clipped 1.5", lambda row: row["stems"][0].update(clipped=1.5)),
    "mean": ("level", "dc 11.0", lambda row: row["stems"][0].update(dc=11.0)),
    "bandwidth": ("level", "bandwidth_hz 9000.0", lambda row: row["stems"][0].update(bandwidth_hz=9_000.0)),
    "of the mixture": ("level", "stem mixture: lufs", lambda row: row["mixture_audio"].update(lufs=99.0)),
    "size": ("file_size", "size -1", lambda row: row["stems"][0].update(size=-1)),
    "activity too short": ("activity", "5 bytes for 303", lambda row: row["stems"][0].update(activity=b"12345")),
    "activity beyond the end": ("activity", "beyond", lambda row: row["stems"][0].update(activity=b"\xff" * 38)),
    "activity of nothing": ("activity", "without", lambda row: row["stems"][1].update(frames=None)),
    "no fingerprint": ("fingerprint", "484800 frames", lambda row: row["stems"][0].update(fingerprint=None)),
    "family": ("instrument", "'drums', not 'bass'", lambda row: row["stems"][0].update(family="bass")),
    "instrument": ("instrument", "'unmapped'", lambda row: row["stems"][0].update(instrument="The Drums")),
    "problem code": (
        "problem",
        "'broken'",
        lambda row: row.update(problems=[{"code": "broken", "stem_id": None, "detail": ""}]),
    ),
    "problem of another stem": (
        "problem",
        "'S99'",
        lambda row: row.update(problems=[{"code": "silent", "stem_id": "S99", "detail": ""}]),
    ),
    "absolute path": ("path", "'/etc/passwd'", lambda row: row["stems"][0].update(path="/etc/passwd")),
    "path that climbs": ("path", "'a/../../b'", lambda row: row["stems"][0].update(path="a/../../b")),
    "path of the mixture": ("path", "'../mix.wav'", lambda row: row.update(mixture="../mix.wav")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_a_row_is_found(damage: str, tmp_path: Path) -> None:
    code, words, break_it = DAMAGE[damage]
    (row,) = rows(SONG)
    assert found(tmp_path / "sound.parquet", [row]) == []
    break_it(row)
    findings = found(tmp_path / "songs.parquet", [row])
    assert [(finding.code, finding.song_id) for finding in findings] == [(code, row["song_id"])]
    assert words in findings[0].detail


def test_a_list_with_a_null_in_it(tmp_path: Path) -> None:
    (row,) = rows(SONG)
    row["stems"].append(None)
    assert found(tmp_path / "songs.parquet", [row]) == [Finding(code="value_missing", song_id="c/1", detail="stems[2]")]


def test_rows_out_of_order_and_rows_of_one_id(tmp_path: Path) -> None:
    songs = [replace(SONG, song_id=f"c/{name}") for name in "2133"]
    findings = found(tmp_path / "songs.parquet", rows(*songs))
    assert [(finding.code, finding.song_id) for finding in findings] == [("order", "c/1"), ("song_id", "c/3")]


def test_problems_that_say_so_are_believed(tmp_path: Path) -> None:
    song = replace(SONG, problems=(Problem(code="outside_root", stem_id="drums"),))
    (row,) = rows(song)
    row["stems"][0]["path"] = "../x.wav"
    assert found(tmp_path / "songs.parquet", [row]) == []


def test_the_version_and_the_columns(tmp_path: Path) -> None:
    path = tmp_path / "songs.parquet"
    table = song_rows([SONG])
    pq.write_table(table.replace_schema_metadata({}), path)
    assert [(f.code, f.song_id) for f in lint_songs(path)] == [("version", None)]
    pq.write_table(table.replace_schema_metadata({"mgeldm.songs.version": "1"}), path)
    assert [f.detail for f in lint_songs(path)] == ["version 1, this program reads 2"]
    other = table.drop_columns(["license"]).append_column("mood", pa.array(["sad"]))
    other = other.set_column(6, "duration_s", pa.array(["30 s"]))
    pq.write_table(other.replace_schema_metadata(META), path)
    assert [(f.code, f.detail) for f in lint_songs(path)] == [
        ("schema", "column duration_s is string, not double"),
        ("schema", "column duration_s may be null"),
        ("schema", "column license is missing (string)"),
        ("schema", "column mood is not known"),
    ]
    moved = table.select([*reversed(table.column_names)])
    pq.write_table(moved.replace_schema_metadata(META), path)
    assert [f.detail for f in lint_songs(path)] == ["columns or their fields stand in another order"]
    stems = SONGS_SCHEMA.field("stems").type.value_type
    fewer = pa.struct([field for field in stems if field.name != "lufs"])
    position = SONGS_SCHEMA.get_field_index("stems")
    schema = SONGS_SCHEMA.set(position, pa.field("stems", pa.list_(fewer), nullable=False))
    assert [f.detail for f in found(path, rows(SONG), schema)] == ["column stems.lufs is missing (double)"]


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such file"):
        list(lint_songs(tmp_path / "none.parquet"))
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(ManifestError, match="not a readable Parquet file"):
        list(lint_songs(tmp_path / "text.parquet"))


def test_files_are_looked_for_when_asked(tmp_path: Path) -> None:
    root, path = tmp_path / "root", tmp_path / "songs.parquet"
    root.mkdir()
    for name in ("drums.wav", "bass.wav", "mix.wav", "mixture.wav"):
        (root / name).write_bytes(b"1234")
    stems = tuple(replace(stem, size=4) for stem in SONG.stems)
    song = replace(SONG, root=str(root), stems=stems)

    def codes(song: Song) -> list[tuple[str, str]]:
        write_songs(path, [song])
        assert list(lint_songs(path)) == [], "only with audio"
        return [(f.code, f.detail) for f in lint_songs(path, audio=True)]

    assert codes(song) == []
    (root / "bass.wav").write_bytes(b"12345")
    assert codes(song) == [("file_size", f"{root}/bass.wav: 5 bytes, 4 when it was measured")]
    (root / "bass.wav").unlink()
    assert codes(song) == [("file_missing", f"{root}/bass.wav")]
    assert codes(replace(song, problems=(Problem(code="missing", stem_id="bass"),))) == []
    (tmp_path / "far.wav").write_bytes(b"1234")
    (root / "bass.wav").symlink_to(tmp_path / "far.wav")
    assert codes(song) == [("path", "'bass.wav'")]
    (root / "bass.wav").unlink()
    (root / "bass.wav").mkdir()
    assert codes(song) == [("file_missing", f"{root}/bass.wav")]
    ((code, detail),) = codes(replace(song, root="nosuch://bucket/corpus"))
    assert code == "not_checked"
    assert "nosuch" in detail


def test_files_of_a_remote_root_are_looked_for_too(tmp_path: Path) -> None:
    path, url = tmp_path / "songs.parquet", "memory://lint/corpus"
    stems = tuple(replace(stem, size=4) for stem in SONG.stems)
    write_songs(path, [replace(SONG, root=url, stems=stems)])
    system = fsspec.filesystem("memory")
    for name in ("drums.wav", "bass.wav", "mix.wav", "mixture.wav"):
        system.pipe_file(f"/lint/corpus/{name}", b"1234")
    assert list(lint_songs(path, audio=True)) == []
    system.pipe_file("/lint/corpus/bass.wav", b"12345")
    system.rm("/lint/corpus/drums.wav")
    assert {(found.code, found.detail) for found in lint_songs(path, audio=True)} == {
        ("file_missing", f"{url}/drums.wav"),
        ("file_size", f"{url}/bass.wav: 5 bytes, 4 when it was measured"),
    }


def test_every_code_says_what_it_means_and_is_tested() -> None:
    assert all(text and text[0].islower() for text in CODES.values())
    elsewhere = {"stale", "version", "schema", "value_missing", "order", "file_missing", "not_checked"}
    assert {code for code, _, _ in DAMAGE.values()} | elsewhere == set(CODES)
