"""Run benchmarks and print one JSON object a line; ``--write`` rewrites RESULTS.md with machine and date."""

import argparse
import datetime
import importlib
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.result import Result
from manifests.atomic import write_bytes

NAMES = (
    "scan",
    "songs",
    "encode",
    "stream",
    "kill_drill",
    "sampling",
    "training",
    "training_drill",
    "timesteps",
    "long_audio",
)
RESULTS = Path(__file__).with_name("RESULTS.md")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)}; all by default")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parsed = parser.parse_args()
    if unknown := sorted(set(parsed.names) - set(NAMES)):
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    results = []
    for name in parsed.names or NAMES:
        for result in importlib.import_module(f"benchmarks.{name}").run():
            print(json.dumps(asdict(result)), flush=True)
            results.append(result)
    if parsed.write:
        write_bytes(RESULTS, markdown(results).encode())
    return 0


def markdown(results: list[Result]) -> str:
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    rows = [
        f"| {r.name} | {r.value:.3g} {r.unit} | {'' if r.goal is None else f'{r.goal:g}'} | {r.better} | "
        f"{', '.join(f'{key} {value}' for key, value in r.detail.items())} |"
        for r in results
    ]
    head = ["# Benchmarks", "", f"Measured {today} on {machine}; made by `make bench`.", ""]
    return "\n".join([*head, "| name | value | goal | better | detail |", "| --- | --- | --- | --- | --- |", *rows, ""])


if __name__ == "__main__":
    sys.exit(main())
