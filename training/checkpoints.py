"""What a run keeps: the last checkpoint, the best one, and those of some saves before the last."""

import os
import re
import shutil
from pathlib import Path

import torch

from manifests.atomic import abandoned, atomic_folder, atomic_path
from mgeldm.checkpoint import CONFIG_FILE, WEIGHTS_FILE, CheckpointConfig, save_checkpoint

LAST, BEST, EARLIER = "checkpoint", "best", "checkpoints"
_DROPPED = ".dropped-"


class Checkpoints:
    """Checkpoint folders in the folder of a run; each is whole or not there."""

    def __init__(self, out: Path, keep_last: int) -> None:
        """Keep the last ``keep_last`` saves: ``checkpoint``, and from two on ``checkpoints/step-N`` of each."""
        self._out, self._keep = out, keep_last

    def save(self, step: int, config: CheckpointConfig, weights: dict[str, torch.Tensor]) -> None:
        """Write the last checkpoint, and drop those that are too old."""
        save_checkpoint(self._out / LAST, config, weights)
        if self._keep > 1:
            _link(self._out / LAST, self._out / EARLIER / f"step-{step:08d}")
        for old in self._earlier()[: -self._keep if self._keep > 1 else None]:
            _drop(old)

    def save_best(self, config: CheckpointConfig, weights: dict[str, torch.Tensor]) -> None:
        """Write the checkpoint with the lowest validation loss so far."""
        save_checkpoint(self._out / BEST, config, weights)

    def clear(self, after: int) -> None:
        """Drop what another run, or this one after step ``after``, from which it goes on, has left."""
        for folder in self._earlier():
            if int(folder.name.removeprefix("step-")) > after:
                _drop(folder)
        for left in (self._out / EARLIER).glob(".*"):
            if left.name.startswith(_DROPPED) or (abandoned(left.name) or "").startswith("step-"):
                shutil.rmtree(left)
        if after == 0:
            shutil.rmtree(self._out / BEST, ignore_errors=True)

    def _earlier(self) -> list[Path]:
        """Those that are kept, the oldest first. What a person has put beside them is left alone."""
        return sorted(path for path in (self._out / EARLIER).glob("step-*") if re.fullmatch(r"step-\d{8,}", path.name))


def _link(source: Path, target: Path) -> None:
    """The same files under another name, without copying where the file system can."""
    if target.exists():
        _drop(target)
    with atomic_folder(target) as folder:
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            try:
                os.link(source / name, folder / name)
            except OSError:
                with atomic_path(folder / name) as temporary:
                    shutil.copyfile(source / name, temporary)


def _drop(folder: Path) -> None:
    """Remove a folder that others may be reading from or looking for: it is whole until it is gone."""
    dropped = folder.with_name(f"{_DROPPED}{folder.name}")
    shutil.rmtree(dropped, ignore_errors=True)
    folder.rename(dropped)
    shutil.rmtree(dropped)
