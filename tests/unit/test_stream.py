"""The stream's laws: order, epochs, resume, blend, crops, conditions."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import ConfigError, ShardError
from manifests.shards import read_prompts, write_prompts
from tests.support.shards import DIM, TEXT_AXIS, TEXTS, sample, write_dataset
from training.ahead import load_ahead
from training.stream import Batch, ShardSet, Stream, StreamConfig, StreamState, blend

SAMPLES = 23


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "a", {"train": SAMPLES, "validation": 3}, per_shard=7)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "b", {"train": 5}, corpus="other")


def shard_set(data: Path, crop_frames: int = 40, samples: int | None = None) -> ShardSet:
    shards = ShardSet(data, "train", crop_frames)
    shards.rows = shards.rows[:samples]
    return shards


def take(stream: Stream, count: int, state: StreamState | None = None) -> list[Batch]:
    batches = stream.batches(state or stream.start())
    taken = list(islice(batches, count))
    batches.close()
    return taken


def keys(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def same(a: Batch, b: Batch) -> bool:
    return (
        a.keys == b.keys
        and a.state == b.state
        and np.array_equal(a.latents, b.latents)
        and np.array_equal(a.embeddings, b.embeddings)
    )


def examples(data: Path, config: StreamConfig, count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Latents and embeddings of at least ``count`` examples."""
    batches = take(Stream([shard_set(data, config.crop_frames)], None, config), -(-count // config.batch))
    return np.concatenate([b.latents for b in batches]), np.concatenate([b.embeddings for b in batches])


class TestOrder:
    @given(samples=st.integers(1, SAMPLES), batch=st.integers(1, 9), seed=st.integers(0, 2**40))
    @settings(max_examples=25, deadline=None)
    def test_every_sample_exactly_once_an_epoch(self, data: Path, samples: int, batch: int, seed: int) -> None:
        stream = Stream([shard_set(data, samples=samples)], None, StreamConfig(batch=batch, seed=seed))
        drawn = keys(take(stream, -(-3 * samples // batch)))
        expected = [f"toy-{number:04d}" for number in range(samples)]
        for epoch in range(3):
            assert sorted(drawn[epoch * samples : (epoch + 1) * samples]) == expected

    def test_the_permutation_changes_with_epoch_and_seed(self, data: Path) -> None:
        stream = Stream([shard_set(data)], None, StreamConfig(batch=SAMPLES))
        epochs = [batch.keys for batch in take(stream, 3)]
        other_seed = take(Stream([shard_set(data)], None, StreamConfig(batch=SAMPLES, seed=1)), 1)[0].keys
        assert len({*epochs, other_seed, tuple(sorted(other_seed))}) == 5

    def test_it_is_no_shift_of_the_last_one(self, data: Path) -> None:
        first, second = (batch.keys for batch in take(Stream([shard_set(data)], None, StreamConfig(batch=SAMPLES)), 2))
        distances = Counter((second.index(key) - first.index(key)) % SAMPLES for key in first)
        assert max(distances.values()) < SAMPLES / 2

    def test_same_seed_same_batches_whatever_the_global_generator(self, data: Path) -> None:
        config = StreamConfig(batch=4, seed=3)
        first = take(Stream([shard_set(data)], None, config), 6)
        np.random.seed(9)  # noqa: NPY002
        assert all(same(a, b) for a, b in zip(first, take(Stream([shard_set(data)], None, config), 6), strict=True))

    def test_shards_and_their_order_do_not_matter(self, data: Path, tmp_path: Path) -> None:
        one = write_dataset(tmp_path / "one", {"train": SAMPLES}, per_shard=1000)
        config = StreamConfig(batch=5)
        many, single = (take(Stream([shard_set(path)], None, config), 5) for path in (data, one))
        assert all(same(a, b) for a, b in zip(many, single, strict=True))

    def test_other_seed_other_crops(self, data: Path) -> None:
        starts = []
        for seed in (0, 1):
            batches = take(Stream([shard_set(data)], None, StreamConfig(batch=SAMPLES, seed=seed)), 1)
            starts.append(dict(zip(batches[0].keys, batches[0].latents[:, 0, 0, 0], strict=True)))
        first, second = starts
        assert sum(first[key] != second[key] for key in first) > SAMPLES / 2


class TestResume:
    @given(done=st.integers(0, 11), batch=st.integers(1, 6), seed=st.integers(0, 99))
    @settings(max_examples=20, deadline=None)
    def test_goes_on_where_it_was(self, data: Path, other: Path, done: int, batch: int, seed: int) -> None:
        def stream() -> Stream:
            return Stream([shard_set(data), shard_set(other)], [1.0, 2.0], StreamConfig(batch=batch, seed=seed))

        straight = take(stream(), 14)
        state = straight[done - 1].state if done else stream().start()
        resumed = take(stream(), 14 - done, state)
        assert all(same(a, b) for a, b in zip(straight[done:], resumed, strict=True))

    def test_the_state_counts_elements(self, data: Path, other: Path) -> None:
        batches = take(Stream([shard_set(data), shard_set(other)], None, StreamConfig(batch=6)), 4)
        for number, batch in enumerate(batches, 1):
            drawn = keys(batches[:number])
            assert batch.state == StreamState(
                6 * number, (sum(k.startswith("toy") for k in drawn), sum(k.startswith("other") for k in drawn))
            )

    def test_batches_do_not_depend_on_how_far_they_are_read_ahead(self, data: Path) -> None:
        stream = Stream([shard_set(data)], None, StreamConfig(batch=3))
        for ahead in (1, 9):
            batches = stream.batches(stream.start(), ahead)
            assert all(same(a, b) for a, b in zip(take(stream, 8), islice(batches, 8), strict=True))
            batches.close()


class TestBlend:
    def test_weights_give_shares_and_epochs_stay_whole(self, data: Path, other: Path) -> None:
        stream = Stream([shard_set(data), shard_set(other)], [1.0, 3.0], StreamConfig(batch=50))
        drawn = keys(take(stream, 40))
        share = sum(key.startswith("other") for key in drawn) / len(drawn)
        assert share == pytest.approx(0.75, abs=0.03)
        counts = Counter(drawn)
        for prefix in ("toy", "other"):
            seen = [count for key, count in counts.items() if key.startswith(prefix)]
            assert max(seen) - min(seen) <= 1

    @pytest.mark.parametrize(
        ("samples", "weights", "expected"),
        [
            ([30, 10], [None, None], [0.75, 0.25]),
            ([30, 10], [1.0, 4.0], [0.2, 0.8]),
            ([30, 10, 60], [None, 0.3, None], [0.7 / 3, 0.3, 1.4 / 3]),
            ([7], [5.0], [1.0]),
        ],
    )
    def test_shares(self, samples: list[int], weights: list[float | None], expected: list[float]) -> None:
        np.testing.assert_allclose(blend(samples, weights), expected, rtol=1e-12)

    @pytest.mark.parametrize(
        ("samples", "weights", "words"),
        [
            ([], [], "at least one"),
            ([1, 2], [1.0], "2 data sets and 1 weights"),
            ([1, 2], [0.0, 1.0], "above 0"),
            ([1, 2], [-1.0, None], "above 0"),
            ([1, 2], [float("nan"), 1.0], "above 0"),
            ([1, 2], [1.0, None], "leave nothing"),
        ],
    )
    def test_wrong_weights(self, samples: list[int], weights: list[float | None], words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            blend(samples, weights)

    @pytest.mark.parametrize("change", [{"encoder": "another"}, {"prompt_template": "sound of {}"}])
    def test_sets_that_do_not_go_together(self, data: Path, tmp_path: Path, change: dict[str, str]) -> None:
        strange = write_dataset(tmp_path / "strange", {"train": 1}, **change)
        with pytest.raises(ConfigError, match="encode them alike"):
            Stream([shard_set(data), shard_set(strange)], None, StreamConfig())


class TestCrops:
    def test_every_start_is_drawn_the_last_one_too(self, tmp_path: Path) -> None:
        short = write_dataset(tmp_path / "short", {"train": 4}, frames=12)
        latents, _ = examples(short, StreamConfig(crop_frames=8, batch=50), 1000)
        assert latents.shape == (1000, 3, 4, 8)
        starts = Counter(latents[:, 0, 0, 0].astype(int).tolist())
        assert sorted(starts) == [0, 1, 2, 3, 4]
        assert min(starts.values()) > 150
        np.testing.assert_array_equal(np.diff(latents[:, :, 0], axis=-1), 1)

    def test_a_crop_as_long_as_the_window(self, tmp_path: Path) -> None:
        short = write_dataset(tmp_path / "short", {"train": 2}, frames=8)
        latents, _ = examples(short, StreamConfig(crop_frames=8, batch=4), 8)
        assert (latents[:, 0, 0, 0] == 0).all()

    def test_rows_are_mix_submix_source_of_one_sample_and_split(self, data: Path) -> None:
        latents, embeddings = examples(data, StreamConfig(batch=40, condition_dropout=0.0), 200)
        tracks = (latents[:, :, 0, 0] - latents[:, :1, 0, 0]) / 100
        assert set(map(tuple, tracks.astype(int).tolist())) == {(0, 1, 2), (0, 3, 4)}
        np.testing.assert_array_equal(embeddings[:, :2, 1], tracks[:, :2])
        numbers = latents[:, :1, 1, 0]
        assert (latents[:, :, 1] == numbers[:, :, None]).all()
        np.testing.assert_array_equal(embeddings[:, :2, 2], np.repeat(numbers, 2, axis=1))

    def test_the_embedding_moves_with_the_crop(self, data: Path) -> None:
        latents, embeddings = examples(data, StreamConfig(batch=50, condition_dropout=0.0), 500)
        starts, hops = latents[:, 0, 0, 0], embeddings[:, 0, 0]
        # Windows of embeddings are as long as the crop and begin at multiples of 10 frames: at most 5 off.
        assert np.abs(starts - 10 * hops).max() <= 5
        assert set(hops.tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}

    @pytest.mark.parametrize(("frames", "start", "expected"), [(8, 0, 0), (8, 30, 1), (8, 72, 4), (80, 0, 2)])
    def test_the_embedding_of_other_crops_is_that_of_their_middle(
        self, data: Path, frames: int, start: int, expected: int
    ) -> None:
        assert shard_set(data).embedding_hop(start, frames, 5) == expected


class TestConditions:
    def test_dropout_is_drawn_for_each_track(self, data: Path) -> None:
        _, embeddings = examples(data, StreamConfig(batch=100, condition_dropout=0.3), 3000)
        dropped = (embeddings == 0).all(axis=-1)
        np.testing.assert_allclose(dropped.mean(axis=0), 0.3, atol=0.03)
        correlation = np.corrcoef(dropped.T.astype(float)) - np.eye(3)
        assert np.abs(correlation).max() < 0.06

    @pytest.mark.parametrize("dropout", [0.0, 1.0])
    def test_never_and_always(self, data: Path, dropout: float) -> None:
        _, embeddings = examples(data, StreamConfig(batch=20, condition_dropout=dropout), 100)
        assert ((embeddings == 0).all(axis=-1) == bool(dropout)).all()

    def test_the_source_is_a_mixture_of_its_text_and_its_sound(self, data: Path) -> None:
        latents, embeddings = examples(data, StreamConfig(batch=50, condition_dropout=0.0), 1000)
        split = ((latents[:, 2, 0, 0] - latents[:, 0, 0, 0]) / 200).astype(int) - 1
        text = np.eye(DIM)[TEXT_AXIS + split]
        share = embeddings[np.arange(1000), 2, TEXT_AXIS + split]
        audio = np.zeros((1000, DIM))
        audio[:, 0], audio[:, 1] = embeddings[:, 0, 0], 2 * (split + 1)
        audio[:, 2], audio[:, 3] = latents[:, 0, 1, 0], 1
        np.testing.assert_allclose(embeddings[:, 2], share[:, None] * text + (1 - share)[:, None] * audio, rtol=1e-6)
        np.testing.assert_allclose(np.quantile(share, [0.0, 0.25, 0.5, 0.75, 1.0]), [0, 0.25, 0.5, 0.75, 1], atol=0.05)
        assert (embeddings[:, :2, TEXT_AXIS:] == 0).all()


class TestBadData:
    def test_no_such_subset(self, data: Path) -> None:
        with pytest.raises(ShardError, match=r"no sample of subset 'test'; it has .*'train': 23"):
            ShardSet(data, "test", 40)

    def test_windows_shorter_than_the_crop(self, data: Path) -> None:
        with pytest.raises(ShardError, match=r"toy-0000 has 80 frames, fewer than the crop of 81"):
            ShardSet(data, "train", 81)

    def test_one_short_window_among_others(self, tmp_path: Path) -> None:
        odd = write_dataset(tmp_path / "odd", {"train": 2}, more=[sample(9, "train", 30, "toy")])
        with pytest.raises(ShardError, match=r"toy-0009 has 30 frames"):
            take(Stream([shard_set(odd)], None, StreamConfig(batch=3)), 1)

    def test_a_text_without_embedding(self, tmp_path: Path) -> None:
        odd = write_dataset(tmp_path / "odd", {"train": 4})
        write_prompts(odd / "prompts.safetensors", {TEXTS[0]: read_prompts(odd)[TEXTS[0]]})
        with pytest.raises(ShardError, match=r"no text embedding of 'drums'"):
            take(Stream([shard_set(odd)], None, StreamConfig(batch=20)), 1)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("batch", 0), ("crop_frames", 0), ("condition_dropout", 1.1), ("condition_dropout", -0.1), ("seed", -1)],
    )
    def test_wrong_configuration(self, name: str, value: float) -> None:
        with pytest.raises(ConfigError, match=f"{name} {value}"):
            StreamConfig(**{name: value})  # type: ignore[arg-type]


class TestLoadingAhead:
    def test_order_and_end(self) -> None:
        assert list(load_ahead(lambda n: n * n, range(10), 3)) == [n * n for n in range(10)]
        assert list(load_ahead(lambda n: n, [], 3)) == []

    def test_closing_drops_what_waits(self) -> None:
        loaded: list[int] = []

        def load(number: int) -> int:
            loaded.append(number)
            time.sleep(0.05)
            return number

        threads = threading.active_count()
        batches = load_ahead(load, range(100), 20)
        assert next(batches) == 0
        batches.close()
        assert len(loaded) < 5
        assert threading.active_count() == threads

    def test_no_more_than_depth_ahead(self) -> None:
        planned: list[int] = []

        def plans() -> Iterator[int]:
            for number in range(100):
                planned.append(number)
                yield number

        batches = load_ahead(lambda number: number, plans(), 3)
        assert [next(batches), next(batches)] == [0, 1]
        assert planned == [0, 1, 2, 3, 4]
        batches.close()

    def test_an_error_comes_at_its_turn(self) -> None:
        def load(number: int) -> float:
            return 6 / number

        batches = load_ahead(load, [3, 2, 0, 1], 4)
        assert [next(batches), next(batches)] == [2, 3]
        with pytest.raises(ZeroDivisionError):
            next(batches)
