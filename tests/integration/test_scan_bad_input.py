import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from manifests.corpora import get_corpus
from manifests.errors import CorpusError, ManifestError, MGELDMError
from manifests.songs import Problem
from pipelines import scan as scan_module
from pipelines.scan import scan
from tests.support.corpora import write_layout, write_slakh
from tests.support.scans import LOCAL, RATE, codes, scanned
from tests.support.sounds import sound, write_sound


def test_songs_that_cannot_be_used_stay_with_the_reason(root: Path, layout: Path) -> None:
    (root / "bare").mkdir()
    write_sound(root / "alone" / "drums.wav", sound("alone", seconds=1), RATE)
    for index, label in enumerate(("drums", "bass", "piano")):
        write_sound(root / "uneven" / f"{label}.wav", sound("uneven", label, seconds=1 + 0.06 * index), RATE)
    songs = scanned(layout, root)
    assert codes(songs["bare"]) == [("no_stems", None)]
    assert codes(songs["alone"]) == [("single_stem", None)]
    assert songs["uneven"].problems == (Problem(code="unequal_length", detail="1.00 to 1.12 s"),)
    assert (songs["uneven"].frames, songs["uneven"].duration_s) == (17_920, 1.12)
    assert [len(songs[name].usable_stems) for name in ("bare", "alone", "uneven", "good")] == [0, 0, 3, 2]


def test_stems_that_differ_by_less_than_a_tenth_of_a_second_are_no_problem(root: Path, layout: Path) -> None:
    write_sound(root / "good" / "piano.wav", sound("piano", seconds=1.09), RATE)
    assert scanned(layout, root)["good"].problems == ()


def test_a_stem_of_one_sample_is_measured(root: Path, layout: Path) -> None:
    write_sound(root / "good" / "piano.wav", np.full((1, 1), 0.5, np.float32), RATE)
    (one,) = (stem for stem in scanned(layout, root)["good"].stems if stem.label == "piano")
    assert (one.frames, one.lufs, one.active().tolist()) == (1, None, [True])


def test_songs_that_a_corpus_leaves_out_are_kept_as_such(tmp_path: Path) -> None:
    root = write_slakh(tmp_path / "slakh", {"omitted": 1, "train": 1}, seconds=0.5)
    songs = scanned("slakh2100", root)
    assert codes(songs["omitted/Track00001"]) == [("excluded", None)]
    assert [len(songs[song].usable_stems) for song in sorted(songs)] == [0, 4]


def test_formats_within_one_song_may_differ(root: Path, layout: Path) -> None:
    kinds = [
        ("drums", 8_000, 1, "PCM_U8"),
        ("bass", 192_000, 2, "PCM_24"),
        ("piano", 44_100, 6, "DOUBLE"),
        ("guitar", 11_025, 1, "FLOAT"),
    ]
    for label, rate, channels, subtype in kinds:
        wave = sound(label, rate=rate, channels=channels, seconds=1)
        write_sound(root / "mixed" / f"{label}.wav", wave, rate, subtype)
    song = scanned(layout, root)["mixed"]
    assert song.problems == ()
    assert (song.sample_rate, song.frames) == (192_000, 192_000)
    assert {(stem.label, stem.sample_rate, stem.channels, stem.frames) for stem in song.stems} == {
        (label, rate, channels, rate) for label, rate, channels, _ in kinds
    }
    assert all(stem.lufs is not None and len(stem.active()) == 10 for stem in song.stems)


def test_any_name_is_kept_or_recorded(root: Path, layout: Path) -> None:
    odd, foreign = "a 'b' \"c\"\n d, e {f} 日本", os.fsdecode(b"caf\xe9")
    for song in (odd, foreign):
        shutil.copytree(root / "good", root / song)
    (root / "good" / os.fsdecode(b"left\xe9.txt")).touch()
    songs = scanned(layout, root)
    assert set(songs) == {"good", odd, "caf\\udce9"}
    assert songs[odd].problems == (Problem(code="duplicate", detail="folders/good (same stems)"),)
    assert songs[odd].stems[0].path == f"{odd}/bass.wav"
    assert codes(songs["caf\\udce9"]) == [
        ("bad_name", "bass.wav"),
        ("bad_name", "drums.wav"),
        ("single_stem", None),
    ]
    assert songs["good"].extra == {"leftover": ["left?.txt"]}
    again = scan([(str(layout), root)], root.parent / "songs.parquet", runner=LOCAL)
    assert (again.measured, again.reused) == (0, 3)


def test_songs_below_linked_folders_are_measured_when_they_stay_inside(root: Path, tmp_path: Path) -> None:
    (root / "disk").mkdir()
    (root / "good").rename(root / "disk" / "good")
    (root / "linked").symlink_to(root / "disk")
    shutil.copytree(root / "disk", tmp_path / "elsewhere")
    (root / "far").symlink_to(tmp_path / "elsewhere")
    layout = write_layout(tmp_path / "l.yaml", song="{disk}/{song}")
    songs = scanned(layout, root)
    assert codes(songs["linked/good"]) == [("duplicate", None)]
    # What the folder outside holds is not even listed.
    assert songs.keys() == {"disk/good", "linked/good", "far"}
    assert codes(songs["far"]) == [("outside_root", None), ("no_stems", None)]


def test_wrong_use_is_refused_in_one_line_before_anything_is_measured(
    root: Path, layout: Path, tmp_path: Path, readers: list[str]
) -> None:
    out = tmp_path / "songs.parquet"
    copy = shutil.copytree(root, tmp_path / "copy")
    text = tmp_path / "text.parquet"
    text.write_text("no table")
    for sources, path, kind, words in (
        ([("slakh2100", root)], out, CorpusError, "no Slakh2100 here"),
        ([(str(layout), root), (str(layout), copy)], out, ManifestError, "two songs with this id"),
        ([(str(layout), root)], text, ManifestError, "not a readable Parquet file"),
    ):
        with pytest.raises(kind, match=words) as caught:
            scan(sources, path, runner=LOCAL)
        assert isinstance(caught.value, MGELDMError)
        assert "\n" not in str(caught.value)
    assert readers == []
    assert not out.exists()


def test_a_corpus_that_breaks_the_contract_is_refused(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = get_corpus(str(write_layout(tmp_path / "l.yaml")))
    listing = next(iter(corpus.songs(root)))
    for broken, words in (
        (replace(listing, subset="dev"), "'good' is in subset 'dev'"),
        (replace(listing, stems=(listing.stems[0], listing.stems[0])), "two stems with one id"),
    ):
        theirs = type("Theirs", (), {"name": "theirs", "songs": lambda self, root, broken=broken: iter([broken])})
        monkeypatch.setattr(scan_module, "get_corpus", lambda name, theirs=theirs: theirs())
        with pytest.raises(CorpusError, match=words):
            scan([("theirs", root)], tmp_path / "songs.parquet", runner=LOCAL)
