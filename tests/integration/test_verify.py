import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from manifests.atomic import TEMPORARY_PREFIX, content_hash
from manifests.errors import ShardError
from manifests.shards import (
    CARD_FILE,
    INDEX_FILE,
    PROMPTS_FILE,
    SHARDS_FOLDER,
    DatasetCard,
    IndexRow,
    Sample,
    read_card,
    read_index,
    read_prompts,
    write_card,
    write_index,
    write_prompts,
    write_shard,
)
from manifests.units import Failure, Sidecar, parse_sidecar, read_failures, write_failures, write_sidecar
from pipelines.verify import CODES, verify

ENCODER = content_hash("encoder")
TEXTS = {"bass": ["bass"], "bass and drums": ["bass", "drums"], "vocals": ["vocals"]}


def sample(number: int, splits: int = 2) -> Sample:
    rng = np.random.default_rng(number)
    names = [("bass", "vocals"), ("vocals", "bass and drums")][:splits]
    return Sample(
        key=f"window-{number}",
        latents=rng.standard_normal((1 + 2 * splits, 4, 16)).astype(np.float16),
        embeddings=rng.standard_normal((1 + 2 * splits, 3, 8)).astype(np.float16),
        meta={
            "version": "1",
            "encoder": ENCODER,
            "song_id": f"corpus/{number // 2}",
            "corpus": "corpus",
            "subset": "train" if number < 4 else "test",
            "license": "CC0-1.0" if number < 2 else "MIT",
            "start_s": 0.5 * number,
            "duration_s": 2.0,
            "splits": [
                {"source_text": source, "submix_text": submix, "source_instruments": TEXTS[source]}
                for source, submix in names
            ],
        },
    )


def seal(data: Path, name: str, samples: list[Sample], failures: tuple[Failure, ...] = ()) -> list[IndexRow]:
    """A shard with its sidecar, as encode writes them."""
    rows, digest, size = write_shard(data / SHARDS_FOLDER / f"{name}.tar", samples)
    if not rows:
        (data / SHARDS_FOLDER / f"{name}.tar").unlink()
        size = 0
    sidecar = Sidecar(
        shard=f"{name}.tar",
        sha256=digest,
        size=size,
        plan="p",
        encoder=ENCODER,
        rows=tuple(rows),
        failures=failures,
        latent_count=0,
        latent_sum=(),
        latent_squares=(),
        seconds=2.0 * len(rows),
        songs=tuple(sorted({row.song_id for row in rows})),
    )
    write_sidecar(data, name, sidecar)
    return rows


