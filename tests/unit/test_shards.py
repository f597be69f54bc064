import contextlib
import hashlib
import io
import json
import random
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset

from manifests.errors import ManifestError, ShardError
from manifests.shards import (
    CARD_FILE,
    PROMPTS_FILE,
    SHARDS_FOLDER,
    DatasetCard,
    IndexRow,
    Sample,
    ShardReader,
    embedding_count,
    read_card,
    read_index,
    read_prompts,
    write_card,
    write_index,
    write_prompts,
    write_shard,
)

CARD = DatasetCard(
    version="1",
    encoder="e1",
    codec={"identity": "c1", "spec": {"sample_rate": 16_000, "channels": 1, "latent_channels": 4, "hop": 256}},
    embedder={"identity": "m1", "spec": {"sample_rate": 16_000, "window_s": 1.0, "dim": 8}},
    embed_hop_s=0.5,
    prompt_template="the sound of {}",
    latent_mean=(0.0, 1.0, 2.0, 3.0),
    latent_std=(1.0, 0.1, 1 / 3, 2.0),
    silence_latent=(0.5, 0.0, -0.5, 1e-9),
    samples=3,
    songs=2,
    hours=0.1,
    subsets={"train": 3},
    instruments={"bass": 3, "drums": 1},
    licenses={"CC0-1.0": 2},
    failures=0,
)


def make_sample(number: int, splits: int = 1, **meta: Any) -> Sample:
    rng = np.random.default_rng(number)
    sources = [["bass"], ["drums", "bass"]]
    return Sample(
        key=f"song-{number:03d}",
        latents=rng.standard_normal((1 + 2 * splits, 4, 10 + number)).astype(np.float16),
        embeddings=rng.standard_normal((1 + 2 * splits, 2, 8)).astype(np.float16),
        meta={
            "song_id": f"corpus/søng {number // 2}",
            "corpus": "corpus",
            "subset": "train",
            "splits": [{"source_text": "bass", "source_instruments": sources[n]} for n in range(splits)],
            **meta,
        },
    )


