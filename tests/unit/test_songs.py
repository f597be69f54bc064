from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.errors import ManifestError
from manifests.problems import PROBLEMS, Effect, effect, is_failure
from manifests.songs import (
    SONGS_SCHEMA,
    SUBSETS,
    Problem,
    Song,
    Stem,
    activity_frames,
    count_problems,
    inside,
    read_songs,
    songs_metadata,
    write_songs,
    write_table,
)

DRUMS = Stem(
    stem_id="S00",
    path="train/Track00001/stems/S00.flac",
    label="Drums",
    instrument="drums",
    family="drums",
    sample_rate=44_100,
    channels=1,
    frames=44_100,
    lufs=-13.25,
    peak_dbfs=-1.5,
    clipped=0.25,
    dc=-0.001,
    bandwidth_hz=15_900.0,
    activity=np.packbits([1, 0, 1, 1, 0, 0, 0, 0, 1, 1]).tobytes(),
    fingerprint="00ff",
    size=1234,
    mtime_ns=1_700_000_000_123_456_789,
)
VOX = replace(DRUMS, stem_id="vox «2»\n", stream=3, channel=1, lufs=None, peak_dbfs=None, offset_frames=17)
UNREAD = Stem(stem_id="S02", path="x.wav", label="Ghost", instrument="ghost", family="unmapped")
SONG = Song(
    song_id="slakh2100/train/Track00001",
    corpus="slakh2100",
    root="/data/slakh",
    subset="train",
    sample_rate=44_100,
    frames=44_100,
    duration_s=1.0,
    mixture="train/Track00001/mix.flac",
    mixture_audio=replace(DRUMS, stem_id="mixture", path="train/Track00001/mix.flac"),
    sum_gain_db=0.5,
    sum_lag_s=-0.01,
    sum_residual_db=-87.5,
    sketch=b"\x00\x80",
    stems=(DRUMS, VOX, UNREAD),
    license="CC-BY-4.0",
    problems=(Problem(code="missing", stem_id="S02", detail="gone"), Problem(code="unequal_length")),
    extra={"programs": {"S00": "Drums"}, "none": None, "list": [1, 2.5, "ü"]},
)
BARE = Song(song_id="a/b", corpus="a", root="/", subset="test")


def test_a_manifest_comes_back_as_it_was_written(tmp_path: Path) -> None:
    write_songs(tmp_path / "songs.parquet", [SONG, BARE], {"config": "abc"})
    assert read_songs(tmp_path / "songs.parquet") == [BARE, SONG]
    assert songs_metadata(tmp_path / "songs.parquet") == {"songs.version": "2", "config": "abc"}


def test_rows_are_sorted_so_that_order_does_not_change_the_bytes(tmp_path: Path) -> None:
    write_songs(tmp_path / "a.parquet", [SONG, BARE])
    write_songs(tmp_path / "b.parquet", [BARE, SONG])
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_a_manifest_can_be_empty(tmp_path: Path) -> None:
    write_songs(tmp_path / "a.parquet", [])
    assert read_songs(tmp_path / "a.parquet") == []


def test_folders_named_like_partitions_add_no_columns(tmp_path: Path) -> None:
    write_songs(tmp_path / "corpus=x" / "a.parquet", [BARE])
    assert read_songs(tmp_path / "corpus=x" / "a.parquet") == [BARE]


def test_two_songs_with_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"a/b: two songs with this id, below / and /other"):
        write_songs(tmp_path / "a.parquet", [BARE, SONG, replace(BARE, root="/other")])
    assert not (tmp_path / "a.parquet").exists()


