"""scan beside a loop that only decodes the same files, in one process; scanning again; memory at ten times the size."""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.result import EXAMPLES, LOCAL, SOURCES, Result
from manifests.songs import Song, read_songs
from mgeldm import audio
from pipelines.scan import scan

ROUNDS = 3
REPEATS = 8
"""How often the 13 seconds of an example song are repeated."""
_PEAK = """
import sys
from pathlib import Path

from pipelines.runner import RunnerConfig
from pipelines.scan import scan

scan([("slakh2100", sys.argv[1])], Path(sys.argv[1]) / "songs.parquet", runner=RunnerConfig(runner="local"))
status = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")))
"""


def run() -> Iterator[Result]:
    with tempfile.TemporaryDirectory(prefix="mgeldm-bench-") as folder:
        root = Path(folder)
        # Before any time is taken: imports and compiled loops, once a process.
        scan(SOURCES, root / "examples.parquet", runner=LOCAL)
        examples = read_songs(root / "examples.parquet")
        write_long_songs([song for song in examples if song.mixture], root / "slakh", REPEATS)
        yield from _rates([("slakh2100", root / "slakh"), SOURCES[1]], root / "songs.parquet")
        yield from _memory(examples[-1], root)


def write_long_songs(songs: list[Song], root: Path, repeats: int, copies: int = 1) -> None:
    """Each of the Slakh-like songs as ``copies`` songs of ``repeats`` times its length, FLAC as it was."""
    for copy in range(copies):
        for song in songs:
            name = Path(song.song_id.split("/", 1)[1])
            place = root / name.with_name(f"Track{100 * copy + int(name.name[5:]):05d}")
            (place / "stems").mkdir(parents=True)
            (place / "metadata.yaml").write_bytes((Path(song.root) / name / "metadata.yaml").read_bytes())
            for stem in [*song.stems, song.mixture_audio]:
                wave = audio.read(Path(song.root) / stem.path)
                audio.save(place / Path(stem.path).relative_to(name), np.tile(wave, repeats), stem.sample_rate)


def _rates(sources: list[tuple[str, Path]], out: Path) -> Iterator[Result]:
    scan(sources, out, runner=LOCAL)
    songs = read_songs(out)
    files = [(Path(s.root) / stem.path, stem) for s in songs for stem in (*s.stems, s.mixture_audio) if stem]

    def decode() -> None:
        for path, stem in files:
            for _ in audio.interleaved(path, stem.stream):
                pass

    def measure() -> None:
        out.unlink()
        scan(sources, out, runner=LOCAL)

    # By turns, so that whatever else the machine does meets both.
    times = [(_seconds(decode), _seconds(measure)) for _ in range(ROUNDS)]
    bare, whole = (statistics.median(column) for column in zip(*times, strict=True))
    hours = sum((stem.frames or 0) / (stem.sample_rate or 1) for _, stem in files) / 3600
    yield Result(
        name="scan.rate_vs_decode",
        value=statistics.median(one / other for one, other in times),
        unit="ratio",
        goal=0.8,
        better="higher",
        detail={"audio_hours": round(hours, 2), "bare_decode_s": round(bare, 2), "scan_s": round(whole, 2)},
    )
    again = statistics.median(_seconds(lambda: scan(sources, out, runner=LOCAL)) for _ in range(ROUNDS))
    yield Result(
        name="scan.rescan_share",
        value=again / whole,
        unit="ratio",
        goal=0.02,
        better="lower",
        detail={"rescan_s": round(again, 3), "songs": len(songs)},
    )


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _memory(song: Song, root: Path) -> Iterator[Result]:
    """Peak memory (Linux only) of a process that scans one song, that song ten times as long, and ten songs."""
    folders = []
    for name, repeats, copies in (("once", 2, 1), ("long", 20, 1), ("many", 2, 10)):
        folders.append(root / name)
        write_long_songs([song], folders[-1], repeats, copies)
    once, long, many = _peak_mib(folders)
    for name, value in (("length", long), ("corpus", many)):
        yield Result(
            name=f"scan.memory_at_10x_{name}",
            value=value / once,
            unit="ratio",
            goal=1.1,
            better="lower",
            detail={"mib_at_1x": round(once), "mib_at_10x": round(value)},
        )


def _peak_mib(folders: list[Path]) -> list[float]:
    """Peak memory of a process that scans each folder and imports nothing else; they run side by side."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _PEAK, str(folder)], cwd=EXAMPLES.parent, stdout=subprocess.PIPE, text=True
        )
        for folder in folders
    ]
    printed = [process.communicate()[0] for process in started]
    for process in started:
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
    return [float(text) for text in printed]
