"""The demo end to end, cut down: every stage for real, on Ray, with few steps."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from manifests import ShardReader, read_songs, read_splits
from mgeldm import audio
from pipelines.verify import verify

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(900)
def test_demo_end_to_end(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "mgeldm.cli", "demo", "--out", str(out), "--steps", "12", "--sampling_steps", "3"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)

    songs = read_songs(out / "songs.parquet")
    assert {song.corpus for song in songs} == {"slakh2100", "everything-is-free"}
    assert summary["counts"]["songs"] == len(songs) == 9
    plan = read_splits(out / "splits.parquet")
    assert summary["counts"]["windows"] == len(plan.windows) > 20
    reader = ShardReader(out / "data")
    assert sorted(reader) == sorted(window.window_id for window in plan.windows), "no window lost, none twice"
    assert verify(out / "data").problems == ()
    assert summary["counts"]["problems"].get("unequal_length") == 3

    losses = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1]["step"] == 12
    extracted = json.loads((out / "audio" / "extract" / "results.json").read_text())["results"]
    assert [result["prompt"] for result in extracted] == ["drums", "bass"]
    for folder in ("extract", "impute", "generate"):
        for result in json.loads((out / "audio" / folder / "results.json").read_text())["results"]:
            for file in result["outputs"].values():
                wave = audio.read(out / "audio" / folder / file)
                assert wave.shape == (1, round(10.24 * 16_000))
                assert np.isfinite(wave).all()
    held_out = {song.song_id for song in songs if song.subset == "test"}
    trained = {row.song_id for row in reader.rows if row.subset == "train"}
    assert held_out
    assert not held_out & trained
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<audio") >= 8
    assert set(summary["seconds"]) >= {"scan", "split", "encode", "train"}
