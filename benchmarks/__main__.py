"""Run benchmarks and print one JSON object a line; ``--write`` puts them into RESULTS.md, for older ones."""

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
HEAD = (
    "# Benchmarks",
    "",
    "Each line by `python -m benchmarks NAME --write`, all by `make bench`; what needs a GPU is in GPU.md.",
    "",
    "| name | value | goal | better | detail | measured |",
    "| --- | --- | --- | --- | --- | --- |",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)}; all by default")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    parsed = parser.parse_args()
    if unknown := sorted(set(parsed.names) - set(NAMES)):
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}")
    for name in parsed.names or NAMES:
        for result in importlib.import_module(f"benchmarks.{name}").run():
            print(json.dumps(asdict(result)), flush=True)
            if parsed.write:  # at once: all of them take hours
                before = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
                write_bytes(RESULTS, markdown(before, result).encode())
    return 0


def markdown(before: str, result: Result) -> str:
    """The page, with a result more or in the place of an older one of that name."""
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in before.splitlines() if line.startswith("| ")}
    goal = "" if result.goal is None else f"{result.goal:g}"
    detail = ", ".join(f"{key} {value}" for key, value in result.detail.items())
    cells = (result.name, f"{result.value:.3g} {result.unit}", goal, result.better, detail, f"{today}, {machine}")
    rows[result.name] = f"| {' | '.join(cells)} |"
    for heading in ("name", "---"):
        rows.pop(heading, None)
    return "\n".join([*HEAD, *rows.values(), ""])


if __name__ == "__main__":
    sys.exit(main())
