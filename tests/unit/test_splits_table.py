import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from manifests.errors import ManifestError
from manifests.songs import write_songs
from manifests.splits import Plan, Split, StemGain, Window, read_splits, texts, window_id, write_splits

SPLIT = Split(source=("S00",), submix=("S01", "S02"), source_text="drums", submix_text="bass and piano")
WINDOW = Window(window_id="b", song_id="c/1", start_s=1.5, duration_s=20.0, splits=(SPLIT,))
OTHER = Window(
    window_id="a",
    song_id="c/2",
    start_s=0.0,
    duration_s=20.0,
    splits=(replace(SPLIT, source=("S02",), submix=("S00",), source_text="piano", submix_text="drums"), SPLIT),
    gains=(StemGain(stem_id="S00", gain_db=-1.25), StemGain(stem_id="S02", gain_db=0.0)),
)
PLAN = Plan(windows=(WINDOW, OTHER), config={"seed": 0, "window_s": 20.0}, passed_over={"silent source": 3})


def test_a_plan_comes_back_as_it_was_written_with_its_rows_sorted(tmp_path: Path) -> None:
    write_splits(tmp_path / "splits.parquet", PLAN)
    assert read_splits(tmp_path / "splits.parquet") == replace(PLAN, windows=(OTHER, WINDOW))


def test_the_order_of_windows_does_not_change_the_bytes(tmp_path: Path) -> None:
    write_splits(tmp_path / "a.parquet", PLAN)
    write_splits(tmp_path / "b.parquet", replace(PLAN, windows=PLAN.windows[::-1]))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_two_windows_with_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"^b: two windows with this id"):
        write_splits(tmp_path / "a.parquet", replace(PLAN, windows=(WINDOW, replace(WINDOW, song_id="c/9"))))


def test_a_split_has_stems_on_both_sides_and_none_on_both() -> None:
    for source, submix in (((), ("a",)), (("a",), ())):
        with pytest.raises(ManifestError, match="needs stems on both sides"):
            Split(source=source, submix=submix, source_text="x", submix_text="y")
    with pytest.raises(ManifestError, match=re.escape("['b'] stand in source and in submix")):
        Split(source=("a", "b"), submix=("b", "c"), source_text="x", submix_text="y")


def test_a_manifest_is_no_plan(tmp_path: Path) -> None:
    write_songs(tmp_path / "songs.parquet", [])
    with pytest.raises(ManifestError, match="not a splits table"):
        read_splits(tmp_path / "songs.parquet")


def test_window_ids_are_stable_readable_and_fit_for_shard_keys() -> None:
    assert window_id("slakh2100/train/Track00001", 12.3456) == "slakh2100_train_Track00001-6d7ffbb2-00012346"
    songs = ["a/b c", "a/b.c", "a/b_c", "a/ギター", "a/" + "x" * 300, "b/" + "x" * 300]
    ids = [window_id(song, start) for song in songs for start in (0.0, 0.001, 3600.0)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key) for key in ids)


def test_texts_are_all_that_splits_can_say() -> None:
    assert texts(PLAN.windows) == ["bass and piano", "drums", "piano"]
    assert texts([]) == []


def test_a_window_as_plain_data_is_what_dataclasses_make_of_it() -> None:
    for window in (WINDOW, OTHER, replace(WINDOW, splits=())):
        assert window.plain() == asdict(window)
