"""`mgeldm train`: every shipped recipe takes a step, what a dry run tells, errors in one line, samples to listen to."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mgeldm.cli import main
from mgeldm.model import JointTransformer
from tests.support.shards import CHANNELS, DIM, SOURCES, write_dataset
from tests.support.training import audible
from training.config import RECIPES, TrainConfig, load_recipe
from training.dry_run import count_parameters, forward_cost

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.yaml"))
SHRUNKEN = ["--model.depth", "1", "--model.width_per_track", "32", "--model.heads", "1", "--compile", "false"]
"""What the step overrides besides device, batch and steps: the network's size, and that it is compiled."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "a", {"train": 9, "validation": 3}, frames=80)


@pytest.fixture(scope="module")
def stems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set whose windows have four stems."""
    folder = tmp_path_factory.mktemp("data") / "stems"
    return write_dataset(folder, {"train": 6, "validation": 3}, frames=80, sources=SOURCES[:1])


def call(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    status = main(["train", *words, "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    shown: dict[str, Any] = json.loads(out)
    return shown


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["train", *words]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mgeldm train: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("recipe", SHIPPED)
def test_every_shipped_recipe_takes_a_step(
    capsys: pytest.CaptureFixture[str], data: Path, stems: Path, tmp_path: Path, recipe: str
) -> None:
    used = stems if recipe == "stems" else data
    words = [recipe, "--data", str(used), "--out", str(tmp_path / "run"), "--steps", "1", "--device", "cpu"]
    shown = call(capsys, *words, "--stream.batch", "2", *SHRUNKEN)
    assert shown["steps"] == 1
    assert shown["loss"] > 0
    assert shown["val_loss"] > 0
    assert (tmp_path / "run/checkpoint/model.safetensors").is_file()


def test_the_papers_trainings() -> None:
    for name, steps, batch in (("t1", 200_000, 64), ("t2", 200_000, 64), ("t3", 200_000, 64), ("t4", 320_000, 128)):
        config = load_recipe(RECIPES / f"{name}.yaml")
        assert (config.preset, config.steps, config.stream.batch) == ("paper", steps, batch)
        assert (config.learning_rate, config.weight_decay, config.clip, config.ema) == (5e-5, 1e-3, 1.0, 0.9999)
        assert (config.schedule, config.stream.crop_frames, config.stream.condition_dropout) == (
            "inverse_sqrt",
            80,
            0.1,
        )
        assert not config.normalise


class TestDryRun:
    def test_what_it_tells(self, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
        words = ["tiny", f"--data={data}=1", f"--data={data}=3", "--out", str(tmp_path / "run"), "--dry-run"]
        shown = call(capsys, *words, "--calibrate", "never", "--steps", "60", "--stream.batch", "6")
        network = JointTransformer(TrainConfig().network(CHANNELS, DIM))
        parameters = sum(p.numel() for p in network.parameters())
        assert shown["parameters"] == parameters
        assert {k: v for k, v in shown["memory"].items() if k != "activations"} == {
            "weights": 4 * parameters, "gradients": 4 * parameters, "optimizer": 8 * parameters,
            "average": 4 * parameters,
        }  # fmt: skip
        assert shown["memory_total"] == sum(shown["memory"].values())
        assert shown["samples"] == {str(data): 9}
        assert shown["corpora"] == {"toy": 9}
        assert shown["epochs"] == {str(data): 40.0}
        assert shown["tokens_a_step"] == 6 * 41
        assert shown["crop_seconds"] == pytest.approx(40 * 2048 / 16_000)
        assert shown["hours_seen"] == pytest.approx(360 * 40 * 2048 / 16_000 / 3600)
        assert not (tmp_path / "run").exists()

    def test_epochs(self, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
        words = ["tiny", "--data", str(data), "--out", str(tmp_path), "--dry-run", "--calibrate", "never"]
        shown = call(capsys, *words, "--steps", "60", "--stream.batch", "6")
        assert shown["epochs"] == {str(data): 40.0}

    def test_time_from_real_steps(self, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
        words = ["tiny", "--data", str(data), "--out", str(tmp_path / "run"), "--dry-run", "--device", "cpu", *SHRUNKEN]
        shown = call(capsys, *words, "--steps", "7200", "--stream.batch", "2")
        assert 0 < shown["seconds_a_step"] < 5
        assert shown["expected_hours"] == pytest.approx(2 * shown["seconds_a_step"])
        assert not (tmp_path / "run").exists()

    def test_activations_are_those_of_a_real_pass(self) -> None:
        config = load_recipe(RECIPES / "tiny.yaml", ["stream.crop_frames=8"])
        model = config.network(CHANNELS, DIM)
        network, kept = JointTransformer(model), {}
        weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
        alive = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
                alive.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            network(torch.zeros(2, 3, CHANNELS, 8), torch.zeros(2, 3), torch.zeros(2, 3, DIM))
        _, activations = forward_cost(config, model, 2)
        assert activations == pytest.approx(sum(kept.values()), rel=0.02)

    def test_work_follows_the_size(self) -> None:
        config = load_recipe(RECIPES / "tiny.yaml")
        model = config.network(64, 512)
        flops, activations = forward_cost(config, model, 2)
        tokens = 2 * (config.stream.crop_frames + 1)
        # Less than two for each parameter and token, since the conditions are mapped once an example.
        assert 0.6 < flops / (2 * count_parameters(model) * tokens) < 1
        assert forward_cost(config, model, 4) == (2 * flops, pytest.approx(2 * activations, rel=0.01))
        recomputed = load_recipe(RECIPES / "tiny.yaml", ["recompute=true"])
        assert forward_cost(recomputed, model, 2)[1] < 0.1 * activations


class TestRefused:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--stream.bach", "3"], "no option --stream.bach; did you mean --stream.batch?"),
            (["--save-evry", "3"], "no option --save-evry; did you mean --save_every?"),
            (["--schedule", "linear"], "schedule"),
            (["--model.heads", "7"], "heads"),
            (["--stream.batch", "6", "--accumulate", "4"], "stream.batch 6 cannot be divided among 1 processes"),
            (["--present", "[mix]"], "patterns.submix_given must be 0, since 'submix' is not among present"),
            (["--present", "[vocals]"], "present ['vocals']: give one or more of mix, submix, source"),
            (["--listen_every", "5"], "needs tensorboard"),
            (["--nodes", "4"], "--nodes, --gpus-per-node, --cpu-workers and --address go with --ray"),
            (["--address", "ray:1"], "--nodes, --gpus-per-node, --cpu-workers and --address go with --ray"),
            (["--dry-run", "--nodes", "4"], "--nodes, --gpus-per-node, --cpu-workers and --address go with --ray"),
            (["--dry-run", "--ray", "--gpus-per-node", "0"], "1 nodes of 0 GPUs are no process"),
            (["--dry-run", "--ray", "--nodes", "-1", "--gpus-per-node", "-1"], "-1 nodes of -1 GPUs are no process"),
            (["--dry-run", "--ray", "--cpu-workers", "-3"], "-3 processes without GPUs are none"),
            (["--ray", "--cpu-workers", "-3"], "-3 processes without GPUs are none"),
            (["--ray", "--cpu-workers", "2", "--address", "nonsense"], "nonsense: no address of a Ray cluster; give"),
            (["--ray", "--cpu-workers", "2", "--address", "127.0.0.1:9"], "127.0.0.1:9: no Ray cluster answers ("),
            (["--seed", "99999999999999999999999"], "seed 99999999999999999999999 must be at least 0 and below 2**63"),
            (["--learning_rate", ".inf"], "learning_rate inf must be a number above 0"),
            (["--calibrate", "always"], "--calibrate always goes with --dry-run"),
            (["--stems.instruments", "[bass, organ]"], "no window has 'organ' as a source; sources are bass, drums"),
            (["--stems.instruments", "[bass]", "--present", "[mix]"], "and present ['mix']: choose one"),
            (["--wandb", "mine"], "the package is not installed; `pip install wandb`"),
        ],
    )
    def test_options(
        self, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, words: list[str], message: str
    ) -> None:
        base = ["tiny", "--data", str(data), "--out", str(tmp_path / "run"), "--device", "cpu"]
        assert message in refused(capsys, *base, *words)

    def test_an_unknown_key_of_a_recipe(self, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
        recipe = tmp_path / "mine.yaml"
        recipe.write_text("learning_rat: 1e-3\n")
        message = refused(capsys, str(recipe), "--data", str(data), "--out", str(tmp_path / "run"))
        assert f"{recipe}: a recipe has no 'learning_rat'; did you mean 'learning_rate'?" in message

    def test_another_codec(self, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
        other = write_dataset(tmp_path / "b", {"train": 2}, encoder="other")
        message = refused(capsys, "tiny", "--data", str(data), "--data", str(other), "--out", str(tmp_path / "run"))
        assert f"{data} and {other} were" in message
        assert "encode them alike" in message

    def test_no_such_subset(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        other = write_dataset(tmp_path / "b", {"test": 2})
        message = refused(capsys, "tiny", "--data", str(other), "--out", str(tmp_path / "run"))
        assert "no sample of subset 'train'; it has {'test': 2}" in message

    def test_a_changed_recipe(self, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
        words = ["tiny", "--data", str(data), "--out", str(tmp_path), "--steps", "1", "--device", "cpu", *SHRUNKEN]
        call(capsys, *words)
        message = refused(capsys, *words, "--ema", "0.5", "--steps", "2")
        assert "made with another recipe (ema 0.99, now 0.5); use a new --out, or --no-resume" in message
        assert call(capsys, *words, "--ema", "0.5", "--resume", "never")["steps"] == 1

    def test_a_file_as_the_run_folder(self, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
        (tmp_path / "run").write_text("mine")
        message = refused(capsys, "tiny", "--data", str(data), "--out", str(tmp_path / "run"), *SHRUNKEN)
        assert f"{tmp_path / 'run'}: cannot be written" in message
        assert (tmp_path / "run").read_text() == "mine"

    def test_a_url_as_the_run_folder(
        self, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for words in ([], ["--ray"]):
            message = refused(capsys, "tiny", "--data", str(data), "--out", "s3://bucket/run", *SHRUNKEN, *words)
            assert "s3:/bucket/run: a URL, where a folder is needed" in message
        assert list(tmp_path.iterdir()) == []


def test_a_run_that_has_its_steps_says_so(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, data: Path, tmp_path: Path
) -> None:
    words = ["tiny", "--data", str(data), "--out", str(tmp_path), "--device", "cpu", *SHRUNKEN]
    call(capsys, *words, "--steps", "2")
    caplog.clear()
    assert call(capsys, *words, "--steps", "1")["steps"] == 2
    assert f"{tmp_path / 'state.pt'} is at step 2 of 1: nothing is left to train" in caplog.text


def test_nothing_to_listen_to(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "data", {"train": 3})
    words = ["tiny", "--data", str(data), "--out", str(tmp_path / "run"), "--device", "cpu", *SHRUNKEN]
    message = refused(capsys, *words, "--tensorboard", "true", "--listen_every", "1")
    assert "listen_every 1 needs data with a validation subset" in message


@pytest.mark.slow
def test_samples_to_listen_to(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    heard, folder = audible(tmp_path)
    words = ["tiny", "--out", str(tmp_path / "run"), "--steps", "2", "--device", "cpu", "--log_every", "1", *SHRUNKEN]
    words += ["--tensorboard", "true", "--listen_every", "2", "--codec", str(folder)]
    assert f"codec {str(folder)!r} is" in refused(capsys, *words, "--data", str(data))
    call(capsys, *words, "--data", str(heard))
    events = EventAccumulator(str(tmp_path / "run/tensorboard"), size_guidance={"audio": 0})
    events.Reload()
    assert set(events.Tags()["audio"]) == {
        "generate/mix", "extract/given mix", "extract/source", "extract/submix", "impute/given submix",
        "impute/source", "accompany/given source", "accompany/submix",
    }  # fmt: skip
    assert [event.step for event in events.Scalars("loss")] == [1, 2]
    assert len(events.Audio("extract/source")[0].encoded_audio_string) > 1000
