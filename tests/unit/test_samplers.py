"""Solvers, guidance and RePaint, against data whose best denoiser is known."""

import functools
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from manifests.errors import ConfigError
from mgeldm.diffusion import PROCESSES, Objective, Process, V
from mgeldm.model import JointTransformer, official_config
from mgeldm.sampling import SAMPLERS, Sampler, SamplingConfig, guided_v, noise_for, sample
from mgeldm.sampling.noise import FreshNoise

GOLDEN = Path(__file__).parents[1] / "golden"
NONE_GIVEN = torch.zeros(3, dtype=torch.bool)
ddim = functools.partial(SamplingConfig, sampler="ddim")
MIX_GIVEN = torch.tensor([True, False, False])
EMBEDDINGS = torch.ones(2, 3, 8)

each_objective = pytest.mark.parametrize("objective", list(PROCESSES))
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS)


class TwoPeaks:
    """The best network for latents whose every number is 1 or -1, give or take 0.3, each as likely."""

    spread = 0.3

    def __init__(self, process: Process) -> None:
        self.process, self.calls = process, list[tuple[Tensor, Tensor]]()

    def __call__(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        self.calls.append((latents.clone(), timesteps.clone()))
        level = timesteps.to(latents.dtype)[:, :, None, None]
        a, b = self.process.alpha(level), self.process.beta(level)
        variance = (a * self.spread) ** 2 + b**2
        towards = torch.tanh(latents * a / variance)
        clean = towards * (1 - a**2 * self.spread**2 / variance) + a * self.spread**2 / variance * latents
        noise = torch.where(b > 0, (latents - a * clean) / b.clamp(min=1e-9), torch.zeros_like(latents))
        return self.process.gain(level) * noise - self.process.loss(level) * clean


class Told:
    """The best network where the clean latents are known."""

    def __init__(self, process: Process, clean: Tensor) -> None:
        self.process, self.clean = process, clean

    def __call__(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        level = timesteps.to(latents.dtype)[:, :, None, None]
        a, b = self.process.alpha(level), self.process.beta(level)
        noise = torch.where(b > 0, (latents - a * self.clean) / b.clamp(min=1e-9), torch.zeros_like(latents))
        return self.process.gain(level) * noise - self.process.loss(level) * self.clean


def start(batch: int = 2, frames: int = 6, seed: int = 5) -> Tensor:
    return torch.randn(batch, 3, 4, frames, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@functools.cache
def flow(sampler: Sampler, steps: int, objective: Objective) -> Tensor:
    noise = start(frames=20)
    config = SamplingConfig(sampler=sampler, steps=steps, guidance=1.0)
    model = TwoPeaks(PROCESSES[objective])
    return sample(model, torch.zeros_like(noise), NONE_GIVEN, EMBEDDINGS, noise, config, objective=objective)


@each_objective
@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpm++2m", 2), ("heun", 2)])
def test_order_of_convergence(sampler: Sampler, order: int, objective: Objective) -> None:
    truth = flow("heun", 601, objective)
    errors = [(flow(sampler, steps, objective) - truth).square().mean().sqrt().item() for steps in (33, 65, 129)]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert orders == [pytest.approx(order, abs=0.3)] * 2


@each_objective
def test_solvers_agree_on_where_the_flow_ends(objective: Objective) -> None:
    ends = [flow(sampler, 201, objective) for sampler in SAMPLERS]
    for end in ends:
        torch.testing.assert_close(end, ends[0], rtol=0, atol=1e-2)
        assert ((end.abs() - 1).abs() < 4 * TwoPeaks.spread).all()


@each_objective
@pytest.mark.parametrize(("sampler", "steps"), [("dpm++2m", 25), ("heun", 15)])
def test_few_steps_of_second_order_are_nearer_than_many_of_ddim(
    sampler: Sampler, steps: int, objective: Objective
) -> None:
    truth = flow("heun", 601, objective)
    fast, slow = ((flow(*way, objective) - truth).square().mean().sqrt() for way in ((sampler, steps), ("ddim", 60)))
    assert fast < slow


@each_objective
@each_sampler
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_known_latents_are_reached_in_any_number_of_steps(sampler: Sampler, objective: Objective, steps: int) -> None:
    clean, noise = start(seed=1), start()
    config = SamplingConfig(sampler=sampler, steps=steps, guidance=1.0)
    model = Told(PROCESSES[objective], clean)
    found = sample(model, torch.zeros_like(clean), NONE_GIVEN, EMBEDDINGS, noise, config, objective=objective)
    torch.testing.assert_close(found, clean, rtol=0, atol=1e-6)


@each_objective
@each_sampler
def test_given_tracks_and_held_frames_are_exact(sampler: Sampler, objective: Objective) -> None:
    given, noise = start(seed=1).float(), start().float()
    held = torch.tensor([True, False, False, True, False, False])
    model = TwoPeaks(PROCESSES[objective])
    config = SamplingConfig(sampler=sampler, steps=4)
    found = sample(model, given, MIX_GIVEN, EMBEDDINGS, noise, config, objective=objective, held_frames=held)
    assert torch.equal(found[:, 0], given[:, 0])
    assert torch.equal(found[..., held], given[..., held])
    assert (found[:, 1:, :, ~held] != given[:, 1:, :, ~held]).all()
    assert len(model.calls) == config.evaluations
    for latents, timesteps in model.calls:
        assert torch.equal(latents[:2, 0], given[:, 0])
        assert (timesteps[:, 0] == 0).all()
        assert (timesteps[:, 1:] == timesteps[0, 1]).all()
        level = timesteps[:2] * torch.ones(2, 3)
        noised = PROCESSES[objective].corrupt(given, noise, level)
        assert torch.equal(latents[:2, :, :, held], noised[..., held])


def test_frames_are_held_example_by_example() -> None:
    given, noise = start(seed=1), start()
    held = torch.zeros(2, 6, dtype=torch.bool)
    held[0, 0], held[1, 4:] = True, True
    found = sample(TwoPeaks(V), given, NONE_GIVEN, EMBEDDINGS, noise, ddim(steps=2), held_frames=held)
    same = (found == given).all(dim=(1, 2))
    assert torch.equal(same, held)


@each_sampler
def test_evaluations_are_counted_and_told(sampler: Sampler) -> None:
    told: list[tuple[int, int]] = []
    config, noise, model = SamplingConfig(sampler=sampler, steps=4), start(), TwoPeaks(V)
    sample(model, noise, MIX_GIVEN, EMBEDDINGS, noise, config, progress=lambda *at: told.append(at))
    expected = {"ddim": 4, "dpm++2m": 4, "heun": 7}[sampler]
    assert config.evaluations == len(model.calls) == expected
    assert told == [(done, expected) for done in range(1, expected + 1)]


@each_sampler
def test_one_seed_is_one_result_at_any_batch_size(sampler: Sampler) -> None:
    names = ["a", "b", "c"]
    noise = noise_for(3, names, tracks=3, channels=4, frames=6)
    config, model = SamplingConfig(sampler=sampler, steps=4), TwoPeaks(V)
    together = sample(model, noise, MIX_GIVEN, torch.ones(3, 3, 8), noise, config)
    for place in range(3):
        own = noise_for(3, names[place : place + 1], tracks=3, channels=4, frames=6)
        alone = sample(model, own, MIX_GIVEN, torch.ones(1, 3, 8), own, config)
        assert torch.equal(together[place : place + 1], alone)


def test_the_paper_sampler_is_one_timestep_where_nothing_is_given() -> None:
    """Written out for one timestep: 10 levels from 1 to 0.02, clean latents and noise mixed anew."""
    noise, model = start(), TwoPeaks(V)
    found = sample(model, noise, NONE_GIVEN, EMBEDDINGS, noise, ddim(steps=10, guidance=1.0))
    x, levels = noise, torch.linspace(1, 0.02, 10, dtype=torch.float64).tolist()
    for step, level in enumerate(levels):
        v = model(x, torch.full((2, 3), level, dtype=torch.float64), EMBEDDINGS)
        a, b = math.cos(level * math.pi / 2), math.sin(level * math.pi / 2)
        clean, eps = a * x - b * v, b * x + a * v
        angle = levels[step + 1] * math.pi / 2 if step < 9 else 0.0
        x = math.cos(angle) * clean + math.sin(angle) * eps
    torch.testing.assert_close(found, x, rtol=0, atol=1e-12)


@torch.no_grad()
def test_fast_solvers_are_near_long_ddim_on_the_official_network() -> None:
    stored = load_file(GOLDEN / "official_dit_tiny.safetensors")
    weights = {key.removeprefix("model_dit."): value.double() for key, value in stored.items()}
    model = JointTransformer(official_config(weights, heads=3)).double()
    model.load_state_dict(weights)
    io = {key: value.double() for key, value in load_file(GOLDEN / "official_dit_tiny_io.safetensors").items()}
    noise = io["noise"][:1].view(1, 3, 8, 20)
    given = torch.zeros_like(noise)
    given[:, 0] = io["given"][:1]

    def run(sampler: Sampler, steps: int) -> Tensor:
        config = SamplingConfig(sampler=sampler, steps=steps, guidance=2.0)
        return sample(model.eval(), given, MIX_GIVEN, io["embed"][:1], noise, config)[:, 1:]

    truth = run("heun", 60)
    error = {
        way: ((run(*way) - truth).norm() / truth.norm()).item()
        for way in (("ddim", 250), ("ddim", 25), ("dpm++2m", 25), ("heun", 13))
    }
    assert error["dpm++2m", 25] < 0.5 * error["ddim", 25]
    assert error["heun", 13] < 0.5 * error["ddim", 25]
    assert max(error["dpm++2m", 25], error["heun", 13], error["ddim", 250]) < 0.04


class TestGuidance:
    def model(self, latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
        self.sizes = [*getattr(self, "sizes", []), latents.shape[0]]
        return latents * (1 + embeddings.mean(-1)[:, :, None, None]) + timesteps[:, :, None, None]

    def test_each_track_has_its_scale(self) -> None:
        x, tau = start(), torch.rand(2, 3, generator=torch.Generator().manual_seed(0)).double()
        embeddings = torch.rand(2, 3, 8, generator=torch.Generator().manual_seed(1)).double()
        conditional, null = self.model(x, tau, embeddings), self.model(x, tau, 0 * embeddings)
        v = guided_v(self.model, x, tau, embeddings, (1.0, 0.0, 3.0))
        torch.testing.assert_close(v[:, 0], conditional[:, 0])
        torch.testing.assert_close(v[:, 1], null[:, 1])
        torch.testing.assert_close(v[:, 2], null[:, 2] + 3 * (conditional - null)[:, 2])
        self.sizes = []
        guided_v(self.model, x, tau, embeddings, (1.0, 1.0, 1.0))
        assert self.sizes == [2]

    def test_rescale_gives_the_spread_back(self) -> None:
        x, tau = start(frames=40), torch.full((2, 3), 0.5).double()
        embeddings = torch.rand(2, 3, 8, generator=torch.Generator().manual_seed(1)).double()
        conditional = self.model(x, tau, embeddings)
        plain = guided_v(self.model, x, tau, embeddings, 5.0)
        whole = guided_v(self.model, x, tau, embeddings, 5.0, 1.0)
        assert (plain.std(dim=(2, 3)) > 1.5 * conditional.std(dim=(2, 3))).all()
        torch.testing.assert_close(whole.std(dim=(2, 3)), conditional.std(dim=(2, 3)))
        partly = guided_v(self.model, x, tau, embeddings, 5.0, 0.25)
        torch.testing.assert_close(partly, 0.25 * whole + 0.75 * plain)

    def test_reduced_precision_ends_at_the_network(self) -> None:
        x, tau = start().float(), torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
        embeddings = torch.rand(2, 3, 8, generator=torch.Generator().manual_seed(1))

        def reduced(*inputs: Tensor) -> Tensor:
            return self.model(*inputs).bfloat16()

        conditional, null = (reduced(x, tau, e).float() for e in (embeddings, 0 * embeddings))
        v = guided_v(reduced, x, tau, embeddings, 7.0)
        assert v.dtype == torch.float32
        torch.testing.assert_close(v, null + 7 * (conditional - null))

    def test_rescale_of_nothing_is_nothing(self) -> None:
        zeros = torch.zeros(2, 3, 4, 6)
        v = guided_v(lambda z, tau, e: z, zeros, torch.zeros(2, 3), EMBEDDINGS, 2.0, 0.7)
        assert torch.equal(v, zeros)

    def test_only_levels_of_the_interval_are_guided(self) -> None:
        noise, sizes, levels = start(), list[int](), list[float]()

        def model(latents: Tensor, timesteps: Tensor, embeddings: Tensor) -> Tensor:
            sizes.append(latents.shape[0])
            levels.append(timesteps.max().item())
            return latents

        config = ddim(steps=20, guidance=3.0, interval=(0.3, 0.7))
        sample(model, noise, NONE_GIVEN, EMBEDDINGS, noise, config)
        assert [size == 4 for size in sizes] == [0.3 <= level <= 0.7 for level in levels]
        assert set(sizes) == {2, 4}


class TestRePaint:
    def test_all_tracks_have_one_timestep_and_steps_are_taken_again(self) -> None:
        given, noise, model = start(seed=1), start(), TwoPeaks(V)
        config = ddim(steps=5, guidance=1.0, resample=3)
        found = sample(model, given, MIX_GIVEN, EMBEDDINGS, noise, config)
        assert torch.equal(found[:, 0], given[:, 0])
        assert len(model.calls) == config.evaluations == 15
        levels = torch.stack([timesteps for _, timesteps in model.calls])
        assert (levels == levels[:, :1, :1]).all()
        expected = torch.linspace(1, 0.02, 5, dtype=torch.float64).repeat_interleave(3)
        torch.testing.assert_close(levels[:, 0, 0], expected)

    def test_given_tracks_are_noised_afresh(self) -> None:
        given, noise, model = start(seed=1, frames=400), start(frames=400), TwoPeaks(V)
        sample(
            model,
            given,
            MIX_GIVEN,
            EMBEDDINGS,
            noise,
            ddim(steps=3, guidance=1.0, resample=2),
        )
        drawn = []
        for latents, timesteps in model.calls:
            a, b = V.shares(timesteps[0, 0].item())
            drawn.append(((latents[:, 0] - a * given[:, 0]) / b).flatten())
        together = torch.stack(drawn)
        torch.testing.assert_close(torch.corrcoef(together), torch.eye(6).double(), rtol=0, atol=0.08)
        torch.testing.assert_close(together.std(dim=1), torch.ones(6).double(), rtol=0, atol=0.05)

    @each_objective
    def test_going_back_up_gives_the_distribution_of_the_level(self, objective: Objective) -> None:
        """Two peaks stay two peaks, however often steps are taken again."""
        noise, process = start(frames=1000), PROCESSES[objective]
        model = TwoPeaks(process)
        config = ddim(steps=40, guidance=1.0, resample=2)
        found = sample(model, noise, NONE_GIVEN, EMBEDDINGS, noise, config, objective=objective)
        assert found.mean().abs() < 0.05
        assert found.square().mean().item() == pytest.approx(1 + TwoPeaks.spread**2, rel=0.05)
        for latents, timesteps in model.calls[1::20]:
            a, b = process.shares(timesteps[0, 0].item())
            variance = a**2 * (1 + TwoPeaks.spread**2) + b**2
            assert latents.square().mean().item() == pytest.approx(variance, rel=0.05)

    def test_one_seed_is_one_result_at_any_batch_size(self) -> None:
        noise = noise_for(3, ["a", "b"], tracks=3, channels=4, frames=6)
        config = ddim(steps=3, resample=2)
        together = sample(TwoPeaks(V), noise, MIX_GIVEN, EMBEDDINGS, noise, config)
        alone = sample(TwoPeaks(V), noise[1:], MIX_GIVEN, EMBEDDINGS[1:], noise[1:], config)
        assert torch.equal(together[1:], alone)

    def test_draws_differ_and_repeat(self) -> None:
        first, again = (FreshNoise(start().float()) for _ in range(2))
        one, two = first(), first()
        assert not torch.equal(one, two)
        assert not torch.equal(one[0], one[1])
        assert torch.equal(one, again())


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"sampler": "euler"}, "'euler' is none of ddim"),
        ({"steps": 0}, "steps 0"),
        ({"seed": -1}, "seed -1"),
        ({"guidance": math.nan}, "guidance nan"),
        ({"guidance": math.inf}, "guidance inf"),
        ({"guidance": -1.0}, "guidance -1"),
        ({"guidance": (1.0, math.nan, 1.0)}, "guidance"),
        ({"guidance": ()}, "guidance"),
        ({"rescale": 1.5}, "rescale 1.5"),
        ({"rescale": math.nan}, "rescale nan"),
        ({"interval": (0.7, 0.3)}, "interval"),
        ({"interval": 0.5}, "interval"),
        ({"interval": ("a", "b")}, "interval"),
        ({"interval": (0.0, math.nan)}, "interval"),
        ({"resample": -1, "sampler": "ddim"}, "resample -1"),
        ({"resample": 2, "sampler": "heun"}, "resample 2 with heun"),
        ({"steps": 2.5}, "steps 2.5 must be a whole number"),
        ({"seed": "1"}, "seed '1' must be a whole number"),
        ({"guidance": "3"}, "guidance '3' must be made of numbers"),
        ({"guidance": None}, "guidance None"),
        ({"rescale": "0.5"}, "rescale '0.5' must be made of numbers"),
    ],
)
def test_wrong_choices_are_refused_in_one_line(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        SamplingConfig(**wrong)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_what_does_not_go_with_the_tracks_is_refused() -> None:
    noise = start()
    with pytest.raises(ConfigError, match="one for each of 3 tracks"):
        sample(TwoPeaks(V), noise, NONE_GIVEN, EMBEDDINGS, noise, SamplingConfig(guidance=(1.0, 2.0)))
    with pytest.raises(ValueError, match="one for each of 3 tracks"):
        guided_v(TwoPeaks(V), noise, torch.ones(2, 3), EMBEDDINGS, (1.0, 2.0))
    with pytest.raises(ConfigError, match="objective 'eps' is none of v, rf"):
        sample(TwoPeaks(V), noise, NONE_GIVEN, EMBEDDINGS, noise, objective="eps")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frames there are"):
        sample(TwoPeaks(V), noise, NONE_GIVEN, EMBEDDINGS, noise, held_frames=7)
    with pytest.raises(ValueError, match=r"bool \[6\] or \[2, 6\]"):
        sample(TwoPeaks(V), noise, NONE_GIVEN, EMBEDDINGS, noise, held_frames=torch.ones(5, dtype=torch.bool))
