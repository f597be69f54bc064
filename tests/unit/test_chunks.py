"""Long sound in chunks that know nothing of one another: sampled together, the same result however many at a time."""

import numpy as np
import pytest
import torch

from manifests.errors import ConfigError
from mgeldm import MGELDM, audio
from mgeldm.engine import crop_starts
from mgeldm.sampling import SamplingConfig, VelocityModel
from mgeldm.signals import Rolling
from tests.unit.test_joint import CALLS, CROP, HOP, RATE, Proportional, model, wave

APART = SamplingConfig(steps=3, overlap=0)


def spied(made: MGELDM) -> list[int]:
    """Sizes of the batches that the network of a model is given from now on."""
    sizes: list[int] = []
    network: VelocityModel = made.engine.network

    def forward(latents: torch.Tensor, timesteps: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        sizes.append(latents.shape[0])
        return network(latents, timesteps, embeddings)

    made.engine.network = forward
    return sizes


@pytest.mark.parametrize("length", [20, 128, 150, 300])
def test_chunks_are_batched_with_the_same_result(length: int) -> None:
    mix, chunks = wave(length), len(crop_starts(-(-length // HOP), CROP, 0))
    found, calls = {}, {}
    for batch in (1, 2, 5):
        made = model()
        sizes = spied(made)
        found[batch] = made.extract(mix, "bass", APART, batch=batch)
        calls[batch] = len(sizes)
        assert max(sizes) == 2 * min(batch, chunks), "each with and without its words"
    for batch in (2, 5):
        assert calls[batch] == APART.evaluations * -(-chunks // batch)
        for name, expected in found[1].items():
            np.testing.assert_allclose(found[batch][name], expected, atol=1e-5)


def test_of_several_prompts() -> None:
    mix, prompts = wave(150), ["bass", "drums"]
    together, alone = (model().extract(mix, prompts, APART, batch=batch) for batch in (6, 1))
    for tracks, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(tracks["source"], expected["source"], atol=1e-5)


@pytest.mark.parametrize("length", [33, 100, 129])
def test_a_known_answer(length: int) -> None:
    """Also where the last chunk has frames in common with the one before."""
    mix = wave(length)
    tracks = model(Proportional((1.0, 0.75, 0.25))).extract(mix, "bass", APART)
    np.testing.assert_allclose(tracks["source"], 0.25 * mix, atol=1e-5)
    np.testing.assert_allclose(tracks["submix"], 0.75 * mix, atol=1e-5)


@pytest.mark.parametrize("name", ["impute", "accompany", "generate"])
def test_every_task(name: str) -> None:
    out = CALLS[name](model(), wave(150), "bass", APART)
    assert out.shape == (1, 150)
    assert np.isfinite(out).all()


def test_chunks_do_not_depend_on_each_other() -> None:
    """Nor do they repeat one another's noise. A change at the begin is not heard in the second chunk."""
    first = wave(4 * CROP * HOP)
    second = first.copy()
    second[:, :20] = 0
    # What it says of a frame depends on all frames and tracks.
    made = model(lambda z, tau, e: z.mean(dim=(1, 3), keepdim=True).expand_as(z))
    a, b = (made.extract(mix, "bass", APART)["source"] for mix in (first, second))
    np.testing.assert_allclose(a[:, CROP * HOP :], b[:, CROP * HOP :], atol=1e-6)
    assert not np.allclose(a[:, : CROP * HOP], b[:, : CROP * HOP])
    held = [made.extract(mix, "bass", SamplingConfig(steps=3))["source"] for mix in (first, second)]
    assert not np.allclose(*(wave[:, CROP * HOP :] for wave in held)), "those that hold the last one's end do"
    noise = model(lambda z, tau, e: z).generate("bass", 4 * CROP * HOP / RATE, SamplingConfig(steps=1, overlap=0))
    assert abs(np.corrcoef(noise[0].reshape(4, -1)) - np.eye(4)).max() < 0.9


@pytest.mark.parametrize(("overlap", "expected"), [(0.0, 0), (0.01, 1), (0.25, 2), (0.5, 4), (0.99, 7)])
def test_overlaps(overlap: float, expected: int) -> None:
    starts = model().engine.starts(50 * HOP, overlap)
    assert starts[0] + CROP - starts[1] == expected
    mix = wave(100)
    found = model(Proportional((1.0, 0.75, 0.25))).extract(mix, "bass", SamplingConfig(steps=2, overlap=overlap))
    np.testing.assert_allclose(found["source"], 0.25 * mix, atol=1e-5)


@pytest.mark.parametrize("overlap", [-0.1, 1.0, float("nan")])
def test_overlaps_that_are_none(overlap: float) -> None:
    with pytest.raises(ConfigError, match="overlap"):
        SamplingConfig(overlap=overlap)


@pytest.mark.parametrize("length", [2_000, 20_000])
def test_no_more_is_kept_than_a_few_crops(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = 0
    cut = Rolling.cut

    def measured(self: Rolling, begin: int, end: int) -> torch.Tensor:
        nonlocal kept
        found = cut(self, begin, end)
        kept = max(kept, self._parts[0].shape[-1])
        return found

    monkeypatch.setattr(Rolling, "cut", measured)
    monkeypatch.setattr(audio, "BLOCK_SAMPLES", 64)
    monkeypatch.setattr("mgeldm.codec.long.CHUNK_FRAMES", 16)
    model(Proportional((1.0, 0.75, 0.25))).extract(wave(length), "bass", SamplingConfig(steps=1, overlap=0))
    assert kept < 500
