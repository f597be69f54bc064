import json
import shutil
from itertools import islice
from pathlib import Path

import fsspec
import numpy as np
import pytest

from manifests.errors import ConfigError, ShardError
from manifests.shards import ShardReader, read_card
from manifests.units import Failure, read_failures
from pipelines.combine import merge, select
from pipelines.describe import info
from pipelines.verify import verify
from tests.support.remote import upload
from tests.support.sealed import sealed_sample, write_sealed
from training.stream import ShardSet, Stream, StreamConfig


def failure(key: str, song: str) -> Failure:
    return Failure(unit="u", song_id=song, window_id=key, stage="decode", code="missing", message="gone")


@pytest.fixture
def one(tmp_path: Path) -> Path:
    shards = {"a-000000000000": [sealed_sample(n) for n in range(4)], "b-000000000000": [sealed_sample(4)]}
    return write_sealed(tmp_path / "one", shards, [failure("lost", "toy/0"), failure("other-0001", "other/0")])


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return write_sealed(tmp_path / "two", {"c-000000000000": [sealed_sample(n, "other") for n in range(3)]})


def moments(data: Path) -> tuple[np.ndarray, np.ndarray]:
    reader = ShardReader(data)
    values = np.concatenate([reader[key].latents.astype(np.float64) for key in reader]).swapaxes(0, 1).reshape(4, -1)
    return values.mean(axis=1), values.std(axis=1)


def check(data: Path) -> None:
    report, card = verify(data), read_card(data)
    assert (report.problems, report.notes) == ((), ())
    mean, deviation = moments(data)
    np.testing.assert_allclose(card.latent_mean, mean, atol=1e-9)
    np.testing.assert_allclose(card.latent_std, deviation, rtol=1e-9)
    assert info(data)["complete"]
    assert not list((data).glob("shards/*"))


def test_a_merged_set_reads_verifies_and_counts_as_one(one: Path, two: Path, tmp_path: Path) -> None:
    summary = merge([one, two], tmp_path / "both")
    assert (summary.samples, summary.of, summary.songs) == (8, 8, 5)
    assert summary.roots == (str(one), str(two))
    check(tmp_path / "both")
    reader = ShardReader(tmp_path / "both")
    for number in range(3):
        np.testing.assert_array_equal(reader[f"other-{number:04d}"].latents, sealed_sample(number, "other").latents)
    card = read_card(tmp_path / "both")
    assert (card.hours, card.licenses) == (pytest.approx(16 / 3600), {"CC0-1.0": 3, "MIT": 2})
    # What failed in one set and stands in the other is not lost.
    assert [lost.window_id for lost in read_failures(tmp_path / "both")] == ["lost"]


def test_training_streams_a_merged_set_whole(one: Path, two: Path, tmp_path: Path) -> None:
    merge([one, two], tmp_path / "both")
    shards = ShardSet(tmp_path / "both", "train", 2)
    stream = Stream([shards], None, StreamConfig(crop_frames=2, batch=len(shards)))
    batches = stream.batches(stream.start())
    first = next(batches)
    batches.close()
    parts = [ShardSet(data, "train", 2) for data in (one, two)]
    assert sorted(first.keys) == sorted(key for part in parts for key in part.keys(np.arange(len(part))))
    assert {key.split("-")[0] for key in first.keys} == {"toy", "other"}


@pytest.mark.parametrize("cached", [True, False])
def test_sets_near_and_far_stream_as_one(one: Path, two: Path, tmp_path: Path, cached: bool) -> None:
    three = write_sealed(tmp_path / "three", {"c-000000000000": [sealed_sample(n, "more", seed=1) for n in range(3)]})
    far = [upload(data, f"memory://combined/{data.name}") for data in (two, three)]
    merge([one, two, three], tmp_path / "near")
    merge([one, *far], tmp_path / "far")
    config = StreamConfig(crop_frames=2, batch=4, workers=2, cache=str(tmp_path / "cache") if cached else "")
    taken = []
    for data in ("near", "far"):
        stream = Stream([config.open(tmp_path / data, "train")], None, config)
        batches = stream.batches(stream.start())
        taken.append(list(islice(batches, 6)))
        batches.close()
    for batch, other in zip(*taken, strict=True):
        assert batch.keys == other.keys
        np.testing.assert_array_equal(batch.latents, other.latents)
    assert {key.split("-")[0] for batch in taken[0] for key in batch.keys} == {"toy", "other", "more"}
    fsspec.filesystem("memory").rm("/combined", recursive=True)


