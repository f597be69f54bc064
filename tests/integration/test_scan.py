import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manifests.errors import ConfigError
from manifests.queries import filter_songs
from manifests.songs import Problem, Song, read_songs
from mgeldm.measure import ActivityConfig, measure
from pipelines import scan as scan_module
from pipelines.measure_song import SongUnit, measure_song
from pipelines.runner import RunnerConfig, WorkerDied, run_units
from pipelines.scan import ScanConfig, ScanSummary, preview, scan
from tests.support.corpora import write_folders, write_layout, write_slakh
from tests.support.scans import LOCAL, RATE, codes, scanned
from tests.support.sounds import sound, write_sound


def test_both_kinds_of_corpora_in_one_manifest(slakh: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "songs.parquet"
    summary = scan([("slakh2100", slakh), (str(folders[0]), folders[1])], out, runner=LOCAL)
    songs = {song.song_id: song for song in read_songs(out)}
    assert summary.hours == pytest.approx(18 / 3600, rel=1e-2)
    assert replace(summary, seconds=0.0, hours=0.0) == ScanSummary(
        songs=6,
        stems=22,
        hours=0.0,
        measured=6,
        reused=0,
        problems={"narrow_band": 2, "unequal_length": 2},
        seconds=0.0,
    )
    assert {song_id: song.subset for song_id, song in songs.items()} == {
        "folders/song 1": "train",
        "folders/song 2": "test",
        "slakh2100/test/Track00004": "test",
        "slakh2100/train/Track00001": "train",
        "slakh2100/train/Track00002": "train",
        "slakh2100/validation/Track00003": "validation",
    }
    song = songs["slakh2100/train/Track00001"]
    assert (song.sample_rate, song.frames, song.duration_s, song.problems) == (RATE, 48_000, 3.0, ())
    assert (song.mixture, song.license) == ("train/Track00001/mix.flac", "CC-BY-4.0")
    assert [stem.instrument for stem in song.stems] == ["drums", "bass", "piano", "guitar"]
    other = songs["folders/song 1"]
    assert [(stem.instrument, stem.family, stem.sample_rate, stem.channels) for stem in other.stems] == [
        ("backing vocals", "vocals", 44_100, 2),
        ("synth bass", "bass", 48_000, 2),
        ("drums", "drums", 44_100, 1),
    ]
    assert (other.sample_rate, other.mixture, other.license) == (48_000, None, "CC0-1.0")
    stem = song.stems[1]
    found = measure(Path(song.root, stem.path), None, ActivityConfig())
    assert (stem.peak_dbfs, stem.fingerprint) == (found.peak_dbfs, found.fingerprint)
    assert stem.lufs == pytest.approx(found.lufs, abs=1e-6)
    assert stem.active().tolist() == found.activity.tolist()
    assert stem.size == os.path.getsize(Path(song.root, stem.path))


def test_two_scans_give_the_same_bytes(slakh: Path, folders: tuple[Path, Path], tmp_path: Path) -> None:
    sources = [("slakh2100", slakh), (str(folders[0]), folders[1])]
    scan(sources, tmp_path / "a.parquet", runner=LOCAL)
    scan(sources[::-1], tmp_path / "b.parquet", runner=LOCAL)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


@pytest.mark.ray
def test_ray_gives_the_same_bytes_as_this_process(
    slakh: Path, folders: tuple[Path, Path], tmp_path: Path, on_ray: RunnerConfig
) -> None:
    sources = [("slakh2100", slakh), (str(folders[0]), folders[1])]
    scan(sources, tmp_path / "local.parquet", runner=LOCAL)
    scan(sources, tmp_path / "ray.parquet", runner=on_ray)
    assert (tmp_path / "local.parquet").read_bytes() == (tmp_path / "ray.parquet").read_bytes()


def test_a_song_that_no_worker_lives_through_is_a_row_and_is_tried_again(
    slakh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(units: Sequence[Any], *rest: Any) -> Iterator[tuple[int, Any]]:
        yield 0, WorkerDied("the worker died")
        for index, result in run_units(units[1:], *rest):
            yield index + 1, result

    out = tmp_path / "songs.parquet"
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.scan.run_units", dying)
        summary = scan([("slakh2100", slakh)], out, runner=LOCAL)
    (lost,) = [song for song in read_songs(out) if not song.usable_stems]
    assert [(problem.code, problem.detail) for problem in lost.problems] == [("worker_died", "the worker died")]
    assert (summary.songs, summary.problems["worker_died"]) == (4, 1)
    scan([("slakh2100", slakh)], out, runner=LOCAL)
    scan([("slakh2100", slakh)], tmp_path / "whole.parquet", runner=LOCAL)
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_scan_again_reads_no_audio(slakh: Path, tmp_path: Path, readers: list[str]) -> None:
    out = tmp_path / "songs.parquet"
    scan([("slakh2100", slakh)], out, runner=LOCAL)
    before = out.read_bytes()
    assert len(readers) == 20
    readers.clear()
    summary = scan([("slakh2100", slakh)], out, runner=LOCAL)
    assert (summary.measured, summary.reused, readers) == (0, 4, [])
    assert out.read_bytes() == before


def test_what_changed_is_measured_again_and_nothing_else(tmp_path: Path, readers: list[str]) -> None:
    layout = write_folders(tmp_path / "root", 3, seconds=1)
    root, out = tmp_path / "root", tmp_path / "songs.parquet"
    first = scanned(layout, root)

    def again() -> dict[str, Song]:
        readers.clear()
        return scanned(layout, root, out)

    # Same size, other samples, other time.
    before = first["song 2"].stems[1]
    path = write_sound(root / before.path, sound("else", seconds=0.6, rate=48_000, channels=2), 48_000)
    assert path.stat().st_size == before.size
    songs = again()
    assert {name.split("/")[0] for name in readers} == {"song 2"}
    assert songs["song 2"].stems[1].fingerprint != before.fingerprint
    assert (songs["song 1"], songs["song 3"]) == (first["song 1"], first["song 3"])

    # Another file, one fewer, another label, another song.
    write_sound(root / "song 1" / "new.wav", sound("new", seconds=1), RATE)
    (root / "song 3" / "drums.flac").unlink()
    songs = again()
    assert {name.split("/")[0] for name in readers} == {"song 1", "song 3"}
    assert (len(songs["song 1"].stems), len(songs["song 3"].stems)) == (4, 2)
    write_layout(layout, labels={"BGVOX ECHO": "choir"})
    again()
    assert {name.split("/")[0] for name in readers} == {"song 1", "song 2", "song 3"}
    shutil.copytree(root / "song 1", root / "song 4")
    assert len(again()) == 4
    assert {name.split("/")[0] for name in readers} == {"song 4"}
    assert again() == scanned(layout, root, tmp_path / "fresh.parquet")


def test_metadata_that_is_mended_is_noticed(tmp_path: Path) -> None:
    root, out = write_slakh(tmp_path / "slakh", {"train": 1}, seconds=1), tmp_path / "songs.parquet"
    metadata = root / "train/Track00001/metadata.yaml"
    good = metadata.read_text()
    metadata.write_text("stems: [")
    assert codes(scanned("slakh2100", root, out)["train/Track00001"])[0] == ("metadata", None)
    metadata.write_text(good)
    assert scanned("slakh2100", root, out)["train/Track00001"].problems == ()
    metadata.unlink()
    assert codes(scanned("slakh2100", root, out)["train/Track00001"])[0] == ("metadata", None)


def test_a_problem_of_the_listing_that_is_mended_is_noticed(root: Path, tmp_path: Path) -> None:
    (root / "old").mkdir()
    (root / "good").rename(root / "old" / "good")
    layout = write_layout(tmp_path / "l.yaml", song="{subset}/{song}")
    assert codes(scanned(layout, root)["old/good"]) == [("unknown_subset", None)]
    write_layout(layout, song="{subset}/{song}", subsets={"old": "train"})
    assert scanned(layout, root)["old/good"].problems == ()


def test_other_thresholds_measure_everything_again(slakh: Path, tmp_path: Path, readers: list[str]) -> None:
    out = tmp_path / "songs.parquet"
    scan([("slakh2100", slakh)], out, runner=LOCAL)
    readers.clear()
    config = ScanConfig(activity=ActivityConfig(on_dbfs=-40.0))
    assert scan([("slakh2100", slakh)], out, config=config, runner=LOCAL).measured == 4
    assert len(readers) == 20


def test_a_preview_counts_without_reading_audio(root: Path, layout: Path, readers: list[str]) -> None:
    (root / "good" / "gone.wav").symlink_to(root / "nowhere.wav")
    sizes = [path.stat().st_size for path in (root / "good").glob("*s.wav")]
    assert preview([(str(layout), root)]) == {
        "songs": 1,
        "stems": 3,
        "bytes": sum(sizes),
        "problems": {"unmapped_label": 1},
    }
    assert readers == []


def test_songs_that_leave_their_corpus_leave_the_manifest_and_are_told(
    slakh: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = shutil.copytree(slakh, tmp_path / "slakh")
    scan([("slakh2100", root)], tmp_path / "songs.parquet", runner=LOCAL)
    shutil.rmtree(root / "test")
    summary = scan([("slakh2100", root)], tmp_path / "songs.parquet", runner=LOCAL)
    assert "1 songs of an earlier scan are no longer in their corpora" in caplog.text
    assert (summary.songs, summary.reused, summary.measured) == (3, 3, 0)


def test_a_corpus_is_added_without_touching_the_rows_of_others(
    slakh: Path, root: Path, layout: Path, tmp_path: Path
) -> None:
    out = tmp_path / "songs.parquet"
    scan([("slakh2100", slakh)], out, runner=LOCAL)
    before = read_songs(out)
    summary = scan([(str(layout), root)], out, runner=LOCAL)
    assert (summary.songs, summary.reused, summary.measured) == (5, 4, 1)
    assert [song for song in read_songs(out) if song.corpus == "slakh2100"] == before
    scan([("slakh2100", slakh), (str(layout), root)], tmp_path / "both.parquet", runner=LOCAL)
    assert out.read_bytes() == (tmp_path / "both.parquet").read_bytes()
    other = ScanConfig(activity=ActivityConfig(on_dbfs=-40.0))
    with pytest.raises(ConfigError, match=r"songs of slakh2100 were measured with other options"):
        scan([(str(layout), root)], out, config=other, runner=LOCAL)
    assert scan([(str(layout), root), ("slakh2100", slakh)], out, config=other, runner=LOCAL).measured == 5


KILLED = """
import sys
from pathlib import Path
from pipelines import scan
from pipelines.runner import RunnerConfig, WorkerDied, run_units
scan.JOURNAL_SECONDS = 0.0
seen = []
def slow(*args, measured=scan.measure_song):
    seen.append(args)
    if len(seen) > 3:
        print("three songs done", flush=True)
        sys.stdin.read()
    return measured(*args)
scan.measure_song = slow
scan.scan([(sys.argv[1], Path(sys.argv[2]))], Path(sys.argv[3]), runner=RunnerConfig(runner="local"))
"""


def test_a_killed_scan_goes_on_where_it_was(tmp_path: Path, readers: list[str]) -> None:
    layout = write_folders(tmp_path / "root", 5, seconds=1)
    out = tmp_path / "out" / "songs.parquet"
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(layout), str(tmp_path / "root"), str(out)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"three songs done\n"
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    journal = out.with_name("songs.parquet.journal")
    assert len(list(journal.glob("*.parquet"))) == 3
    (journal / "9.parquet").write_text("half a file")
    summary = scan([(str(layout), tmp_path / "root")], out, runner=LOCAL)
    assert (summary.reused, summary.measured) == (3, 2)
    assert {name.split("/")[0] for name in readers} == {"song 4", "song 5"}
    scan([(str(layout), tmp_path / "root")], tmp_path / "whole.parquet", runner=LOCAL)
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert os.listdir(out.parent) == ["songs.parquet"]


def test_a_scan_that_fails_keeps_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = write_folders(tmp_path / "root", 3, seconds=0.5)
    out = tmp_path / "songs.parquet"
    seen: list[SongUnit] = []

    def interrupted(unit: SongUnit, *rest: Any) -> Song:
        seen.append(unit)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return measure_song(unit, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(scan_module, "measure_song", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scan([(str(layout), tmp_path / "root")], out, runner=LOCAL)
    summary = scan([(str(layout), tmp_path / "root")], out, runner=LOCAL)
    assert (summary.reused, summary.measured) == (2, 1)


def test_the_examples_scan_without_a_problem_that_excludes(tmp_path: Path) -> None:
    examples = Path(__file__).parents[2] / "examples"
    start = time.monotonic()
    scan(
        [
            ("slakh2100", examples / "minislakh"),
            (str(examples / "everything-is-free.yaml"), examples / "everything-is-free"),
        ],
        tmp_path / "songs.parquet",
        runner=LOCAL,
    )
    songs = read_songs(tmp_path / "songs.parquet")
    assert len(songs) == 9
    assert all(len(song.usable_stems) == len(song.stems) >= 4 for song in songs)
    assert {problem.code for song in songs for problem in song.problems} == {"narrow_band", "unequal_length"}
    assert time.monotonic() - start < 60


def test_songs_are_judged_together_and_a_rescan_reads_no_audio_for_it(tmp_path: Path, readers: list[str]) -> None:
    layout = write_folders(tmp_path / "root", 3, seconds=1)
    root, out = tmp_path / "root", tmp_path / "songs.parquet"
    before = scanned(layout, root, out)
    assert all(problem.code != "duplicate" for song in before.values() for problem in song.problems)
    shutil.copytree(root / "song 1", root / "copy")
    readers.clear()
    songs = scanned(layout, root, out)
    # The row of song 1 is taken over, but for what its copy makes of it.
    assert {name.split("/")[0] for name in readers} == {"copy"}
    assert songs["song 1"].problems == (
        *before["song 1"].problems,
        Problem(code="duplicate", detail="folders/copy (same stems)"),
    )
    assert songs["copy"].problems[-1] == Problem(code="duplicate", detail="folders/song 1 (same stems)")
    readers.clear()
    assert scanned(layout, root, out) == songs
    assert readers == []
    shutil.rmtree(root / "copy")
    assert scanned(layout, root, out) == before
    assert readers == []


def test_a_filtered_manifest_is_reused_by_a_scan(slakh: Path, tmp_path: Path, readers: list[str]) -> None:
    scan([("slakh2100", slakh)], tmp_path / "songs.parquet", runner=LOCAL)
    filter_songs(tmp_path / "songs.parquet", "subset == 'train'", tmp_path / "small.parquet")
    kept = len(read_songs(tmp_path / "small.parquet"))
    assert 0 < kept < 4
    readers.clear()
    summary = scan([("slakh2100", slakh)], tmp_path / "small.parquet", runner=LOCAL)
    assert (summary.reused, summary.measured) == (kept, 4 - kept)
    assert (tmp_path / "small.parquet").read_bytes() == (tmp_path / "songs.parquet").read_bytes()
