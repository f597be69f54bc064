"""`split explain` against plans of the example corpora, and the command line around it."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from manifests.errors import ConfigError, ManifestError
from manifests.songs import Problem, read_songs, write_songs
from manifests.splits import read_splits, window_id, write_splits
from mgeldm.cli import main
from pipelines.draw import window_starts
from pipelines.explain import PLANNED, Explanation, SplitStory, explain, told
from pipelines.scan import scan
from pipelines.split import SplitConfig, make_plan, split
from tests.support.scans import LOCAL
from tests.support.songs import made_song, made_stem

EXAMPLES = Path(__file__).parents[2] / "examples"
BASE = SplitConfig(window_s=5.12, hop_s=3.0, seed=4)


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of the example corpora, and of songs that cannot be used."""
    path = tmp_path_factory.mktemp("explain") / "songs.parquet"
    free = EXAMPLES / "everything-is-free"
    scan([("slakh2100", EXAMPLES / "minislakh"), (str(free.with_suffix(".yaml")), free)], path, runner=LOCAL)
    stems = [made_stem(name) for name in ("drums", "bass", "piano", "other")]
    made = [
        made_song("made/1", stems, [Problem(code="truncated", stem_id="piano", detail="ends at 3 s")]),
        made_song("made/broken", stems, [Problem(code="metadata", detail="not YAML")]),
        made_song("made/short", [made_stem(name, seconds=2.0) for name in ("drums", "bass")]),
    ]
    write_songs(path, [*read_songs(path), *made])
    return path


CONFIGS = {
    "single": BASE,
    "caps": replace(BASE, max_windows_per_song=3, max_splits_per_instrument=6, gain_db=2.5, exclude=("piano",)),
    "s_a": replace(BASE, classes=("s_a",), splits_per_window=2),
    "stem": replace(BASE, strategy="stem", splits_per_window=2, max_splits_per_instrument=7, min_source_active=0.6),
    "subset": replace(BASE, strategy="subset", max_windows_per_song=4, max_splits_per_instrument=9, gain_db=1.0),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_window_of_every_song_is_told_as_the_plan_has_it(name: str, songs: Path, tmp_path: Path) -> None:
    config, plan_path = CONFIGS[name], tmp_path / "splits.parquet"
    split(songs, plan_path, config=config)
    plan = read_splits(plan_path)
    planned = {window.window_id: window for window in plan.windows}
    assert planned
    seen: dict[str, Explanation] = {}
    counts: dict[str, int] = {}
    for song in read_songs(songs):
        for start in window_starts(song.duration_s, 5.12, 3.0):
            key = window_id(song.song_id, start)
            seen[key] = explain(key, plan_path, songs)
    for key, found in seen.items():
        window = planned.get(key)
        assert found.window_id == key
        assert (found.verdict == PLANNED) is (window is not None), key
        if not found.splits:
            continue
        for story in found.splits:
            counts[story.verdict] = counts.get(story.verdict, 0) + 1
            check(story, config)
        if window is None:
            assert all(story.verdict != PLANNED for story in found.splits)
            continue
        told_as = {story.source: story for story in found.splits if story.verdict == PLANNED}
        assert told_as.keys() == {part.source for part in window.splits}
        for part in window.splits:
            assert asdict(part).items() <= asdict(told_as[part.source]).items()
        mixed = {stem.stem_id: stem.gain_db for stem in found.stems if stem.left_out is None}
        assert mixed.keys() == {stem for part in window.splits for stem in (*part.source, *part.submix)}
        assert {stem: gain for stem, gain in mixed.items() if gain is not None} == {
            gain.stem_id: gain.gain_db for gain in window.gains
        }
        assert (found.start_s, found.end_s) == (window.start_s, pytest.approx(window.start_s + window.duration_s))
        assert len(told(found).splitlines()) > 20
    assert planned.keys() <= seen.keys()
    # What `split` counts is what is told, window by window; refused sources are told of the song.
    refused = {reason for found in seen.values() for _, reason in found.refused}
    passed = {key: count for key, count in plan.passed_over.items() if key.startswith("split") and key not in refused}
    assert {key: count for key, count in counts.items() if key != PLANNED} == passed
    windows = [found.verdict for found in seen.values() if found.verdict.startswith("window")]
    assert {verdict: windows.count(verdict) for verdict in windows} == {
        key: count for key, count in plan.passed_over.items() if key.startswith("window")
    }


def check(story: SplitStory, config: SplitConfig) -> None:
    """What is said of a split hangs together."""
    loud = (story.source_active >= config.min_source_active, story.submix_active >= config.min_submix_active)
    assert (story.place is not None) is all(loud)
    if story.place is None:
        assert story.verdict == f"split with a silent {'submix' if loud[0] else 'source'}"
    else:
        assert ("lost the draw" in story.verdict) is (story.place > config.splits_per_window)
    if story.cap_rank is not None:
        assert story.verdict in (PLANNED, "split over max_splits_per_instrument")


@pytest.fixture(scope="module")
def capped(songs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explain") / "splits.parquet"
    split(songs, path, config=CONFIGS["caps"])
    return path


def test_what_is_not_in_the_mix_is_told_with_its_reason(songs: Path, capped: Path, tmp_path: Path) -> None:
    found = explain("made/1@4", capped, songs)
    assert {stem.stem_id: stem.left_out for stem in found.stems if stem.left_out} == {"piano": "truncated"}
    assert found.problems == ("truncated piano ends at 3 s",)
    assert found.refused == (("other", "split whose source has a label that says nothing"),)
    s_a = tmp_path / "s_a.parquet"
    split(songs, s_a, config=CONFIGS["s_a"])
    found = explain("made/1@4", s_a, songs)
    assert {stem.stem_id: stem.left_out for stem in found.stems if stem.left_out} == {
        "piano": "truncated",
        "other": "not in the classes",
    }
    assert found.splits[0].submix in (("drums",), ("bass",))


def test_a_second_of_a_song_names_the_last_window_that_began(songs: Path, capped: Path) -> None:
    for second, start in (("0", 0.0), ("2.9", 0.0), ("3", 3.0), ("24.8", 24.0), ("24.88", 24.88), ("29.9", 24.88)):
        assert explain(f"made/1@{second}", capped, songs).start_s == start


def test_a_song_that_was_passed_over_is_told_as_a_whole(songs: Path, capped: Path) -> None:
    broken = explain(window_id("made/broken", 3.0), capped, songs)
    assert (broken.verdict, broken.start_s) == ("song unusable (see its problems)", 3.0)
    assert broken.problems == ("metadata not YAML",)
    assert {stem.left_out for stem in broken.stems} == {"song unusable"}
    assert explain("made/short@1", capped, songs).verdict == "song shorter than 5 s"
    assert "metadata not YAML" in told(broken)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (
            "slakh2100_train_Track00001-00000000-00000000",
            "no window of a song in .*did you mean slakh2100_train_Track00001-6d7ffbb2-00000000,",
        ),
        ("slakh2100/train/Track0001@3", "slakh2100/train/Track0001: no such song .* mean slakh2100/train/Track00001"),
        ("made/1@31", r"no window of made/1 \(30.00 s\) holds this second"),
        (window_id("made/1", 0.001), f"begins there; did you mean .*{window_id('made/1', 0.0)}"),
        ("nonsense", "nonsense: no window of a song"),
        (window_id("made/1", 0.0)[:-8] + "9" * 400, "no window of a song"),
        ("made/1@" + "9" * 400, "no window of a song"),
    ],
)
def test_an_unknown_window_is_one_line_with_near_matches(
    window: str, message: str, songs: Path, capped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=message):
        explain(window, capped, songs)
    assert main(["split", "explain", window, "--plan", str(capped), "--songs", str(songs)]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)


