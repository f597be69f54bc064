"""Stems as tracks: what is laid out, what is absent, training on it, and what is refused."""

import json
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from manifests.errors import CheckpointError, ConfigError, ShardError
from manifests.shards import Sample, ShardReader
from mgeldm import MGELDM
from mgeldm.checkpoint import load_checkpoint
from mgeldm.cli import main
from mgeldm.sampling import SamplingConfig, noise_for, sample
from tests.support import shards
from tests.support.shards import CHANNELS, SOURCES, STEMS, TEXT_AXIS, write_dataset
from tests.support.training import ALONE, SIX_STEPS, made, metrics
from tests.support.training_processes import command, losses, rows, run, write_recipe
from training.config import ModelSize, Stems, TrainConfig, load_recipe, recipe_path
from training.loop import open_data, train
from training.noising import Noising
from training.parallel import Workers
from training.randomness import Purpose
from training.stem_tracks import StemSet
from training.stream import Batch, Stream, StreamConfig
from training.validation import Validation

pytestmark = pytest.mark.usefixtures("one_thread")

SPLITS_OF_STEMS = {0: (0, 1, 2, 3), 1: (1, -1, -1, 0), 2: (-1, 0, -1, -1), 3: (-1, 1, -1, -1), 5: (-1, -1, -1, -1)}
"""Split of bass, drums, guitar, piano in windows of `SOURCES`; -1: absent. Number 4 is not drawn: no source has any."""
CONFIG = replace(
    SIX_STEPS,
    model=ModelSize(width_per_track=32, depth=1, heads=2),
    stems=Stems(instruments=STEMS, given=(1, 1, 1, 1)),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stems(tmp_path_factory.mktemp("data") / "a", {"train": 24, "validation": 6}, per_shard=5)


@pytest.fixture(scope="module")
def straight(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of six steps."""
    out = tmp_path_factory.mktemp("straight")
    train(CONFIG, [(data, None)], out)
    return out


def stem_set(data: Path, crop_frames: int = 40) -> StemSet:
    return StemSet(data, "train", crop_frames, STEMS)


def take(data: Path, config: StreamConfig, count: int, rank: int = 0, world: int = 1, done: int = 0) -> list[Batch]:
    stream = Stream([stem_set(data, config.crop_frames)], None, config, rank, world)
    batches = stream.batches(stream.start())
    taken = list(islice(batches, done, done + count))
    batches.close()
    return taken


def together(batches: list[Batch]) -> tuple[list[int], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Numbers of the windows, latents, embeddings and what is present, of all examples."""
    numbers = [int(key.removeprefix("toy-")) for batch in batches for key in batch.keys]
    latents, embeddings, present = (
        np.concatenate([getattr(batch, name) for batch in batches]) for name in ("latents", "embeddings", "present")
    )
    return numbers, latents, embeddings, present


def write_stems(data: Path, subsets: dict[str, int], **options: Any) -> Path:
    return write_dataset(data, subsets, sources=SOURCES, **options)


class TestLayout:
    def test_tracks_are_the_sources_that_are_one_instrument_alone(self, data: Path) -> None:
        numbers, latents, _, present = together(take(data, StreamConfig(batch=40), 5))
        reader = ShardReader(data)
        for number, tracks, there in zip(numbers, latents, present, strict=True):
            splits = SPLITS_OF_STEMS[number % len(SOURCES)]
            assert there.tolist() == [split >= 0 for split in splits]
            stored = reader[f"toy-{number:04d}"].latents
            starts = set()
            for split, track in zip(splits, tracks, strict=True):
                if split < 0:
                    assert (track == 0).all()
                    continue
                source = 2 + 2 * split
                start = int(track[0, 0]) - 100 * source
                starts.add(start)
                np.testing.assert_array_equal(track, stored[source, :, start : start + 40])
            assert len(starts) <= 1  # all tracks have the same crop

    def test_windows_are_drawn_where_a_source_has_an_instrument(self, data: Path) -> None:
        found = Counter(together(take(data, StreamConfig(batch=20), 2))[0])
        assert found == {number: 2 for number in range(24) if number % len(SOURCES) != 4}
        stems = stem_set(data)
        assert {name: stems.windows[name] for name in ("bass", "guitar", "organ")} == {
            "bass": 12,
            "guitar": 12,
            "organ": 4,
        }

    def test_every_start_is_drawn_the_last_one_too(self, tmp_path: Path) -> None:
        short = write_stems(tmp_path / "short", {"train": 1}, frames=12)
        _, latents, _, _ = together(take(short, StreamConfig(crop_frames=8, batch=50), 10))
        starts = Counter((latents[:, 0, 0, 0] - 200).astype(int).tolist())
        assert sorted(starts) == [0, 1, 2, 3, 4]
        assert min(starts.values()) > 60

    def test_other_sources_than_named_ones_are_not_read(self, data: Path, tmp_path: Path) -> None:
        """What the splits hold that are no track, and mix and submix, makes no difference."""
        other = tmp_path / "b"

        def changed(number: int) -> Sample:
            whole = shards.sample(number, "train", 80, "toy", SOURCES[number % len(SOURCES)])
            tracks = [2 + 2 * split for split in SPLITS_OF_STEMS.get(number % len(SOURCES), ()) if split >= 0]
            rest = [row for row in range(len(whole.latents)) if row not in tracks]
            whole.latents[rest] = 7
            whole.embeddings[rest] = 7
            return whole

        write_dataset(other, {"train": 0}, more=[changed(number) for number in range(24)])
        config = StreamConfig(batch=20, crop_frames=30)
        for ours, theirs in zip(together(take(data, config, 4)), together(take(other, config, 4)), strict=True):
            np.testing.assert_array_equal(ours, theirs)


class TestConditions:
    def test_each_track_is_a_mixture_of_its_words_and_its_sound(self, data: Path) -> None:
        numbers, latents, embeddings, present = together(take(data, StreamConfig(batch=100, condition_dropout=0.0), 10))
        assert (embeddings[~present] == 0).all()
        shares = np.full(present.shape, np.nan)
        for example, track in zip(*np.nonzero(present), strict=True):
            number = numbers[example]
            source = 2 + 2 * SPLITS_OF_STEMS[number % len(SOURCES)][track]
            start = latents[example, track, 0, 0] - 100 * source
            share = shares[example, track] = embeddings[example, track, TEXT_AXIS + track]
            hop = embeddings[example, track, 0] / (1 - share)
            assert abs(start - 10 * hop) <= 5.001
            audio = np.array([round(float(hop)), source, number, 1])
            np.testing.assert_allclose(embeddings[example, track, :4], (1 - share) * audio, rtol=1e-3, atol=1e-5)
        for quantile in (0.25, 0.5, 0.75):
            np.testing.assert_allclose(np.nanquantile(shares, quantile, axis=0), quantile, atol=0.08)
        whole = shares[present.all(axis=1)]
        assert len(whole) > 150
        assert np.abs(np.corrcoef(whole.T) - np.eye(4)).max() < 0.25  # each track has a share of its own

    def test_dropout_is_drawn_for_each_track(self, data: Path) -> None:
        _, _, embeddings, present = together(take(data, StreamConfig(batch=100, condition_dropout=0.3), 20))
        dropped = (embeddings == 0).all(axis=-1)
        for track in range(4):
            assert dropped[present[:, track], track].mean() == pytest.approx(0.3, abs=0.06)
        whole = dropped[present.all(axis=1)].astype(float)
        assert np.abs(np.corrcoef(whole.T) - np.eye(4)).max() < 0.2


class TestLaws:
    @pytest.mark.parametrize(("world", "workers"), [(1, 3), (2, 1), (3, 2), (6, 1)])
    def test_ranks_and_threads_change_nothing(self, data: Path, world: int, workers: int) -> None:
        config = StreamConfig(batch=6, crop_frames=20)
        straight = take(data, config, 8)
        ranks = [take(data, replace(config, workers=workers), 8, rank, world) for rank in range(world)]
        batches = [batch for batches in zip(*ranks, strict=True) for batch in batches]
        for ours, theirs in zip(together(batches), together(straight), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert {batch.state for batch in batches} == {batch.state for batch in straight}

    def test_blended_with_another_set(self, data: Path, tmp_path: Path) -> None:
        other = write_stems(tmp_path / "b", {"train": 3})
        config = replace(CONFIG, stream=StreamConfig(batch=50, crop_frames=8))
        _, stream = open_data(config, [(data, 1.0), (other, 1.0)])
        batches = stream.batches(stream.start())
        first = next(batches)
        batches.close()
        assert first.latents.shape == (50, 4, CHANNELS, 8)
        for number, there in zip(*together([first])[::3], strict=True):
            assert there.tolist() == [split >= 0 for split in SPLITS_OF_STEMS[number % len(SOURCES)]]
        assert 10 < sum(key in ("toy-0000", "toy-0001", "toy-0002") for key in first.keys) < 45


class TestNoising:
    def test_which_are_given_is_drawn_by_their_number(self) -> None:
        noising = Noising(seed=1, purpose=Purpose.NOISE, patterns=CONFIG.timesteps)
        count = 4000
        made = noising.examples(
            np.zeros((count, 4, 1, 1), np.float32),
            np.zeros((count, 4, 1), np.float32),
            np.ones((count, 4), bool),
            range(count),
        )
        given = (made.tau == 0).numpy()
        for number in range(4):
            assert (given.sum(axis=1) == number).mean() == pytest.approx(0.25, abs=0.03)
        np.testing.assert_allclose(given.mean(axis=0), 1.5 / 4, atol=0.03)
        pairs = Counter(map(tuple, given[given.sum(axis=1) == 2].tolist()))
        assert len(pairs) == 6
        assert min(pairs.values()) > 0.7 * max(pairs.values())
        assert torch.equal(made.counted, (made.tau > 0).float())

    def test_what_an_absent_track_holds_does_not_leak(self, data: Path, tmp_path: Path) -> None:
        run, _ = made(CONFIG, data, tmp_path)
        batch = take(data, CONFIG.stream, 1)[0]
        assert 0 < batch.present.sum() < batch.present.size
        noising = Noising(seed=0, purpose=Purpose.NOISE, patterns=CONFIG.timesteps)
        junk, words = batch.latents.copy(), batch.embeddings.copy()
        junk[~batch.present], words[~batch.present] = 1000.0, 1.0
        figures = []
        for latents, embeddings in ((batch.latents, batch.embeddings), (junk, words)):
            run, _ = made(CONFIG, data, tmp_path)
            examples = noising.examples(latents, embeddings, batch.present, batch.elements)
            absent = torch.from_numpy(~batch.present)
            assert (examples.tau[absent] == 1).all()
            assert (examples.embeddings[absent] == 0).all()
            assert (examples.latents[absent] == 0).all()
            assert (examples.counted[absent] == 0).all()
            figures.append([run.train_step(examples) for _ in range(2)])
        assert figures[0] == figures[1]

    def test_a_window_without_any_of_them_counts_nothing(self, tmp_path: Path) -> None:
        empty = write_dataset(
            tmp_path / "data",
            {"train": 0},
            more=[shards.sample(0, "train", 80, "toy", SOURCES[5])],
        )
        config = replace(CONFIG, stems=Stems(instruments=("bass", "guitar")))
        run, batch = made(config, empty, tmp_path / "out")
        assert batch.examples.counted.sum() == 0
        figures = run.train_step(batch.examples)
        assert (figures["loss"], figures["norm"]) == (0.0, 0.0)


class TestTraining:
    def test_the_loss_of_each_track(self, data: Path, straight: Path, tmp_path: Path) -> None:
        training = [row for row in metrics(straight) if "loss" in row]
        assert {key for row in training for key in row if key.startswith("loss_")} == {f"loss_{name}" for name in STEMS}
        run, batch = made(CONFIG, data, tmp_path)
        counts = batch.examples.counted.sum(dim=0)
        figures = run.train_step(batch.examples)
        known = {name: count for name, count in zip(STEMS, counts.tolist(), strict=True) if count}
        assert {key.removeprefix("loss_") for key in figures if key.startswith("loss_")} == set(known)
        total = sum(figures[f"loss_{name}"] * count for name, count in known.items())
        assert figures["loss"] == pytest.approx(total / sum(known.values()), rel=1e-5)
        assert figures == {key: value for key, value in training[0].items() if key != "step"}

    def test_validation_by_task_and_track(self, straight: Path) -> None:
        validated = [row for row in metrics(straight) if "val_loss" in row]
        assert [row["step"] for row in validated] == [3, 6]
        for row in validated:
            assert row["val_loss"] == pytest.approx((row["val_loss_generate"] + row["val_loss_impute"]) / 2)
            names = {key.removeprefix("val_loss_") for key in row if key.startswith("val_loss_")}
            assert {name for name in names if not name.startswith("from_")} == {"generate", "impute", *STEMS}

    def test_what_validation_gives(self, data: Path, tmp_path: Path) -> None:
        run, _ = made(CONFIG, data, tmp_path)
        sets, _ = open_data(CONFIG, [(data, None)])
        tasks = Validation(sets, CONFIG, run.mean, run.std, ALONE).tasks
        assert not (tasks["generate"].tau == 0).any()
        given = (tasks["impute"].tau == 0).sum(dim=1)
        whole = (tasks["generate"].counted == 1).all(dim=1)
        assert whole.sum() == 4
        assert ((given[whole] >= 1) & (given[whole] <= 3)).all()
        # Where all stems that are there are given, nothing counts; processes agree on the tasks all the same.
        for rank in range(3):
            part = Validation(sets, CONFIG, run.mean, run.std, Workers(torch.device("cpu"), rank, 3)).tasks
            assert list(part) == ["generate", "impute"]

    def test_steps_then_resume_are_bitwise_the_straight_run(self, data: Path, straight: Path, tmp_path: Path) -> None:
        train(replace(CONFIG, steps=4, validate_every=9), [(data, None)], tmp_path)
        lines = [line for line in (tmp_path / "metrics.jsonl").read_text().splitlines() if "val_loss" not in line]
        (tmp_path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
        train(CONFIG, [(data, None)], tmp_path)
        ours, theirs = ([row for row in metrics(out) if "loss" in row] for out in (tmp_path, straight))
        assert ours == theirs
        for name in ("checkpoint/model.safetensors", "checkpoint/config.json"):
            assert (tmp_path / name).read_bytes() == (straight / name).read_bytes()
        states = [torch.load(out / "state.pt", weights_only=True) for out in (tmp_path, straight)]
        assert states[0]["stream"] == states[1]["stream"]

    def test_other_stems_are_another_recipe(self, data: Path, straight: Path) -> None:
        config = replace(CONFIG, steps=9, stems=replace(CONFIG.stems, given=(1.0,)))
        with pytest.raises(CheckpointError, match=r"another recipe \(stems.given .*, now \(1.0,\)\)"):
            train(config, [(data, None)], straight)

    @pytest.mark.slow
    def test_two_processes_give_the_curve_of_one(self, data: Path, tmp_path: Path) -> None:
        stems = {"instruments": list(STEMS), "given": [1, 1, 1, 1]}
        recipe = write_recipe(
            tmp_path / "stems.yaml", stems=stems, model={"width_per_track": 32, "depth": 1, "heads": 2}, steps=30
        )
        run(command(recipe, data, tmp_path / "one"))
        run(command(recipe, data, tmp_path / "two", processes=2))
        assert len(losses(tmp_path / "one")) == 30
        for ours, theirs in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


class TestCheckpoint:
    def test_it_names_its_tracks(self, straight: Path) -> None:
        config, network = load_checkpoint(straight / "checkpoint")
        assert config.tracks == STEMS
        assert config.model.tracks == network.config.tracks == 4

    def test_the_tasks_are_not_for_it(self, straight: Path) -> None:
        with pytest.raises(
            CheckpointError, match="a model of the stems bass, drums, guitar, piano, not of mix"
        ) as caught:
            MGELDM.from_pretrained(straight / "checkpoint")
        assert "generate, impute, extract and accompany are not for it; sample its stems with" in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_it_can_be_sampled_from_as_the_documentation_says(self, straight: Path) -> None:
        code = re.findall(
            r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "training.md").read_text(), re.DOTALL
        )
        latents = torch.arange(4.0 * CHANNELS * 6).reshape(1, 4, CHANNELS, 6)
        known: dict[str, Any] = {
            **{"torch": torch, "Path": Path, "latents": latents},
            **{"load_checkpoint": load_checkpoint, "noise_for": noise_for},
            "sample": partial(sample, config=SamplingConfig(steps=3)),
        }
        exec(code[0].replace("RUN/", f"{straight}/"), known)
        torch.testing.assert_close(known["made"][:, :2], latents[:, :2])
        assert not torch.isclose(known["made"][:, 2:], latents[:, 2:]).any()
        assert known["made"].isfinite().all()

    def test_as_many_names_as_tracks(self, straight: Path, tmp_path: Path) -> None:
        raw = json.loads((straight / "checkpoint/config.json").read_text()) | {"tracks": ["bass"]}
        (tmp_path / "config.json").write_text(json.dumps(raw))
        with pytest.raises(CheckpointError, match=r"1 names of tracks \(bass\) for 4"):
            load_checkpoint(tmp_path)


class TestNetwork:
    @pytest.mark.parametrize(("preset", "width", "heads"), [("tiny", 256, 8), ("base", 1024, 32), ("paper", 2048, 64)])
    def test_each_track_adds_width_and_heads(self, preset: str, width: int, heads: int) -> None:
        model = TrainConfig(preset=preset, stems=Stems(instruments=STEMS)).network(64, 512)
        assert (model.tracks, model.width, model.heads) == (4, width, heads)
        assert model.head_width == TrainConfig(preset=preset).network(64, 512).head_width == 32

    def test_the_recipe(self) -> None:
        config = load_recipe(recipe_path("stems"))
        assert config.tracks == STEMS
        assert config.stems.given == (1.0, 1.0, 1.0, 1.0)

    def test_what_a_dry_run_tells(self, capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
        words = ["train", "stems", "--data", str(data), "--out", str(tmp_path / "run"), "--dry-run", "--json"]
        assert main([*words, "--calibrate", "never", "--preset", "tiny", "--stream.batch", "6"]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown["stems"] == {"bass": 12, "drums": 12, "guitar": 12, "piano": 12}
        assert shown["samples"] == {str(data): 20}
        assert shown["tokens_a_step"] == 6 * 81


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"stems": Stems(given=(1, 1))}, "stems.given [1, 1]: name the tracks"),
            ({"stems": Stems(instruments=("bass", "bass"))}, "name each instrument once"),
            ({"present": ("mix",)}, "and present ['mix']: choose one"),
            ({"stems": Stems(instruments=STEMS, given=(1,) * 5)}, "stems.given: timestep pattern weights"),
            ({"stems": Stems(instruments=STEMS, given=(0,))}, "give finite weights"),
            ({"listen_every": 3, "tensorboard": True}, "with stems it must be 0"),
        ],
    )
    def test_options(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigError) as caught:
            TrainConfig(**{"stems": Stems(instruments=STEMS), **options})
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_weights_of_the_patterns_of_three_tracks(self) -> None:
        patterns = replace(TrainConfig().patterns, all=1.0)
        with pytest.raises(ConfigError, match=r"with stems\.instruments use stems\.given"):
            replace(CONFIG, patterns=patterns)
        assert replace(CONFIG, patterns=replace(TrainConfig().patterns, tau_min=0.1)).timesteps.tau_min == 0.1

    @pytest.mark.parametrize(
        ("instruments", "words"),
        [
            (
                ("bas", "drums"),
                "no window has 'bas' as a source; did you mean 'bass'? sources are bass, drums, guitar,",
            ),
            (("harp", "lute"), "no window has 'harp' or 'lute' as a source; sources are bass, drums, guitar, organ, "),
        ],
    )
    def test_instruments_that_the_data_does_not_have(
        self, data: Path, instruments: tuple[str, ...], words: str
    ) -> None:
        config = replace(CONFIG, stems=Stems(instruments=instruments))
        with pytest.raises(ShardError) as caught:
            open_data(config, [(data, None)])
        assert f"{data}: {words}" in str(caught.value)
        assert "`mgeldm split --strategy single --classes " in str(caught.value)

    def test_one_of_two_sets_may_lack_an_instrument(self, data: Path, tmp_path: Path) -> None:
        plain = write_dataset(tmp_path / "b", {"train": 3})
        config = replace(CONFIG, stems=Stems(instruments=("bass", "piano")))
        sets, _ = open_data(config, [(plain, None), (data, None)])
        assert [len(found) for found in sets] == [3, 16]
        with pytest.raises(ShardError, match=r"b: no window has 'piano' as a source; sources are bass, drums; "):
            open_data(config, [(plain, None)])

    def test_no_such_subset(self, data: Path) -> None:
        with pytest.raises(ShardError, match=r"no sample of subset 'test'; it has .*'train': 24"):
            StemSet(data, "test", 40, STEMS)

    def test_windows_shorter_than_the_crop(self, tmp_path: Path) -> None:
        with pytest.raises(ShardError, match="toy-0000 has 80 frames, fewer than the crop of 81"):
            stem_set(write_stems(tmp_path / "a", {"train": 1}), 81)

    def test_damaged_json(self, tmp_path: Path) -> None:
        folder = write_stems(tmp_path / "a", {"train": 1})
        stems, shard = stem_set(folder), next((folder / "shards").glob("*.tar"))
        shard.write_bytes(shard.read_bytes().replace(b"source_instruments", b"source_instrumentz"))
        with pytest.raises(ShardError, match=r"\.tar: sample toy-0000 is damaged .*; verify the shards"):
            stems.drawn(np.array([0]), np.zeros((1, stems.levels)), 0.0)
