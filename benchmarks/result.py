"""What a benchmark gives, and the fixture that several share."""

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.encode import encode
from pipelines.runner import RunnerConfig
from pipelines.scan import scan
from pipelines.split import SplitConfig, split

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
SOURCES = [
    ("slakh2100", EXAMPLES / "minislakh"),
    (str(EXAMPLES / "everything-is-free.yaml"), EXAMPLES / "everything-is-free"),
]
LOCAL = RunnerConfig(runner="local")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One figure. ``goal`` is what the project wants of it, or None where there is no goal yet."""

    name: str
    value: float
    unit: str
    goal: float | None
    better: str
    detail: dict[str, Any] = field(default_factory=dict)


def median_seconds(work: Callable[[], Any], runs: int = 3) -> float:
    """Median wall time of ``work`` over ``runs``."""
    times = []
    for _ in range(runs):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


@functools.cache
def example_data() -> Path:
    """The example corpora, scanned, split and encoded into a temporary folder; once per process."""
    folder = Path(tempfile.mkdtemp(prefix="mgeldm-bench-"))
    scan(SOURCES, folder / "songs.parquet", runner=LOCAL)
    split(folder / "songs.parquet", folder / "splits.parquet", config=SplitConfig(window_s=10.24, hop_s=5.12))
    encode(folder / "splits.parquet", folder / "songs.parquet", folder / "data", runner=LOCAL)
    return folder