def test_files_that_are_no_manifest_are_refused_in_one_line(tmp_path: Path) -> None:
    text, folder, foreign = tmp_path / "text.parquet", tmp_path / "folder", tmp_path / "foreign.parquet"
    text.write_text("hello")
    folder.mkdir()
    pq.write_table(pa.table({"a": [1]}, metadata={b"\xff": b"\xfe"}), foreign)
    other_kind, old, columns = tmp_path / "splits.parquet", tmp_path / "old.parquet", tmp_path / "columns.parquet"
    write_table(other_kind, SONGS_SCHEMA.empty_table(), "splits", "1", {})
    write_table(old, SONGS_SCHEMA.empty_table(), "songs", "0", {})
    write_table(columns, SONGS_SCHEMA.remove(3).empty_table(), "songs", "2", {})
    json = tmp_path / "json.parquet"
    write_songs(json, [BARE])
    table = pq.read_table(json)
    broken = table.set_column(table.schema.get_field_index("extra"), SONGS_SCHEMA.field("extra"), pa.array(["{"]))
    pq.write_table(broken, json)
    for path, message in {
        tmp_path / "none.parquet": "no such file",
        text: "not a readable Parquet file",
        folder: "not a readable Parquet file",
        foreign: "not a songs table",
        other_kind: "not a songs table",
        old: "songs version 0, this program reads 2",
        columns: "columns differ",
        json: "not JSON",
    }.items():
        with pytest.raises(ManifestError, match=message) as caught:
            read_songs(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_activity_is_one_bit_for_each_100_ms() -> None:
    assert DRUMS.active().tolist() == [True, False, True, True, False, False, False, False, True, True]
    assert replace(DRUMS, frames=44_101).active().tolist() == [*DRUMS.active().tolist(), False]
    assert UNREAD.active().shape == (0,)


@pytest.mark.parametrize(
    ("frames", "rate", "count"),
    [(0, 44_100, 0), (1, 44_100, 1), (4410, 44_100, 1), (4411, 44_100, 2), (441_000, 44_100, 100), (1103, 11_025, 2)],
)
def test_activity_frames_cover_every_sample(frames: int, rate: int, count: int) -> None:
    assert activity_frames(frames, rate) == count


def test_usable_stems_follow_from_the_effects_of_problems() -> None:
    assert [stem.stem_id for stem in SONG.usable_stems] == ["S00", VOX.stem_id]
    assert replace(SONG, problems=()).usable_stems == SONG.stems
    assert replace(SONG, problems=(Problem(code="metadata"),)).usable_stems == ()
    # A note of the whole song, or one of a stem, takes nothing away.
    assert replace(SONG, problems=(Problem(code="unmapped_label", stem_id="S00"),)).usable_stems == SONG.stems


def test_every_problem_has_an_effect_and_says_what_it_means() -> None:
    assert {code: effect(code) for code in PROBLEMS} == {code: entry[0] for code, entry in PROBLEMS.items()}
    assert all(text and text[0].islower() for _, text in PROBLEMS.values())
    assert {effect(code) for code in PROBLEMS} == set(Effect)
    with pytest.raises(ManifestError, match="unknown problem code 'nonsense'"):
        Problem(code="nonsense")


def test_notes_and_properties_of_a_recording_are_no_failures() -> None:
    assert {code for code in PROBLEMS if not is_failure(code)} == {
        "bleed",
        "clipped",
        "dc_offset",
        "duplicate",
        "excluded",
        "known_defect",
        "known_flaw",
        "leak",
        "misaligned",
        "mixture_only",
        "mixture_unreadable",
        "narrow_band",
        "near_duplicate",
        "no_audio",
        "repeated_stem",
        "silent",
        "single_stem",
        "sum_differs",
        "unequal_length",
        "unlabelled",
        "unmapped_label",
    }


def test_problems_are_counted_the_most_frequent_first() -> None:
    more = replace(BARE, problems=(Problem(code="unequal_length"), Problem(code="silent", stem_id="x")))
    assert list(count_problems([SONG, more]).items()) == [("unequal_length", 2), ("missing", 1), ("silent", 1)]


def test_paths_stay_inside_the_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "song").mkdir(parents=True)
    outside.mkdir()
    (root / "link").symlink_to(outside)
    (root / "within").symlink_to(root / "song")
    (root / "loop").symlink_to(root / "loop")
    for relative in ("song", "song/none.wav", "within/a.wav", "loop", "a..b/c", "x" * 300):
        assert inside(root, relative) == root / relative
    for relative in ("/etc/passwd", "../outside", "song/../../outside", "link", "link/a.wav", "a\0b"):
        assert inside(root, relative) is None
    alias = tmp_path / "alias"
    alias.symlink_to(root)
    assert inside(alias, "song") == alias / "song"


def test_subsets_are_three() -> None:
    assert SUBSETS == ("train", "validation", "test")
