"""Progress of long jobs on stderr: a live bar on a terminal, a line now and then in a log."""

import sys
from typing import Any

from tqdm import tqdm


def progress(total: int, label: str, unit: str, initial: int = 0, *, quiet: bool = False) -> "tqdm[Any]":
    """A progress bar with rate and ETA. Use as a context manager and call ``update``; ``set_postfix`` adds figures."""
    live = sys.stderr.isatty()
    return tqdm(
        total=total,
        initial=initial,
        desc=label,
        unit=f" {unit}",
        file=sys.stderr,
        mininterval=0.2 if live else 15.0,
        dynamic_ncols=live,
        smoothing=0.1,
        disable=True if quiet else None if live else False,
    )
