import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.corpora import get_corpus
from manifests.errors import CorpusError, ManifestError, MGELDMError
from manifests.songs import Problem, Song, read_songs
from pipelines import scan as scan_module
from pipelines.measure_song import SongUnit, measure_song
from pipelines.runner import RunnerConfig
from pipelines.scan import scan
from tests.support.corpora import write_layout, write_slakh, write_slakh_metadata
from tests.support.scans import LOCAL, RATE, codes, scanned
from tests.support.sounds import sound, write_sound


def write_bad_files(song: Path) -> dict[str, str]:
    """A song with one good stem and many bad ones; the code that each of these must get."""
    wave = sound("bad", seconds=2)
    for label in ("good", "flac", "header", "nan", "inf"):
        write_sound(song / f"{label}.wav", wave, RATE, "FLOAT")
    for label, size in (("cut", 0.5), ("header", 0.01)):
        path = write_sound(song / f"{label}.flac", sound("cut", seconds=60), RATE)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * size) if size == 0.5 else 30])
    for label, value in (("nan", np.nan), ("inf", np.inf)):
        bad = wave.copy()
        bad[0, 100] = value
        write_sound(song / f"{label}.wav", bad, RATE, "FLOAT")
    write_sound(song / "silent.wav", np.zeros_like(wave), RATE)
    write_sound(song / "nothing.wav", wave[:, :0], RATE)
    write_sound(song / "one.wav", wave[:, 4000:4001] * 0 + 0.5, RATE)
    write_sound(song / "slow.wav", wave, 1_000)
    (song / "zero.wav").touch()
    (song / "text.wav").write_text("not audio")
    (song / "text.m4a").write_text("not audio")
    (song / "broken.wav").symlink_to(song / "nowhere.wav")
    (song / "circle.wav").symlink_to(song / "circle.wav")
    outside = write_sound(song.parents[1] / "outside.wav", wave, RATE)
    (song / "out.wav").symlink_to(outside)
    os.mkfifo(song / "pipe.wav")
    Path(os.fsdecode(os.fsencode(song) + b"/caf\xe9.wav")).write_bytes((song / "good.wav").read_bytes())
    return {
        "cut.flac": "truncated",
        "header.flac": "unreadable",
        "nan.wav": "not_finite",
        "inf.wav": "not_finite",
        "silent.wav": "silent",
        "nothing.wav": "empty",
        "slow.wav": "unreadable",
        "zero.wav": "empty",
        "text.wav": "unreadable",
        "text.m4a": "unreadable",
        "broken.wav": "missing",
        "circle.wav": "unreadable",
        "out.wav": "outside_root",
        "pipe.wav": "unreadable",
        "caf\\udce9.wav": "bad_name",
    }


def test_every_bad_file_is_recorded_with_its_code(root: Path, layout: Path) -> None:
    expected = write_bad_files(root / "bad")
    songs = scanned(layout, root)
    bad = songs["bad"]
    ignored = {"unmapped_label", "unequal_length", "repeated_stem", "dc_offset"}
    found = {problem.stem_id: problem.code for problem in bad.problems if problem.code not in ignored}
    assert found == expected
    assert {stem.stem_id for stem in bad.usable_stems} == {
        "good.wav",
        "flac.wav",
        "header.wav",
        "one.wav",
    }
    assert len(bad.stems) == len(expected) + 4
    assert all(problem.detail and "\n" not in problem.detail for problem in bad.problems)
    assert {problem.stem_id for problem in songs["good"].problems} == set()
    one = next(stem for stem in bad.stems if stem.stem_id == "one.wav")
    assert (one.frames, one.lufs, one.active().tolist()) == (1, None, [True])


@pytest.mark.ray
def test_bad_files_are_the_same_on_ray(root: Path, layout: Path, tmp_path: Path, on_ray: RunnerConfig) -> None:
    write_bad_files(root / "bad")
    local = scanned(layout, root, tmp_path / "local.parquet")
    scan([(str(layout), root)], tmp_path / "ray.parquet", runner=on_ray)
    assert {song.song_id.split("/", 1)[1]: song for song in read_songs(tmp_path / "ray.parquet")} == local
    assert (tmp_path / "ray.parquet").read_bytes() == (tmp_path / "local.parquet").read_bytes()


def test_songs_that_cannot_be_used_stay_with_the_reason(root: Path, layout: Path) -> None:
    (root / "bare").mkdir()
    write_sound(root / "alone" / "drums.wav", sound("alone", seconds=1), RATE)
    for index, label in enumerate(("drums", "bass", "piano")):
        write_sound(root / "uneven" / f"{label}.wav", sound(label, seconds=1 + 0.06 * index), RATE)
    songs = scanned(layout, root)
    assert codes(songs["bare"]) == [("no_stems", None)]
    assert codes(songs["alone"]) == [("single_stem", None)]
    assert songs["uneven"].problems == (Problem(code="unequal_length", detail="1.00 to 1.12 s"),)
    assert (songs["uneven"].frames, songs["uneven"].duration_s) == (17_920, 1.12)
    assert [len(songs[name].usable_stems) for name in ("bare", "alone", "uneven", "good")] == [0, 0, 3, 2]


