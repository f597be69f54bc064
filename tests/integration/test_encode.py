import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
import yaml

from manifests.atomic import TEMPORARY_PREFIX
from manifests.errors import ConfigError, ManifestError, ShardError
from manifests.shards import SHARDS_FOLDER, ShardReader, read_card, read_index, read_prompts
from manifests.songs import read_songs, write_songs
from manifests.splits import Window, read_splits, texts, write_splits
from manifests.units import read_failures, read_sidecars, read_units
from pipelines.dataset_readme import write_readme
from pipelines.encode import encode, preview
from pipelines.encode_config import EncodeConfig
from pipelines.runner import RunnerConfig, WorkerDied, run_units
from pipelines.scan import scan
from pipelines.split import SplitConfig, split
from pipelines.verify import verify

pytestmark = pytest.mark.usefixtures("one_thread")

LOCAL = RunnerConfig(runner="local")
SPLIT = SplitConfig(window_s=1.024, hop_s=0.9, min_song_s=1.0, splits_per_window=2)
ARTEFACTS = {
    "README.md",
    "croissant.json",
    "dataset.json",
    "failures.parquet",
    "index.parquet",
    "prompts.safetensors",
    "units.parquet",
}


@dataclass(frozen=True)
class Job:
    """Manifest, plan and configuration of an encode run."""

    songs: Path
    splits: Path
    config: EncodeConfig


@pytest.fixture(scope="module")
def config(tiny_models: tuple[Path, Path]) -> EncodeConfig:
    codec, embedder = tiny_models
    return EncodeConfig(codec=str(codec), embedder=str(embedder), embed_hop_s=0.2, windows_per_shard=4, device="cpu")


def prepare(folder: Path, sources: list[tuple[str, Path]], config: EncodeConfig) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    scan(sources, folder / "songs.parquet", runner=LOCAL)
    split(folder / "songs.parquet", folder / "splits.parquet", config=SPLIT)
    return Job(folder / "songs.parquet", folder / "splits.parquet", config)


