"""shards verify against plan and audio, info and show, on a data set that was really encoded."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from manifests.errors import ConfigError, ShardError
from manifests.shards import SHARDS_FOLDER, ShardReader, read_index, write_index, write_shard
from manifests.splits import read_splits, write_splits
from mgeldm import shards_cli
from mgeldm.cli import main
from pipelines.encode import encode
from pipelines.encode_config import EncodeConfig
from pipelines.runner import RunnerConfig
from pipelines.scan import scan
from pipelines.show import show
from pipelines.split import SplitConfig, split
from pipelines.verify import CODES, verify
from pipelines.verify_plan import Reencode, choose

pytestmark = pytest.mark.usefixtures("one_thread")

LOCAL = RunnerConfig(runner="local")


@pytest.fixture(scope="module")
def job(slakh: Path, tiny_models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with songs.parquet, splits.parquet and data; read only."""
    folder = tmp_path_factory.mktemp("tools")
    scan([("slakh2100", slakh)], folder / "songs.parquet", runner=LOCAL)
    config = SplitConfig(window_s=1.024, hop_s=0.9, min_song_s=1.0, splits_per_window=2)
    split(folder / "songs.parquet", folder / "splits.parquet", config=config)
    codec, embedder = map(str, tiny_models)
    encoding = EncodeConfig(codec=codec, embedder=embedder, embed_hop_s=0.2, windows_per_shard=4, device="cpu")
    encode(folder / "splits.parquet", folder / "songs.parquet", folder / "data", config=encoding, runner=LOCAL)
    return folder


