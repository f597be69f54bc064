"""scan beside a loop that only decodes the same files, in one process."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.result import LOCAL, SOURCES, Result, example_data, median_seconds
from manifests.songs import read_songs
from mgeldm import audio
from pipelines.scan import scan


def run() -> Iterator[Result]:
    songs = read_songs(example_data() / "songs.parquet")
    files = [(Path(song.root) / stem.path, stem.stream) for song in songs for stem in song.stems]

    def decode() -> None:
        for path, stream in files:
            for _ in audio.blocks(path, stream):
                pass

    def measure() -> None:
        with tempfile.TemporaryDirectory() as folder:
            scan(SOURCES, Path(folder) / "songs.parquet", runner=LOCAL)

    hours = sum((stem.frames or 0) / (stem.sample_rate or 1) for song in songs for stem in song.stems) / 3600
    bare, whole = median_seconds(decode), median_seconds(measure)
    detail = {"stem_hours": round(hours, 3), "bare_decode_s": round(bare, 2), "scan_s": round(whole, 2)}
    yield Result(name="scan.rate_vs_decode", value=bare / whole, unit="ratio", goal=0.8, better="higher", detail=detail)

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "songs.parquet"
        scan(SOURCES, out, runner=LOCAL)
        again = median_seconds(lambda: scan(SOURCES, out, runner=LOCAL))
    yield Result(
        name="scan.rescan_share",
        value=again / whole,
        unit="ratio",
        goal=0.02,
        better="lower",
        detail={"rescan_s": round(again, 3)},
    )