@pytest.fixture(scope="module")
def job(slakh: Path, folders: tuple[Path, Path], config: EncodeConfig, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Both corpora, scanned and split; read only."""
    layout, root = folders
    return prepare(tmp_path_factory.mktemp("job"), [("slakh2100", slakh), (str(layout), root)], config)


@pytest.fixture(scope="module")
def data(job: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of the job, encoded in one undisturbed run; read only."""
    out = tmp_path_factory.mktemp("encoded") / "data"
    summary = encode(job.splits, job.songs, out, config=job.config, runner=LOCAL)
    plan = read_splits(job.splits)
    assert (summary.samples, summary.kept, summary.failures) == (len(plan.windows), 0, {})
    assert summary.encoded == summary.shards == len(list((out / SHARDS_FOLDER).glob("*.tar")))
    assert summary.hours == pytest.approx(len(plan.windows) * 1.024 / 3600)
    return out


def shards(data: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((data / SHARDS_FOLDER).iterdir())}


def everything(data: Path) -> dict[str, bytes]:
    return {path.relative_to(data).as_posix(): path.read_bytes() for path in data.rglob("*") if path.is_file()}


def times(data: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (data / SHARDS_FOLDER).iterdir()}


def test_every_window_of_the_plan_stands_in_the_shards_once_and_verifies(job: Job, data: Path) -> None:
    plan = {window.window_id: window for window in read_splits(job.splits).windows}
    assert len(plan) > 15
    reader = ShardReader(data)
    assert sorted(row.key for row in reader.rows) == sorted(plan)
    songs = {song.song_id: song for song in read_songs(job.songs)}
    for row in reader.rows:
        sample, window = reader.read(row), plan[row.key]
        assert sample.latents.shape == (1 + 2 * len(window.splits), 8, 64)
        assert sample.embeddings.shape == (1 + 2 * len(window.splits), 3, 16)
        assert abs(sample.meta["start_s"] - window.start_s) < 0.0081
        assert [split["source_text"] for split in sample.meta["splits"]] == [s.source_text for s in window.splits]
        song = songs[window.song_id]
        assert (row.song_id, row.corpus, row.subset) == (song.song_id, song.corpus, song.subset)
        assert row.shard.startswith(f"{song.corpus}-{song.subset}-")
    report = verify(data)
    assert (report.samples, report.problems, report.notes) == (len(plan), (), ())


def test_units_hold_whole_songs_in_shards_of_about_the_size_asked_for(job: Job, data: Path) -> None:
    rows = read_index(data)
    homes: dict[str, set[str]] = {}
    for row in rows:
        homes.setdefault(row.song_id, set()).add(row.shard)
    assert all(len(found) == 1 for found in homes.values())
    assert max(Counter(row.shard for row in rows).values()) <= job.config.windows_per_shard
    assert sorted(song for unit in read_units(data) for song in unit.songs) == sorted(homes)


def test_the_card_tells_what_the_shards_hold(job: Job, data: Path) -> None:
    card, reader = read_card(data), ShardReader(data)
    samples = [reader.read(row) for row in reader.rows]
    frames = np.concatenate(
        [np.moveaxis(sample.latents.astype(np.float64), 1, 0).reshape(8, -1) for sample in samples], axis=1
    )
    np.testing.assert_allclose(card.latent_mean, frames.mean(axis=1), atol=1e-9)
    np.testing.assert_allclose(card.latent_std, frames.std(axis=1), atol=1e-7)
    assert card.samples == len(samples)
    assert card.songs == len({sample.meta["song_id"] for sample in samples}) == 6
    assert card.hours == pytest.approx(len(samples) * 1.024 / 3600)
    assert card.subsets == Counter(sample.meta["subset"] for sample in samples)
    assert card.instruments == Counter(
        name for sample in samples for name in {s["source_instruments"][0] for s in sample.meta["splits"]}
    )
    assert card.licenses == {"CC-BY-4.0": 4, "CC0-1.0": 2}
    assert (card.failures, read_failures(data)) == (0, [])
    assert {sample.meta["encoder"] for sample in samples} == {card.encoder}
    assert card.frames_per_second == 62.5
    prompts = read_prompts(data)
    assert sorted(prompts) == texts(read_splits(job.splits).windows)
    assert all(np.linalg.norm(vector) == pytest.approx(1, abs=1e-5) for vector in prompts.values())


def test_the_readme_has_the_metadata_that_the_hub_reads(data: Path) -> None:
    head, _, body = (data / "README.md").read_text()[4:].partition("\n---\n")
    front = yaml.safe_load(head)
    assert front["license"] == "other"
    assert front["configs"] == [{"config_name": "default", "data_files": "shards/*.tar"}]
    card = read_card(data)
    assert f"{card.samples} windows of 6 songs" in body
    assert "| CC-BY-4.0 | 4 |" in body
    assert f"| bass | {card.instruments['bass']} |" in body
    assert card.codec["identity"][:16] in body


def test_the_readme_takes_any_name(data: Path, tmp_path: Path) -> None:
    write_readme(tmp_path, replace(read_card(data), licenses={"": 3}, instruments={"a|b": 1}))
    text = (tmp_path / "README.md").read_text()
    assert "| not stated | 3 |" in text
    assert "| a\\|b | 1 |" in text
    assert yaml.safe_load(text.split("---")[1])["license"] == "unknown"


def test_the_folder_holds_the_artefacts_and_nothing_else(data: Path) -> None:
    names = {path.name for path in data.iterdir()}
    assert names == ARTEFACTS | {SHARDS_FOLDER}
    tars, sidecars = ({path.stem for path in (data / SHARDS_FOLDER).glob(f"*{s}")} for s in (".tar", ".json"))
    assert tars == sidecars
    assert len(tars) * 2 == len(shards(data))


def test_a_second_run_encodes_nothing_and_changes_nothing(job: Job, data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    before, at = everything(tmp_path / "data"), times(tmp_path / "data")
    summary = encode(job.splits, job.songs, tmp_path / "data", config=job.config, runner=LOCAL)
    assert (summary.encoded, summary.kept) == (0, summary.shards)
    assert summary.samples == len(read_splits(job.splits).windows)
    assert times(tmp_path / "data") == at
    assert everything(tmp_path / "data") == before


def test_what_is_not_whole_is_made_again_and_only_that(job: Job, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    shutil.copytree(data, out)
    before, at = everything(out), times(out)
    first, second, third, *_ = sorted((out / SHARDS_FOLDER).glob("*.tar"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-512])
    third.with_suffix(".json").write_text("{")
    summary = encode(job.splits, job.songs, out, config=job.config, runner=LOCAL)
    assert summary.encoded == 3
    assert everything(out) == before
    touched = {path.name for path in (first, second, third)}
    assert {name for name, time in times(out).items() if time != at[name] and name.endswith(".tar")} == touched


def test_the_order_of_rows_and_another_folder_change_no_byte(job: Job, data: Path, tmp_path: Path) -> None:
    plan = read_splits(job.splits)
    write_songs(tmp_path / "songs.parquet", read_songs(job.songs)[::-1])
    write_splits(tmp_path / "splits.parquet", replace(plan, windows=plan.windows[::-1]))
    encode(tmp_path / "splits.parquet", tmp_path / "songs.parquet", tmp_path / "data", config=job.config, runner=LOCAL)
    assert everything(tmp_path / "data") == everything(data)


def test_a_unit_that_no_worker_lives_through_is_failures_and_is_tried_again(
    job: Job, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(units: Sequence[Any], *rest: Any) -> Iterator[tuple[int, Any]]:
        yield 0, WorkerDied("the worker died")
        for index, result in run_units(units[1:], *rest):
            yield index + 1, result

    out = tmp_path / "data"
    with monkeypatch.context() as patch:
        patch.setattr("pipelines.encode.run_units", dying)
        summary = encode(job.splits, job.songs, out, config=job.config, runner=LOCAL)
    lost = read_failures(out)
    planned = {window.window_id for window in read_splits(job.splits).windows}
    assert {row.key for row in read_index(out)} | {failure.window_id for failure in lost} == planned
    assert summary.failures == {"worker_died": len(lost)}
    said = {(failure.stage, failure.code, failure.message) for failure in lost}
    assert said == {("encode", "worker_died", "the worker died")}
    assert (summary.encoded, read_card(out).failures) == (summary.shards - 1, len(lost))
    report = verify(out, job.splits)
    assert (report.problems, report.notes) == ((), ())
    assert encode(job.splits, job.songs, out, config=job.config, runner=LOCAL).encoded == 1
    assert everything(out) == everything(data)


def test_a_unit_without_a_sample_has_a_sidecar_only(job: Job, data: Path, tmp_path: Path) -> None:
    gone = read_units(data)[0].songs
    songs = [
        replace(song, root=str(tmp_path / "gone")) if song.song_id in gone else song for song in read_songs(job.songs)
    ]
    write_songs(tmp_path / "songs.parquet", songs)
    out = tmp_path / "data"
    summary = encode(job.splits, tmp_path / "songs.parquet", out, config=job.config, runner=LOCAL)
    failures = read_failures(out)
    (name,) = {failure.unit for failure in failures}
    assert summary.failures == {"missing": len(failures)}
    assert not (out / SHARDS_FOLDER / f"{name}.tar").exists()
    report = verify(out, job.splits)
    assert (report.problems, report.notes) == ((), ())
    assert encode(job.splits, tmp_path / "songs.parquet", out, config=job.config, runner=LOCAL).encoded == 0
    # Some readers that go by the names of files would fail at a tar without samples.
    files = f"{out}/{SHARDS_FOLDER}/*.tar"
    rows = datasets.load_dataset("webdataset", data_files=files, split="train", streaming=True)
    assert sorted(row["__key__"] for row in rows) == [row.key for row in read_index(out)]


def test_somebody_elses_readme_is_not_written_over(job: Job, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds a README.md but no data set; choose another folder"):
        encode(job.splits, job.songs, tmp_path, config=job.config, runner=LOCAL)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_the_readme_leaves_out_shards_of_another_plan(job: Job, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    shutil.copytree(data, out)
    plan = read_splits(job.splits)
    write_splits(tmp_path / "splits.parquet", replace(plan, windows=plan.windows[1:]))
    encode(tmp_path / "splits.parquet", job.songs, out, config=job.config, runner=LOCAL)
    front = yaml.safe_load((out / "README.md").read_text()[4:].partition("\n---\n")[0])
    files = front["configs"][0]["data_files"]
    assert files == sorted({f"{SHARDS_FOLDER}/{row.shard}" for row in read_index(out)})
    assert len(files) == len(list((out / SHARDS_FOLDER).glob("*.tar"))) - 1


@pytest.mark.ray
@pytest.mark.slow
def test_ray_writes_the_same_bytes(job: Job, data: Path, tmp_path: Path, on_ray: RunnerConfig) -> None:
    summary = encode(job.splits, job.songs, tmp_path / "data", config=job.config, runner=on_ray)
    assert summary.encoded == summary.shards
    assert everything(tmp_path / "data") == everything(data)


def test_songs_and_corpora_that_come_later_make_new_shards_and_touch_no_old_one(
    slakh: Path, folders: tuple[Path, Path], config: EncodeConfig, tmp_path: Path
) -> None:
    out, root = tmp_path / "data", tmp_path / "slakh"
    shutil.copytree(slakh, root, ignore=shutil.ignore_patterns("Track00001"))
    layout, other_root = folders
    sources = [("slakh2100", root)]
    encoded, kept = [], []
    at: dict[str, int] = {}
    for step in range(3):
        if step == 1:
            shutil.copytree(slakh / "train" / "Track00001", root / "train" / "Track00001")
        if step == 2:
            sources.append((str(layout), other_root))
        job = prepare(tmp_path / "job", sources, config)
        summary = encode(job.splits, job.songs, out, config=config, runner=LOCAL)
        encoded.append(summary.encoded)
        kept.append(summary.kept)
        now = times(out)
        assert {name: now[name] for name in at} == at
        at = now
        plan = read_splits(job.splits).windows
        assert sorted(row.key for row in read_index(out)) == sorted(window.window_id for window in plan)
        report = verify(out)
        assert (report.problems, report.notes) == ((), ())
    assert (encoded, kept) == ([3, 1, 2], [0, 3, 4])
    # But for the order of units, it is what one run makes of all.
    encode(job.splits, job.songs, tmp_path / "once", config=config, runner=LOCAL)
    grown, once = everything(out), everything(tmp_path / "once")
    assert grown.pop("units.parquet") != once.pop("units.parquet")
    assert grown == once


def test_a_song_that_moves_to_another_subset_is_encoded_there_and_nowhere_else(
    job: Job, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "data"
    shutil.copytree(data, out)
    songs = read_songs(job.songs)
    moved = next(song.song_id for song in songs if song.subset == "validation")
    write_songs(
        tmp_path / "songs.parquet",
        [replace(song, subset="test") if song.song_id == moved else song for song in songs],
    )
    summary = encode(job.splits, tmp_path / "songs.parquet", out, config=job.config, runner=LOCAL)
    assert (summary.encoded, summary.samples) == (1, len(read_splits(job.splits).windows))
    assert {row.subset for row in read_index(out) if row.song_id == moved} == {"test"}
    assert "validation" not in read_card(out).subsets
    assert verify(out).problems == ()
    back = encode(job.splits, job.songs, out, config=job.config, runner=LOCAL)
    assert back.encoded == 0
    assert everything(out)["index.parquet"] == everything(data)["index.parquet"]


def test_a_smaller_plan_narrows_the_index_and_the_whole_one_widens_it_again(
    job: Job, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "data"
    shutil.copytree(data, out)
    plan = read_splits(job.splits)
    song = plan.windows[0].song_id
    fewer = tuple(window for window in plan.windows if window.song_id == song)
    write_splits(tmp_path / "splits.parquet", replace(plan, windows=fewer))
    encode(tmp_path / "splits.parquet", job.songs, out, config=job.config, runner=LOCAL)
    assert sorted(row.key for row in read_index(out)) == sorted(window.window_id for window in fewer)
    assert verify(out).problems == ()
    assert encode(job.splits, job.songs, out, config=job.config, runner=LOCAL).encoded == 0
    assert {name: content for name, content in everything(out).items() if name in everything(data)} == everything(data)


def test_a_change_of_encoder_makes_other_shards_and_the_index_names_only_those(
    job: Job, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "data"
    shutil.copytree(data, out)
    at = times(out)
    other = replace(job.config, embed_hop_s=0.3)
    summary = encode(job.splits, job.songs, out, config=other, runner=LOCAL)
    assert summary.encoded == summary.shards == len(at) // 2
    assert {name: time for name, time in times(out).items() if name in at} == at
    assert not {row.shard for row in read_index(out)} & at.keys()
    assert read_card(out).embed_hop_s == 0.3
    assert f"{summary.shards} shards hold no window of this plan" in caplog.text
    report = verify(out)
    assert report.problems == ()
    assert {note.file.removeprefix("shards/") for note in report.notes} == at.keys()


@pytest.fixture
def damaged(slakh: Path, folders: tuple[Path, Path], config: EncodeConfig, tmp_path: Path) -> tuple[Job, Path]:
    """A job of its own, four of whose six songs lost a stem since the scan; and the folder of the corpora."""
    root = tmp_path / "corpora"
    shutil.copytree(slakh, root / "slakh")
    shutil.copytree(folders[1], root / "folders")
    job = prepare(tmp_path / "job", [("slakh2100", root / "slakh"), (str(folders[0]), root / "folders")], config)
    (root / "slakh/train/Track00001/stems/S00.flac").unlink()
    cut = root / "slakh/train/Track00002/stems/S01.flac"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    other = root / "slakh/validation/Track00003/stems/S02.flac"
    wave, rate = soundfile.read(other)
    soundfile.write(other, 0.5 * wave, rate)
    (root / "folders/song 1/drums.flac").write_text("no music")
    return job, root


CODES = {
    "slakh2100/train/Track00001": "missing",
    "slakh2100/train/Track00002": "truncated",
    "slakh2100/validation/Track00003": "changed",
    "folders/song 1": "unreadable",
}


def test_stems_that_are_lost_after_the_scan_are_failures_and_every_other_window_is_encoded(
    damaged: tuple[Job, Path], data: Path, slakh: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    (job, root), out = damaged, tmp_path / "data"
    summary = encode(job.splits, job.songs, out, config=job.config, runner=LOCAL)
    plan = read_splits(job.splits)
    failures = read_failures(out)
    assert {failure.song_id: failure.code for failure in failures} == CODES
    lost = {window.window_id for window in plan.windows if window.song_id in CODES}
    assert sorted(failure.window_id for failure in failures) == sorted(lost)
    assert {failure.stage for failure in failures} == {"decode"}
    assert all("S01.flac" in f.message for f in failures if f.code == "truncated")
    assert {row.key for row in read_index(out)} == {window.window_id for window in plan.windows} - lost
    assert summary.failures == Counter(CODES[w.song_id] for w in plan.windows if w.song_id in CODES)
    assert summary.samples == len(plan.windows) - len(lost)
    assert (read_card(out).failures, read_card(out).songs) == (len(lost), 2)
    # Units that hold songs of both kinds have a row of each; one of which nothing is left is an empty shard.
    assert (verify(out).problems, verify(out).notes) == ((), ())

    again = encode(job.splits, job.songs, out, config=job.config, runner=LOCAL)
    assert (again.encoded, again.failures) == (0, summary.failures)

    shutil.rmtree(root)
    shutil.copytree(slakh, root / "slakh")
    shutil.copytree(folders[1], root / "folders")
    assert encode(job.splits, job.songs, out, config=job.config, runner=LOCAL).encoded == 0
    mended = encode(job.splits, job.songs, out, config=replace(job.config, retry_failed=True), runner=LOCAL)
    assert (mended.encoded, mended.failures) == (len({failure.unit for failure in failures}), {})
    assert everything(out) == everything(data)


def test_a_shard_that_is_made_again_counts_as_unfinished_until_it_is(
    damaged: tuple[Job, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job, _), out = damaged, tmp_path / "data"
    encode(job.splits, job.songs, out, config=job.config, runner=LOCAL)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.encode_unit.write_shard", full)
        with pytest.raises(OSError, match="no space left"):
            encode(job.splits, job.songs, out, config=replace(job.config, retry_failed=True), runner=LOCAL)
    assert encode(job.splits, job.songs, out, config=job.config, runner=LOCAL).encoded == 1


def test_a_run_that_dies_while_it_finishes_leaves_no_card(
    job: Job, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "data"
    shutil.copytree(data, out)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.encode.write_index", full)
        with pytest.raises(OSError, match="no space left"):
            encode(job.splits, job.songs, out, config=job.config, runner=LOCAL)
    with pytest.raises(ShardError, match="no finished data set"):
        ShardReader(out)
    assert encode(job.splits, job.songs, out, config=job.config, runner=LOCAL).encoded == 0
    assert everything(out) == everything(data)


def test_when_every_stem_is_gone_the_data_set_is_empty_and_says_so(damaged: tuple[Job, Path], tmp_path: Path) -> None:
    (job, root), out = damaged, tmp_path / "data"
    shutil.rmtree(root)
    summary = encode(job.splits, job.songs, out, config=job.config, runner=LOCAL)
    assert (summary.samples, summary.failures) == (0, {"missing": len(read_splits(job.splits).windows)})
    assert len(ShardReader(out)) == 0
    assert read_card(out).latent_std == (1.0,) * 8
    assert verify(out).problems == ()


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from pipelines import encode_unit
from pipelines.encode import EncodeConfig, encode
from pipelines.runner import RunnerConfig, WorkerDied, run_units

place, splits, songs, out, codec, embedder = sys.argv[1:]
torch.set_num_threads(1)
calls = 0

def dying(original, last):
    def call(*arguments):
        global calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments)
    return call

if place == "within a shard":
    encode_unit.Totals.add = dying(encode_unit.Totals.add, 6)
else:
    encode_unit.write_sidecar = dying(encode_unit.write_sidecar, 2)
config = EncodeConfig(codec=codec, embedder=embedder, embed_hop_s=0.2, windows_per_shard=4, device="cpu")
encode(Path(splits), Path(songs), Path(out), config=config, runner=RunnerConfig(runner="local"))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_and_ends_with_the_bytes_of_an_undisturbed_one(
    job: Job, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "data"
    at: dict[str, int] = {}
    for number, place in enumerate(("within a shard", "before the sidecar"), 1):
        arguments = [place, str(job.splits), str(job.songs), str(out), job.config.codec, job.config.embedder]
        done = subprocess.run(
            [sys.executable, "-c", KILLED, *arguments], cwd=Path(__file__).parents[2], capture_output=True, check=False
        )
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        # One shard is sealed by each run; those of the run before are not made again.
        complete = read_sidecars(out, {name.rpartition(".")[0] for name in times(out)})
        sealed = {name: time for name, time in times(out).items() if complete[name.rpartition(".")[0]]}
        assert len({name.rpartition(".")[0] for name in sealed}) == number
        assert at.items() <= sealed.items()
        at = sealed
        assert not (out / "dataset.json").exists()
    left = {path for path in out.rglob(f"{TEMPORARY_PREFIX}*")}
    assert len(left) == 1
    summary = encode(job.splits, job.songs, out, config=job.config, runner=LOCAL)
    assert summary.kept == 2
    assert at.items() <= times(out).items()
    # The shard that the killed run was writing stands now, so that its temporary is gone.
    report = verify(out)
    assert (report.problems, report.notes) == ((), ())
    assert everything(out) == everything(data)


def test_what_is_lost_beside_the_shards_is_made_again(job: Job, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "data"
    shutil.copytree(data, out)
    for name in ARTEFACTS - {"units.parquet"}:
        (out / name).unlink()
    assert encode(job.splits, job.songs, out, config=job.config, runner=LOCAL).encoded == 0
    assert everything(out) == everything(data)


def test_progress_counts_windows_of_this_run_and_of_earlier_ones(
    job: Job, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bar:
        def __init__(self, total: int, label: str, unit: str, initial: int = 0) -> None:
            self.total, self.done = total, initial
            seen.append(self)

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, count: int) -> None:
            self.done += count
            steps.append(count)

    seen: list[Bar] = []
    steps: list[int] = []
    monkeypatch.setattr("pipelines.encode.progress", Bar)
    out = tmp_path / "data"
    shutil.copytree(data, out)
    gone = sorted((out / SHARDS_FOLDER).glob("*.tar"))[0]
    lost = sum(row.shard == gone.name for row in read_index(out))
    gone.unlink()
    encode(job.splits, job.songs, out, config=job.config, runner=LOCAL)
    windows = len(read_splits(job.splits).windows)
    assert [(bar.total, bar.done) for bar in seen] == [(windows, windows)]
    assert steps == [lost]


def sides(window: Window) -> set[frozenset[str]]:
    return {frozenset(side) for split in window.splits for side in (split.source, split.submix)}


def test_a_preview_counts_what_encode_would_do_and_writes_nothing(job: Job, data: Path, tmp_path: Path) -> None:
    windows = read_splits(job.splits).windows
    found = preview(job.splits, job.songs, tmp_path / "none", job.config)
    assert not (tmp_path / "none").exists()
    sealed = len(shards(data)) // 2
    assert (found["shards"], found["shards_to_encode"]) == (sealed, sealed)
    assert (found["windows"], found["windows_to_encode"]) == (len(windows), len(windows))
    assert found["hours"] == pytest.approx(len(windows) * 1.024 / 3600)
    signals = sum(len({frozenset((*w.splits[0].source, *w.splits[0].submix))} | sides(w)) for w in windows)
    assert found["hours_through_codec"] == pytest.approx(signals * 1.024 / 3600)
    size = sum(len(content) for name, content in shards(data).items() if name.endswith(".tar"))
    assert found["bytes"] == pytest.approx(size, rel=0.5)
    measured = found["calibration"]
    assert (measured["device"], measured["windows"]) == ("cpu", len(windows) - 1)
    assert found["cpu_hours"] == pytest.approx(found["hours_to_encode"] / measured["window_seconds_per_s"])
    # The disk's speed is not known, but what is read is: every song.
    assert measured["bytes_per_s"] > 0
    assert 0 < measured["decode_cores"] < 2
    assert "calibration" not in preview(job.splits, job.songs, tmp_path / "none", job.config, calibration_s=0)
    before = everything(data)
    after = preview(job.splits, job.songs, data, job.config)
    assert (after["shards_to_encode"], after["windows_to_encode"], after["shards"]) == (0, 0, sealed)
    assert everything(data) == before


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_encoded(job: Job, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "data"):
        with pytest.raises(ConfigError, match=r"file.*: cannot be written \(.*\); choose another folder"):
            encode(job.splits, job.songs, out, config=job.config, runner=LOCAL)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_plan_and_a_manifest_that_do_not_belong_together_are_refused(job: Job, tmp_path: Path) -> None:
    songs, plan = read_songs(job.songs), read_splits(job.splits)
    without = [song for song in songs if song.song_id != plan.windows[0].song_id]
    stemless = [replace(song, stems=song.stems[1:]) for song in songs]
    for number, (kept, message) in enumerate(
        ((without, "is not in .*songs.*; make the plan anew"), (stemless, "uses stem .*, which .* lacks in"))
    ):
        path = tmp_path / f"songs{number}.parquet"
        write_songs(path, kept)
        with pytest.raises(ManifestError, match=message):
            encode(job.splits, path, tmp_path / "data", config=job.config, runner=LOCAL)
    empty = replace(plan, windows=(), passed_over={"song shorter than 5 s": 6})
    write_splits(tmp_path / "empty.parquet", empty)
    with pytest.raises(ManifestError, match=r"empty.parquet: the plan has no window; passed over: .*shorter than 5 s"):
        encode(tmp_path / "empty.parquet", job.songs, tmp_path / "data", config=job.config, runner=LOCAL)
    splitless = replace(plan, windows=(replace(plan.windows[0], splits=()),))
    write_splits(tmp_path / "splitless.parquet", splitless)
    with pytest.raises(ManifestError, match="has no split"):
        encode(tmp_path / "splitless.parquet", job.songs, tmp_path / "data", config=job.config, runner=LOCAL)
    assert not (tmp_path / "data").exists()