@pytest.fixture
def data(job: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(job / "data", tmp_path / "data")
    return tmp_path / "data"


def again(job: Path, tiny_models: tuple[Path, Path], **changes: object) -> Reencode:
    codec, embedder = map(str, tiny_models)
    base = Reencode(songs=job / "songs.parquet", share=0.2, codec=codec, embedder=embedder, device="cpu")
    return replace(base, **changes)  # type: ignore[arg-type]


def rewritten(data: Path, change: object) -> str:
    """Write the first shard anew with ``change`` made to its first sample; returns that sample's key."""
    reader, rows = ShardReader(data), read_index(data)
    first = rows[0]
    samples = [reader[row.key] for row in rows if row.shard == first.shard]
    samples[0] = change(samples[0])  # type: ignore[operator]
    made, _, _ = write_shard(data / SHARDS_FOLDER / first.shard, samples)
    write_index(data, [row for row in rows if row.shard != first.shard] + made)
    return first.key


def test_the_data_set_is_what_its_plan_says(job: Path) -> None:
    assert verify(job / "data", job / "splits.parquet").problems == ()


def test_windows_encoded_anew_have_the_same_bytes(job: Path, tiny_models: tuple[Path, Path]) -> None:
    report = verify(job / "data", job / "splits.parquet", again(job, tiny_models))
    assert report.problems == ()
    assert report.reencoded is not None
    keys = sorted(row.key for row in read_index(job / "data"))
    assert report.reencoded.windows == len(choose(keys, 0.2, 0)) > 0
    assert (report.reencoded.equal, report.reencoded.largest_difference) == (report.reencoded.windows, 0.0)


def test_the_choice_is_of_the_seed_and_grows_with_the_share() -> None:
    keys = [f"w{number}" for number in range(2000)]
    assert choose(keys, 0.1, 0) == choose(keys[::-1], 0.1, 0) < choose(keys, 0.2, 0)
    assert choose(keys, 0.1, 0) != choose(keys, 0.1, 1)
    assert 150 < len(choose(keys, 0.1, 0)) < 250
    assert len(choose(keys, 1e-9, 0)) == 1
    assert choose(keys, 1.0, 3) == set(keys)


def test_other_latents_are_found_by_encoding_anew(job: Path, data: Path, tiny_models: tuple[Path, Path]) -> None:
    key = rewritten(data, lambda sample: replace(sample, latents=sample.latents * np.float16(1.01)))
    report = verify(data, job / "splits.parquet", again(job, tiny_models, share=1.0))
    found = [problem for problem in report.problems if problem.code == "reencode"]
    assert [problem.message.split(":")[0] for problem in found] == [key]
    assert report.reencoded is not None
    assert report.reencoded.equal == report.reencoded.windows - 1
    assert 1e-3 < report.reencoded.largest_difference < 0.1


def test_another_codec_is_refused(job: Path, tiny_models: tuple[Path, Path]) -> None:
    with pytest.raises(ShardError, match=r"--codec default is \w{16}, the data set was encoded with"):
        verify(job / "data", job / "splits.parquet", again(job, tiny_models, codec="default"))
    with pytest.raises(ConfigError, match="give --splits"):
        verify(job / "data", None, again(job, tiny_models))
    with pytest.raises(ConfigError, match="above 0"):
        again(job, tiny_models, share=0.0)


def test_windows_that_are_missing_or_not_planned_are_named(job: Path, data: Path, tmp_path: Path) -> None:
    plan = read_splits(job / "splits.parquet")
    extra, gone = plan.windows[0].window_id, read_index(data)[-1].key
    write_splits(tmp_path / "less.parquet", replace(plan, windows=plan.windows[1:]))
    write_index(data, [row for row in read_index(data) if row.key != gone])
    report = verify(data, tmp_path / "less.parquet")
    found = {(p.code, p.message.split(":")[0]) for p in report.problems if p.code in ("not_planned", "not_encoded")}
    assert found == {("not_planned", extra), ("not_encoded", gone)}


def test_splits_and_songs_must_be_those_of_the_plan(job: Path, data: Path, tmp_path: Path) -> None:
    plan = read_splits(job / "splits.parquet")
    first, second, third, *rest = plan.windows
    swapped = replace(first.splits[0], source_text="something else")
    windows = (
        replace(first, splits=(swapped, *first.splits[1:])),
        replace(second, start_s=second.start_s + 0.5),
        replace(third, splits=third.splits[:1] * (len(third.splits) + 1)),
        *rest,
    )
    write_splits(tmp_path / "other.parquet", replace(plan, windows=windows))
    problems = verify(data, tmp_path / "other.parquet").problems
    assert {problem.code for problem in problems} == {"plan"} <= CODES.keys()
    names = [problem.message.split(":")[0] for problem in problems]
    assert sorted(names) == sorted(window.window_id for window in (first, second, third))


def test_show_decodes_a_sample_at_its_level_and_draws_it(
    job: Path, tiny_models: tuple[Path, Path], tmp_path: Path
) -> None:
    reader = ShardReader(job / "data")
    key = next(iter(reader))
    shown = show(job / "data", key, tmp_path / "out", codec=str(tiny_models[0]))
    sample = reader[key]
    assert [track.role for track in shown.tracks[:3]] == ["mix", "submix 0", "source 0"]
    assert len(shown.tracks) == len(sample.latents)
    assert shown.tracks[2].text == sample.meta["splits"][0]["source_text"]
    for track in shown.tracks:
        wave, rate = soundfile.read(tmp_path / "out" / track.file)
        assert (rate, len(wave)) == (16_000, round(sample.meta["duration_s"] * 16_000))
        level = np.sqrt(np.square(wave).mean())
        assert track.rms_dbfs == pytest.approx(20 * np.log10(level), abs=0.01) if level else track.rms_dbfs is None
    assert (tmp_path / "out" / shown.picture).read_bytes().startswith(b"\x89PNG")
    show(job / "data", key, tmp_path / "again", codec=str(tiny_models[0]))
    assert (tmp_path / "again" / shown.picture).read_bytes() == (tmp_path / "out" / shown.picture).read_bytes()


def test_show_names_near_keys_and_refuses_another_codec(job: Path, tmp_path: Path) -> None:
    key = next(iter(ShardReader(job / "data")))
    with pytest.raises(ShardError, match=f"no sample '{key}x' among .*near: {key}"):
        show(job / "data", f"{key}x", tmp_path)
    with pytest.raises(ShardError, match="--codec default is"):
        show(job / "data", key, tmp_path)


def test_the_commands(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(job / "data")
    count = len(read_index(data))
    assert main(["shards", "info", data, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["samples"], found["complete"], found["failures"]) == (count, True, {})
    assert found["songs"] == len({row.song_id for row in read_index(data)})
    assert found["bytes"] == sum(row.size for row in read_index(data))
    assert sum(found["splits_a_window"].values()) == sum(found["subsets"].values()) == count
    assert main(["shards", "info", data]) == 0
    assert "slakh2100 train" in capsys.readouterr().out
    assert main(["shards", "verify", data, "--splits", str(job / "splits.parquet")]) == 0
    assert "problems" in capsys.readouterr().out
    assert main(["shards", "verify", data, "--splits", str(job / "splits.parquet"), "--reencode", "1"]) == 2
    assert "--reencode 1 needs the manifest of the plan; give --songs, too" in capsys.readouterr().err
    some = str(tmp_path / "some")
    assert main(["shards", "select", data, "--where", "subset == 'train'", "--out", some, "--json"]) == 0
    chosen = json.loads(capsys.readouterr().out)
    card = (tmp_path / "some" / "README.md").read_text()
    assert "data_files" not in card
    assert f"They lie in the WebDataset shards of `{data}`" in card
    assert chosen["samples"] == sum(row.subset == "train" for row in read_index(data))
    assert main(["shards", "merge", some, data, "--out", str(tmp_path / "all")]) == 0
    assert main(["shards", "verify", str(tmp_path / "all"), "--splits", str(job / "splits.parquet")]) == 0
    assert main(["shards", "gc", data, "--dry-run"]) == 0
    assert "0 files, 0 bytes would be removed" in capsys.readouterr().out
    assert main(["shards", "select", data, "--where", "nonsense", "--out", str(tmp_path / "x")]) == 2
    assert main(["shards", "polish", data]) == 2
    assert "no action 'polish'" in capsys.readouterr().err
    for action in shards_cli.ACTIONS:
        with pytest.raises(SystemExit):
            main(["shards", action, "--help"])
        assert "Example: mgeldm shards" in " ".join(capsys.readouterr().out.split())
