"""Who else is told the metrics: TensorBoard and Weights & Biases, each imported only where it is asked for."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from manifests.atomic import write_bytes
from manifests.errors import ConfigError
from mgeldm.model_folder import one_line

FOLDER = "tensorboard"
RUN_FILE = "wandb-run"
"""The run's name at Weights & Biases."""


class Trackers(AbstractContextManager["Trackers"]):
    """Sends figures on; without any tracker it does nothing."""

    def __init__(self, out: Path, *, tensorboard: bool, wandb: str, step: int, recipe: dict[str, Any]) -> None:
        """Raises ConfigError when Weights & Biases is asked for and is not installed, or refuses."""
        self._board: Any = None
        self._wandb: Any = None
        if wandb:
            try:
                import wandb as package
            except ImportError:
                raise ConfigError(f"wandb {wandb!r}: the package is not installed; `pip install wandb`") from None
            # A run that goes on does so in its own curve; one that begins has a new one.
            known = out / RUN_FILE
            own = known.read_text(encoding="utf-8") if step and known.exists() else None
            try:
                self._wandb = package.init(
                    project=wandb, dir=str(out), id=own, name=out.name, resume="allow", config=recipe
                )
            except package.Error as error:
                raise ConfigError(
                    f"wandb {wandb!r}: {one_line(error)}; `wandb login` first, or keep the figures for `wandb "
                    "sync` with WANDB_MODE=offline"
                ) from None
            write_bytes(known, self._wandb.id.encode())
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(out / FOLDER), purge_step=step + 1)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Pass figures on."""
        if self._board:
            for key, value in figures.items():
                self._board.add_scalar(key, value, step)
        if self._wandb:
            self._wandb.log(figures, step=step)

    def audio(self, step: int, waves: Sequence[tuple[str, torch.Tensor, int]]) -> None:
        """Pass waves on: name, samples ``[T]`` within -1 .. 1, sample rate."""
        if self._board:
            for name, wave, rate in waves:
                self._board.add_audio(name, wave[None], step, sample_rate=rate)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board:
            self._board.close()
        if self._wandb:
            self._wandb.finish()
