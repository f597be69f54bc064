"""What a training is made of: schedules, the guard, noise by element, SIGTERM."""

import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from manifests.errors import ConfigError, StoreError
from mgeldm.diffusion.timesteps import TimestepPatterns
from training.guard import LEARNED, Guard
from training.noising import Noising, track_errors
from training.preemption import Preemption
from training.randomness import Purpose
from training.run_files import save_state
from training.schedules import Schedule, factor


def rates(schedule: Schedule, steps: int = 1000, warmup: int = 100, decay_share: float = 0.2) -> list[float]:
    return [factor(schedule, n, warmup=warmup, steps=steps, decay_share=decay_share) for n in range(steps)]


class TestSchedules:
    @pytest.mark.parametrize("schedule", ["inverse_sqrt", "cosine", "wsd"])
    def test_all_warm_up_in_a_line(self, schedule: Schedule) -> None:
        assert rates(schedule)[:100] == pytest.approx([(n + 1) / 100 for n in range(100)])

    def test_inverse_square_root(self) -> None:
        found = rates("inverse_sqrt")
        assert found[399] == 0.5
        assert found[899] == pytest.approx(1 / 3)
        assert found[:500] == rates("inverse_sqrt", steps=500)  # it knows no end

    def test_cosine(self) -> None:
        found = rates("cosine")
        assert found[100] == 1.0
        assert found[550] == pytest.approx(0.5)
        assert found[999] == pytest.approx(math.sin(math.pi / 1800) ** 2)

    def test_stable_then_down(self) -> None:
        found = rates("wsd")
        assert set(found[99:800]) == {1.0}
        assert found[900] == pytest.approx(0.5)
        assert found[999] == pytest.approx(0.005)


class TestGuard:
    def test_a_leap_is_skipped_once_the_usual_is_known(self) -> None:
        guard = Guard(spike=10, patience=3)
        assert guard.passes(1, 1.0, 50.0)
        assert guard.passes(2, 1.0, 5000.0)  # too early to tell
        for number in range(3, 1200):
            assert guard.passes(number, 1.0, 1.0 + 0.5 * (number % 2))
        assert guard.usual == pytest.approx(1.25, rel=0.05)
        assert guard.passes(1200, 1.0, 12.0)
        assert not guard.passes(1201, 1.0, 15.0)
        assert guard.passes(1202, 1e9, 1.0)
        assert (guard.skipped, guard.in_a_row) == (1, 0)

    def test_without_spikes_every_finite_step_passes(self) -> None:
        guard = Guard(spike=0, patience=3)
        assert all(guard.passes(n, 1.0, 10.0**n) for n in range(LEARNED, LEARNED + 100))

    @pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (1.0, math.inf), (math.inf, math.nan)])
    def test_too_many_in_a_row_end_the_run(self, loss: float, norm: float) -> None:
        guard = Guard(spike=10, patience=3)
        assert guard.passes(1, 1.0, 1.0)
        assert not guard.passes(2, loss, norm)
        assert not guard.passes(3, loss, norm)
        assert guard.passes(4, 1.0, 1.0)
        assert not guard.passes(5, loss, norm)
        assert not guard.passes(6, loss, norm)
        guard.check()
        assert not guard.passes(7, loss, norm)
        with pytest.raises(ConfigError, match=r"^step 7: .*usually about 1; 3 steps in a row were skipped"):
            guard.check()
        assert guard.usual == 1.0

    def test_it_goes_on_from_its_state(self) -> None:
        straight, second = Guard(spike=2, patience=5), Guard(spike=2, patience=5)
        norms = np.random.default_rng(0).lognormal(0, 0.5, 400)
        answers = [straight.passes(n, 1.0, norm) for n, norm in enumerate(norms[:200])]
        second.load_state_dict(straight.state_dict())
        rest = [straight.passes(n, 1.0, norm) for n, norm in enumerate(norms[200:])]
        assert [second.passes(n, 1.0, norm) for n, norm in enumerate(norms[200:])] == rest
        assert not all(answers + rest)
        assert second.state_dict() == straight.state_dict()


