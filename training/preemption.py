"""SIGTERM, by which a cluster takes a machine back: finish the step, save, leave."""

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self


class Preemption:
    """Within, SIGTERM only sets ``asked``; not in another thread than the main one, where signals cannot be caught."""

    def __init__(self, mark: Path | None = None) -> None:
        """With ``mark``, that file sets it too once it is there, for processes that get no signals."""
        self._mark, self._asked = mark, False
        self._before: object = None

    @property
    def asked(self) -> bool:
        """Whether it is time to go."""
        return self._asked or (self._mark is not None and self._mark.exists())

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before or signal.SIG_DFL)  # type: ignore[arg-type]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
