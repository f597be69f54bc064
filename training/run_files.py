"""What a training run leaves in its folder to go on from: its state and its metrics."""

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from manifests.atomic import TEMPORARY_PREFIX, abandoned, atomic_path, write_bytes
from manifests.errors import CheckpointError, ConfigError, StoreError
from mgeldm.checkpoint import CONFIG_FILE, WEIGHTS_FILE

STATE_FILE = "state.pt"
METRICS_FILE = "metrics.jsonl"
RECIPE_FILE = "recipe.json"


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state atomically. Raises StoreError when the disk is full or fails."""
    try:
        with atomic_path(path) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # torch's writer of archives raises the latter
        reason = str(error).partition("\n")[0]
        raise StoreError(f"{path}: cannot be written ({reason}); free some space, and the same call goes on") from None


def load_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """Read a state; None where there is none. Raises CheckpointError when it cannot be read."""
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # the unpickler and the archive reader raise many kinds
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: not readable ({reason}); remove it, or use a new --out") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not the state of a training run; remove it, or use a new --out")
    return state


def check_finite(step: int, loss: float, norm: float) -> None:
    """Stop a run that has diverged before the weights take it in. Raises ConfigError."""
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise ConfigError(
            f"step {step}: the loss is {loss:g} and its gradient's norm {norm:g}: training has diverged; lower the "
            "learning rate, or warm up for longer"
        )


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes were writing in a run's folder or one of its checkpoints, up to gigabytes each."""
    own = (STATE_FILE, METRICS_FILE, RECIPE_FILE, WEIGHTS_FILE, CONFIG_FILE)
    for left in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if abandoned(left.name) in own:
            left.unlink(missing_ok=True)


class Metrics:
    """``metrics.jsonl``: one JSON object a line, each with its ``step``. A context manager."""

    def __init__(self, path: Path, step: int, *, validated: bool = True) -> None:
        """Keep the lines of an earlier run up to ``step``, where the present one goes on; drop those after it.

        Where that step is not ``validated``, its validation, which a run that was killed may have written, is dropped.
        """
        kept = [
            line
            for line in _lines(path)
            if _step(line) <= step and (validated or _step(line) < step or "val_loss" not in json.loads(line))
        ]
        write_bytes(path, "".join(kept).encode())
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Add a line; JSON has no numbers that are not finite, and they are null."""
        known = {key: value if math.isfinite(value) else None for key, value in figures.items()}
        self._file.write(json.dumps({"step": step, **known}) + "\n")
        self._file.flush()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics file, but for one that was cut by a kill. What was not finite is not in them."""
    lines = [json.loads(line) for line in _lines(path) if _step(line) < math.inf]
    return [{key: value for key, value in line.items() if value is not None} for line in lines]


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []


def _step(line: str) -> float:
    """The step of a line; infinite for one that was cut by a kill."""
    try:
        return float(json.loads(line)["step"]) if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
