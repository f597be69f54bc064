"""``python -m benchmarks.stream_memory DATA SAMPLES``: memory of a process that streams, and when it has a first batch.

A module of its own, so that nothing else is in the process.
"""

import json
import sys
import time
from pathlib import Path

from training.stream import Stream, StreamConfig


def main(data: Path, samples: int) -> None:
    """Print the most megabytes resident after so many samples, those of the imports, and seconds to a first batch."""
    imports, begin = _megabytes("VmRSS"), time.perf_counter()
    config = StreamConfig()
    stream = Stream([config.open(data, "train")], None, config)
    batches = stream.batches(stream.start())
    next(batches)
    first = time.perf_counter() - begin
    for _ in range(samples // config.batch):
        next(batches)
    batches.close()
    most = _megabytes("VmHWM")
    print(json.dumps({"mb": round(most - imports, 1), "imports_mb": round(imports, 1), "first_s": round(first, 3)}))


def _megabytes(name: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
