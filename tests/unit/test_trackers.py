import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from manifests.errors import ConfigError
from training.trackers import Trackers


class Board(ModuleType):
    """Stands where the package would be installed, and keeps what it is told."""

    class Error(Exception):
        """What the package's errors derive from."""

    def __init__(self, refusal: Exception | None) -> None:
        super().__init__("wandb")
        self.refusal = refusal
        self.begun: list[dict[str, Any]] = []
        self.told: list[tuple[str, int, dict[str, float]]] = []
        self.finished: list[str] = []

    def init(self, **options: Any) -> "BoardRun":
        if self.refusal:
            raise self.refusal
        self.begun.append(options)
        return BoardRun(self, options["id"] or f"new-{len(self.begun)}")


class BoardRun:
    def __init__(self, board: Board, name: str) -> None:
        self.board, self.id = board, name

    def log(self, figures: dict[str, float], *, step: int) -> None:
        self.board.told.append((self.id, step, figures))

    def finish(self) -> None:
        self.board.finished.append(self.id)


def opened(out: Path, step: int = 0) -> Trackers:
    return Trackers(out, tensorboard=False, wandb="mine", step=step, recipe={"seed": 0})


def test_a_run_that_goes_on_has_its_own_curve_and_one_that_begins_a_new_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    board = Board(None)
    monkeypatch.setitem(sys.modules, "wandb", board)
    for step in (0, 3, 5, 0, 2):
        with opened(tmp_path, step) as trackers:
            trackers.write(step + 1, {"loss": 0.5})
    names = ["new-1", "new-1", "new-1", "new-4", "new-4"]
    assert board.told == [(name, step + 1, {"loss": 0.5}) for name, step in zip(names, (0, 3, 5, 0, 2), strict=True)]
    assert board.finished == names
    assert {(options["project"], options["resume"]) for options in board.begun} == {("mine", "allow")}


def test_what_the_service_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Board(Board.Error("No API key\nconfigured.")))
    with pytest.raises(ConfigError, match=r"^wandb 'mine': No API key configured\.; `wandb login` first, or"):
        opened(tmp_path)
