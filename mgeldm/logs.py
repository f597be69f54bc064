"""What the programs say of their work, on standard error."""

import logging
import sys

_TALKATIVE = ("fsspec", "httpx", "httpx2")
"""They tell of every block and of every request."""


def log_to_stderr(level: int = logging.INFO) -> None:
    """Lines of ``level`` and above, each with its letter."""
    logging.basicConfig(level=level, format="%(levelname).1s %(message)s", stream=sys.stderr)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