SAMPLES = [sample(0), sample(1), sample(2), sample(3), sample(4, splits=1)]
_VALUES = np.concatenate([one.latents.astype(np.float64).swapaxes(0, 1).reshape(4, -1) for one in SAMPLES], axis=1)
MEAN, DEVIATION = _VALUES.mean(axis=1).tolist(), _VALUES.std(axis=1).tolist()
FAILURE = Failure(unit="c", song_id="corpus/9", window_id="w", stage="decode", code="missing", message="gone")
CARD = DatasetCard(
    version="1",
    encoder=ENCODER,
    codec={"identity": "c", "spec": {"sample_rate": 16_000, "hop": 2_000, "latent_channels": 4}},
    embedder={"identity": "m", "spec": {"sample_rate": 16_000, "window_s": 1.0, "dim": 8}},
    embed_hop_s=0.5,
    prompt_template="{}",
    latent_mean=tuple(MEAN),
    latent_std=tuple(DEVIATION),
    silence_latent=(0.0,) * 4,
    samples=5,
    songs=3,
    hours=10 / 3600,
    subsets={"train": 4, "test": 1},
    instruments={"bass": 5, "vocals": 4},
    licenses={"CC0-1.0": 1, "MIT": 2},
    failures=1,
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of five samples in two shards, and a third shard whose only window failed."""
    data = tmp_path / "data"
    rows = seal(data, "a", SAMPLES[:3]) + seal(data, "b", SAMPLES[3:])
    rows += seal(data, "c", [], (FAILURE,))
    write_index(data, rows)
    write_failures(data, [FAILURE])
    write_prompts(data / PROMPTS_FILE, {text: np.zeros(8, np.float32) for text in TEXTS})
    write_card(data, CARD)
    return data


def found(data: Path) -> list[tuple[str, str]]:
    problems = verify(data).problems
    assert all("\n" not in problem.message and problem.message for problem in problems)
    assert {problem.code for problem in problems} <= CODES.keys()
    return [(problem.file, problem.code) for problem in problems]


def test_a_whole_data_set_has_no_problem(data: Path) -> None:
    report = verify(data)
    assert (report.samples, report.shards, report.problems, report.notes) == (5, 3, (), ())
    assert json.loads(json.dumps(asdict(report))) == {
        "samples": 5,
        "shards": 3,
        "problems": [],
        "notes": [],
        "reencoded": None,
    }


def test_a_folder_that_is_not_there_is_an_error_and_an_empty_one_lacks_everything(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="nowhere: no such folder"):
        verify(tmp_path / "nowhere")
    assert found(tmp_path) == [(name, "missing") for name in (CARD_FILE, INDEX_FILE, "failures.parquet", PROMPTS_FILE)]


def test_a_changed_byte_is_found_wherever_it_is(data: Path) -> None:
    path = data / SHARDS_FOLDER / "a.tar"
    content = path.read_bytes()
    row = read_index(data)[1]
    places = {
        "in the values of a sample": row.latents_offset + 200,
        "in its JSON": row.json_offset + 5,
        "in a tar header": row.offset + 150,
        "in padding": row.json_offset + row.json_size,
    }
    for place in places.values():
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        report = verify(data)
        assert ("shards/a.tar", "sidecar") in found(data)
        assert [p.message.split(":")[0] for p in report.problems if p.code == "checksum"] == ["window-1"]
        assert {problem.file for problem in report.problems} - {CARD_FILE} == {"shards/a.tar"}


def test_a_changed_byte_behind_the_samples_is_found_by_the_sidecar(data: Path) -> None:
    path = data / SHARDS_FOLDER / "a.tar"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\x01")
    assert found(data) == [("shards/a.tar", "sidecar")]


def test_a_truncated_shard_is_found_and_what_is_left_of_it_checked(data: Path) -> None:
    path = data / SHARDS_FOLDER / "a.tar"
    row = read_index(data)[1]
    path.write_bytes(path.read_bytes()[: row.offset + 600])
    report = verify(data)
    assert [p.message.split(":")[0] for p in report.problems if p.code == "checksum"] == ["window-1", "window-2"]
    assert sorted(p.code for p in report.problems) == ["checksum"] * 2 + ["members", "sample", "sample", "sidecar"]
    assert any("bytes, the sidecar says" in p.message for p in report.problems)
    assert all(problem.file == "shards/a.tar" for problem in report.problems)


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100])
def test_a_shard_that_is_none_is_found(data: Path, content: bytes) -> None:
    (data / SHARDS_FOLDER / "a.tar").write_bytes(content)
    assert found(data)
    assert {file for file, _ in found(data)} == {"shards/a.tar"}


def test_missing_files_are_named(data: Path) -> None:
    (data / SHARDS_FOLDER / "a.tar").unlink()
    (data / SHARDS_FOLDER / "c.json").unlink()
    (data / SHARDS_FOLDER / "b.json").unlink()
    assert found(data) == [("shards/a.tar", "missing"), ("shards/b.tar", "sidecar"), ("shards/c.tar", "sidecar")]
    assert "the index has 3 samples in it" in verify(data).problems[0].message


def with_sidecar(data: Path, name: str, **change: object) -> None:
    write_sidecar(data, name, replace(parse_sidecar(data, name), **change))  # type: ignore[arg-type]


def test_a_sidecar_that_says_otherwise_is_found(data: Path) -> None:
    with_sidecar(data, "a", encoder="other")
    with_sidecar(data, "b", sha256="00")
    assert found(data) == [("shards/a.tar", "sidecar"), ("shards/b.tar", "sidecar")]
    with_sidecar(data, "a", encoder=ENCODER, size=5)
    with_sidecar(data, "b", rows=())
    messages = [problem.message for problem in verify(data).problems]
    assert messages[0].endswith("bytes, the sidecar says 5")
    assert messages[1:] == ["SHA-256 is not 00, as the sidecar says", "its 0 rows are not the 2 of the index"]


def test_members_out_of_order_or_of_another_name_are_found(data: Path) -> None:
    rows = [row for row in read_index(data) if row.shard != "a.tar"]
    swapped = seal(data, "a", [sample(1), sample(0), sample(2)])
    offsets = {row.key: row for row in swapped}
    exchanged = [
        replace(offsets["window-0"], key="window-1"),
        replace(offsets["window-1"], key="window-0"),
        offsets["window-2"],
    ]
    with_sidecar(data, "a", rows=tuple(sorted(exchanged, key=lambda row: row.offset)))
    write_index(data, [*rows, *exchanged])
    report = verify(data)
    assert [p.message for p in report.problems if p.code == "members"] == [
        "member 0: window-1.latents.npy at byte 512, the index says window-0.latents.npy at byte 512"
    ]


def test_a_sample_that_the_index_does_not_name_is_found(data: Path) -> None:
    rows = [row for row in read_index(data) if row.key != "window-2"]
    write_index(data, rows)
    codes = found(data)
    assert ("shards/a.tar", "sidecar") in codes
    assert ("shards/a.tar", "members") in codes
    assert (CARD_FILE, "card") in codes


def test_a_window_that_stands_twice_is_found(data: Path) -> None:
    rows = seal(data, "d", [sample(0)])
    write_index(data, [*read_index(data), *rows])
    write_card(data, replace(CARD, samples=6, hours=12 / 3600, subsets={"train": 5, "test": 1}))
    problems = verify(data).problems
    assert [(p.file, p.code, p.message) for p in problems if p.code == "duplicate"] == [
        (INDEX_FILE, "duplicate", "window-0: 2 rows")
    ]


def reseal(data: Path, changed: Sample) -> None:
    """Replace sample 3 by another that was written and indexed without a fault."""
    rows = [row for row in read_index(data) if row.shard != "b.tar"]
    write_index(data, [*rows, *seal(data, "b", [changed, sample(4, splits=1)])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents": sample(3).latents[:, :3]}, r"window-3: latents of shape (5, 3, 16), expected [., (4, 16)]"),
        ({"latents": sample(3).latents[..., :9]}, r"window-3: latents of shape (5, 4, 9), expected [., (4, 16)]"),
        ({"embeddings": sample(3).embeddings[:, :2]}, "window-3: embeddings of shape (5, 2, 8), expected [., (3, 8)]"),
        (
            {"embeddings": sample(3).embeddings[..., :5]},
            "window-3: embeddings of shape (5, 3, 5), expected [., (3, 8)]",
        ),
    ],
)
def test_arrays_of_another_shape_than_the_card_says_are_found(data: Path, change: dict, message: str) -> None:  # type: ignore[type-arg]
    reseal(data, replace(sample(3), **change))
    assert [(p.file, p.code, p.message) for p in verify(data).problems] == [("shards/b.tar", "sample", message)]


def test_values_that_are_not_finite_and_other_types_are_found(data: Path) -> None:
    bad = sample(3)
    bad.latents[1, 2, 3] = np.nan
    reseal(data, bad)
    (problem, *_) = [p for p in verify(data).problems if p.code == "sample"]
    assert "window-3" in problem.message
    assert "latents hold NaN or infinite" in problem.message
    other = sample(3)
    object.__setattr__(other, "embeddings", other.embeddings.astype(np.float32))
    reseal(data, other)
    assert ("shards/b.tar", "sample") in found(data)


def test_json_that_says_otherwise_than_index_or_card_is_found(data: Path) -> None:
    meta = sample(3).meta
    reseal(data, replace(sample(3), meta={**meta, "encoder": "other"}))
    assert [p.message for p in verify(data).problems] == [f"window-3: encoder other, the card says {ENCODER}"]
    reseal(data, sample(3))
    rows = [replace(row, song_id="corpus/2", subset="validation") for row in read_index(data) if row.key == "window-3"]
    rest = [row for row in read_index(data) if row.key != "window-3"]
    write_index(data, rest + rows)
    with_sidecar(data, "b", rows=tuple(row for row in read_index(data) if row.shard == "b.tar"))
    messages = [p.message for p in verify(data).problems if p.code == "meta"]
    assert messages == [
        "window-3: song_id is 'corpus/1', the index says 'corpus/2'",
        "window-3: subset is 'train', the index says 'validation'",
    ]
    reseal(data, replace(sample(3), meta={key: value for key, value in meta.items() if key != "duration_s"}))
    assert ("shards/b.tar", "sample") in found(data)


def test_a_text_without_an_embedding_is_found(data: Path) -> None:
    prompts = read_prompts(data)
    del prompts["bass and drums"]
    write_prompts(data / PROMPTS_FILE, prompts)
    problems = verify(data).problems
    assert {(p.file, p.code) for p in problems} == {("shards/a.tar", "prompt"), ("shards/b.tar", "prompt")}
    assert problems[0].message == "window-0: 'bass and drums' is not in prompts.safetensors"
    assert len(problems) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"samples": 6},
        {"songs": 2},
        {"hours": 0.01},
        {"subsets": {"train": 5}},
        {"instruments": {"bass": 5, "vocals": 5}},
        {"licenses": {"MIT": 3}},
        {"failures": 0},
    ],
)
def test_a_card_that_counts_otherwise_is_found(data: Path, change: dict[str, object]) -> None:
    write_card(data, replace(CARD, **change))  # type: ignore[arg-type]
    assert found(data) == [(CARD_FILE, "card")]
    assert verify(data).problems[0].message.startswith(f"{next(iter(change))} is ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_mean": (9.0, *MEAN[1:])}, f"latent_mean of channel 0 is 9, the samples say {MEAN[0]:g}"),
        ({"latent_std": (*DEVIATION[:3], 0.5)}, f"latent_std of channel 3 is 0.5, the samples say {DEVIATION[3]:g}"),
        ({"latent_mean": (1.0,)}, "latent_mean is no list of 4 finite numbers"),
        ({"silence_latent": ("a", "b", "c", "d")}, "silence_latent is no list of 4 finite numbers"),
        ({"silence_latent": (np.inf, 0.0, 0.0, 0.0)}, "silence_latent is no list of 4 finite numbers"),
        ({"prompt_template": "the sound"}, "prompt_template 'the sound' has no {} for the words"),
        ({"embed_hop_s": -1.0}, "embed_hop_s -1.0 is not above 0"),
    ],
)
def test_a_card_that_would_mislead_training_is_found(data: Path, change: dict[str, object], message: str) -> None:
    write_card(data, replace(CARD, **change))  # type: ignore[arg-type]
    assert message in [problem.message for problem in verify(data).problems if problem.code == "card"]


def test_leftovers_are_notes(data: Path) -> None:
    (data / SHARDS_FOLDER / f"{TEMPORARY_PREFIX}99-a.tar").write_bytes(b"half")
    (data / f"{TEMPORARY_PREFIX}99-index.parquet").write_bytes(b"half")
    seal(data, "old", [sample(0)])
    (data / SHARDS_FOLDER / "lonely.tar").write_bytes(b"not sealed")
    (data / SHARDS_FOLDER / "notes.txt").write_text("a person's own")
    report = verify(data)
    assert report.problems == ()
    assert [(note.file, note.code) for note in report.notes] == [
        (file, "leftover")
        for file in (
            ".tmp-99-index.parquet",
            "shards/.tmp-99-a.tar",
            "shards/lonely.tar",
            "shards/old.json",
            "shards/old.tar",
        )
    ]


def damages() -> Iterator[tuple[str, Callable[[bytes, random.Random], bytes]]]:
    yield "cut", lambda content, draw: content[: draw.randrange(len(content))]
    yield "bytes", lambda content, draw: _scattered(content, draw, 20)
    yield "burst", lambda content, draw: _burst(content, draw)
    yield "replaced", lambda content, draw: draw.randbytes(draw.randrange(300))


def _scattered(content: bytes, draw: random.Random, count: int) -> bytes:
    changed = bytearray(content)
    for _ in range(count):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def _burst(content: bytes, draw: random.Random) -> bytes:
    begin = draw.randrange(len(content))
    return content[:begin] + draw.randbytes(64) + content[begin + 64 :]


def test_no_damage_crashes_it_and_none_is_overlooked(data: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    files = sorted(path for path in data.rglob("*") if path.is_file())
    for number in range(3):
        for path in files:
            for name, damage in damages():
                broken = tmp_path / "broken"
                shutil.copytree(data, broken)
                victim = broken / path.relative_to(data)
                content = path.read_bytes()
                victim.write_bytes(damage(content, draw))
                report = verify(broken)
                # Values that only a person could miss: texts of a failure, vectors of a prompt, sums in a sidecar.
                if path.suffix == ".tar" and victim.read_bytes() != content:
                    assert report.problems, (number, path.name, name)
                shutil.rmtree(broken)


def test_damage_of_tables_is_a_problem_of_theirs(data: Path) -> None:
    for name in (INDEX_FILE, "failures.parquet", PROMPTS_FILE, CARD_FILE):
        content = (data / name).read_bytes()
        (data / name).write_bytes(content[: len(content) // 2])
        assert (name, "unreadable") in found(data)
        (data / name).write_bytes(content)
    assert found(data) == []
    assert (read_card(data), read_failures(data)) == (CARD, [FAILURE])
