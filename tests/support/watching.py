"""What is opened: as the kernel sees it (any process, any library), and as Python sees it (before it happens)."""

import ctypes
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_IN_ACCESS, _IN_OPEN = 0x1, 0x20


@contextmanager
def opened(folder: Path) -> Iterator[list[str]]:
    """Names in ``folder`` that anybody opens or reads in the meantime ("" for itself), filled in at the end."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    names: list[str] = []
    try:
        if libc.inotify_add_watch(descriptor, os.fsencode(folder), _IN_ACCESS | _IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), f"{folder} cannot be watched")
        yield names
        names += _names(descriptor)
    finally:
        os.close(descriptor)


def _names(descriptor: int) -> Iterator[str]:
    try:
        data = os.read(descriptor, 1 << 20)
    except BlockingIOError:
        return
    while data:
        (length,) = struct.unpack_from("12xI", data)
        yield os.fsdecode(data[16 : 16 + length].rstrip(b"\0"))
        data = data[16 + length :]


_waiting: dict[str, Callable[[], object]] = {}
_hooked: list[bool] = []


@contextmanager
def on_opening(actions: dict[Path, Callable[[], object]]) -> Iterator[dict[str, Callable[[], object]]]:
    """Run each action right before Python opens its path for the first time; yields those that still wait."""
    if not _hooked:
        # There is no way to take such a hook away.
        sys.addaudithook(_hook)
        _hooked.append(True)
    _waiting.update({str(path): action for path, action in actions.items()})
    try:
        yield _waiting
    finally:
        _waiting.clear()


def _hook(event: str, args: tuple[object, ...]) -> None:
    if _waiting and event == "open" and isinstance(args[0], str | os.PathLike):
        _waiting.pop(os.fspath(args[0]), lambda: None)()
