"""Filter, figures, split and duplicates of a made-up manifest of 100,000 songs, each in a process of its own."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.result import Result
from tests.support.large import write_large

SONGS = 100_000
# Each measures its own time, without what Python's start and imports take, and its own peak memory.
_MEASURED = """
import json, resource, sys, time
from pathlib import Path
from manifests.duplicates import cross_song_problems
from manifests.queries import filter_songs
from manifests.song_stats import song_stats
from manifests.songs import iter_songs
from pipelines.split import split
work = {
    "filter": lambda songs, out: filter_songs(songs, "corpus == 'moisesdb' and 'drums' in instruments", out).songs,
    "stats": lambda songs, out: song_stats(songs).stems,
    "split": lambda songs, out: split(songs, out).windows,
    "cross_song": lambda songs, out: len(cross_song_problems(iter_songs(songs))),
}[sys.argv[1]]
begin = time.perf_counter()
count = work(Path(sys.argv[2]), Path(sys.argv[3]))
seconds = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"count": count, "seconds": seconds, "gib": peak}))
"""
_GOALS = {"filter": 10.0, "stats": 10.0, "split": 120.0, "cross_song": 120.0}
_COUNTS = {"filter": "kept", "stats": "stems", "split": "windows", "cross_song": "songs_with_problems"}


def run() -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as folder:
        songs = Path(folder) / "songs.parquet"
        write_large(songs, SONGS)
        for name, goal in _GOALS.items():
            command = [sys.executable, "-c", _MEASURED, name, str(songs), str(Path(folder) / "out.parquet")]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            detail = {"songs": SONGS, "manifest_mib": songs.stat().st_size >> 20} | {_COUNTS[name]: found["count"]}
            yield Result(
                name=f"songs.{name}_s", value=found["seconds"], unit="s", goal=goal, better="lower", detail=detail
            )
            yield Result(name=f"songs.{name}_gib", value=found["gib"], unit="GiB", goal=2.0, better="lower")