class TestNoising:
    PLAIN = Noising(seed=3, purpose=Purpose.NOISE, patterns=TimestepPatterns())

    def test_noise_belongs_to_the_element_whoever_has_it(self) -> None:
        latents, embeddings = np.ones((6, 3, 4, 5), np.float32), np.ones((6, 3, 8), np.float32)
        present = np.ones((6, 3), bool)
        whole = self.PLAIN.examples(latents, embeddings, present, range(40, 46))
        part = self.PLAIN.examples(latents[:2], embeddings[:2], present[:2], [44, 41])
        assert torch.equal(part.noise, whole.noise[[4, 1]])
        assert torch.equal(part.tau, whole.tau[[4, 1]])
        assert len({row.numpy().tobytes() for row in whole.noise}) == 6
        other = Noising(seed=4, purpose=Purpose.NOISE, patterns=TimestepPatterns())
        assert not torch.equal(other.examples(latents, embeddings, present, range(40, 46)).noise, whole.noise)

    def test_what_is_absent_is_told_by_each_example(self) -> None:
        latents, embeddings = np.ones((50, 3, 1, 1), np.float32), np.ones((50, 3, 1), np.float32)
        patterns = TimestepPatterns(all=1, mix_given=1, submix_given=0, source_given=0)
        noising = Noising(seed=0, purpose=Purpose.NOISE, patterns=patterns)
        present = np.random.default_rng(0).random((50, 3)) < 0.5
        there, whole = torch.from_numpy(present), noising.examples(latents, embeddings, present | True, range(50))
        examples = noising.examples(latents, embeddings, present, range(50))
        assert torch.equal(examples.noise, whole.noise)
        assert torch.equal(examples.tau, torch.where(there, whole.tau, 1.0))
        assert torch.equal(examples.counted, ((whole.tau > 0) & there).float())
        assert torch.equal(whole.counted, (whole.tau > 0).float())
        assert 0 < (whole.tau == 0).sum() < 50
        assert torch.equal(examples.latents[..., 0, 0], there.float())
        assert torch.equal(examples.embeddings[..., 0], there.float())

    def test_noise_and_levels_are_spread_as_they_should(self) -> None:
        examples = self.PLAIN.examples(
            np.zeros((2000, 3, 2, 8), np.float32),
            np.zeros((2000, 3, 1), np.float32),
            np.ones((2000, 3), bool),
            range(2000),
        )
        assert examples.noise.mean().abs() < 0.01
        assert examples.noise.std() == pytest.approx(1, abs=0.01)
        for track in range(3):
            assert (examples.tau[:, track] == 0).float().mean() == pytest.approx(0.25, abs=0.04)
        levels = examples.tau.amax(dim=1)
        assert levels.min() >= 0.02
        assert levels.mean() == pytest.approx(0.51, abs=0.02)

    def test_errors_are_in_float32(self) -> None:
        v = torch.full((2, 3, 4, 5), 3.0, dtype=torch.bfloat16)
        errors = track_errors(v, torch.ones(2, 3, 4, 5))
        assert errors.dtype == torch.float32
        assert errors.tolist() == [[4.0] * 3] * 2


class TestPreemption:
    def test_sigterm_is_only_noted_within(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        with Preemption() as preemption:
            assert not preemption.asked
            os.kill(os.getpid(), signal.SIGTERM)
            assert preemption.asked
        assert signal.getsignal(signal.SIGTERM) is before

    def test_a_mark_asks_too(self, tmp_path: Path) -> None:
        with Preemption(tmp_path / "mark") as preemption:
            assert not preemption.asked
            (tmp_path / "mark").touch()
            assert preemption.asked


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_state_that_cannot_be_written_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StoreError, match=r"state.pt: cannot be written \(.*\); free some space"):
        save_state(tmp_path / "state.pt", {})
    assert list(tmp_path.iterdir()) == []
