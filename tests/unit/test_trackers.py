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
        self.told: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **options: Any) -> "Board":
        if self.refusal:
            raise self.refusal
        self.begun.append(options)
        return self

    def log(self, figures: dict[str, float], *, step: int) -> None:
        self.told.append((step, figures))

    def finish(self) -> None:
        self.finished += 1


def opened(out: Path, seed: int = 0) -> Trackers:
    return Trackers(out, tensorboard=False, wandb="mine", step=0, recipe={"seed": seed})


def test_a_folder_is_one_run_however_often_it_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    board = Board(None)
    monkeypatch.setitem(sys.modules, "wandb", board)
    for out, seed in ((tmp_path / "a", 0), (tmp_path / "a", 0), (tmp_path / "a", 1), (tmp_path / "b" / "a", 0)):
        with opened(out, seed) as trackers:
            trackers.write(3, {"loss": 0.5})
    names = [options["id"] for options in board.begun]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    assert {(options["project"], options["resume"]) for options in board.begun} == {("mine", "allow")}
    assert (board.told, board.finished) == ([(3, {"loss": 0.5})] * 4, 4)


def test_what_the_service_refuses_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Board(Board.Error("No API key\nconfigured.")))
    with pytest.raises(ConfigError, match=r"^wandb 'mine': No API key configured\.; `wandb login` first, or"):
        opened(tmp_path)
