"""Imputing several sources: the command line and Python give the same bits, and an interruption changes none."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mgeldm import MGELDM, audio
from mgeldm.cli import main
from mgeldm.model import JointTransformer
from mgeldm.sampling import SamplingConfig
from mgeldm.signals import Spool

PROMPTS = ["drums", "bass", "drums"]
FORMS = {
    "exact": [],
    "flac": ["--format", "flac"],
    "rate": ["--output-rate", "input", "--output-channels", "input"],
}


@pytest.fixture(params=[16_000, 44_100])
def submix(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Louder than full scale in part, so that FLAC cuts it."""
    wave = np.random.default_rng(0).normal(0, 0.5, (2, request.param)).astype(np.float32)
    audio.save(tmp_path / "submix.wav", wave, request.param)
    return tmp_path / "submix.wav"


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the network was given."""
    sizes: list[int] = []
    forward = JointTransformer.forward

    def spied(self: JointTransformer, latents: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        sizes.append(latents.shape[0])
        return forward(self, latents, *rest)

    monkeypatch.setattr(JointTransformer, "forward", spied)
    return sizes


def command(model: Path, submix: Path, out: Path, *options: str, prompts: list[str] = PROMPTS) -> list[str]:
    asked = [word for prompt in prompts for word in ("--prompt", prompt)]
    words = ["impute", submix, *asked, "--model", model, "--out", out, "--device", "cpu", "--steps", "2", *options]
    return [str(word) for word in words]


def sounds(out: Path) -> dict[str, bytes]:
    """All samples of all files; a WAV's header also tells when it was written."""
    return {path.name: audio.read(path).tobytes() for path in out.iterdir() if path.name != "results.json"}


def sources(out: Path) -> list[audio.Wave]:
    rows = json.loads((out / "results.json").read_text())["results"]
    return [audio.read(out / row["outputs"]["source"]) for row in rows]


@pytest.mark.parametrize("form", ["exact", "rate"])
def test_the_command_line_and_python_give_the_same_bits(
    form: str, whole_model: Path, submix: Path, tmp_path: Path
) -> None:
    assert main(command(whole_model, submix, tmp_path / "out", *FORMS[form])) == 0
    model = MGELDM.from_pretrained(whole_model, device="cpu")
    options: dict[str, Any] = {"output_rate": "input", "output_channels": "input"} if form == "rate" else {}
    expected = model.impute(submix, PROMPTS, SamplingConfig(steps=2), **options)
    for found, wanted in zip(sources(tmp_path / "out"), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("done", [1, 2])
def test_a_command_that_goes_on_gives_the_bytes_of_one_that_was_not_disturbed(
    form: str, done: int, whole_model: Path, submix: Path, tmp_path: Path, evaluated: list[int]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(command(whole_model, submix, whole, *FORMS[form])) == 0
    all_at_once = len(evaluated)
    assert main(command(whole_model, submix, parts, *FORMS[form], prompts=PROMPTS[:done])) == 0
    before = sounds(parts)
    evaluated.clear()
    assert main(command(whole_model, submix, parts, *FORMS[form])) == 0
    assert sounds(parts) == sounds(whole)
    assert sounds(parts).items() > before.items()
    again = all_at_once * (3 - done) // 3 if form == "exact" else all_at_once
    assert len(evaluated) == again, "only what the files cannot tell is sampled again"


@pytest.mark.parametrize("form", list(FORMS))
def test_a_row_that_is_lost_in_the_middle(form: str, whole_model: Path, submix: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(command(whole_model, submix, out, *FORMS[form])) == 0
    expected = sounds(out)
    (lost,) = out.glob("*-bass-source.*")
    lost.unlink()
    assert main(command(whole_model, submix, out, *FORMS[form])) == 0
    assert sounds(out) == expected


def test_a_kill_in_the_middle_of_a_chain(
    whole_model: Path, submix: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(command(whole_model, submix, whole, *FORMS["flac"])) == 0
    written, count = Spool.write, 0

    def interrupted(self: Spool, block: audio.Wave) -> None:
        nonlocal count
        count += 1
        if count > 4:
            raise KeyboardInterrupt
        written(self, block)

    for limit in range(3):
        with monkeypatch.context() as patch:
            count = 4 - limit
            patch.setattr(Spool, "write", interrupted)
            main(command(whole_model, submix, out, *FORMS["flac"]))
        assert {path.name for path in out.iterdir()} <= {"results.json", *sounds(whole)}, "nothing is left of the spool"
    assert main(command(whole_model, submix, out, *FORMS["flac"])) == 0
    assert sounds(out) == sounds(whole)


@pytest.mark.parametrize("task", ["impute", "accompany"])
def test_the_mix_is_of_what_the_model_said_not_of_what_was_cut(
    task: str, whole_model: Path, submix: Path, tmp_path: Path
) -> None:
    """FLAC cuts a track above full scale; the sum with it is made before."""
    for name, options in (("exact", []), ("flac", ["--format", "flac"])):
        words = command(whole_model, submix, tmp_path / name, *options, prompts=["drums"])
        assert main([task, *words[1:]]) == 0
    exact, cut = (audio.read(next((tmp_path / name).glob(f"*-{task}-*-mix.*"))) for name in ("exact", "flac"))
    np.testing.assert_allclose(cut, np.clip(exact, -1, 1), atol=2**-22)