def test_stems_that_differ_by_less_than_a_tenth_of_a_second_are_no_problem(root: Path, layout: Path) -> None:
    write_sound(root / "good" / "piano.wav", sound("piano", seconds=1.09), RATE)
    assert scanned(layout, root)["good"].problems == ()


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
    assert songs[odd].problems == ()
    assert songs[odd].stems[0].path == f"{odd}/bass.wav"
    assert codes(songs["caf\\udce9"]) == [
        ("bad_name", "bass.wav"),
        ("bad_name", "drums.wav"),
        ("single_stem", None),
    ]
    assert songs["good"].extra == {"leftover": ["left?.txt"]}
    again = scan([(str(layout), root)], root.parent / "songs.parquet", runner=LOCAL)
    assert (again.measured, again.reused) == (0, 3)


def test_a_root_that_no_table_can_hold_is_refused(root: Path, layout: Path) -> None:
    renamed = root.rename(root.with_name(os.fsdecode(b"caf\xe9")))
    with pytest.raises(CorpusError, match=r"caf\\udce9: the path is not UTF-8"):
        scanned(layout, renamed, root.parent / "songs.parquet")


def test_a_file_that_vanishes_is_missing_and_measured_once_it_is_back(
    root: Path, layout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drums = root / "good" / "drums.wav"
    data = drums.read_bytes()

    def vanish(unit: SongUnit, *rest: Any) -> Song:
        drums.unlink()
        return measure_song(unit, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(scan_module, "measure_song", vanish)
        assert codes(scanned(layout, root)["good"]) == [("missing", "drums.wav"), ("single_stem", None)]
    drums.write_bytes(data)
    assert scanned(layout, root)["good"].problems == ()


def test_a_file_that_was_denied_is_read_once_it_is_allowed(layout: Path) -> None:
    # A folder that others may enter: those of pytest are closed to them.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        root = Path(folder, "root")
        for label in ("drums", "bass", "piano"):
            write_sound(root / "good" / f"{label}.wav", sound(label, seconds=0.5), RATE)
        (root / "good" / "drums.wav").chmod(0)
        shutil.copy(layout, folder)
        out = Path(folder, "out", "songs.parquet")
        out.parent.mkdir()
        out.parent.chmod(0o777)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65_534)
        try:
            song = scanned(Path(folder, layout.name), root, out)["good"]
        finally:
            os.seteuid(user)
        assert codes(song) == [("unreadable", "drums.wav")]
        (root / "good" / "drums.wav").chmod(0o644)
        assert scanned(Path(folder, layout.name), root, out)["good"].problems == ()


def test_a_mixture_that_cannot_be_used_is_left_out(tmp_path: Path) -> None:
    root = write_slakh(tmp_path / "slakh", {"train": 3}, seconds=1)
    (root / "train/Track00001/mix.flac").write_text("no audio")
    (root / "train/Track00002/mix.flac").rename(tmp_path / "mix.flac")
    (root / "train/Track00002/mix.flac").symlink_to(tmp_path / "mix.flac")
    (root / "train/Track00003/mix.flac").unlink()
    songs = scanned("slakh2100", root)
    assert {song_id: (codes(song), song.mixture) for song_id, song in songs.items()} == {
        "train/Track00001": ([("mixture_unreadable", None)], None),
        "train/Track00002": ([("mixture_unreadable", None)], None),
        "train/Track00003": ([], None),
    }
    assert all(len(song.usable_stems) == 4 for song in songs.values())


def test_metadata_problems_are_recorded_with_the_song(tmp_path: Path) -> None:
    root = write_slakh(tmp_path / "slakh", {"train": 4}, seconds=0.5)
    (root / "train/Track00001/metadata.yaml").write_text("stems: [S00]")
    (root / "train/Track00002/stems/S01.flac").unlink()
    write_slakh_metadata(root / "train/Track00003", ("Drums", "Bass", "Piano"))
    (root / "train/Track00004").rename(tmp_path / "Track00004")
    (root / "omitted").mkdir()
    (tmp_path / "Track00004").rename(root / "omitted/Track00004")
    songs = scanned("slakh2100", root)
    assert {song_id: (codes(song), len(song.usable_stems)) for song_id, song in songs.items()} == {
        "train/Track00001": ([("metadata", None)], 0),
        "train/Track00002": ([("no_audio", None)], 3),
        "train/Track00003": ([("unlabelled", "S03")], 4),
        "omitted/Track00004": ([("excluded", None)], 0),
    }
    assert all(len(song.stems) >= 3 for song in songs.values())


def test_songs_below_linked_folders_are_measured_when_they_stay_inside(root: Path, tmp_path: Path) -> None:
    (root / "disk").mkdir()
    (root / "good").rename(root / "disk" / "good")
    (root / "linked").symlink_to(root / "disk")
    shutil.copytree(root / "disk", tmp_path / "elsewhere")
    (root / "far").symlink_to(tmp_path / "elsewhere")
    layout = write_layout(tmp_path / "l.yaml", song="{disk}/{song}")
    songs = scanned(layout, root)
    assert songs["linked/good"].problems == ()
    assert [code for code, _ in codes(songs["far/good"])] == ["outside_root", "outside_root", "single_stem"]


def test_wrong_use_is_refused_in_one_line_before_anything_is_measured(
    root: Path, layout: Path, tmp_path: Path, readers: list[str]
) -> None:
    out = tmp_path / "songs.parquet"
    (tmp_path / "empty").mkdir()
    copy = shutil.copytree(root, tmp_path / "copy")
    text = tmp_path / "text.parquet"
    text.write_text("no table")
    for sources, path, kind, words in (
        ([("nonsense", root)], out, CorpusError, "no such corpus"),
        ([(str(layout), tmp_path / "none")], out, CorpusError, "no such folder"),
        ([(str(layout), tmp_path / "empty")], out, CorpusError, "no folder matches"),
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
