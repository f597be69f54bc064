"""Many files, folders and long jobs through the command line: names, forms, and going on after an end of any kind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgeldm import MGELDM, audio
from mgeldm.cli import main
from mgeldm.files import job
from mgeldm.model import JointTransformer

RATE = 16_000


@pytest.fixture
def checkpoint(whole_model: Path) -> Path:
    return whole_model


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Songs in folders, some of one name, and things that are no songs."""
    root = tmp_path / "album"
    rng = np.random.default_rng(3)
    for name, rate, channels in (("cd1/mix.wav", 44_100, 2), ("cd2/mix.flac", RATE, 1), ("cd2/solo.wav", 8_000, 1)):
        wave = rng.normal(0, 0.1, (channels, round(0.8 * rate))).astype(np.float32)
        audio.save(root / name, np.clip(wave, -1, 1), rate)
    (root / "cd1" / "notes.txt").write_text("no audio")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.wav").write_text("no audio")
    return root


def run(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    status = main([*map(str, arguments), "--device", "cpu", "--steps", "2", "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_a_folder_keeps_its_names(
    checkpoint: Path, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    status, found = run(["extract", album, "--prompt", "drums", "--model", checkpoint, "--out", out], capsys)
    assert status == 0
    assert [result["outputs"]["source"] for result in found["results"]] == [
        "cd1/mix-extract-drums-source.wav",
        "cd2/mix-extract-drums-source.wav",
        "cd2/solo-extract-drums-source.wav",
    ]
    for result in found["results"]:
        assert audio.read(out / result["outputs"]["source"]).shape == (1, round(0.8 * RATE))
    # What came out is not taken for input when it lies in the folder that is gone through.
    inside = album / "out"
    for _ in range(2):
        _, again = run(["extract", album, "--prompt", "drums", "--model", checkpoint, "--out", inside], capsys)
        assert len(again["results"]) == 3


def test_another_input_of_the_same_name_takes_nothing_from_the_first(
    checkpoint: Path, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for name in ("cd1/mix.wav", "cd2/mix.flac", "cd1/mix.wav"):
        assert run(["extract", album / name, "--prompt", "drums", "--model", checkpoint, "--out", out], capsys)[0] == 0
    rows = json.loads((out / "results.json").read_text())["results"]
    assert sorted(row["outputs"]["source"] for row in rows) == [
        "cd2-mix-extract-drums-source.wav",
        "mix-extract-drums-source.wav",
    ]


def test_results_of_another_command_are_no_input(
    checkpoint: Path, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for prompt in ("drums", "bass"):
        command = ["extract", album, "--prompt", prompt, "--model", checkpoint, "--out", album / prompt]
        assert len(run(command, capsys)[1]["results"]) == 3


def test_the_same_sound_is_the_same_bytes(tmp_path: Path) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, (1, 100)).astype(np.float32)
    for name in ("a.wav", "b.wav"):
        audio.save(tmp_path / name, wave, RATE)
        time.sleep(1.1)  # the format has a place for the second
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()
    np.testing.assert_array_equal(audio.read(tmp_path / "a.wav"), wave)


def test_a_folder_without_audio_is_one_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    words = ["extract", tmp_path / "empty", "--prompt", "drums", "--model", checkpoint, "--out", tmp_path / "out"]
    assert main(list(map(str, words))) == 2
    assert "no audio below this folder" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("task", ["extract", "impute", "accompany"])
def test_the_form_of_the_input(
    task: str, checkpoint: Path, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """44.1 kHz stereo through a 16 kHz mono codec and back, as FLAC."""
    out, mix = tmp_path / "out", album / "cd1" / "mix.wav"
    form = ["--output-rate", "input", "--output-channels", "input", "--format", "flac"]
    status, found = run([task, mix, "--prompt", "drums", "--model", checkpoint, "--out", out, *form], capsys)
    assert status == 0
    (result,) = found["results"]
    for file in [*result["outputs"].values(), *result["given"].values()]:
        info = audio.probe(out / file)
        assert file.endswith(".flac")
        assert (info.sample_rate, info.channels, info.frames) == (44_100, 2, round(0.8 * 44_100))


def test_refinement_of_files(checkpoint: Path, album: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mix = album / "cd2" / "mix.flac"
    for option in (["--consistent", "true"], ["--refine", "wiener"]):
        out = tmp_path / option[0]
        asked = ["extract", mix, "--prompt", "drums", "--model", checkpoint, "--out", out]
        _, found = run([*asked, *option], capsys)
        tracks = {name: audio.read(out / file) for name, file in found["results"][0]["outputs"].items()}
        np.testing.assert_allclose(tracks["source"] + tracks["submix"], audio.read(mix), atol=1e-6)
    asked[0] = "accompany"
    assert main([*map(str, asked), *option]) == 2
    assert "refine and consistent belong to extract" in capsys.readouterr().err.splitlines()[-1]


class TestResume:
    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Sizes of the batches that the network was given."""
        sizes: list[int] = []
        forward = JointTransformer.forward

        def spied(self: JointTransformer, latents: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            sizes.append(latents.shape[0])
            return forward(self, latents, *rest)

        monkeypatch.setattr(JointTransformer, "forward", spied)
        return sizes

    @pytest.mark.parametrize("task", ["extract", "impute", "generate"])
    def test_what_is_done_is_not_done_again(
        self,
        task: str,
        checkpoint: Path,
        album: Path,
        tmp_path: Path,
        calls: list[int],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "out"
        given = ["--seconds", "0.5"] if task == "generate" else [album / "cd2" / "mix.flac"]
        asked = [task, *given, "--prompt", "drums", "--prompt", "bass", "--model", checkpoint, "--out", out]
        _, first = run(asked, capsys)
        assert len(calls) > 0
        calls.clear()
        assert run(asked, capsys) == (0, first)
        assert calls == []
        # One more prompt is all there is to do.
        _, more = run([*asked, "--prompt", "vocals"], capsys)
        assert more["results"][:2] == first["results"]
        assert calls
        # A file that is lost, another seed, and no wish to go on.
        (out / first["results"][1]["outputs"]["mix" if task == "generate" else "source"]).unlink()
        for change in ([], ["--seed", "1"], ["--seed", "1", "--resume", "false"]):
            calls.clear()
            _, found = run([*asked, *change], capsys)
            assert calls, change
            assert [row["prompt"] for row in found["results"]] == ["drums", "bass"]
            rows = json.loads((out / "results.json").read_text())["results"]
            assert {row["key"] for row in found["results"]} < {row["key"] for row in rows}, "that of vocals stays"

    def test_a_changed_input_is_done_again(
        self, checkpoint: Path, album: Path, tmp_path: Path, calls: list[int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        mix, out = album / "cd2" / "mix.flac", tmp_path / "out"
        asked = ["extract", mix, "--prompt", "drums", "--model", checkpoint, "--out", out]
        _, first = run(asked, capsys)
        os.utime(mix, ns=(1, 1))
        calls.clear()
        _, second = run(asked, capsys)
        assert calls
        assert second["results"][0]["key"] != first["results"][0]["key"]
        assert len(json.loads((out / "results.json").read_text())["results"]) == 1, "the old row's files are gone"

    def test_an_interrupted_command_goes_on(
        self,
        checkpoint: Path,
        album: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "out"
        asked = ["extract", album, "--prompt", "drums", "--model", checkpoint, "--out", out, "--batch", "1"]
        opened = MGELDM.open

        def interrupted(self: MGELDM, given: Any, rate: int | None = None) -> Any:
            if "solo" in str(given):
                raise KeyboardInterrupt
            return opened(self, given, rate)

        monkeypatch.setattr(MGELDM, "open", interrupted)
        assert main([*map(str, asked), "--device", "cpu", "--steps", "2"]) == 130
        assert len(json.loads((out / "results.json").read_text())["results"]) == 2
        monkeypatch.setattr(MGELDM, "open", opened)
        seen: list[str] = []
        monkeypatch.setattr(
            MGELDM, "open", lambda self, given, rate=None: seen.append(str(given)) or opened(self, given, rate)
        )
        capsys.readouterr()
        status, found = run(asked, capsys)
        assert (status, len(found["results"])) == (0, 3)
        assert seen == [str(album / "cd2" / "solo.wav")]

    def test_a_killed_command_leaves_no_half_file(self, checkpoint: Path, tmp_path: Path) -> None:
        wave = np.random.default_rng(0).normal(0, 0.1, (1, 120 * RATE)).astype(np.float32)
        audio.save(tmp_path / "long.wav", wave, RATE)
        out = tmp_path / "out"
        command = [sys.executable, "-m", "mgeldm.cli", "extract", tmp_path / "long.wav", "--prompt", "drums", "--model"]
        command += [checkpoint, "--out", out, "--device", "cpu", "--steps", "2"]
        process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not any(path.stat().st_size > 100_000 for path in out.glob(".tmp-*source.wav")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not list(out.glob("long-extract*"))
        # The next command clears away what is left.
        audio.save(tmp_path / "long.wav", wave[:, :RATE], RATE)
        assert main(list(map(str, command[3:]))) == 0
        assert not list(out.glob(".tmp-*"))
        assert len(list(out.glob("long-extract*"))) == 2


def test_progress_knows_the_total_from_the_start(
    checkpoint: Path, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    totals: list[tuple[int, int]] = []
    made = job.progress

    def spied(*arguments: Any, **options: Any) -> Any:
        bar = made(*arguments, **options)
        update = bar.update

        def told(count: int = 1) -> Any:
            update(count)
            totals.append((int(bar.n), int(bar.total)))

        bar.update = told
        return bar

    monkeypatch.setattr(job, "progress", spied)
    (album / "broken.wav").write_text("no audio")
    asked = [
        "extract",
        album,
        "--prompt",
        "drums",
        "--prompt",
        "bass",
        "--model",
        checkpoint,
        "--out",
        tmp_path / "out",
    ]
    status, found = run(asked, capsys)
    assert status == 1
    assert [failure["code"] for failure in found["failures"]] == ["unreadable"]
    assert len(found["results"]) == 6
    assert len({total for _, total in totals}) == 1
    assert totals[-1][0] == totals[-1][1]
