"""Training of the joint model: one step by hand, exact resume, what is written and what is refused."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manifests.atomic import TEMPORARY_PREFIX
from manifests.errors import CheckpointError, ConfigError, MGELDMError, ShardError
from mgeldm.checkpoint import load_checkpoint
from mgeldm.diffusion.timesteps import TimestepPatterns
from tests.support.shards import CHANNELS, DIM, write_dataset
from tests.support.training import ALONE, SIX_STEPS, made, metrics
from training import checkpoints
from training import run as run_module
from training.config import TrainConfig
from training.loop import Prepared, open_data, prepared, train
from training.parallel import Workers
from training.randomness import Purpose, generator
from training.run import Run
from training.run_files import Metrics, read_metrics
from training.stream import Batch, StreamConfig
from training.validation import GIVEN, Validation

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "a", {"train": 9, "validation": 3}, frames=12)


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of six steps."""
    out = tmp_path_factory.mktemp("straight")
    train(SIX_STEPS, [(data, None)], out)
    return out


def step(run: Run, batch: Prepared) -> dict[str, float]:
    return run.train_step(batch.examples)


def validation(config: TrainConfig, data: Path, run: Run) -> Validation:
    sets, _ = open_data(config, [(data, None)])
    return Validation(sets, config, run.mean, run.std, ALONE)


