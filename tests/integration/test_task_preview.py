"""What a dry run of the tasks says, beside what the command then does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgeldm import audio
from mgeldm.cli import main

RATE = 16_000


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    root = tmp_path / "songs"
    for name, rate, channels, seconds in (("a.wav", 44_100, 2, 1.0), ("b.flac", RATE, 1, 0.3)):
        wave = np.random.default_rng(1).uniform(-0.3, 0.3, (channels, round(rate * seconds))).astype(np.float32)
        audio.save(root / name, wave, rate)
    (root / "broken.wav").write_text("no audio")
    return root


def run(words: list[Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    status = main([*map(str, words), "--device", "cpu", "--steps", "2", "--json"])
    return status, json.loads(capsys.readouterr().out)


def listing(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("task", ["extract", "impute", "accompany"])
@pytest.mark.parametrize("form", [[], ["--output-rate", "input", "--format", "flac", "--output-channels", "input"]])
def test_it_says_what_will_be_done(
    task: str, form: list[str], whole_model: Path, songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = [task, songs, "--prompt", "drums", "--prompt", "bass", "--model", whole_model, "--out", out, *form]
    before = listing(tmp_path)
    status, found = run([*asked, "--dry-run"], capsys)
    assert listing(tmp_path) == before
    assert status == 1, "one cannot be read"
    assert [failure["code"] for failure in found["failures"]] == ["unreadable"]
    assert (found["inputs"], found["done"], found["answers"]) == (2, 0, 4)
    assert found["hours"] == pytest.approx(1.3 / 3600)
    assert found["evaluations"] == 2 * 2 * (5 + 2)
    assert found["seconds"] > 0
    assert found["device"] == "cpu"
    _, done = run(asked, capsys)
    made = {file for row in done["results"] for file in (*row["outputs"].values(), *row["given"].values())}
    assert set(found["outputs"]) == made
    size = sum((out / file).stat().st_size for file in made)
    assert 0.3 * found["bytes"] < size < 1.1 * found["bytes"] + 200 * len(made)
    # One prompt more.
    before = {path: path.stat().st_mtime_ns for path in listing(out)}
    _, more = run([*asked, "--prompt", "vocals", "--dry-run"], capsys)
    assert {path: path.stat().st_mtime_ns for path in listing(out)} == before
    assert (more["done"], more["answers"]) == (4, 2)
    redone = 3 if task == "impute" and form else 1
    assert more["evaluations"] == redone * 2 * (5 + 2), "a chain that cannot be taken up begins at its begin"
    assert all("vocals" in file for file in more["outputs"])


def test_generate(whole_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    asked = [
        "generate",
        "--prompt",
        "drums",
        "--prompt",
        "bass",
        "--seconds",
        "1",
        "--model",
        whole_model,
        "--out",
        out,
    ]
    status, found = run([*asked, "--dry-run"], capsys)
    assert not out.exists()
    assert (status, found["inputs"], found["answers"], found["evaluations"]) == (0, 0, 2, 2 * 2 * 5)
    assert found["outputs"] == ["generate-drums-seed0.wav", "generate-bass-seed0.wav"]
    assert found["bytes"] == 2 * 4 * RATE
    assert found["hours"] == pytest.approx(2 / 3600)
    run(asked, capsys)
    _, again = run([*asked, "--dry-run"], capsys)
    assert (again["done"], again["answers"], again["evaluations"], again["seconds"]) == (2, 0, 0, 0)


def test_for_people(whole_model: Path, songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["extract", songs, "--prompt", "drums", "--model", whole_model, "--out", tmp_path / "out", "--dry-run"]
    assert main([*map(str, words), "--device", "cpu", "--steps", "1"]) == 1
    shown = capsys.readouterr().out
    assert "inputs       2\n" in shown
    assert f"  unreadable: {songs / 'broken.wav'}: not decodable" in shown
    assert "\n  a-extract-drums-source.wav\n" in shown


def test_it_refuses_what_the_command_would(
    whole_model: Path, songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a-mix.wav").write_text("mine")
    words = ["extract", songs, "--prompt", "drums", "--model", whole_model, "--out", out, "--dry-run"]
    assert main(list(map(str, words))) == 2
    assert "a-mix.wav: is no result of an earlier command" in capsys.readouterr().err