def test_a_plan_of_another_manifest_is_refused(songs: Path, capped: Path, tmp_path: Path) -> None:
    plan = make_plan(read_songs(songs), CONFIGS["caps"])
    changed = [replace(window, splits=window.splits[:1], gains=()) for window in plan.windows]
    write_splits(tmp_path / "other.parquet", replace(plan, windows=tuple(changed)))
    with pytest.raises(ManifestError, match="the plan was drawn from another manifest"):
        explain(plan.windows[0].window_id, tmp_path / "other.parquet", songs)
    write_splits(tmp_path / "foreign.parquet", replace(plan, config={"seed": 0}))
    with pytest.raises(ManifestError, match="its configuration is not one of `mgeldm split`"):
        explain(plan.windows[0].window_id, tmp_path / "foreign.parquet", songs)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert main(["split", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_the_command_line_plans_shows_and_explains(
    songs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "splits.parquet"
    options = ["--window_s", 5.12, "--classes", "s_a", "--exclude", "piano,family:bass", "--max_windows_per_song", 2]
    shown = json.loads(run(capsys, songs, "--dry-run", "--json", *options))
    assert not plan.exists()
    written = json.loads(run(capsys, songs, "--out", plan, "--json", *options))
    assert shown == written
    assert set(written["sources"]) == {"drums", "guitar"}
    config = read_splits(plan).config
    assert (config["classes"], config["exclude"]) == (["s_a"], ["piano", "family:bass"])
    assert sum(row["splits"] for row in written["chosen"]) == written["splits"]
    lines = [line.split() for line in run(capsys, songs, "--out", plan, *options).splitlines()]
    assert ["splits", "whose", "source", "is", "excluded", str(written["passed_over"][EXCLUDED])] in lines
    row = written["chosen"][-1]
    hours = f"{row['splits'] * 5.12 / 3600:.2f}"
    assert [row["corpus"], row["subset"], row["instrument"], str(row["splits"]), hours] in lines
    window = read_splits(plan).windows[0]
    found = json.loads(run(capsys, "explain", window.window_id, "--plan", plan, "--songs", songs, "--json"))
    assert (found["verdict"], found["song_id"], found["config"]) == (PLANNED, window.song_id, config)
    text = run(capsys, "explain", window.window_id, "--plan", plan, "--songs", songs)
    assert text.startswith(f"{window.window_id}: planned\n")
    assert main(["split", str(songs)]) == 2


EXCLUDED = "split whose source is excluded"
