"""encode struck fifty times, in every way of the kill drill, and resumed each time; see docs/failures.md."""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.result import Result
from tests.support.drill import drill, schedule

STRIKES = int(os.environ.get("DRILL_KILLS", "50"))
SEED = int(os.environ.get("DRILL_SEED", "0"))


def run() -> Iterator[Result]:
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="drill-") as folder:
        outcome = drill(Path(folder), schedule(SEED, STRIKES), lambda line: print(line, file=sys.stderr, flush=True))
    yield Result(
        name="encode.kills_survived",
        value=0 if outcome.problems else sum(outcome.survived.values()),
        unit="kills",
        goal=float(STRIKES),
        better="higher",
        detail={
            **outcome.survived,
            "data_sets_finished": outcome.finished,
            "problems": len(outcome.problems),
            "seed": SEED,
            "seconds": round(time.monotonic() - begin),
        },
    )
