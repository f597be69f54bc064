"""Guidance, DDIM inpainting and starting noise."""

import functools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mgeldm.diffusion import V
from mgeldm.model import JointTransformer, official_config
from mgeldm.sampling import SamplingConfig, guided_v, noise_for, sample

GOLDEN = Path(__file__).parents[1] / "golden"
NONE_GIVEN = torch.zeros(3, dtype=torch.bool)
ddim = functools.partial(SamplingConfig, sampler="ddim")


class TruthModel:
    """Knows the clean latents: v is read off the noised ones exactly, wherever there is noise."""

    def __init__(self, clean: Tensor) -> None:
        self.clean = clean
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def __call__(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        self.calls.append((latents.clone(), timesteps.clone(), embeddings.clone()))
        angle = (timesteps.double() * torch.pi / 2)[:, :, None, None]
        clean = self.clean.repeat(latents.shape[0] // self.clean.shape[0], 1, 1, 1)
        v: Tensor = torch.where(angle > 0, (latents * angle.cos() - clean) / angle.sin(), torch.zeros_like(latents))
        return v


def _linear(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
    """A stand-in network that sees everything and mixes nothing between examples."""
    return 0.5 * latents.roll(1, dims=1) + timesteps[:, :, None, None] + embeddings.mean(-1)[:, :, None, None]


def _golden() -> tuple[JointTransformer, dict[str, Tensor]]:
    stored = load_file(GOLDEN / "official_dit_tiny.safetensors")
    weights = {key.removeprefix("model_dit."): value for key, value in stored.items()}
    model = JointTransformer(official_config(weights, heads=3))
    model.load_state_dict(weights)
    return model.eval(), load_file(GOLDEN / "official_dit_tiny_io.safetensors")


def test_every_golden_answer_is_asked_for() -> None:
    asked = {"v", "v_t05"}  # in test_transformer
    asked |= {"v_cfg3", "generate_10", "extract_10", "impute_10"}
    assert set(_golden()[1]) - {"x", "t", "embed", "noise", "given"} == asked


def _relative(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def _clean(batch: int = 2, frames: int = 6, seed: int = 5) -> Tensor:
    return torch.randn(batch, 3, 4, frames, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_official_guidance() -> None:
    model, io = _golden()
    v = guided_v(model, io["x"].view(2, 3, 8, 20), io["t"], io["embed"], 3.0)
    assert _relative(v.flatten(1, 2), io["v_cfg3"]) < 1e-5


@pytest.mark.parametrize(("name", "track"), [("generate_10", None), ("extract_10", 0), ("impute_10", 1)])
def test_official_sampling(name: str, track: int | None) -> None:
    model, io = _golden()
    noise = io["noise"].view(2, 3, 8, 20)
    given, mask = torch.zeros_like(noise), torch.zeros(3, dtype=torch.bool)
    if track is not None:
        given[:, track], mask[track] = io["given"], True
    result = sample(model, given, mask, io["embed"], noise, ddim(steps=10, guidance=2.0))
    assert _relative(result.flatten(1, 2), io[name]) < 1e-5
    assert torch.equal(result[:, mask], given[:, mask])


def test_guidance_formula_and_evaluations() -> None:
    seen = []

    def model(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        seen.append(latents.shape[0])
        return _linear(latents, timesteps, embeddings)

    x, tau, embeddings = _clean(), torch.rand(2, 3), torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    conditional, null = _linear(x, tau, embeddings), _linear(x, tau, torch.zeros_like(embeddings))
    assert not torch.allclose(conditional, null)
    for scale in (0.0, 1.0, 2.5):
        torch.testing.assert_close(guided_v(model, x, tau, embeddings, scale), null + scale * (conditional - null))
    assert seen == [4, 2, 4]


@pytest.mark.parametrize("steps", [1, 2, 25])
def test_a_perfect_model_recovers_the_latents(steps: int) -> None:
    clean, noise = _clean(), _clean(seed=9)
    model = TruthModel(clean)
    result = sample(
        model,
        torch.zeros_like(clean),
        NONE_GIVEN,
        torch.ones(2, 3, 8),
        noise,
        ddim(steps=steps, guidance=1.0),
    )
    torch.testing.assert_close(result, clean, rtol=0, atol=1e-6)
    expected = torch.linspace(1, 0.02, steps, dtype=torch.float64)
    levels = torch.stack([timesteps[0, 0] for _, timesteps, _ in model.calls])
    torch.testing.assert_close(levels, expected, rtol=0, atol=1e-12)
    for latents, timesteps, _ in model.calls:
        torch.testing.assert_close(latents, V.corrupt(clean, noise, timesteps), rtol=0, atol=1e-9)


def test_given_tracks_are_exact_and_clean_at_every_step() -> None:
    clean, noise = _clean(), _clean(seed=9)
    mask = torch.tensor([[True, False, False], [False, True, True]])
    model = TruthModel(clean)
    given = torch.where(mask[:, :, None, None], clean, torch.full_like(clean, torch.nan))
    result = sample(model, given, mask, torch.ones(2, 3, 8), noise, ddim(steps=5, guidance=3.0))
    assert torch.equal(result[mask], clean[mask])
    torch.testing.assert_close(result, clean, rtol=0, atol=1e-6)
    twice = torch.cat([mask, mask])
    for latents, timesteps, _ in model.calls:
        assert torch.equal(latents[twice], torch.cat([clean, clean])[twice])
        assert (timesteps[twice] == 0).all()
        assert (timesteps[~twice] > 0).all()


def test_held_frames_are_noised_with_the_rest_and_exact_at_the_end() -> None:
    known, noise = _clean(), _clean(seed=9)
    mask = torch.tensor([True, False, False])
    model = TruthModel(_clean(seed=11))
    result = sample(
        model,
        known,
        mask,
        torch.ones(2, 3, 8),
        noise,
        ddim(steps=4, guidance=1.0),
        held_frames=2,
    )
    assert torch.equal(result[..., :2], known[..., :2])
    assert torch.equal(result[:, 0], known[:, 0])
    torch.testing.assert_close(result[:, 1:, :, 2:], model.clean[:, 1:, :, 2:], rtol=0, atol=1e-6)
    for latents, timesteps, _ in model.calls:
        expected = V.corrupt(known, noise, timesteps)
        torch.testing.assert_close(latents[..., :2], expected[..., :2], rtol=0, atol=1e-12)


def test_arguments_are_not_written_to() -> None:
    given, noise = _clean(), _clean(seed=9)
    before = given.clone(), noise.clone()
    sample(
        _linear,
        given,
        torch.tensor([True, False, False]),
        torch.ones(2, 3, 8),
        noise,
        ddim(steps=3),
        held_frames=2,
    )
    assert torch.equal(given, before[0])
    assert torch.equal(noise, before[1])


def test_progress_is_told_after_every_step() -> None:
    told: list[tuple[int, int]] = []
    noise = _clean()
    sample(
        _linear,
        noise,
        NONE_GIVEN,
        torch.ones(2, 3, 8),
        noise,
        ddim(steps=3),
        progress=lambda *at: told.append(at),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_one_seed_is_one_result_at_any_batch_size() -> None:
    names = ["song a", "song b", "song c"]
    size = {"tracks": 3, "channels": 4, "frames": 6}
    embeddings = torch.randn(3, 3, 8, generator=torch.Generator().manual_seed(0))
    noise = noise_for(0, names, **size)
    together = sample(_linear, torch.zeros_like(noise), NONE_GIVEN, embeddings, noise, ddim(steps=4))
    for index, name in enumerate(names):
        own = noise_for(0, [name], **size)
        alone = sample(
            _linear,
            torch.zeros_like(own),
            NONE_GIVEN,
            embeddings[index : index + 1],
            own,
            ddim(steps=4),
        )
        torch.testing.assert_close(together[index], alone[0], rtol=0, atol=1e-6)


def test_noise_depends_on_seed_and_id_alone() -> None:
    noise = noise_for(0, ["a", "b"], tracks=3, channels=4, frames=50)
    assert noise.shape == (2, 3, 4, 50)
    assert noise.dtype == torch.float32
    assert torch.equal(noise.flip(0), noise_for(0, ["b", "a"], tracks=3, channels=4, frames=50))
    assert torch.equal(noise[..., :20], noise_for(0, ["a", "b"], tracks=3, channels=4, frames=20))
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise, noise_for(1, ["a", "b"], tracks=3, channels=4, frames=50))
    # Fixed numbers: another process, machine or version must draw the same.
    torch.testing.assert_close(noise[0, 0, :3, 0], torch.tensor([1.128334, -0.040173, -0.239058]), rtol=0, atol=1e-6)


def test_noise_is_standard_normal_and_independent_between_tracks() -> None:
    noise = noise_for(0, ["a", "b"], tracks=3, channels=64, frames=400)
    assert noise.mean().item() == pytest.approx(0, abs=0.01)
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    correlation = torch.corrcoef(noise.flatten(0, 1).flatten(1)) - torch.eye(6)
    assert correlation.abs().max() < 0.03


@pytest.mark.parametrize(("seed", "names"), [(-1, ["a"]), (0, [])])
def test_wrong_noise_is_refused(seed: int, names: list[str]) -> None:
    with pytest.raises(ValueError, match="need a seed from 0"):
        noise_for(seed, names, tracks=3, channels=4, frames=5)


def test_wrong_sampling_is_refused() -> None:
    noise, embeddings = _clean(), torch.ones(2, 3, 8)
    with pytest.raises(ValueError, match="must both be"):
        sample(_linear, noise[:1], NONE_GIVEN, embeddings, noise)
    with pytest.raises(ValueError, match="must be bool"):
        sample(_linear, noise, torch.zeros(3), embeddings, noise)
    with pytest.raises(ValueError, match="must be bool"):
        sample(_linear, noise, NONE_GIVEN[:2], embeddings, noise)
    with pytest.raises(ValueError, match="at least 1"):
        sample(_linear, noise, NONE_GIVEN, embeddings, noise, ddim(steps=0))
    with pytest.raises(ValueError, match="frames there are"):
        sample(_linear, noise, NONE_GIVEN, embeddings, noise, held_frames=7)
