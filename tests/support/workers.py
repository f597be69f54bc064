"""Workers for tests of the runner; a module of their own so that Ray's processes can import them."""

import logging
import os
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path

from manifests.errors import AudioError

Work = Callable[[int], int]
Build = Callable[[], Work]


def build_square() -> Work:
    """Squares."""
    return lambda unit: unit * unit


def build_process_ids(seconds: float = 0.3) -> Work:
    """The process that does the unit, after a moment in which others can start."""

    def work(unit: int) -> int:
        time.sleep(seconds)
        return os.getpid()

    return work


def build_dying(folder: Path, deaths: int) -> Work:
    """Squares, but unit 3 kills its process the first ``deaths`` times."""

    def work(unit: int) -> int:
        markers = len(list(folder.glob("death-*")))
        if unit == 3 and markers < deaths:
            (folder / f"death-{markers}").touch()
            os._exit(1)
        return unit * unit

    return work


def build_failing() -> Work:
    """An AudioError for unit 2."""

    def work(unit: int) -> int:
        if unit == 2:
            raise AudioError("unit 2 is odd", "truncated")
        return unit

    return work


def build_broken() -> Work:
    """What cannot be built."""
    raise AudioError("no such model", "missing")


def build_warning() -> Work:
    """Logs a warning and an info for each unit, warns once, and prints."""

    def work(unit: int) -> int:
        logging.getLogger("tests.worker").warning("unit %d is odd", unit)
        logging.getLogger("tests.worker").info("unit %d is quiet", unit)
        warnings.warn("numbers are getting large", stacklevel=1)
        print("a line that a library prints")
        return unit

    return work


def build_threads() -> Work:
    """The number of threads that was set in torch, for which a stand-in is put."""
    torch = types.ModuleType("torch")
    torch.set_num_threads = lambda threads: setattr(torch, "threads", threads)  # type: ignore[attr-defined]
    sys.modules["torch"] = torch
    return lambda unit: torch.threads


def build_modules() -> Work:
    """1 if torch was imported in the worker."""
    return lambda unit: int("torch" in sys.modules)
