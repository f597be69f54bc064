"""Schedule, timestep patterns and objective, against their formulas."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from mgeldm.diffusion import (
    PROCESSES,
    RECTIFIED_FLOW,
    Process,
    SubsetPatterns,
    TimestepPatterns,
    V,
    track_losses,
    v_loss,
)

each_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


def _pair(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    z0, eps = torch.randn(2, 4, 3, 5, 7, generator=generator, dtype=dtype).unbind(0)
    tau = torch.rand(4, 3, generator=generator, dtype=dtype)
    return z0, eps, tau


def test_schedule_values() -> None:
    tau = torch.tensor([0.0, 1 / 3, 0.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(V.alpha(tau), torch.tensor([1.0, math.sqrt(3) / 2, math.sqrt(0.5), 0.0]).double())
    torch.testing.assert_close(V.beta(tau), torch.tensor([0.0, 0.5, math.sqrt(0.5), 1.0]).double())
    torch.testing.assert_close(V.alpha(tau) ** 2 + V.beta(tau) ** 2, torch.ones(4).double(), rtol=0, atol=1e-15)
    torch.testing.assert_close(RECTIFIED_FLOW.alpha(tau), torch.tensor([1.0, 2 / 3, 0.5, 0.0]).double())
    torch.testing.assert_close(RECTIFIED_FLOW.beta(tau), tau)


def test_v_is_corrupted_and_aimed_at_per_track() -> None:
    z0, eps, tau = _pair()
    z_tau, v = V.corrupt(z0, eps, tau), V.target(z0, eps, tau)
    for example in range(4):
        for track in range(3):
            angle = math.pi / 2 * tau[example, track].item()
            clean, noise = z0[example, track], eps[example, track]
            expected_z = math.cos(angle) * clean + math.sin(angle) * noise
            expected_v = math.cos(angle) * noise - math.sin(angle) * clean
            torch.testing.assert_close(z_tau[example, track], expected_z, rtol=0, atol=1e-14)
            torch.testing.assert_close(v[example, track], expected_v, rtol=0, atol=1e-14)


def test_rectified_flow_is_a_line_per_track() -> None:
    z0, eps, tau = _pair()
    level = tau[:, :, None, None]
    torch.testing.assert_close(RECTIFIED_FLOW.corrupt(z0, eps, tau), (1 - level) * z0 + level * eps)
    torch.testing.assert_close(RECTIFIED_FLOW.target(z0, eps, tau), eps - z0)


@each_process
def test_the_target_is_the_velocity_along_the_path(process: Process) -> None:
    z0, eps, tau = _pair()
    tau = tau.clamp(0.01, 0.99)
    along = (process.corrupt(z0, eps, tau + 1e-5) - process.corrupt(z0, eps, tau - 1e-5)) / 2e-5
    speed = math.pi / 2 if process is V else 1
    torch.testing.assert_close(along, speed * process.target(z0, eps, tau), rtol=0, atol=1e-8)


@each_process
def test_v_is_inverted(process: Process) -> None:
    z0, eps, tau = _pair()
    z_tau, v = process.corrupt(z0, eps, tau), process.target(z0, eps, tau)
    torch.testing.assert_close(process.clean(z_tau, v, tau), z0, rtol=0, atol=1e-12)
    torch.testing.assert_close(process.noise(z_tau, v, tau), eps, rtol=0, atol=1e-12)


@each_process
def test_target_and_ddim_step_invert_each_other(process: Process) -> None:
    z0, eps, tau = _pair()
    other = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(8))

    def step(z: torch.Tensor, v: torch.Tensor, level: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
        return process.corrupt(process.clean(z, v, level), process.noise(z, v, level), to)

    there = step(process.corrupt(z0, eps, tau), process.target(z0, eps, tau), tau, other)
    torch.testing.assert_close(there, process.corrupt(z0, eps, other), rtol=0, atol=1e-12)
    back = step(there, process.target(z0, eps, other), other, tau)
    torch.testing.assert_close(back, process.corrupt(z0, eps, tau), rtol=0, atol=1e-12)


@each_process
def test_one_level_for_all_tracks_is_that_of_one_wide_track(process: Process) -> None:
    z0, eps, tau = _pair()
    one = tau[:, :1]
    for method in (process.corrupt, process.target, process.clean, process.noise):
        wide = method(z0.flatten(1, 2)[:, None], eps.flatten(1, 2)[:, None], one)
        assert torch.equal(method(z0, eps, one.expand(4, 3)).flatten(1, 2)[:, None], wide)


@each_process
def test_given_track_is_untouched(process: Process) -> None:
    z0, eps, tau = _pair(torch.float32)
    tau[:, 0] = 0
    assert torch.equal(process.corrupt(z0, eps, tau)[:, 0], z0[:, 0])


@each_process
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_dtype_is_that_of_the_latents(process: Process, dtype: torch.dtype) -> None:
    z0, eps, tau = _pair()
    assert process.corrupt(z0.to(dtype), eps.to(dtype), tau.float()).dtype == dtype
    assert process.clean(z0.to(dtype), eps.to(dtype), tau.float()).dtype == dtype


@each_process
def test_float32_levels_cost_float64_latents_no_digits(process: Process) -> None:
    z0, eps, tau = _pair()
    tau = tau.float()
    assert torch.equal(process.corrupt(z0, eps, tau), process.corrupt(z0, eps, tau.double()))


@each_process
def test_float32_agrees_with_float64(process: Process) -> None:
    z0, eps, tau = _pair()
    for method in (process.corrupt, process.target, process.clean, process.noise):
        torch.testing.assert_close(
            method(z0.float(), eps.float(), tau.float()).double(), method(z0, eps, tau), rtol=0, atol=2e-6
        )


def test_shares_of_a_level_are_exact_at_its_ends() -> None:
    assert V.shares(1.0) == RECTIFIED_FLOW.shares(1.0) == (0.0, 1.0)
    assert V.shares(0.0) == RECTIFIED_FLOW.shares(0.0) == (1.0, 0.0)
    assert V.shares(0.5) == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)), abs=1e-15)


def test_one_level_per_example_is_refused() -> None:
    z0, eps, tau = _pair()
    with pytest.raises(ValueError, match="one level per track"):
        V.corrupt(z0, eps, tau[:3])


def test_patterns_have_their_weights_and_levels() -> None:
    tau = TimestepPatterns(all=1, mix_given=2, submix_given=3, source_given=4).sample(40_000, np.random.default_rng(0))
    assert tau.shape == (40_000, 3)
    assert tau.dtype == torch.float32
    zero = tau == 0
    assert zero.sum(dim=1).max() == 1
    given = torch.stack([~zero.any(dim=1), *zero.unbind(1)]).float().mean(dim=1)
    torch.testing.assert_close(given, torch.tensor([0.1, 0.2, 0.3, 0.4]), rtol=0, atol=0.01)
    level = tau.max(dim=1).values
    assert ((tau == level[:, None]) | zero).all(), "noised tracks of an example share one level"
    # U[0.02, 1]: mean 0.51, variance 0.98^2 / 12, both ends reached, none beyond.
    assert level.min() >= 0.02 - 1e-7
    assert level.max() <= 1
    assert level.min() < 0.021
    assert level.max() > 0.999
    assert level.mean().item() == pytest.approx(0.51, abs=0.005)
    assert level.var().item() == pytest.approx(0.98**2 / 12, rel=0.02)
    # Examples are independent: neighbours are not correlated.
    assert abs(torch.corrcoef(torch.stack([level[:-1], level[1:]]))[0, 1].item()) < 0.02


def test_default_patterns_are_equally_likely() -> None:
    zero = TimestepPatterns().sample(40_000, np.random.default_rng(1)) == 0
    torch.testing.assert_close(zero.float().mean(dim=0), torch.full((3,), 0.25), rtol=0, atol=0.01)


def test_a_pattern_of_weight_zero_is_never_drawn() -> None:
    patterns = TimestepPatterns(all=0, mix_given=1, submix_given=0, source_given=0, tau_min=0.5)
    tau = patterns.sample(1000, np.random.default_rng(2))
    assert (tau[:, 0] == 0).all()
    assert (tau[:, 1:] >= 0.5).all()


def test_patterns_depend_on_the_generator_not_on_the_batch() -> None:
    few, many = (TimestepPatterns().sample(batch, np.random.default_rng(0)) for batch in (4, 9))
    assert torch.equal(few, many[:4])
    assert not torch.equal(few, TimestepPatterns().sample(4, np.random.default_rng(1)))


@pytest.mark.parametrize("wrong", [{"all": -1.0}, {"mix_given": math.nan}, {"tau_min": 0.0}, {"tau_min": 1.0}])
def test_wrong_patterns_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"timestep pattern weights|tau_min is"):
        TimestepPatterns(**wrong)


def test_all_weights_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="one of them above 0"):
        TimestepPatterns(all=0, mix_given=0, submix_given=0, source_given=0)


def test_loss_counts_noised_tracks_only() -> None:
    target = torch.zeros(2, 3, 4, 5)
    v = torch.ones(2, 3, 4, 5) * torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])[:, :, None, None]
    tau = torch.tensor([[0.5, 0.0, 0.5], [0.3, 0.3, 0.0]])
    assert v_loss(v, target, tau).item() == pytest.approx((1 + 9 + 16 + 25) / 4)
    torch.testing.assert_close(track_losses(v, target, tau), torch.tensor([(1 + 16) / 2, 25.0, 9.0]))


def test_loss_gradient_skips_given_tracks() -> None:
    v = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    tau = torch.tensor([[0.0, 0.4, 0.4], [0.7, 0.7, 0.7]])
    torch.autograd.backward(v_loss(v, torch.zeros(2, 3, 4, 5), tau))
    assert v.grad is not None
    assert (v.grad[0, 0] == 0).all()
    torch.testing.assert_close(v.grad[1], 2 * v[1].detach() / (5 * 4 * 5))


def test_track_never_noised_has_no_loss() -> None:
    v = torch.ones(2, 3, 4, 5)
    losses = track_losses(v, torch.zeros_like(v), torch.tensor([[0.0, 0.4, 0.4]] * 2))
    assert losses[0].isnan()
    assert losses[1:].tolist() == [1.0, 1.0]
    assert v_loss(v, torch.zeros_like(v), torch.zeros(2, 3)).item() == 0


def test_loss_refuses_shapes_that_would_broadcast() -> None:
    with pytest.raises(ValueError, match="must agree"):
        v_loss(torch.zeros(2, 3, 4, 5), torch.zeros(1, 3, 4, 5), torch.ones(2, 3))


@pytest.mark.parametrize("weights", [(0.25, 0.25, 0.25, 0.25), (1.0, 2.0, 3.0, 4.0), (0.0, 1.0, 0.0, 1.0)])
def test_pattern_frequencies_by_chi_square(weights: tuple[float, ...]) -> None:
    patterns = TimestepPatterns(**dict(zip(("all", "mix_given", "submix_given", "source_given"), weights, strict=True)))
    zero = (patterns.sample(20_000, np.random.default_rng(5)) == 0).numpy()
    found = np.array([(~zero.any(axis=1)).sum(), *zero.sum(axis=0)])
    expected = 20_000 * np.array(weights) / sum(weights)
    assert (found[expected == 0] == 0).all()
    assert stats.chisquare(found[expected > 0], expected[expected > 0]).pvalue > 0.001


def test_levels_are_uniform_by_kolmogorov_smirnov_in_every_pattern() -> None:
    tau = TimestepPatterns(tau_min=0.1).sample(20_000, np.random.default_rng(6)).numpy()
    zero = tau == 0
    for chosen in (~zero.any(axis=1), *zero.T):
        assert stats.kstest(tau[chosen].max(axis=1), stats.uniform(0.1, 0.9).cdf).pvalue > 0.001


def test_pattern_and_level_are_independent_along_the_batch_and_of_each_other() -> None:
    tau = TimestepPatterns().sample(20_001, np.random.default_rng(7)).numpy()
    pattern = (tau == 0) @ np.array([1, 2, 3])
    after = np.histogram2d(pattern[:-1], pattern[1:], bins=4)[0]
    level = np.histogram2d(pattern, tau.max(axis=1), bins=(4, 5))[0]
    for table in (after, level):
        assert stats.chi2_contingency(table).pvalue > 0.001


def test_ranks_draw_independently() -> None:
    """Ranks have generators of their own: what one draws says nothing of the other."""
    first, second = (TimestepPatterns().sample(20_000, np.random.default_rng([7, rank])).numpy() for rank in (0, 1))
    patterns = [(tau == 0) @ np.array([1, 2, 3]) for tau in (first, second)]
    assert stats.chi2_contingency(np.histogram2d(*patterns, bins=4)[0]).pvalue > 0.001
    assert abs(np.corrcoef(first.max(axis=1), second.max(axis=1))[0, 1]) < 0.03


def test_four_tracks_with_one_timestep() -> None:
    tau = SubsetPatterns(tracks=4).sample(1000, np.random.default_rng(0))
    assert tau.shape == (1000, 4)
    assert (tau == tau[:, :1]).all()
    assert tau.min() >= 0.02 - 1e-7


def test_subsets_are_drawn_evenly_within_their_number() -> None:
    zero = (SubsetPatterns(tracks=4, weights=(1, 0, 3)).sample(20_000, np.random.default_rng(8)) == 0).numpy()
    kinds, found = np.unique(zero, axis=0, return_counts=True)
    assert len(kinds) == 1 + math.comb(4, 2)
    expected = np.where(kinds.any(axis=1), 20_000 * 0.75 / 6, 20_000 * 0.25)
    assert stats.chisquare(found, expected).pvalue > 0.001


def test_three_tracks_with_up_to_one_given_are_the_papers() -> None:
    subsets = SubsetPatterns(tracks=3, weights=(1, 3)).sample(500, np.random.default_rng(9))
    assert torch.equal(subsets, TimestepPatterns().sample(500, np.random.default_rng(9)))


@pytest.mark.parametrize("weights", [(), (1.0, 1.0, 1.0, 1.0, 1.0), (0.0,), (1.0, -1.0), (math.nan,)])
def test_wrong_subsets_are_refused(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="timestep pattern weights"):
        SubsetPatterns(tracks=4, weights=weights)