SAMPLES = [make_sample(0), make_sample(1, splits=2), make_sample(2)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set folder of two shards."""
    rows: list[IndexRow] = []
    for name, samples in (("b.tar", SAMPLES[:2]), ("a.tar", SAMPLES[2:])):
        rows += write_shard(tmp_path / SHARDS_FOLDER / name, samples)[0]
    write_index(tmp_path, rows)
    write_card(tmp_path, CARD)
    return tmp_path


def same(a: Sample, b: Sample) -> bool:
    return (
        (a.key, a.meta) == (b.key, b.meta)
        and a.latents.dtype == b.latents.dtype == np.float16
        and np.array_equal(a.latents, b.latents)
        and np.array_equal(a.embeddings, b.embeddings)
    )


def test_samples_come_back_by_key_as_they_were_written(data: Path) -> None:
    reader = ShardReader(data)
    assert list(reader) == ["song-002", "song-000", "song-001"]
    assert (len(reader), "song-001" in reader, "song-009" in reader) == (3, True, False)
    for sample in SAMPLES[::-1]:
        assert same(reader[sample.key], sample)
    with pytest.raises(KeyError, match="song-009"):
        reader["song-009"]


def test_the_arrays_of_a_sample_are_views_that_cannot_be_written(data: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        ShardReader(data)["song-000"].latents[0] = 0


def test_tracks_of_a_split_are_mix_submix_source() -> None:
    latents, embeddings = SAMPLES[1].tracks(1)
    assert np.array_equal(latents, SAMPLES[1].latents[[0, 3, 4]])
    assert np.array_equal(embeddings, SAMPLES[1].embeddings[[0, 3, 4]])


def test_the_bytes_of_a_shard_depend_on_the_samples_alone(tmp_path: Path) -> None:
    rows, digest, size = write_shard(tmp_path / "one" / "x.tar", SAMPLES)
    again = write_shard(tmp_path / "two" / "x.tar", (replace(s, meta=dict(reversed(s.meta.items()))) for s in SAMPLES))
    content = (tmp_path / "one" / "x.tar").read_bytes()
    assert (tmp_path / "two" / "x.tar").read_bytes() == content
    assert (rows, digest, size) == again == (rows, hashlib.sha256(content).hexdigest(), len(content))
    assert write_shard(tmp_path / "x.tar", SAMPLES[::-1])[1] != digest
    with tarfile.open(tmp_path / "one" / "x.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in tar} == {(0, 0, 0, "", "", 0o644)}


def test_index_rows_say_where_each_part_lies_and_hash_it(data: Path) -> None:
    for row in read_index(data):
        sample = SAMPLES[int(row.key[-3:])]
        content = (data / SHARDS_FOLDER / row.shard).read_bytes()
        assert hashlib.sha256(content[row.offset : row.offset + row.size]).hexdigest() == row.checksum
        assert np.array_equal(np.load(io.BytesIO(content[row.latents_offset :])), sample.latents)
        assert np.array_equal(np.load(io.BytesIO(content[row.embeddings_offset :])), sample.embeddings)
        assert json.loads(content[row.json_offset : row.json_offset + row.json_size]) == sample.meta
    rows = {row.key: row for row in read_index(data)}
    assert rows["song-001"].instruments == ("bass", "drums")
    assert [(rows[s.key].splits, rows[s.key].song_id) for s in SAMPLES] == [
        (1, "corpus/søng 0"),
        (2, "corpus/søng 0"),
        (1, "corpus/søng 1"),
    ]
    assert rows["song-001"].offset == rows["song-000"].size
    assert ShardReader(data).raw(rows["song-001"])[:20] == b"song-001.latents.npy"


def test_a_shard_is_read_by_plain_webdataset(data: Path) -> None:
    found = list(webdataset.WebDataset(str(data / SHARDS_FOLDER / "b.tar"), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in found] == ["song-000", "song-001"]
    for sample, expected in zip(found, SAMPLES, strict=False):
        assert np.array_equal(sample["latents.npy"], expected.latents)
        assert np.array_equal(sample["embeddings.npy"], expected.embeddings)
        assert sample["json"] == expected.meta


def test_a_shard_is_read_by_tar_and_numpy(data: Path) -> None:
    with tarfile.open(data / SHARDS_FOLDER / "b.tar") as tar:
        names = tar.getnames()
        members = {name: tar.extractfile(name) for name in names}
        loaded = [np.load(io.BytesIO(file.read())) for name, file in members.items() if file and "latents" in name]
    assert names == [
        f"song-{number:03d}.{suffix}" for number in (0, 1) for suffix in ("latents.npy", "embeddings.npy", "json")
    ]
    assert [array.shape for array in loaded] == [(3, 4, 10), (5, 4, 11)]
    assert np.array_equal(loaded[1], SAMPLES[1].latents)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def failing() -> Any:
        yield SAMPLES[0]
        raise RuntimeError("the codec broke")

    with pytest.raises(RuntimeError, match="the codec broke"):
        write_shard(tmp_path / "x.tar", failing())
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_shard_is_an_error_that_names_file_and_key(data: Path) -> None:
    path = data / SHARDS_FOLDER / "b.tar"
    row = ShardReader(data).rows[2]
    path.write_bytes(path.read_bytes()[: row.offset + 700])
    reader = ShardReader(data)
    assert same(reader["song-000"], SAMPLES[0])
    with pytest.raises(ShardError, match=re.escape(f"{path}: ends before sample song-001")):
        reader["song-001"]
    path.unlink()
    with pytest.raises(ShardError, match=re.escape(f"{path}: cannot be opened")):
        ShardReader(data)["song-001"]
    path.touch()
    with pytest.raises(ShardError, match=re.escape(f"{path}: cannot be opened")):
        ShardReader(data)["song-001"]


def test_damaged_headers_are_an_error_that_names_file_and_key(data: Path) -> None:
    path = data / SHARDS_FOLDER / "b.tar"
    content = path.read_bytes()
    row = ShardReader(data).rows[2]
    damages = {
        row.latents_offset: b"\x93NUMPX",
        row.embeddings_offset + 6: b"\x07\x00",
        row.embeddings_offset + 10: content[row.embeddings_offset + 10 :][:60].replace(b"<f2", b"<f4"),
        row.latents_offset + 10: content[row.latents_offset + 10 :][:60].replace(b"(5, 4, 11)", b"(5, -1, 9)"),
        row.latents_offset + 11: content[row.latents_offset + 11 :][:60].replace(b"(5, 4, 11)", b"(5,999,11)"),
        row.json_offset: b"[",
        row.latents_offset + 129: b"\x7c",
    }
    for place, bytes_ in damages.items():
        path.write_bytes(content[:place] + bytes_ + content[place + len(bytes_) :])
        with pytest.raises(ShardError, match=re.escape(f"{path}: sample song-001 is damaged")):
            ShardReader(data)["song-001"]


def test_no_damage_of_headers_gives_another_error_than_shard_error(data: Path) -> None:
    path = data / SHARDS_FOLDER / "b.tar"
    content = path.read_bytes()
    row = ShardReader(data).rows[2]
    draw = random.Random(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        begin = draw.choice([row.latents_offset, row.embeddings_offset, row.json_offset])
        for _ in range(draw.randint(1, 8)):
            damaged[begin + draw.randrange(100)] = draw.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(ShardError):
            ShardReader(data)["song-001"]
            continue
        refused += 1
    assert refused > 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": SAMPLES[0].latents.astype(np.float32)}, r"latents must be float16 \[3, \., \.\], got float32"),
        ({"latents": SAMPLES[1].latents}, r"latents must be float16 \[3, .*got float16 \(5, 4, 11\)"),
        ({"embeddings": SAMPLES[0].embeddings[:, 0]}, r"embeddings must be float16"),
        ({"embeddings": SAMPLES[0].embeddings[:, :0]}, r"embeddings must be float16 .*\(3, 0, 8\)"),
        ({"latents": SAMPLES[0].latents * np.float16("nan")}, r"latents hold NaN or infinite"),
        ({"embeddings": SAMPLES[0].embeddings + np.float16("inf")}, r"embeddings hold NaN or infinite"),
        ({"meta": {"splits": []}}, r"at least one split"),
        ({"key": "a.b"}, r"'a\.b': a key is"),
        ({"key": ""}, r"'': a key is"),
        ({"key": "x" * 81}, r"a key is 1 to 80"),
    ],
)
def test_a_sample_that_is_none_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        replace(SAMPLES[0], **change)


def test_the_card_comes_back_and_names_what_is_wrong_with_it(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"dataset.json: missing; .* is no finished data set"):
        read_card(tmp_path)
    write_card(tmp_path, CARD)
    assert read_card(tmp_path) == CARD
    assert read_card(tmp_path).frames_per_second == 62.5
    raw = json.loads((tmp_path / CARD_FILE).read_text())
    for damage, message in (
        ("{", "not readable"),
        ("[]", "not a data set card"),
        (json.dumps(raw | {"version": "9"}), "samples of version '9', this program reads '1'"),
        (json.dumps({key: value for key, value in raw.items() if key != "hours"}), "not a data set card .*hours"),
        (json.dumps(raw | {"codec": {}}), "not a data set card .*spec"),
        (json.dumps(raw | {"latent_mean": 1}), "not a data set card"),
    ):
        (tmp_path / CARD_FILE).write_text(damage)
        with pytest.raises(ShardError, match=message):
            read_card(tmp_path)


def test_the_index_is_sorted_and_refuses_other_tables(tmp_path: Path, data: Path) -> None:
    rows = read_index(data)
    assert [(row.shard, row.offset) for row in rows] == [("a.tar", 0), ("b.tar", 0), ("b.tar", rows[1].size)]
    write_index(tmp_path, rows[::-1])
    assert read_index(tmp_path) == rows
    (tmp_path / "none").mkdir()
    with pytest.raises(ManifestError, match=r"index.parquet: no such file"):
        read_index(tmp_path / "none")


def test_prompts_come_back_by_text(tmp_path: Path) -> None:
    vectors = {text: np.full(4, n, np.float32) for n, text in enumerate(["drums", 'bass and "piano"', "ギター"])}
    write_prompts(tmp_path / PROMPTS_FILE, vectors)
    found = read_prompts(tmp_path)
    assert list(found) == sorted(vectors)
    assert all(np.array_equal(found[text], vectors[text]) and found[text].dtype == np.float32 for text in vectors)
    content = (tmp_path / PROMPTS_FILE).read_bytes()
    write_prompts(tmp_path / PROMPTS_FILE, dict(reversed(vectors.items())))
    assert (tmp_path / PROMPTS_FILE).read_bytes() == content
    for damage in (b"", content[:50], content[:-1], b"\xff" * 20):
        (tmp_path / PROMPTS_FILE).write_bytes(damage)
        with pytest.raises(ShardError, match=r"prompts.safetensors: not readable"):
            read_prompts(tmp_path)
    (tmp_path / PROMPTS_FILE).unlink()
    with pytest.raises(ShardError, match=r"prompts.safetensors: missing; encode writes it anew"):
        read_prompts(tmp_path)


def test_embeddings_of_a_window_are_those_that_fit_and_at_least_one() -> None:
    assert [embedding_count(seconds, 5.12, 1.28) for seconds in (0.1, 5.12, 6.39, 6.4, 20.48)] == [1, 1, 1, 2, 13]
    assert embedding_count(1.7, 1.0, 0.1) == 8
