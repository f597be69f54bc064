"""The network in bfloat16 and compiled: near what it says in full precision, and another result to the tables."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manifests.errors import ConfigError
from mgeldm import MGELDM
from mgeldm.cli import main
from mgeldm.model import JointConfig, JointTransformer
from mgeldm.precision import prepared
from mgeldm.sampling import SamplingConfig

CPU = torch.device("cpu")
SIZES = JointConfig(width_per_track=32, depth=2, heads=3, timestep_features=8, latent_channels=8, embedding_dim=16)
TOLERANCE = 0.02
"""Of bfloat16, relative to the spread of what comes out: 8 bits, through a few layers."""


def network() -> JointTransformer:
    made = JointTransformer(SIZES)
    generator = torch.Generator().manual_seed(1)
    for parameter in made.parameters():  # blocks and outer convolutions begin at zero
        if parameter.ndim > 1 and not parameter.any():
            parameter.data = torch.randn(parameter.shape, generator=generator) / parameter.shape[1] ** 0.5
    return made.eval().requires_grad_(False)


def inputs() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 3, 8, 16, generator=generator)
    return latents, torch.rand(2, 3, generator=generator), torch.randn(2, 3, 16, generator=generator)


def test_bfloat16_is_near_float32_and_not_the_same() -> None:
    exact, given = network(), inputs()
    expected = exact(*given)
    assert prepared(exact, CPU, "float32", False) is exact
    found = prepared(exact, CPU, "bfloat16", False)(*given).float()
    error = (found - expected).std() / expected.std()
    assert 1e-4 < error < TOLERANCE
    assert all(parameter.dtype == torch.float32 for parameter in exact.parameters())


def test_compiled_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    compile_ = torch.compile

    def spied(model: Any) -> Any:
        compiled.append(model)
        return compile_(model, backend="eager")

    monkeypatch.setattr(torch, "compile", spied)
    exact, given = network(), inputs()
    found = prepared(exact, CPU, "float32", True)(*given)
    assert compiled == [exact]
    torch.testing.assert_close(found, exact(*given))


def test_no_such_precision() -> None:
    with pytest.raises(ConfigError, match="precision 'float16' is none of float32, bfloat16"):
        prepared(network(), CPU, "float16", False)  # type: ignore[arg-type]


def test_tasks_in_bfloat16(whole_model: Path) -> None:
    mix = np.random.default_rng(0).normal(0, 0.1, (1, 8000)).astype(np.float32)
    exact, rough = (
        MGELDM.from_pretrained(whole_model, device="cpu", precision=precision).extract(
            mix, "drums", SamplingConfig(steps=4)
        )["source"]
        for precision in ("float32", "bfloat16")
    )
    assert rough.dtype == np.float32
    assert 0 < (rough - exact).std() < 0.1 * exact.std()


def test_results_of_another_precision_are_others(
    whole_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend="eager"))
    keys = {}
    for name, options in (("plain", []), ("rough", ["--precision", "bfloat16"]), ("compiled", ["--compile"])):
        words = ["generate", "--prompt", "drums", "--seconds", "0.2", "--model", str(whole_model), "--steps", "2"]
        assert main([*words, "--out", str(tmp_path / name), "--device", "cpu", "--json", *options]) == 0
        (row,) = json.loads(capsys.readouterr().out)["results"]
        keys[name] = row["key"]
        assert row["precision"] == ("bfloat16" if name == "rough" else "float32")
    assert len(set(keys.values())) == 3
    assert main([*words, "--out", str(tmp_path), "--precision", "float16"]) == 2
    assert "float16" in capsys.readouterr().err.splitlines()[-1]
