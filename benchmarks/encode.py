"""encode beside the reference loop on the same songs; where its time goes; one worker beside two."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from benchmarks.reference_encode import folder_of, planned_sources, signals
from benchmarks.result import EXAMPLES, LOCAL, SOURCES, Result
from benchmarks.scan import write_long_songs
from manifests.shards import ShardReader
from manifests.songs import read_songs
from manifests.splits import read_splits
from manifests.units import Unit
from pipelines.encode import list_work
from pipelines.encode_config import EncodeConfig
from pipelines.encode_unit import UnitEncoder, UnitResult, UnitWork
from pipelines.runner import RunnerConfig, run_units
from pipelines.scan import scan
from pipelines.split import SplitConfig, split

ROUNDS = 3
RAY_ROUNDS = 2
SONGS = 2
REPEATS = 6
"""How often the 13 seconds of an example song are repeated."""
_OURS = """
import json, sys, time
from dataclasses import asdict
from pathlib import Path
from mgeldm.codec import load_codec
from mgeldm.embedder import load_embedder
from pipelines.encode import encode
from pipelines.runner import RunnerConfig
load_codec(), load_embedder()
songs, plan, out = (Path(argument) for argument in sys.argv[1:])
begin = time.perf_counter()
summary = encode(plan, songs, out, runner=RunnerConfig(runner="local"))
print(json.dumps({"seconds": time.perf_counter() - begin, "profile": summary.profile}))
"""


def run() -> Iterator[Result]:
    with tempfile.TemporaryDirectory(prefix="mgeldm-bench-") as folder:
        root = Path(folder)
        songs, plan = _planned(root)
        yield from _beside_reference(root, songs, plan)
        if find_spec("ray") and not torch.cuda.is_available():
            yield from _workers(root, songs, plan)


def _planned(root: Path) -> tuple[Path, Path]:
    """Two songs of more than a minute and a half, scanned and split as by default."""
    scan(SOURCES[:1], root / "examples.parquet", runner=LOCAL)
    examples = read_songs(root / "examples.parquet")
    write_long_songs(examples[:SONGS], root / "slakh", REPEATS)
    scan([("slakh2100", root / "slakh")], root / "songs.parquet", runner=LOCAL)
    split(root / "songs.parquet", root / "splits.parquet", config=SplitConfig())
    return root / "songs.parquet", root / "splits.parquet"


def _beside_reference(root: Path, songs: Path, plan: Path) -> Iterator[Result]:
    on_gpu = torch.cuda.is_available()
    windows = read_splits(plan).windows
    seconds = sum(window.duration_s for window in windows)
    times, profiles = [], []
    # By turns, so that whatever else the machine does meets both; each in a process of its own.
    for number in range(ROUNDS):
        theirs, ours = root / f"reference-{number}", root / f"data-{number}"
        reference = _process(["-m", "benchmarks.reference_encode", str(songs), str(plan), str(theirs)])
        found = _process(["-c", _OURS, str(songs), str(plan), str(ours)])
        times.append((reference["seconds"], found["seconds"]))
        profiles.append(found["profile"])
    reference_s, encode_s = (statistics.median(column) for column in zip(*times, strict=True))
    yield Result(
        name="encode.windows_vs_reference",
        value=statistics.median(one / other for one, other in times),
        unit="ratio",
        goal=10.0 if on_gpu else 4.0,
        better="higher",
        detail={
            "device": torch.cuda.get_device_name() if on_gpu else "cpu",
            "window_seconds": round(seconds, 1),
            "reference_per_s": round(seconds / reference_s, 2),
            "encode_per_s": round(seconds / encode_s, 2),
        },
    )
    shares = {name: statistics.median(profile.get(name, 0.0) for profile in profiles) for name in profiles[0]}
    yield Result(
        name="encode.share_in_forwards",
        value=statistics.median(profile["codec"] + profile["embedder"] for profile in profiles),
        unit="ratio",
        goal=0.8 if on_gpu else 0.85,
        better="higher",
        detail={name: round(share, 3) for name, share in shares.items()},
    )
    yield Result(
        name="encode.latents_vs_reference",
        value=_difference(songs, plan, root / "reference-0", root / "data-0"),
        unit="relative",
        goal=1e-3,
        better="lower",
        detail={"windows": len(windows), "stored": "float16"},
    )


def _difference(songs: Path, plan: Path, theirs: Path, ours: Path) -> float:
    """Largest relative distance between a row of a sample and the same frames of the reference.

    Away from the song's ends: there encode hears silence, and the reference what its layers pad with.
    """
    by_id, sources = {song.song_id: song for song in read_songs(songs)}, planned_sources(plan)
    reader, worst = ShardReader(ours), 0.0
    end = -(-int(reader.card.codec["spec"]["context"]) // int(reader.card.codec["spec"]["hop"]))
    for row in reader.rows:
        sample, song = reader.read(row), by_id[row.song_id]
        files = {stems: name for name, stems in signals(song, sources[song.song_id]).items()}
        start = round(sample.meta["start_s"] * reader.card.frames_per_second)
        rows = [("mix", 0)]
        for number, part in enumerate(sample.meta["splits"]):
            for place, side in enumerate(("submix", "source"), 1 + 2 * number):
                rows.append((files[frozenset(part[side])], place))
        for name, place in rows:
            whole = np.load(folder_of(song, theirs) / f"{name}.latents.npy")
            first, last = max(start, end), min(start + sample.latents.shape[-1], whole.shape[-1] - end)
            inside = whole[:, first:last]
            found = sample.latents[place][:, first - start : last - start].astype(np.float32)
            worst = max(worst, float(np.linalg.norm(found - inside) / np.linalg.norm(inside)))
    return worst


def _process(arguments: list[str]) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=EXAMPLES.parent, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


class _OnOneCore:
    """A worker that keeps to one core."""

    def __init__(self, out: Path) -> None:
        torch.set_num_threads(1)
        self._encoder = UnitEncoder(EncodeConfig(), out)

    def __call__(self, work: UnitWork) -> UnitResult:
        torch.set_num_threads(1)
        return self._encoder(work)


_bare: _OnOneCore
"""The worker of a process without Ray."""


def _build(out: Path) -> None:
    global _bare
    _bare = _OnOneCore(out)


def _encode(work: UnitWork) -> int:
    _bare(work)
    return work.size


def _with_processes(works: list[UnitWork], out: Path, workers: int) -> Iterator[int]:
    """Sizes of units as they are done, by plain processes: what the machine gives without Ray."""
    with ProcessPoolExecutor(workers, get_context("spawn"), _build, (out,)) as pool:
        yield from pool.map(_encode, works)


def _with_ray(works: list[UnitWork], out: Path, workers: int) -> Iterator[int]:
    for index, _ in run_units(works, partial(_OnOneCore, out), RunnerConfig(workers=workers)):
        yield works[index].size


def _rate(done: Iterator[int], workers: int) -> tuple[float, float]:
    """Windows a second, from the moment when each worker has done a unit; and seconds to the first unit."""
    begin = time.perf_counter()
    moments = [(time.perf_counter() - begin, size) for size in done]
    # What the other workers had begun by then is in the first moments' account on both sides.
    first, last = moments[workers - 1][0], moments[-1][0]
    return sum(size for _, size in moments[workers:]) / (last - first), moments[0][0]


def _workers(root: Path, songs: Path, plan: Path) -> Iterator[Result]:
    """One worker and two, each on one core: on Ray, and as plain processes beside it."""
    works = _small_units(songs, plan)
    rates: dict[int, list[float]] = {1: [], 2: []}
    bare: dict[int, list[float]] = {1: [], 2: []}
    starts = []
    for _ in range(RAY_ROUNDS):
        for workers in rates:
            for run_with, found in ((_with_ray, rates), (_with_processes, bare)):
                with tempfile.TemporaryDirectory(dir=root) as out:
                    rate, start = _rate(run_with(works, Path(out), workers), workers)
                found[workers].append(rate)
                if run_with is _with_ray:
                    starts.append(start)
    local = root / "local"
    begin = time.perf_counter()
    worker = _OnOneCore(local)
    loaded = time.perf_counter()
    for work in works:
        worker(work)
    alone = (time.perf_counter() - loaded) / sum(work.size for work in works)
    on_ray = 1 / statistics.median(rates[1])
    yield Result(
        name="encode.two_workers_vs_one",
        value=statistics.median(two / one for one, two in zip(rates[1], rates[2], strict=True)),
        unit="ratio",
        goal=1.8,
        better="higher",
        detail={
            "windows_per_s_one": round(statistics.median(rates[1]), 3),
            "windows_per_s_two": round(statistics.median(rates[2]), 3),
            "two_plain_processes_vs_one": round(
                statistics.median(two / one for one, two in zip(bare[1], bare[2], strict=True)), 3
            ),
            "ray_overhead_share": round(on_ray / alone - 1, 3),
            "first_unit_after_s": round(statistics.median(starts), 1),
            "model_loading_s": round(loaded - begin, 1),
        },
    )


def _small_units(songs: Path, plan: Path) -> list[UnitWork]:
    """The windows of the plan, one a unit, so that both workers have always something to do."""
    by_id = {song.song_id: song for song in read_songs(songs)}
    works = []
    for window in read_splits(plan).windows:
        song = by_id[window.song_id]
        unit = Unit(corpus=song.corpus, subset=song.subset, songs=(song.song_id,))
        works += list_work([unit], {song.song_id: (window,)}, by_id)
    return works