def state(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(out / "state.pt", weights_only=True)
    return loaded


def flat(value: Any) -> list[Any]:
    """Tensors as bytes, all else as it is."""
    if isinstance(value, torch.Tensor):
        return [value.numpy().tobytes()]
    if isinstance(value, dict):
        return [x for key in value for x in (key, *flat(value[key]))]
    if isinstance(value, list | tuple):
        return [x for entry in value for x in flat(entry)]
    return [value]


def assert_same_run(a: Path, b: Path) -> None:
    for name in ("metrics.jsonl", "recipe.json", "checkpoint/config.json", "checkpoint/model.safetensors"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    assert flat(state(a)) == flat(state(b))


class Killed(Exception):
    """Stands for the end of the process."""


def kill(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int) -> None:
    """Make the ``call``-th call of ``owner.name`` raise `Killed` before it does anything."""
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def killing(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, killing)


class TestStep:
    @pytest.mark.parametrize(
        ("pattern", "noised", "normalise"),
        [
            ("all", (0, 1, 2), True),
            ("mix_given", (1, 2), True),
            ("submix_given", (0, 2), True),
            ("source_given", (0, 1), True),
            ("source_given", (0, 1), False),
        ],
    )
    def test_loss_by_hand(
        self, data: Path, tmp_path: Path, pattern: str, noised: tuple[int, ...], normalise: bool
    ) -> None:
        weights = dict.fromkeys(("all", "mix_given", "submix_given", "source_given"), 0.0) | {pattern: 1.0}
        config = replace(SIX_STEPS, patterns=TimestepPatterns(**weights), seed=3, normalise=normalise)
        run, batch = made(config, data, tmp_path)
        draws = [generator(3, Purpose.NOISE, element) for element in range(4)]
        tau = torch.cat([config.patterns.sample(1, rng) for rng in draws])
        eps = np.stack([rng.standard_normal((3, CHANNELS, 6), dtype=np.float32) for rng in draws])
        mean, std = ((100, 5, 0, 0), (80, 5, 1, 1)) if normalise else ((0,) * CHANNELS, (1,) * CHANNELS)
        assert (run.checkpoint.latent_mean, run.checkpoint.latent_std) == (mean, std)
        z0 = (batch.examples.latents.numpy() - np.array(mean)[:, None]) / np.array(std)[:, None]
        angle = math.pi / 2 * tau.numpy()[..., None, None]
        noisy = (np.cos(angle) * z0 + np.sin(angle) * eps).astype(np.float32)
        with torch.no_grad():
            v = run.network(torch.from_numpy(noisy), tau, batch.examples.embeddings).numpy()
        errors = ((v - (np.cos(angle) * eps - np.sin(angle) * z0)) ** 2).mean(axis=(0, 2, 3))
        figures = step(run, batch)
        assert figures["loss"] == pytest.approx(errors[list(noised)].mean(), rel=1e-4)
        named = {name: errors[track] for track, name in enumerate(("mix", "submix", "source")) if track in noised}
        found = {key.removeprefix("loss_"): value for key, value in figures.items() if key.startswith("loss_")}
        assert found == pytest.approx(named, rel=1e-4)

    def test_what_a_given_track_should_be_predicted_as_has_no_part(self, data: Path, tmp_path: Path) -> None:
        config = replace(SIX_STEPS, patterns=TimestepPatterns(all=0, mix_given=1, submix_given=0, source_given=0))
        run, batch = made(config, data, tmp_path)
        step(run, batch)
        last = run.network.get_parameter("postprocess_conv.weight").grad
        assert last is not None
        assert (last[:CHANNELS] == 0).all()
        assert (last[CHANNELS:] != 0).any()

    def test_noise_and_levels_are_drawn_anew_at_every_step(self, tmp_path: Path) -> None:
        # One window without room for another crop: only noise and levels can differ.
        alone = write_dataset(tmp_path / "data", {"train": 1}, frames=6)
        config = replace(SIX_STEPS, stream=replace(SIX_STEPS.stream, batch=1))
        _, stream = open_data(config, [(alone, None)])
        batches = prepared(stream, stream.start(), config, ALONE)
        noise, tau = zip(*((b.examples.noise, b.examples.tau) for b in (next(batches) for _ in range(4))), strict=True)
        batches.close()
        assert len({x.numpy().tobytes() for x in noise}) == len({x.numpy().max() for x in tau}) == 4

    def test_what_fails_ahead_fails_at_its_turn(self, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _, stream = open_data(SIX_STEPS, [(data, None)])
        batches = stream.batches(stream.start())
        made = [next(batches) for _ in range(3)]
        batches.close()

        def three(*_: object) -> Iterator[Batch]:
            yield from made
            raise ShardError("the fourth is damaged")

        monkeypatch.setattr(stream, "batches", three)
        ready = prepared(stream, stream.start(), SIX_STEPS, ALONE)
        assert [next(ready).state.drawn for _ in range(3)] == [4, 8, 12]
        with pytest.raises(ShardError, match="the fourth"):
            next(ready)

    @pytest.mark.parametrize("std", [(0.0, 1, 1, 1), (1.0, 1.0), (math.nan, 1, 1, 1), (1e-60, 1, 1, 1), ("1", 1, 1, 1)])
    def test_a_card_by_which_nothing_can_be_normalised(self, tmp_path: Path, std: tuple[float, ...]) -> None:
        odd = write_dataset(tmp_path / "data", {"train": 4}, frames=8, latent_std=std)
        with pytest.raises(ShardError, match=r"data/dataset.json: latent_mean and latent_std must be 4 numbers each"):
            train(SIX_STEPS, [(odd, None)], tmp_path / "out")
        assert train(replace(SIX_STEPS, steps=1, normalise=False), [(odd, None)], tmp_path / "out").steps == 1

    def test_gradients_are_clipped(self, data: Path, tmp_path: Path) -> None:
        run, batch = made(replace(SIX_STEPS, clip=1e-3), data, tmp_path)
        assert step(run, batch)["norm"] > 1e-2
        gradients = [p.grad for p in run.network.parameters() if p.grad is not None]
        assert torch.stack([g.square().sum() for g in gradients]).sum().sqrt().item() == pytest.approx(1e-3, rel=1e-3)

    def test_learning_rate(self, straight: Path) -> None:
        rates = [row["lr"] for row in metrics(straight) if "lr" in row]
        expected = [1e-3 * min(n / 2, math.sqrt(2 / n)) for n in range(1, 7)]
        np.testing.assert_allclose(rates, expected, rtol=1e-12)

    def test_steps_that_are_not_finite_are_skipped_and_end_the_run(self, tmp_path: Path) -> None:
        broken = write_dataset(tmp_path / "data", {"train": 4}, frames=8, latent_std=(1e-30, 1.0, 1.0, 1.0))
        config = replace(SIX_STEPS, patience=2)
        run, batch = made(config, broken, tmp_path / "out")
        before = flat([run.network.state_dict(), run.average.state_dict(), run.optimizer.state_dict()["state"]])
        assert step(run, batch)["skipped"] == 1
        assert run.step == 1
        assert step(run, batch)["skipped"] == 2
        with pytest.raises(ConfigError, match=r"^step 2: the loss is (nan|inf).*2 steps in a row.*lower learning rate"):
            run.guard.check()
        assert flat([run.network.state_dict(), run.average.state_dict(), run.optimizer.state_dict()["state"]]) == before
        with pytest.raises(ConfigError, match="step 2"):
            train(config, [(broken, None)], tmp_path / "out")
        assert not (tmp_path / "out/state.pt").exists()
        told = metrics(tmp_path / "out")
        assert [row["skipped"] for row in told] == [1, 2]
        assert [row["loss"] for row in told] == [None, None], "JSON has no NaN"

    def test_weights_that_are_not_finite_never_take_the_place_of_others(self, data: Path, tmp_path: Path) -> None:
        def spoil(run: Run) -> None:
            if run.step == 4:
                with torch.no_grad():
                    next(iter(run.average.values.values())).fill_(torch.nan)

        config = replace(SIX_STEPS, steps=9, save_every=3, validate_every=100)
        with pytest.raises(ConfigError, match=r"^step 6: weights are no longer finite, and are not saved"):
            train(config, [(data, None)], tmp_path, after_step=spoil)
        assert load_checkpoint(tmp_path / "checkpoint")[0].training["steps"] == 3
        assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 3

    def test_a_network_that_says_nothing_is_not_saved(
        self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Weights may be finite and of no use, before so many steps are skipped that the run ends."""
        train(replace(SIX_STEPS, steps=3), [(data, None)], tmp_path)
        before = (tmp_path / "state.pt").read_bytes()
        monkeypatch.setattr(Validation, "__call__", lambda *_: {"val_loss": math.nan})
        with pytest.raises(ConfigError, match=r"^step 6: the validation loss is nan: training has diverged"):
            train(replace(SIX_STEPS, save_every=100), [(data, None)], tmp_path)
        assert (tmp_path / "state.pt").read_bytes() == before

    def test_nothing_is_saved_among_steps_that_do_not_pass(self, data: Path, tmp_path: Path) -> None:
        seen = []

        def spoil(run: Run) -> None:
            run.guard.in_a_row = 1 if 1 <= run.step < 5 else 0
            seen.append((tmp_path / "state.pt").exists())

        train(replace(SIX_STEPS, save_every=1, validate_every=100), [(data, None)], tmp_path, after_step=spoil)
        assert seen == [False] * 5 + [True]

    def test_parts_of_a_batch_give_the_gradient_of_the_whole(self, data: Path, tmp_path: Path) -> None:
        figures = []
        for accumulate in (1, 2, 4):
            run, batch = made(replace(SIX_STEPS, accumulate=accumulate), data, tmp_path)
            step(run, batch)
            figures.append(step(run, batch))
        assert figures[1] == pytest.approx(figures[0], rel=1e-5)
        assert figures[2] == pytest.approx(figures[0], rel=1e-5)

    def test_recomputing_is_bitwise_the_same(self, data: Path, tmp_path: Path) -> None:
        curves = []
        for recompute in (False, True):
            run, batch = made(replace(SIX_STEPS, recompute=recompute), data, tmp_path)
            curves.append([step(run, batch) for _ in range(3)])
        assert curves[0] == curves[1]

    def test_arithmetic_in_bfloat16_leaves_weights_in_float32(self, data: Path, tmp_path: Path) -> None:
        losses = []
        for precision in ("float32", "bfloat16"):
            run, batch = made(replace(SIX_STEPS, precision=precision), data, tmp_path)  # type: ignore[arg-type]
            step(run, batch)
            losses.append(step(run, batch)["loss"])
        assert {p.dtype for p in run.network.parameters()} == {torch.float32}
        assert losses[0] != losses[1]
        assert losses[1] == pytest.approx(losses[0], rel=1e-2)

    def test_absent_tracks_have_no_part(self, data: Path, tmp_path: Path) -> None:
        patterns = TimestepPatterns(all=1, mix_given=0, submix_given=0, source_given=0)
        config = replace(SIX_STEPS, present=("mix",), patterns=patterns)
        run, batch = made(config, data, tmp_path)
        examples = batch.examples
        assert batch.examples.counted.sum() == 4
        assert (examples.tau[:, 1:] == 1).all()
        assert (examples.embeddings[:, 1:] == 0).all()
        assert (examples.embeddings[:, 0] != 0).any()
        assert examples.counted.tolist() == [[1.0, 0.0, 0.0]] * 4
        figures = step(run, batch)
        assert figures["loss"] == figures["loss_mix"]
        assert "loss_source" not in figures
        last = run.network.get_parameter("postprocess_conv.weight").grad
        assert last is not None
        assert (last[CHANNELS:] == 0).all()
        assert (last[:CHANNELS] != 0).any()
        # What the absent tracks hold makes no difference.
        other, same = made(config, data, tmp_path)
        noise = {"latents": same.examples.latents.clone()}
        assert (noise["latents"][:, 1:] == 0).all()
        assert step(other, same) == figures


class TestResume:
    def test_steps_then_resume_are_bitwise_the_straight_run(self, data: Path, straight: Path, tmp_path: Path) -> None:
        assert train(replace(SIX_STEPS, steps=4), [(data, None)], tmp_path).steps == 4
        # The shorter run validated at its end, the straight one did not.
        rows = [row for row in metrics(tmp_path) if row["step"] != 4 or "loss" in row]
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert train(SIX_STEPS, [(data, None)], tmp_path).steps == 6
        assert_same_run(tmp_path, straight)

    @pytest.mark.parametrize("call", [1, 2, 4, 5, 6])
    def test_killed_in_a_step(
        self, data: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
    ) -> None:
        with monkeypatch.context() as patch:
            kill(patch, Run, "train_step", call)
            with pytest.raises(Killed):
                train(SIX_STEPS, [(data, None)], tmp_path)
        with open(tmp_path / "metrics.jsonl", "a") as file:
            file.write('{"step": 1, "lo')
        train(SIX_STEPS, [(data, None)], tmp_path)
        assert_same_run(tmp_path, straight)

    @pytest.mark.parametrize(("owner", "name"), [(checkpoints, "save_checkpoint"), (run_module, "save_state")])
    @pytest.mark.parametrize("call", [1, 2, 3])
    def test_killed_while_saving(
        self,
        data: Path,
        straight: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        owner: Any,
        name: str,
        call: int,
    ) -> None:
        with monkeypatch.context() as patch:
            kill(patch, owner, name, call)
            with pytest.raises(Killed):
                train(SIX_STEPS, [(data, None)], tmp_path)
        train(SIX_STEPS, [(data, None)], tmp_path)
        assert_same_run(tmp_path, straight)

    @pytest.mark.parametrize("asked", [2, 3, 6])
    def test_who_is_asked_to_end_saves_first_and_leaves_a_validation_to_the_next(
        self, data: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int
    ) -> None:
        def ask(run: Run) -> None:
            if run.step == asked - 1:
                (tmp_path / "stop").touch()

        out = tmp_path / "run"
        summary = train(SIX_STEPS, [(data, None)], out, stop=tmp_path / "stop", after_step=ask)
        assert (summary.steps, summary.stopped) == (asked, asked < 6)
        assert ["val_loss" in row for row in metrics(out)[-2:]] == [False, asked == 6]
        (tmp_path / "stop").unlink()
        if asked == 3:  # it is killed after the validation that was left to it
            with monkeypatch.context() as patch:
                kill(patch, Run, "train_step", call=1)
                with pytest.raises(Killed):
                    train(SIX_STEPS, [(data, None)], out)
            assert "val_loss" in metrics(out)[-1]
        train(SIX_STEPS, [(data, None)], out)
        assert_same_run(out, straight)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda state: state.pop("average"), r"not the whole state of a run \('average'\)"),
            (
                lambda state: state["optimizer"]["state"].pop(3),
                r"not the whole .* \(the optimizer's moments of parameter 3\)",
            ),
            (
                lambda state: state["optimizer"]["state"][3].update(exp_avg=torch.zeros(7)),
                "not .* moments of parameter 3",
            ),
            (lambda state: state.update(best="low"), "not the whole state of a run .*'low'"),
            (lambda state: state.pop("step"), "not the state of a training run"),
            (lambda state: state.update(step=2.5), "not the state of a training run"),
            (lambda state: state.update(recipe=[]), "not the state of a training run"),
        ],
    )
    def test_a_state_that_lacks_something(
        self, data: Path, tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], message: str
    ) -> None:
        train(replace(SIX_STEPS, steps=2), [(data, None)], tmp_path)
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        spoil(state)
        torch.save(state, tmp_path / "state.pt")
        with pytest.raises(CheckpointError, match=rf"state.pt: {message}.*; use a new --out, or --no-resume"):
            train(SIX_STEPS, [(data, None)], tmp_path)

    @pytest.mark.parametrize(
        "change",
        [{"wandb": "mine"}, {"tensorboard": True, "listen_every": 1}, {"device": "cuda:99"}],
        ids=lambda change: next(iter(change)),
    )
    def test_what_is_refused_gives_up_no_earlier_run(
        self, data: Path, straight: Path, tmp_path: Path, change: dict[str, Any]
    ) -> None:
        out = tmp_path / "run"
        shutil.copytree(straight, out)
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        with pytest.raises(MGELDMError):
            train(replace(SIX_STEPS, seed=1, **change), [(data, None)], out, resume=False)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before

    def test_what_was_no_option_when_a_run_began_is_as_it_is_by_default(
        self, data: Path, straight: Path, tmp_path: Path
    ) -> None:
        train(replace(SIX_STEPS, steps=3), [(data, None)], tmp_path)
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        assert state["recipe"].pop("normalise") is True
        torch.save(state, tmp_path / "state.pt")
        with pytest.raises(CheckpointError, match=r"another recipe \(normalise True, now False\)"):
            train(replace(SIX_STEPS, normalise=False), [(data, None)], tmp_path)
        train(SIX_STEPS, [(data, None)], tmp_path)
        assert_same_run(tmp_path, straight)

    def test_a_finished_run_is_only_validated(
        self, data: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()}
        monkeypatch.delattr(Run, "train_step")
        summary = train(SIX_STEPS, [(data, None)], straight)
        assert {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()} == before
        assert (summary.steps, summary.loss, summary.first_loss) == (6, None, None)
        assert summary.val_loss == metrics(straight)[-1]["val_loss"]

    @pytest.mark.parametrize(
        "change",
        [{"learning_rate": 2e-3}, {"seed": 1}, {"ema": 0.5}, {"stream": StreamConfig(crop_frames=6, batch=2)}],
    )
    def test_another_recipe_is_refused_and_nothing_is_touched(
        self, data: Path, straight: Path, change: dict[str, Any]
    ) -> None:
        before = {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()}
        with pytest.raises(CheckpointError, match=r"another recipe \(.*, now .*\); use a new --out"):
            train(replace(SIX_STEPS, steps=9, **change), [(data, None)], straight)
        assert {path: path.read_bytes() for path in straight.rglob("*") if path.is_file()} == before

    @pytest.mark.parametrize("change", [{"subsets": {"train": 8}}, {"latent_mean": (0.0,) * 4}, {"encoder": "x"}])
    def test_other_data_is_refused(self, straight: Path, tmp_path: Path, change: dict[str, Any]) -> None:
        subsets = change.pop("subsets", {"train": 9})
        other = write_dataset(tmp_path / "other", subsets, frames=12, **change)
        with pytest.raises(CheckpointError, match="made with other data, or other weights of it; use a new --out"):
            train(SIX_STEPS, [(other, None)], straight)

    def test_other_weights_of_the_data_are_refused(self, data: Path, tmp_path: Path) -> None:
        config = replace(SIX_STEPS, steps=1)
        train(config, [(data, 1.0), (data, 1.0)], tmp_path)
        with pytest.raises(CheckpointError, match="other data"):
            train(config, [(data, 1.0), (data, 2.0)], tmp_path)

    def test_beginning_anew_drops_the_old_run(
        self, data: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train(replace(SIX_STEPS, seed=5), [(data, None)], tmp_path)
        with monkeypatch.context() as patch:
            kill(patch, Run, "train_step", 2)
            with pytest.raises(Killed):
                train(SIX_STEPS, [(data, None)], tmp_path, resume=False)
        assert [row["step"] for row in metrics(tmp_path)] == [1]
        train(SIX_STEPS, [(data, None)], tmp_path)
        assert_same_run(tmp_path, straight)

    def test_a_state_that_cannot_be_read(self, data: Path, tmp_path: Path) -> None:
        (tmp_path / "state.pt").write_bytes(b"no state")
        with pytest.raises(CheckpointError, match=r"state.pt: not readable .*use a new --out") as caught:
            train(SIX_STEPS, [(data, None)], tmp_path)
        assert "\n" not in str(caught.value)


class TestRun:
    def test_the_seed_decides(self, data: Path, straight: Path, tmp_path: Path) -> None:
        again, other = tmp_path / "again", tmp_path / "other"
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        train(SIX_STEPS, [(data, None)], again)
        assert_same_run(again, straight)
        train(replace(SIX_STEPS, seed=1), [(data, None)], other)
        assert metrics(other)[0]["loss"] != metrics(straight)[0]["loss"]

    def test_the_checkpoint_holds_the_average_and_its_origin(self, straight: Path) -> None:
        config, network = load_checkpoint(straight / "checkpoint")
        saved = state(straight)
        weights = dict(network.named_parameters())
        for name, value in weights.items():
            assert torch.equal(value, saved["average"][f"value.{name}"])
        name = "transformer.project_in.weight"
        assert not torch.equal(weights[name], saved["network"][name])
        assert config.model == SIX_STEPS.network(CHANNELS, DIM)
        assert (config.model.width_per_track, config.model.depth, config.model.heads) == (32, 1, 3)
        assert (config.crop_frames, config.latent_mean) == (6, (100.0, 5.0, 0.0, 0.0))
        assert (config.codec["identity"], config.embedder["identity"]) == ("toy codec", "toy embedder")
        assert config.training["steps"] == 6
        assert config.training["data"] == [{"share": 1.0, "samples": {"toy": 9}}]
        assert config.training["recipe"]["stream"]["batch"] == 4

    def test_metrics(self, straight: Path) -> None:
        rows = metrics(straight)
        assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
        validated = [row for row in rows if "val_loss" in row]
        assert [row["step"] for row in validated] == [3, 6]
        for row in validated:
            parts = [row[f"val_loss_{task}"] for task in GIVEN]
            assert row["val_loss"] == pytest.approx(np.mean(parts))

    def test_validation_runs_once_a_time(self, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []
        monkeypatch.setattr(Validation, "__call__", lambda self, network: calls.append(1) or {"val_loss": len(calls)})
        summary = train(SIX_STEPS, [(data, None)], tmp_path)
        assert len(calls) == 2
        assert summary.val_loss == 2

    def test_without_validation_songs(self, tmp_path: Path) -> None:
        alone = write_dataset(tmp_path / "data", {"train": 3}, frames=8)
        summary = train(replace(SIX_STEPS, steps=2), [(alone, None)], tmp_path / "out")
        assert summary.val_loss is None
        assert not any("val_loss" in row for row in metrics(tmp_path / "out"))

    def test_a_damaged_validation_set_is_no_missing_one(self, data: Path, tmp_path: Path) -> None:
        damaged = write_dataset(tmp_path / "data", {"train": 3, "validation": 2}, frames=8)
        next((damaged / "shards").glob("*validation*")).unlink()
        with pytest.raises(ShardError, match="missing, though the index names it"):
            train(SIX_STEPS, [(damaged, None)], tmp_path / "out")

    def test_it_learns(self, data: Path, tmp_path: Path) -> None:
        config = replace(SIX_STEPS, steps=60, warmup=10, save_every=100, validate_every=60, learning_rate=3e-3)
        summary = train(config, [(data, None)], tmp_path)
        assert summary.loss is not None
        assert summary.first_loss is not None
        assert summary.loss < 0.7 * summary.first_loss
        assert summary.parameters == sum(p.numel() for p in load_checkpoint(tmp_path / "checkpoint")[1].parameters())
        losses = [row["loss"] for row in metrics(tmp_path) if "loss" in row]
        assert summary.loss == pytest.approx(np.mean(losses[-6:]))
        assert summary.first_loss == pytest.approx(np.mean(losses[:6]))


class TestValidation:
    def test_fixed_whatever_the_dropout(self, data: Path, tmp_path: Path) -> None:
        run, _ = made(SIX_STEPS, data, tmp_path)
        with run.averaged() as network:
            first, again, dropping, other_seed = (
                validation(config, data, run)(network)
                for config in (
                    SIX_STEPS,
                    SIX_STEPS,
                    replace(SIX_STEPS, stream=replace(SIX_STEPS.stream, condition_dropout=1.0)),
                    replace(SIX_STEPS, seed=1),
                )
            )
        assert first == again == dropping
        assert first != other_seed

    def test_a_perfect_network_has_no_loss(self, data: Path, tmp_path: Path) -> None:
        run, _ = made(SIX_STEPS, data, tmp_path)
        made_once = validation(SIX_STEPS, data, run)
        clean = (next(iter(made_once.tasks.values())).latents - run.mean) / run.std
        seen = 0

        def perfect(noisy: torch.Tensor, tau: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
            # In batches of at most 4, in order: v follows from the noisy and the clean latents.
            nonlocal seen
            begin, seen = seen, (seen + len(noisy)) % 9
            angle = (tau * math.pi / 2)[:, :, None, None]
            known = clean[begin : begin + len(noisy)]
            return torch.where(angle > 0, (noisy * angle.cos() - known) / angle.sin(), torch.full_like(noisy, math.inf))

        figures = made_once(perfect)
        assert max(figures.values()) < 1e-4
        assert min(figures.values()) >= 0

    def test_by_task_track_and_level(self, data: Path, tmp_path: Path) -> None:
        run, _ = made(SIX_STEPS, data, tmp_path)
        made_once = validation(SIX_STEPS, data, run)
        by_hand: dict[str, list[float]] = {}

        def telling(noisy: torch.Tensor, tau: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(noisy)  # the error is then the mean square of the target

        figures = made_once(telling)
        for name, examples in made_once.tasks.items():
            clean = ((examples.latents - run.mean) / run.std).double()
            angle = (examples.tau.double() * math.pi / 2)[..., None, None]
            errors = (angle.cos() * examples.noise - angle.sin() * clean).square().mean(dim=(2, 3))
            for example, track in zip(*np.nonzero(examples.tau.numpy()), strict=True):
                level = examples.tau[example, track].item()
                lower = f"from_{int(level * 4) / 4:.2f}"
                for key in (name, ("mix", "submix", "source")[track], lower):
                    by_hand.setdefault(f"val_loss_{key}", []).append(errors[example, track].item())
        expected = {key: np.mean(values) for key, values in by_hand.items()}
        assert figures.pop("val_loss") == pytest.approx(np.mean([expected[f"val_loss_{name}"] for name in GIVEN]))
        assert figures == pytest.approx(expected)

    def test_shares_of_processes_make_up_the_whole(self, data: Path, tmp_path: Path) -> None:
        run, _ = made(SIX_STEPS, data, tmp_path)
        sets, _ = open_data(SIX_STEPS, [(data, None)])
        whole = validation(SIX_STEPS, data, run).tasks["extract"]
        parts = [
            Validation(sets, SIX_STEPS, run.mean, run.std, Workers(torch.device("cpu"), rank, 2)).tasks["extract"]
            for rank in range(2)
        ]
        assert [len(part.tau) for part in parts] == [5, 5]
        assert torch.equal(torch.stack([parts[0].noise, parts[1].noise], dim=1).flatten(0, 1)[:9], whole.noise)
        # The last is there for equal work only.
        assert parts[1].counted[-1].tolist() == [0.0, 0.0, 0.0]
        assert sum(part.counted.sum().item() for part in parts) == whole.counted.sum().item()


class TestKept:
    def test_the_last_and_the_best(self, data: Path, straight: Path, tmp_path: Path) -> None:
        train(replace(SIX_STEPS, steps=8, keep_last=2, validate_every=1), [(data, None)], tmp_path)
        kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
        assert kept == ["step-00000006", "step-00000008"]
        assert load_checkpoint(tmp_path / "checkpoints" / kept[0])[0].training["steps"] == 6
        last = (tmp_path / "checkpoint/model.safetensors").read_bytes()
        assert (tmp_path / "checkpoints" / kept[1] / "model.safetensors").read_bytes() == last
        validated = {row["step"]: row["val_loss"] for row in metrics(tmp_path) if "val_loss" in row}
        assert load_checkpoint(tmp_path / "best")[0].training["steps"] == min(validated, key=lambda n: validated[n])
        assert not (straight / "checkpoints").exists()

    def test_what_a_person_put_beside_them_stays_and_what_a_kill_left_goes(self, data: Path, tmp_path: Path) -> None:
        folder = tmp_path / "checkpoints"
        own = [folder / "step-00000300-good", folder / "best-ever"]
        left = [folder / f"{TEMPORARY_PREFIX}{10**30}-0-step-00000099", folder / ".dropped-step-00000001"]
        for path in (*own, *left):
            path.mkdir(parents=True)
        train(replace(SIX_STEPS, keep_last=2), [(data, None)], tmp_path)
        assert sorted(path.name for path in folder.iterdir()) == [
            "best-ever", "step-00000004", "step-00000006", "step-00000300-good"
        ]  # fmt: skip

    def test_another_run_in_the_folder_leaves_nothing(self, data: Path, tmp_path: Path) -> None:
        train(replace(SIX_STEPS, keep_last=3), [(data, None)], tmp_path)
        train(replace(SIX_STEPS, steps=2, keep_last=3, validate_every=9), [(data, None)], tmp_path, resume=False)
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


class TestMetricsFile:
    def test_lines_after_the_step_and_cut_ones_are_dropped(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_text('{"step": 1}\n{"step": 2, "a": 3}\n{"other": 1}\nnonsense\n{"step": 3}\n{"step": 2')
        with Metrics(path, 2) as file:
            file.write(3, {"a": 4.5})
        assert path.read_text() == '{"step": 1}\n{"step": 2, "a": 3}\n{"step": 3, "a": 4.5}\n'

    def test_lines_that_are_no_text_are_dropped(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        path.write_bytes(b'{"step": 1}\n\xff\xfe\n')
        with Metrics(path, 2):
            pass
        assert path.read_text() == '{"step": 1}\n'

    def test_what_is_not_finite_is_null_and_not_read(self, tmp_path: Path) -> None:
        path = tmp_path / "metrics.jsonl"
        with Metrics(path, 0) as file:
            file.write(1, {"loss": math.nan, "norm": math.inf, "lr": 0.5})
        assert path.read_text() == '{"step": 1, "loss": null, "norm": null, "lr": 0.5}\n'
        assert read_metrics(path) == [{"step": 1, "lr": 0.5}]


def test_what_killed_processes_were_writing_is_removed(data: Path, tmp_path: Path) -> None:
    train(SIX_STEPS, [(data, None)], tmp_path)
    dead = f"{TEMPORARY_PREFIX}{10**30}-0-"
    own = [
        tmp_path / f"{dead}state.pt",
        tmp_path / f"checkpoint/{dead}model.safetensors",
        tmp_path / f"best/{dead}config.json",
    ]
    others = [tmp_path / f"{dead}mine.txt", tmp_path / "notes.txt"]
    for path in (*own, *others):
        path.write_text("half")
    train(replace(SIX_STEPS, steps=SIX_STEPS.steps + 1), [(data, None)], tmp_path)
    assert not any(path.exists() for path in own)
    assert all(path.exists() for path in others)


def test_the_objective_of_the_recipe_is_trained_and_kept(data: Path, straight: Path, tmp_path: Path) -> None:
    train(replace(SIX_STEPS, objective="rf"), [(data, None)], tmp_path)
    assert load_checkpoint(tmp_path / "checkpoint")[0].objective == "rf"
    assert load_checkpoint(straight / "checkpoint")[0].objective == "v"
    first, other = (json.loads((run / "metrics.jsonl").read_text().split("\n")[0]) for run in (straight, tmp_path))
    assert first["loss"] != other["loss"]
