"""Refinement with the mix: what adds up, what gets better, and that a stream gives what one pass gives."""

import numpy as np
import pytest
import torch

from mgeldm.refine import FFT, HOP, consistent, refining, wiener

RATE = 16_000


def si_sdr(estimate: torch.Tensor, truth: torch.Tensor) -> float:
    projected = (estimate * truth).sum() / truth.square().sum() * truth
    return float(10 * torch.log10(projected.square().sum() / (estimate - projected).square().sum()))


@pytest.fixture(scope="module")
def sounds() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two tones and low noise, and estimates of them that are of the right colour with the wrong phases."""
    time = torch.arange(2 * RATE) / RATE
    rng = torch.Generator().manual_seed(0)

    def tones(pitches: list[float], phase: float) -> torch.Tensor:
        return sum((0.2 * torch.sin(2 * torch.pi * pitch * time + phase) for pitch in pitches), torch.zeros(1))[None]

    source, submix = tones([440, 880], 0.0), tones([200, 3000], 0.0)
    noise = 0.02 * torch.randn(2, 1, 2 * RATE, generator=rng)
    return source, submix, tones([440, 880], 0.9) + noise[0], tones([200, 3000], -0.7) + noise[1]


@pytest.mark.parametrize("length", [1, 7, HOP, FFT + 1, 20_000])
def test_they_add_up_to_the_mix(length: int) -> None:
    rng = torch.Generator().manual_seed(1)
    mix, source, submix = torch.randn(3, 2, length, generator=rng)
    for function in (wiener, consistent):
        a, b = function(mix, source, submix)
        assert a.shape == b.shape == mix.shape
        torch.testing.assert_close(a + b, mix, rtol=0, atol=2e-7 * float(mix.abs().max() + a.abs().max()))


def test_what_is_missing_is_shared_equally() -> None:
    mix, source, submix = torch.tensor([[1.0]]), torch.tensor([[0.2]]), torch.tensor([[0.4]])
    a, b = consistent(mix, source, submix)
    torch.testing.assert_close(torch.cat([a, b]), torch.tensor([[0.4], [0.6]]))


def test_masks_get_back_the_phases_of_the_mix(sounds: tuple[torch.Tensor, ...]) -> None:
    source, submix, source_guess, submix_guess = sounds
    before = si_sdr(source_guess, source), si_sdr(submix_guess, submix)
    refined = wiener(source + submix, source_guess, submix_guess)
    after = si_sdr(refined[0], source), si_sdr(refined[1], submix)
    assert max(before) < 5
    assert min(after) > 20


@pytest.mark.parametrize(("wanted", "make"), [("wiener", False), ("none", True), ("wiener", True)])
def test_a_stream_is_one_pass(wanted: str, make: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mgeldm.refine.PIECE_FRAMES", 9)
    tracks = torch.randn(3, 2, 40 * HOP + 77, generator=torch.Generator().manual_seed(2))
    stream = refining(wanted, make)
    assert stream is not None
    parts = [piece for block in tracks.split(3000, dim=-1) for piece in stream.push(block)]
    found = torch.cat([*parts, *stream.finish()], dim=-1)[..., : tracks.shape[-1]]
    padded = torch.nn.functional.pad(tracks, (0, -tracks.shape[-1] % HOP))
    expected = torch.stack((wiener if wanted == "wiener" else consistent)(*padded))[..., : tracks.shape[-1]]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_off_means_nothing_is_done() -> None:
    assert refining("none", False) is None
