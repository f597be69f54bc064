"""The stream's laws: order, epochs, resume, blend, crops, conditions."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import ConfigError, ShardError
from manifests.shards import SHARDS_FOLDER, read_index, read_prompts, write_prompts
from tests.support.shards import CHANNELS, DIM, TEXT_AXIS, TEXTS, sample, write_dataset
from training.ahead import load_ahead
from training.order import Order, epoch_order
from training.randomness import Purpose, uniforms
from training.stem_tracks import StemSet
from training.stream import Batch, ShardSet, Stream, StreamConfig, StreamState, blend

SAMPLES = 23


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "a", {"train": SAMPLES, "validation": 3}, per_shard=7)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "b", {"train": 5}, corpus="other")


def shard_set(data: Path, crop_frames: int = 40) -> ShardSet:
    return ShardSet(data, "train", crop_frames)


@pytest.fixture(scope="module")
def sized(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], ShardSet]:
    """A data set of so many samples, in shards of so many."""

    @cache
    def made(samples: int, per_shard: int) -> ShardSet:
        folder = tmp_path_factory.mktemp("sized") / "data"
        return shard_set(write_dataset(folder, {"train": samples}, frames=42, per_shard=per_shard))

    return made


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
    @given(
        samples=st.integers(1, SAMPLES),
        per_shard=st.sampled_from([1, 4, 9, 30]),
        share=st.integers(1, 5),
        world=st.integers(1, 5),
        workers=st.integers(1, 4),
        order=st.sampled_from(["shuffled", "shards"]),
        buffer=st.integers(1, 4),
        seed=st.integers(0, 2**40),
    )
    @settings(max_examples=40)
    def test_every_sample_exactly_once_an_epoch_for_any_ranks_and_workers(
        self,
        sized: Callable[[int, int], ShardSet],
        samples: int,
        per_shard: int,
        share: int,
        world: int,
        workers: int,
        order: Order,
        buffer: int,
        seed: int,
    ) -> None:
        config = StreamConfig(batch=share * world, seed=seed, workers=workers, order=order, buffer_shards=buffer)
        shards, count = sized(samples, per_shard), -(-3 * samples // config.batch)
        ranks = [take(Stream([shards], None, config, rank, world), count) for rank in range(world)]
        assert {len(batch.keys) for batches in ranks for batch in batches} == {share}
        drawn = [key for batches in zip(*ranks, strict=True) for batch in batches for key in batch.keys]
        expected = [f"toy-{number:04d}" for number in range(samples)]
        for epoch in range(3):
            assert sorted(drawn[epoch * samples : (epoch + 1) * samples]) == expected
        elements = [element for batches in zip(*ranks, strict=True) for batch in batches for element in batch.elements]
        assert elements == list(range(count * config.batch))

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
    @settings(max_examples=20)
    def test_goes_on_where_it_was(self, data: Path, other: Path, done: int, batch: int, seed: int) -> None:
        def stream() -> Stream:
            return Stream([shard_set(data), shard_set(other)], [1.0, 2.0], StreamConfig(batch=batch, seed=seed))

        straight = take(stream(), 14)
        state = straight[done - 1].state if done else stream().start()
        resumed = take(stream(), 14 - done, state)
        assert all(same(a, b) for a, b in zip(straight[done:], resumed, strict=True))

    @given(
        world=st.integers(1, 4),
        other_world=st.integers(1, 4),
        batch=st.sampled_from([12, 24]),
        other_batch=st.sampled_from([12, 24, 36]),
        workers=st.integers(1, 3),
        done=st.integers(0, 5),
        order=st.sampled_from(["shuffled", "shards"]),
        samples=st.integers(1, SAMPLES),
        per_shard=st.sampled_from([1, 4, 9, 30]),
        seed=st.integers(0, 2**40),
    )
    @settings(max_examples=40)
    def test_another_number_of_processes_or_another_batch_loses_and_repeats_nothing(
        self,
        sized: Callable[[int, int], ShardSet],
        other: Path,
        world: int,
        other_world: int,
        batch: int,
        other_batch: int,
        workers: int,
        done: int,
        order: Order,
        samples: int,
        per_shard: int,
        seed: int,
    ) -> None:
        sets = [sized(samples, per_shard), shard_set(other)]

        def drawn(batch: int, world: int, workers: int, count: int, state: StreamState | None) -> list[Batch]:
            config = StreamConfig(batch=batch, workers=workers, order=order, buffer_shards=2, seed=seed)
            ranks = [take(Stream(sets, [1.0, 2.0], config, rank, world), count, state) for rank in range(world)]
            assert all(len({b.state for b in batches}) == 1 for batches in zip(*ranks, strict=True))
            return [batch for batches in zip(*ranks, strict=True) for batch in batches]

        first = drawn(batch, world, workers, done, None)
        state = first[-1].state if first else None
        second = drawn(other_batch, other_world, 1, 4, state)
        straight = drawn(12, 1, 1, (batch * done + other_batch * 4) // 12, None)
        assert keys(first + second) == keys(straight)
        for name in ("latents", "embeddings"):
            found, expected = (
                np.concatenate([getattr(batch, name) for batch in batches]) for batches in (first + second, straight)
            )
            np.testing.assert_array_equal(found, expected)

    def test_a_batch_that_cannot_be_divided(self, data: Path) -> None:
        with pytest.raises(ConfigError, match="batch 16 cannot be divided among 3 processes"):
            Stream([shard_set(data)], None, StreamConfig(batch=16), 0, 3)

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


class TestRandomNumbers:
    @given(first=st.integers(0, 2**50), count=st.integers(1, 20), skipped=st.integers(0, 19), width=st.integers(1, 9))
    @settings(max_examples=50)
    def test_a_row_depends_on_its_place_alone(self, first: int, count: int, skipped: int, width: int) -> None:
        rows = uniforms(3, Purpose.EXAMPLE, first=first, count=count + skipped, width=width)
        later = uniforms(3, Purpose.EXAMPLE, first=first + skipped, count=count, width=width)
        np.testing.assert_array_equal(rows[skipped:], later)

    def test_places_seeds_and_purposes_differ(self) -> None:
        drawn = [
            uniforms(seed, purpose, *place, first=0, count=500, width=7)
            for seed in (0, 1)
            for purpose in (Purpose.EXAMPLE, Purpose.DATA_SET)
            for place in ((), (1,))
        ]
        assert len(np.unique(np.concatenate(drawn))) == 8 * 500 * 7
        assert np.abs(np.corrcoef(np.concatenate(drawn, axis=1).T) - np.eye(56)).max() < 0.25
        assert np.mean(drawn) == pytest.approx(0.5, abs=0.01)


class TestShardOrder:
    def test_few_shards_are_read_from_at_a_time_and_all_are_mixed(self) -> None:
        shards = np.repeat(np.arange(60), 50)
        order = shards[epoch_order(shards, "shards", 8, np.random.default_rng(0))]
        windows = [len(set(order[begin : begin + 50])) for begin in range(0, 3000 - 50, 50)]
        assert max(windows) <= 10
        assert min(windows) >= 7
        assert (order[1:] == order[:-1]).mean() < 0.2

    def test_the_order_of_shards_changes(self) -> None:
        shards = np.repeat(np.arange(9), 5)
        orders = {tuple(epoch_order(shards, "shards", 2, np.random.default_rng(n)).tolist()) for n in range(5)}
        assert len(orders) == 5


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
        ("hours", "weights", "temperature", "expected"),
        [
            ([30, 10], [None, None], 1.0, [0.75, 0.25]),
            ([30, 10], [1.0, 4.0], 2.0, [0.2, 0.8]),
            ([30, 10, 60], [None, 0.3, None], 1.0, [0.7 / 3, 0.3, 1.4 / 3]),
            ([90, 10], [None, None], 2.0, [0.75, 0.25]),
            ([16, 50, 1], [None, 0.5, None], 4.0, [1 / 3, 0.5, 1 / 6]),
            ([7], [5.0], 1.0, [1.0]),
            ([1000, 10, 1000], [None, None, None], 1e-4, [0.5, 0.0, 0.5]),
            ([10, 0], [None, None], 1.0, [1.0, 0.0]),
        ],
    )
    def test_shares(
        self, hours: list[float], weights: list[float | None], temperature: float, expected: list[float]
    ) -> None:
        np.testing.assert_allclose(blend(hours, weights, temperature), expected, rtol=1e-12, atol=1e-15)

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
        assert shard_set(data, frames).embedding_hop(start, 5) == expected


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

    @pytest.mark.parametrize("member", ["latents", "embeddings"])
    @pytest.mark.parametrize(
        ("bits", "finite"),
        [(0x7BFF, True), (0xFBFF, True), *((bits, False) for bits in (0x7C00, 0xFC00, 0x7C01, 0xFE00, 0xFFFF))],
    )
    def test_a_value_that_is_not_finite_ends_it(self, tmp_path: Path, member: str, bits: int, finite: bool) -> None:
        data = write_dataset(tmp_path / "data", {"train": 3}, frames=40)
        row = read_index(data)[1]
        source = {"latents": 2 * CHANNELS * 40, "embeddings": 2 * DIM}[member]
        with open(data / SHARDS_FOLDER / row.shard, "r+b") as shard:
            shard.seek({"latents": row.latents_offset, "embeddings": row.embeddings_offset}[member] + 128 + 2 * source)
            shard.write(bits.to_bytes(2, "little"))
        for opened in (shard_set(data), StemSet(data, "train", 40, TEXTS)):
            levels = np.full((3, opened.levels), 0.3)
            if finite:
                assert np.isfinite(opened.drawn(np.arange(3), levels, 0.0)[0]).all()
            else:
                with pytest.raises(ShardError, match=f"sample toy-0001: {member} hold NaN or infinite values; verify"):
                    opened.drawn(np.arange(3), levels, 0.0)

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


def test_which_samples_share_a_shard_counts_where_the_order_goes_by_shards(tmp_path: Path) -> None:
    one, other = (
        ShardSet(write_dataset(tmp_path / str(size), {"train": 12}, per_shard=size), "train", 40) for size in (4, 7)
    )
    assert one.identity() == other.identity()
    assert one.identity("shards") != other.identity("shards")
