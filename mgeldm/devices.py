"""Choosing where to compute, and keeping the CPU's allocator out of the way."""

import ctypes
import logging
import os
import shutil
import sys

import torch

from manifests.errors import ConfigError

logger = logging.getLogger(__name__)


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA where there is one, else the CPU. Raises ConfigError if it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r}: this machine has no CUDA device; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise ConfigError(f"device {name!r}: this machine has {count} CUDA devices, cuda:0 to cuda:{count - 1}")
    return device


def check_compiler(device: torch.device) -> None:
    """Look for the compiler that `torch.compile` calls at the first use, when much may have been done already.

    Raises:
        ConfigError: there is none.
    """
    variable, usual = ("CC", ("gcc", "clang")) if device.type == "cuda" else ("CXX", ("g++",))
    names = (os.environ[variable],) if os.environ.get(variable) else usual
    if not any(map(shutil.which, names)):
        raise ConfigError(
            f"compile needs a compiler on this machine, and {' or '.join(names)} is not there; install it, name "
            f"another in {variable}, or leave compile off"
        )


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks: activations of a convolution net are otherwise mapped and zeroed at every call.

    On a CPU this halves the time of the codec. A no-op elsewhere than on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        logger.debug("no mallopt here; memory is given back at every free")
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 << 20)
