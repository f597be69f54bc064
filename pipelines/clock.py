"""Where the time of a worker goes."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds by what they were spent on, summed over threads.

    On a CPU it counts the processor's time of the calling thread, so that waiting for a core is not taken for work.
    """

    def __init__(self, device: torch.device) -> None:
        self._now = time.thread_time if device.type == "cpu" else time.perf_counter
        self._lock = threading.Lock()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Count what is done inside."""
        begin = self._now()
        try:
            yield
        finally:
            passed = self._now() - begin
            with self._lock:
                self._seconds[what] += passed

    def take(self) -> dict[str, float]:
        """The seconds since the last call."""
        with self._lock:
            taken = dict(self._seconds)
            self._seconds.clear()
        return taken
