"""Songs that are broken after the scan, in every way there is: each loss is a row, and nothing else is lost."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from manifests.shards import ShardReader
from manifests.songs import read_songs, write_songs
from manifests.splits import read_splits
from manifests.units import Failure, read_failures
from mgeldm.cli import main
from pipelines.encode import encode
from pipelines.encode_config import EncodeConfig
from pipelines.runner import RunnerConfig
from pipelines.scan import scan
from pipelines.song_signals import needed_spans
from pipelines.split import SplitConfig, split
from pipelines.verify import verify
from tests.support import breaking as by
from tests.support.breaking import Maker, Place
from tests.support.broken import CODED, SONGS, make_outside
from tests.support.corpora import write_layout
from tests.support.sounds import sound, write_sound
from tests.support.watching import opened

pytestmark = pytest.mark.usefixtures("one_thread")

LOCAL = RunnerConfig(runner="local")


@dataclass(frozen=True)
class Way:
    """How the stem "piano" of a song is broken after the scan."""

    name: str
    suffix: str
    code: str | None
    """None: the song is as good as before."""
    make: Maker


def anew(make: Maker) -> Maker:
    """Something else in the place of the file."""

    def replaced(path: Path, place: Place) -> None:
        path.unlink()
        make(path, place)

    return replaced


def rewritten(change: Callable[[np.ndarray], np.ndarray], rate: int = by.RATE) -> Maker:
    """The same file with other samples."""

    def make(path: Path, _: Place) -> None:
        wave, _rate = soundfile.read(path, always_2d=True)
        soundfile.write(path, change(wave), rate)

    return make


def unnoticed(make: Maker) -> Maker:
    """A change that leaves the time of the file as it was."""

    def restored(path: Path, place: Place) -> None:
        status = path.stat()
        make(path, place)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    return restored


def cut(path: Path, _: Place) -> None:
    os.truncate(path, path.stat().st_size * 7 // 10)


def song_removed(path: Path, _: Place) -> None:
    shutil.rmtree(path.parent)


def song_elsewhere(path: Path, place: Place) -> None:
    by.link("OUTSIDE")(path.parent, place)


# What a scan finds out about the content, encode sees as another content than the one that was scanned.
AFTER_SCAN = {"not_finite": "changed", "silent": "changed", None: "changed"}
AS_A_SCAN_FINDS_THEM = [
    Way(kind.name, Path(kind.target).suffix, AFTER_SCAN.get(code, code), anew(kind.make))
    for kind in SONGS
    if kind.corpus == "folders" and kind.target.startswith("piano.")
    for code in [kind.expected[0][0] if kind.expected else None]
]


def ways(name: str, code: str | None, make: Maker, *suffixes: str) -> list[Way]:
    """One way for files of several kinds."""
    return [Way(f"{suffix} {name}", suffix, code, make) for suffix in suffixes]


MEANWHILE = [
    *ways("removed", "missing", by.nothing, *CODED),
    *ways("cut", "truncated", cut, *CODED),
    *ways("cut unnoticed", "truncated", unnoticed(cut), ".wav", ".flac", ".aiff"),
    *ways("replaced", "changed", by.replaced, ".wav"),
    *ways("at half the level", "changed", rewritten(lambda wave: wave / 2), ".wav", ".flac", ".aiff"),
    *ways("of two channels", "changed", rewritten(lambda wave: np.tile(wave, 2)), ".wav", ".flac"),
    *ways("of another rate", "changed", rewritten(lambda wave: wave, 22_050), ".wav", ".flac"),
    *ways("that is longer", "changed", rewritten(lambda wave: np.vstack([wave, wave])), ".wav", ".flac"),
    *ways("that is shorter", "changed", rewritten(lambda wave: wave[:-8_000]), ".wav", ".flac"),
    Way("the song removed", ".wav", "missing", song_removed),
    Way("the song linked out of the root", ".wav", "outside_root", song_elsewhere),
    Way("a file where the song was", ".wav", "missing", lambda path, place: by.file(path.parent, place)),
    Way("written again", ".flac", None, rewritten(lambda wave: wave)),
    Way("touched", ".wav", None, lambda path, _: path.touch()),
    *([] if os.geteuid() == 0 else [Way("denied", ".wav", "unreadable", by.denied())]),
]
WAYS = AS_A_SCAN_FINDS_THEM + MEANWHILE
COUNT = 50 * (1 + (len(WAYS) + 9) // 50)
"""Songs: one for each way, some that nothing happens to, and a multiple of 50 in all."""


@dataclass(frozen=True)
class Corpus:
    """A corpus that was scanned and planned; and the data set of an undisturbed run, read only."""

    folder: Path
    config: EncodeConfig
    plan: SplitConfig

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "root").iterdir())

    def copied(self, folder: Path) -> "Corpus":
        """A copy that may be broken; times of files are kept."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("data"))
        songs = [replace(song, root=str(folder / "root")) for song in read_songs(folder / "songs.parquet")]
        write_songs(folder / "songs.parquet", songs)
        make_outside(folder / "outside")
        return replace(self, folder=folder)

    def repair(self, whole: "Corpus") -> None:
        shutil.rmtree(self.folder / "root")
        shutil.copytree(whole.folder / "root", self.folder / "root")

    def place(self, song: str) -> Place:
        return Place(self.folder / "root" / song, self.folder / "outside")

    def scan_and_split(self) -> None:
        sources = [(str(self.folder / "layout.yaml"), self.folder / "root")]
        scan(sources, self.folder / "songs.parquet", runner=LOCAL)
        split(self.folder / "songs.parquet", self.folder / "splits.parquet", config=self.plan)

    def command(self, *more: str) -> list[str]:
        models = ["--codec", self.config.codec, "--embedder", self.config.embedder]
        sizes = ["--embed_hop_s", "0.2", "--windows_per_shard", "4", "--device", "cpu", "--runner", "local"]
        paths = [str(self.folder / name) for name in ("splits.parquet", "songs.parquet", "data")]
        return ["encode", paths[0], "--songs", paths[1], "--out", paths[2], *models, *sizes, "--json", *more]

    def everything(self) -> dict[str, bytes]:
        data = self.folder / "data"
        return {path.relative_to(data).as_posix(): path.read_bytes() for path in data.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def config(tiny_models: tuple[Path, Path]) -> EncodeConfig:
    codec, embedder = tiny_models
    return EncodeConfig(codec=str(codec), embedder=str(embedder), embed_hop_s=0.2, windows_per_shard=4, device="cpu")


def made(folder: Path, config: EncodeConfig, plan: SplitConfig, songs: dict[str, str], seconds: float) -> Corpus:
    """A corpus of ``songs`` (name -> suffix of the stem "piano"), scanned, planned and encoded."""
    for name, suffix in songs.items():
        for label, ending in (("drums", ".wav"), ("piano", suffix)):
            write_sound(folder / "root" / name / f"{label}{ending}", sound(name, label, seconds=seconds), by.RATE)
    write_layout(folder / "layout.yaml", stems=[f"{{label}}{suffix}" for suffix in (*CODED, ".mp4")], subsets={})
    corpus = Corpus(folder, config, plan)
    corpus.scan_and_split()
    splits, manifest = folder / "splits.parquet", folder / "songs.parquet"
    assert encode(splits, manifest, folder / "data", config=config, runner=LOCAL).failures == {}
    return corpus


@pytest.fixture(scope="module")
def whole(config: EncodeConfig, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    suffixes = [{".mp4": ".m4a"}.get(way.suffix, way.suffix) for way in WAYS]
    songs = {f"{n:03d}": suffixes[n] if n < len(WAYS) else ".flac" for n in range(COUNT)}
    plan = SplitConfig(window_s=1.024, min_song_s=1.0, min_source_active=0.05, min_submix_active=0.05)
    corpus = made(tmp_path_factory.mktemp("whole"), config, plan, songs, 1.024)
    assert {window.song_id for window in read_splits(corpus.folder / "splits.parquet").windows} == {
        f"folders/{name}" for name in songs
    }
    return corpus


def path_of(corpus: Corpus, song: str) -> Path:
    (path,) = (corpus.folder / "root" / song).glob("piano.*")
    return path


def check_losses(corpus: Corpus, whole: Corpus, lost: set[str]) -> list[Failure]:
    """Exactly the windows of ``lost`` are failures; every other one has the bytes that it had."""
    data = corpus.folder / "data"
    reader, reference, failures = ShardReader(data), ShardReader(whole.folder / "data"), read_failures(data)
    expected = {row.key for row in reference.rows if row.song_id.removeprefix("folders/") in lost}
    assert sorted(failure.window_id for failure in failures) == sorted(expected)
    assert sorted(reader) == sorted({*reference} - expected)
    by_key = {row.key: row for row in reference.rows}
    for row in reader.rows:
        assert bytes(reader.raw(row)) == bytes(reference.raw(by_key[row.key]))
    assert reader.card.failures == len(expected)
    report = verify(data)
    assert (report.problems, report.notes) == ((), ())
    return failures


@pytest.mark.slow
def test_songs_broken_in_every_way_after_the_scan_are_rows_with_a_code(
    whole: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = whole.copied(tmp_path)
    for name, way in zip(corpus.names, WAYS, strict=False):
        way.make(path_of(corpus, name), corpus.place(name))
    expected = {name: way.code for name, way in zip(whole.names, WAYS, strict=False) if way.code}
    with opened(tmp_path / "outside") as names:
        assert main(corpus.command()) == 1
    assert names == []
    failures = check_losses(corpus, whole, {*expected})
    named = {f"folders/{name}": way.name for name, way in zip(whole.names, WAYS, strict=False)}
    found = {named[failure.song_id]: failure.code for failure in failures}
    assert found == {way.name: way.code for way in WAYS if way.code}
    assert all("piano" in f.message or "drums" in f.message for f in failures)
    assert not [failure.message for failure in failures if "\n" in failure.message]
    summary = json.loads(capsys.readouterr().out)
    assert summary["failures"] == dict(Counter(failure.code for failure in failures).most_common())
    assert summary["samples"] == len(whole.names) - len(expected)

    corpus.repair(whole)
    assert main(corpus.command()) == 1
    assert main(corpus.command("--retry_failed", "true")) == 0
    assert corpus.everything() == whole.everything()


@pytest.mark.slow
def test_of_two_songs_in_a_hundred_that_break_nothing_else_is_lost(
    whole: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = whole.copied(tmp_path)
    lost = corpus.names[::50]
    assert len(lost) == COUNT // 50
    for name, make in zip(lost, (cut, by.nothing, by.pipe, by.folder), strict=False):
        make(path_of(corpus, name), corpus.place(name))
    assert main(corpus.command()) == 1
    check_losses(corpus, whole, {*lost})
    assert json.loads(capsys.readouterr().out)["samples"] == COUNT - len(lost)
    # A new scan takes what became of the songs for what they are, and a plan without them is done.
    corpus.scan_and_split()
    assert main(corpus.command()) == 0
    kept = {f"folders/{name}" for name in whole.names} - {f"folders/{name}" for name in lost}
    assert {row.song_id for row in ShardReader(corpus.folder / "data").rows} == kept


LONG = [
    *ways("cut", "truncated", cut, ".wav", ".flac", ".aiff"),
    *ways("cut unnoticed", "truncated", unnoticed(cut), ".wav", ".flac", ".aiff"),
    Way("removed", ".flac", "missing", by.nothing),
    Way("emptied", ".wav", "empty", unnoticed(by.text(""))),
    Way("a pipe", ".wav", "unreadable", by.pipe),
    Way("text", ".flac", "unreadable", by.text("no music")),
    Way("at half the level", ".wav", "changed", rewritten(lambda wave: wave / 2)),
    Way("longer", ".flac", "changed", unnoticed(rewritten(lambda wave: np.vstack([wave, wave])))),
    Way(
        "of another rate, unnoticed",
        ".wav",
        "changed",
        unnoticed(lambda path, _: path.write_bytes(by.patched(path.read_bytes(), b"fmt ", 8, "<I", 8_000))),
    ),
    Way(
        "garbage, unnoticed",
        ".flac",
        "truncated",
        unnoticed(lambda path, _: path.write_bytes(by.overwritten(path.read_bytes(), by.garbage(40_000)))),
    ),
    Way("touched", ".wav", None, lambda path, _: path.touch()),
    Way("left alone", ".flac", None, lambda path, _: None),
]


@pytest.mark.slow
def test_of_long_songs_of_which_little_is_read_no_break_is_missed(config: EncodeConfig, tmp_path: Path) -> None:
    plan = SplitConfig(window_s=1.024, max_windows_per_song=1)
    songs = {f"{n:03d}": way.suffix for n, way in enumerate(LONG)}
    whole = made(tmp_path / "whole", config, plan, songs, 31.0)
    windows = read_splits(whole.folder / "splits.parquet").windows
    assert len(windows) == len(LONG)
    assert all(needed_spans([(w.start_s, w.start_s + w.duration_s)], 31.0) for w in windows)
    corpus = whole.copied(tmp_path / "broken")
    for name, way in zip(corpus.names, LONG, strict=True):
        way.make(path_of(corpus, name), corpus.place(name))
    assert main(corpus.command()) == 1
    failures = check_losses(corpus, whole, {n for n, way in zip(whole.names, LONG, strict=True) if way.code})
    found = {LONG[whole.names.index(f.song_id.removeprefix("folders/"))].name: f.code for f in failures}
    assert found == {way.name: way.code for way in LONG if way.code}
    corpus.repair(whole)
    assert main(corpus.command("--retry_failed", "true")) == 0
    assert corpus.everything() == whole.everything()
