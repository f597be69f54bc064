import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from manifests.errors import ConfigError
from pipelines.clock import Clock
from pipelines.forwards import Forwards, InParts


def forwards(models: tuple[Path, Path], **options: object) -> Forwards:
    chosen = {"batch": 4, "precision": "fp32", "compiled": False} | options
    return Forwards(str(models[0]), str(models[1]), "cpu", **chosen)  # type: ignore[arg-type]


def waves(count: int, frames: int = 8 * 256) -> torch.Tensor:
    return 0.3 * torch.randn(count, 1, frames, generator=torch.Generator().manual_seed(0))


class Device:
    """Doubles a batch, if it is no larger than its memory."""

    def __init__(self, memory: int) -> None:
        self.memory, self.calls = memory, list[int]()

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(batch))
        if len(batch) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 2 * batch


def test_out_of_memory_halves_the_batch_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    device = Device(3)
    model = InParts("codec", device, 16)
    batch = torch.arange(20.0)[:, None]
    with caplog.at_level(logging.WARNING):
        found = model(batch)
    assert torch.equal(found, (2 * batch).half())
    assert device.calls == [16, 8, 4, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    assert "out of memory with 4 signals; goes on with 2" in caplog.text
    # Once learnt it stays so.
    device.calls.clear()
    model(batch[:3])
    assert device.calls == [2, 1]


def test_one_signal_that_is_too_much_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        InParts("codec", Device(0), 4)(torch.zeros(3, 1))


def test_a_compiled_model_sees_one_size_only() -> None:
    device = Device(8)
    found = InParts("codec", device, 4, padded=True)(torch.arange(6.0)[:, None])
    assert device.calls == [4, 4]
    assert found[:, 0].tolist() == [0, 2, 4, 6, 8, 10]


def test_silence_goes_through_a_model_once(tiny_models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    models = forwards(tiny_models)
    batch = waves(5)
    batch[[1, 3]] = 0
    expected = models._codec(batch)
    calls: list[int] = []
    function = models._codec._function
    monkeypatch.setattr(models._codec, "_function", lambda part: (calls.append(len(part)), function(part))[1])
    for _ in range(2):
        found = models.latents(batch)
        np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=2e-3)
    # A CPU takes one signal at a time: three that sound, and silence the first time.
    assert sum(calls) == 3 + 1 + 3
    calls.clear()
    assert torch.equal(models.latents(torch.zeros(2, 1, 8 * 256))[0], found[1])
    assert calls == []
    models.latents(torch.zeros(1, 1, 4 * 256))
    assert calls == [1]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_lower_precision_is_near(tiny_models: tuple[Path, Path], precision: str) -> None:
    exact, near = forwards(tiny_models), forwards(tiny_models, precision=precision)
    batch = waves(2)
    one, other = (models.latents(batch).double() for models in (exact, near))
    assert 0 < (one - other).norm() / one.norm() < 0.02
    windows = 0.3 * torch.randn(3, exact.embedder.spec.window, generator=torch.Generator().manual_seed(1))
    one, other = (models.embeddings(windows).double() for models in (exact, near))
    assert 0 < (one - other).norm() / one.norm() < 0.02
    assert torch.allclose(other.norm(dim=1), torch.ones(3, dtype=torch.double), atol=5e-3)


def test_time_is_counted_by_what_it_was_spent_on(tiny_models: tuple[Path, Path]) -> None:
    models = forwards(tiny_models)
    models.latents(waves(3))
    spent = models.clock.take()
    assert spent.keys() == {"codec"}
    assert 0 < spent["codec"] < 10
    assert models.clock.take() == {}
    clock = Clock(torch.device("cpu"))
    with pytest.raises(ValueError, match="x"), clock("a"):
        raise ValueError("x")
    assert clock.take().keys() == {"a"}


def test_no_cuda_is_said_in_one_line(tiny_models: tuple[Path, Path]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ConfigError, match="no CUDA device; use --device cpu"):
        Forwards(str(tiny_models[0]), str(tiny_models[1]), "cuda", batch=1, precision="fp32", compiled=False)


@pytest.mark.slow
def test_a_compiled_codec_gives_the_same_latents(tiny_models: tuple[Path, Path]) -> None:
    plain, compiled = forwards(tiny_models), forwards(tiny_models, compiled=True)
    batch = waves(3)
    np.testing.assert_allclose(compiled.latents(batch).numpy(), plain.latents(batch).numpy(), atol=4e-3)