def test_a_part_of_a_shard_has_the_moments_of_that_part(one: Path, tmp_path: Path) -> None:
    summary = select(one, "subset == 'test' or key = 'toy-0000'", tmp_path / "some")
    assert (summary.samples, summary.of, summary.songs, summary.hours) == (3, 5, 2, pytest.approx(6 / 3600))
    assert sorted(ShardReader(tmp_path / "some")) == ["toy-0000", "toy-0002", "toy-0003"]
    check(tmp_path / "some")
    assert [lost.window_id for lost in read_failures(tmp_path / "some")] == ["lost"]
    # A selection of a selection still names the first set.
    assert select(tmp_path / "some", "'bass' in instruments", tmp_path / "again").roots == (str(one),)
    check(tmp_path / "again")


def test_a_set_and_a_selection_of_it_are_the_set(one: Path, tmp_path: Path) -> None:
    select(one, "key = 'toy-0002'", tmp_path / "part")
    for number, sources in enumerate(([one, tmp_path / "part"], [tmp_path / "part", one])):
        assert merge(sources, tmp_path / str(number)).samples == 5
        check(tmp_path / str(number))


def test_a_window_that_stands_twice_is_taken_once_if_its_bytes_are_equal(one: Path, tmp_path: Path) -> None:
    same = write_sealed(tmp_path / "same", {"d-000000000000": [sealed_sample(1), sealed_sample(9)]})
    assert merge([one, same], tmp_path / "both").samples == 6
    check(tmp_path / "both")
    other = write_sealed(tmp_path / "other", {"d-000000000000": [sealed_sample(1, seed=1)]})
    with pytest.raises(ShardError, match=r"window toy-0001 is in .*one and in .*other with different bytes"):
        merge([one, other], tmp_path / "neither")
    assert not (tmp_path / "neither").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "x"}, "encoder x, but .*one has e"),
        ({"embed_hop_s": 1.0}, "embed_hop_s 1.0, but"),
        (
            {"codec": {"identity": "x", "spec": {"sample_rate": 1, "hop": 1, "latent_channels": 4, "channels": 1}}},
            "codec x, but",
        ),
        ({"prompt_template": "a {}"}, "prompt_template a {}, but"),
    ],
)
def test_sets_of_other_encoders_are_refused(
    one: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    other = write_sealed(tmp_path / "other", {"d-000000000000": [sealed_sample(9)]}, **changes)
    with pytest.raises(ShardError, match=message):
        merge([one, other], tmp_path / "both")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("subset == 'nowhere'", "no sample of the 5"),
        ("tempo > 3", "tempo.*columns: root, shard"),
        ("", "--where is empty"),
        ("true; select 1", "--where true; select 1: "),
        ("true) or (true", "--where"),
        ("(select count(*) from read_csv('/etc/passwd')) > 0", "--where"),
    ],
)
def test_wrong_expressions_are_one_line(one: Path, tmp_path: Path, where: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        select(one, where, tmp_path / "out")
    assert "\n" not in str(error.value)


def test_a_place_that_holds_something_is_refused(one: Path, two: Path) -> None:
    with pytest.raises(ConfigError, match="holds a data set already"):
        merge([one, two], one)


def test_shards_that_were_moved_are_named(one: Path, tmp_path: Path) -> None:
    select(one, "true", tmp_path / "some")
    shutil.move(tmp_path / "some", tmp_path / "moved")
    assert verify(tmp_path / "moved").problems == ()
    shutil.move(one, tmp_path / "elsewhere")
    with pytest.raises(ShardError, match=r"one/shards/a-000000000000.tar: cannot be opened"):
        ShardReader(tmp_path / "moved")["toy-0000"]
    assert {problem.code for problem in verify(tmp_path / "moved").problems} >= {"missing"}
    found = info(tmp_path / "moved")
    assert not found["complete"]
    assert f"{one}/shards/a-000000000000.tar" in found["missing"]
    assert json.dumps(found)
