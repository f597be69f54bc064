"""The command-line flags of a configuration, for the card that says how to make a thing again."""

import json
import shlex
from collections.abc import Collection
from dataclasses import fields, is_dataclass
from typing import Any


def flags_of(config: Any, left_out: Collection[str] = (), prefix: str = "") -> str:
    """Flags, each with a space ahead, of what differs from the default of the dataclass ``config``.

    Names of ``left_out`` are passed over, such as those that say how fast and not what.
    """
    flags, default = "", type(config)()
    for entry in fields(config):
        name, value = entry.name, getattr(config, entry.name)
        if is_dataclass(value):
            flags += flags_of(value, left_out, f"{prefix}{name}.")
        elif value != getattr(default, name) and name not in left_out:
            text = json.dumps(value) if isinstance(value, tuple) else str(value)
            flags += f" --{prefix}{name} {shlex.quote(text)}"
    return flags
