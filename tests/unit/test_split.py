import hashlib
import itertools
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.errors import ConfigError, ManifestError
from manifests.songs import Problem, Song, write_songs
from manifests.splits import Window, read_splits, write_splits
from pipelines.draw import draw_places, window_starts
from pipelines.split import SplitConfig, make_plan, split
from tests.support.large import large_songs
from tests.support.songs import made_song, made_stem

CONFIG = SplitConfig(window_s=10.0, min_song_s=1.0, splits_per_window=2)
BAND = ("drums", "bass", "piano", "guitar")
SONGS = [made_song(f"c/{number}", [made_stem(name) for name in BAND]) for number in range(6)]

seconds = st.floats(0.1, 500.0, allow_nan=False)


@given(seconds, st.floats(0.1, 60.0), st.floats(0.1, 60.0))
def test_windows_cover_the_song_and_none_leaves_it(duration: float, window: float, hop: float) -> None:
    starts = window_starts(duration, window, hop)
    assert starts[0] == 0.0
    assert all(a < b for a, b in itertools.pairwise(starts))
    assert all(b - a <= hop + 0.0011 for a, b in itertools.pairwise(starts))
    assert all(start == round(start, 3) for start in starts)
    if duration > window:
        assert starts[-1] + window <= duration + 1e-8
        assert duration - (starts[-1] + window) <= hop / 10 + 0.0011
    else:
        assert starts == [0.0]


def test_window_starts_by_example() -> None:
    assert window_starts(30.0, 10.0, 10.0) == [0.0, 10.0, 20.0]
    assert window_starts(30.9, 10.0, 10.0) == [0.0, 10.0, 20.0]
    assert window_starts(31.1, 10.0, 10.0) == [0.0, 10.0, 20.0, 21.1]
    assert window_starts(25.0, 10.0, 5.0) == [0.0, 5.0, 10.0, 15.0]
    assert window_starts(9.99, 10.0, 10.0) == [0.0]
    # The last offset that is valid is drawn though it is no exact binary number.
    assert window_starts(1.3, 1.0, 0.1) == [0.0, 0.1, 0.2, 0.3]


def test_a_window_splits_off_each_instrument_whose_stems_go_together() -> None:
    stems = [made_stem("drums"), made_stem("a kick", instrument="drums"), made_stem("bass")]
    plan = make_plan([made_song("c/1", stems)], replace(CONFIG, splits_per_window=9))
    assert [window.start_s for window in plan.windows] == [0.0, 10.0, 20.0]
    for window in plan.windows:
        assert window.duration_s == 10.0
        assert [(s.source, s.submix, s.source_text, s.submix_text) for s in window.splits] == [
            (("bass",), ("drums", "a kick"), "bass", "drums"),
            (("drums", "a kick"), ("bass",), "drums", "bass"),
        ]


def test_the_order_of_songs_changes_nothing_and_the_same_call_gives_the_same_bytes(tmp_path: Path) -> None:
    write_songs(tmp_path / "songs.parquet", SONGS)
    summaries = [split(tmp_path / "songs.parquet", tmp_path / f"{n}.parquet", config=CONFIG) for n in range(2)]
    assert summaries[0] == summaries[1]
    assert (tmp_path / "0.parquet").read_bytes() == (tmp_path / "1.parquet").read_bytes()
    shuffled = list(SONGS)
    random.Random(1).shuffle(shuffled)
    assert make_plan(shuffled, CONFIG) == make_plan(SONGS, CONFIG)
    assert read_splits(tmp_path / "0.parquet").config == {
        **make_plan(SONGS, CONFIG).config,
        "exclude": [],
        "classes": [],
    }


def test_the_seed_decides_where_there_is_a_choice_and_songs_do_not_share_it() -> None:
    zero, one = (make_plan(SONGS, replace(CONFIG, seed=seed)) for seed in (0, 1))
    assert make_plan(SONGS, replace(CONFIG, seed=0)) == zero
    assert [w.window_id for w in zero.windows] == [w.window_id for w in one.windows]
    assert [w.splits for w in zero.windows] != [w.splits for w in one.windows]
    # 18 windows draw 2 of 4 instruments each; were all draws one, all would be alike.
    choices = Counter(tuple(s.source_text for s in w.splits) for w in zero.windows)
    assert len(choices) > 3
    all_four = [make_plan(SONGS, replace(CONFIG, seed=seed, splits_per_window=4)).windows for seed in (0, 1)]
    assert all_four[0] == all_four[1]


def test_a_stem_is_a_source_of_its_own_when_it_is_asked_for() -> None:
    stems = [made_stem("drums"), made_stem("a kick", instrument="drums"), made_stem("other"), made_stem("bass")]
    config = replace(CONFIG, strategy="stem", splits_per_window=9, exclude=("bass",))
    (first, *_) = make_plan([made_song("c/1", stems)], config).windows
    assert [(s.source, s.submix, s.source_text, s.submix_text) for s in first.splits] == [
        (("a kick",), ("drums", "other", "bass"), "drums", "bass, drums and other"),
        (("drums",), ("a kick", "other", "bass"), "drums", "bass, drums and other"),
    ]


@given(st.integers(2, 7), st.integers(1, 4), st.integers(0, 3))
def test_subsets_are_proper_and_differ_within_a_window(count: int, most: int, seed: int) -> None:
    names = ["drums", "bass", "piano", "guitar", "other", "vocals", "flute"][:count]
    song = made_song("c/1", [made_stem(name) for name in names])
    config = replace(CONFIG, strategy="subset", subset_stems=most, splits_per_window=3, seed=seed)
    plan = make_plan([song], config)
    assert len(plan.windows) == 3
    for window in plan.windows:
        sources = [split.source for split in window.splits]
        assert len(set(sources)) == len(sources) > 0
        for drawn in window.splits:
            assert 1 <= len(drawn.source) <= most
            assert sorted((*drawn.source, *drawn.submix)) == sorted(names)
            assert "other" not in drawn.source
    assert make_plan([song], config) == plan


def test_subsets_of_songs_and_seeds_differ_and_all_sizes_come_up() -> None:
    config = replace(CONFIG, strategy="subset", splits_per_window=3)
    zero, one = (make_plan(SONGS, replace(config, seed=seed)).windows for seed in (0, 1))
    assert [w.splits for w in zero] != [w.splits for w in one]
    assert {len(split.source) for window in zero for split in window.splits} == {1, 2, 3}
    assert len({tuple(w.splits) for w in zero}) > 3


@pytest.mark.parametrize("seed", [0, 3, (1 << 32) - 1, 1 << 32, (1 << 70) + 5])
@pytest.mark.parametrize("song", ["a", "b"])
def test_a_draw_depends_on_seed_and_song_alone(seed: int, song: str) -> None:
    active = np.ones((3, 9), np.bool_)
    active[1] = [name in (4, 7) for name in range(9)]
    active[2] = False
    digest = int.from_bytes(hashlib.sha256(song.encode()).digest()[:8], "little")
    ranks = np.random.default_rng([seed, digest]).random(9)
    places = draw_places(active, song, seed)
    assert places[0].argsort().tolist() == ranks.argsort().tolist()
    assert sorted(places[1].argsort()[:2].tolist()) == [4, 7]


def test_a_plan_is_the_same_as_a_stream_and_as_a_whole(tmp_path: Path) -> None:
    songs = list(large_songs(40, stems=6))
    # Ids whose windows sort otherwise than the songs do.
    songs += [replace(songs[0], song_id=f"medleydb/{name}") for name in ("z z", "z.a", "z-b", "Z", "ü" * 60)]
    write_songs(tmp_path / "songs.parquet", songs)
    config = SplitConfig(hop_s=0.6, seed=5, gain_db=2.0)
    summary = split(tmp_path / "songs.parquet", tmp_path / "stream.parquet", config=config)
    assert summary.windows > 10_000, "more than one row group"
    write_splits(tmp_path / "whole.parquet", make_plan(songs, config))
    assert (tmp_path / "stream.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_song_keeps_its_splits_when_others_come_or_go() -> None:
    whole = {window.window_id: window for window in make_plan(SONGS, CONFIG).windows}
    for window in make_plan(SONGS[2:4], CONFIG).windows:
        assert window == whole[window.window_id]


def test_draws_are_about_uniform() -> None:
    songs = [made_song(f"c/{number}", [made_stem(name) for name in BAND]) for number in range(200)]
    plan = make_plan(songs, replace(CONFIG, splits_per_window=1))
    counts = Counter(window.splits[0].source_text for window in plan.windows)
    # 600 draws of 4: 150 each, standard deviation 10.6.
    assert sorted(counts) == sorted(BAND)
    assert all(abs(count - 150) < 45 for count in counts.values())


def test_names_that_say_nothing_and_excluded_instruments_are_never_a_source_but_stay_in_the_mix() -> None:
    stems = [made_stem(name) for name in ("drums", "bass", "other", "accompaniment", "zither of doom")]
    plan = make_plan([made_song("c/1", stems)], replace(CONFIG, splits_per_window=9, exclude=("bass",)))
    for window in plan.windows:
        assert [s.source_text for s in window.splits] == ["drums", "zither of doom"]
        assert all(len(s.source) + len(s.submix) == 5 for s in window.splits)
    only = make_plan([made_song("c/1", [made_stem("other"), made_stem("drums")])], replace(CONFIG, exclude=("drums",)))
    assert only.windows == ()


def on(*spans: tuple[float, float]) -> list[bool]:
    frames = np.zeros(300, bool)
    for begin, end in spans:
        frames[round(10 * begin) : round(10 * end)] = True
    return frames.tolist()


def test_only_windows_in_which_both_sides_sound_long_enough_are_planned() -> None:
    stems = [
        made_stem("drums", on((0, 10), (21.0, 23.0))),
        made_stem("bass", on((0, 1.9), (20, 30))),
        made_stem("piano", on((0, 0.1))),
    ]
    song = made_song("c/1", stems)
    plan = make_plan([song], replace(CONFIG, splits_per_window=9, min_source_active=0.2, min_submix_active=0.2))
    sources = {window.start_s: [s.source_text for s in window.splits] for window in plan.windows}
    # 0 s: drums has too little beside it, bass sounds too little. 20 s: both sound at least 2 of 10 s.
    assert sources == {20.0: ["bass", "drums"]}
    assert plan.passed_over == {
        "window without an active source beside an active submix": 2,
        "split with a silent source": 6,
        "split with a silent submix": 1,
    }
    looser = make_plan([song], replace(CONFIG, splits_per_window=9, min_source_active=0.19, min_submix_active=0.19))
    assert {w.start_s: [s.source_text for s in w.splits] for w in looser.windows} == {
        0.0: ["bass", "drums"],
        20.0: ["bass", "drums"],
    }
    # 20 s: for bass the submix is drums, 2 s; for drums it is bass, 10 s.
    for floors, kept in (((0.2, 0.5), ["drums"]), ((0.5, 0.2), ["bass"])):
        config = replace(CONFIG, splits_per_window=9, min_source_active=floors[0], min_submix_active=floors[1])
        (only,) = make_plan([song], config).windows
        assert (only.start_s, [s.source_text for s in only.splits]) == (20.0, kept)
    any_sound = make_plan([song], replace(CONFIG, splits_per_window=9, min_source_active=0.01, min_submix_active=0.01))
    assert {w.start_s: [s.source_text for s in w.splits] for w in any_sound.windows} == {
        0.0: ["bass", "drums", "piano"],
        20.0: ["bass", "drums"],
    }


def test_activity_is_on_the_songs_time() -> None:
    late = made_stem("drums", on((0, 10))[:100], offset_frames=20 * 44_100, sample_rate=44_100, frames=10 * 44_100)
    song = replace(made_song("c/1", [late, made_stem("bass")]), duration_s=30.0)
    assert [window.start_s for window in make_plan([song], CONFIG).windows] == [20.0]


def test_what_is_passed_over_is_counted_by_reason() -> None:
    songs = [
        SONGS[0],
        made_song("c/broken", [made_stem("drums"), made_stem("bass")], [Problem(code="metadata")]),
        made_song("c/single", [made_stem("drums")], [Problem(code="single_stem")]),
        made_song("c/short", [made_stem(name, seconds=0.9) for name in BAND]),
        made_song("c/quiet", [made_stem("drums", [False] * 300), made_stem("bass")]),
    ]
    plan = make_plan(songs, CONFIG)
    assert {window.song_id for window in plan.windows} == {"c/0"}
    assert plan.passed_over == {
        "song shorter than 1 s": 1,
        "song unusable (see its problems)": 2,
        "song of which no window is left": 1,
        "window without an active source beside an active submix": 3,
        "split with a silent source": 3,
        "split with a silent submix": 3,
        "split that lost the draw (more than splits_per_window)": 6,
    }


def test_a_stem_with_a_problem_is_in_no_split() -> None:
    stems = [made_stem(name) for name in BAND]
    song = made_song("c/1", stems, [Problem(code="truncated", stem_id="bass"), Problem(code="unequal_length")])
    plan = make_plan([song], replace(CONFIG, splits_per_window=9))
    assert [split.source_text for split in plan.windows[0].splits] == ["drums", "guitar", "piano"]
    assert all("bass" not in (*split.source, *split.submix) for w in plan.windows for split in w.splits)


def test_a_song_shorter_than_a_window_gets_one_window() -> None:
    song = made_song("c/1", [made_stem(name, seconds=4.0) for name in BAND])
    assert [(w.start_s, w.duration_s) for w in make_plan([song], CONFIG).windows] == [(0.0, 10.0)]


stems_of_a_song = st.lists(
    st.tuples(
        st.sampled_from(["drums", "bass", "piano", "other", "Kick", "E-Bass 2"]), st.lists(st.booleans(), max_size=80)
    ),
    min_size=1,
    max_size=6,
)


@given(stems_of_a_song, st.integers(0, 3), st.integers(1, 4), st.floats(0.05, 0.9))
def test_every_usable_stem_stands_on_one_side_of_every_split(
    found: list[tuple[str, list[bool]]], seed: int, splits: int, floor: float
) -> None:
    stems = [
        made_stem(label, active or [False], stem_id=f"S{number}", fingerprint=str(number))
        for number, (label, active) in enumerate(found)
    ]
    config = SplitConfig(
        window_s=2.0,
        hop_s=1.0,
        min_song_s=0.1,
        splits_per_window=splits,
        seed=seed,
        min_source_active=floor,
        min_submix_active=floor,
    )
    song = made_song("c/1", stems)
    for window in make_plan([song], config).windows:
        assert 1 <= len(window.splits) <= splits
        assert len({part.source for part in window.splits}) == len(window.splits)
        for part in window.splits:
            assert sorted((*part.source, *part.submix)) == sorted(stem.stem_id for stem in stems)
            assert not set(part.source) & set(part.submix)
            assert share(song, window, part.source) >= floor
            assert share(song, window, part.submix) >= floor
            instruments = {stem.instrument for stem in stems if stem.stem_id in part.source}
            assert instruments == {part.source_text}
            assert instruments.isdisjoint(stem.instrument for stem in stems if stem.stem_id in part.submix)


def share(song: Song, window: Window, chosen: tuple[str, ...]) -> float:
    """Share of the window's frames in which a chosen stem sounds, frame by frame."""
    count = round(window.duration_s * 10)
    active = [stem.active().tolist() for stem in song.stems if stem.stem_id in chosen]
    first = round(window.start_s * 10)
    return sum(any(row[first + k : first + k + 1] == [True] for row in active) for k in range(count)) / count


def test_the_summary_counts_the_plan(tmp_path: Path) -> None:
    write_songs(tmp_path / "songs.parquet", SONGS)
    summary = split(tmp_path / "songs.parquet", tmp_path / "splits.parquet", config=CONFIG)
    plan = read_splits(tmp_path / "splits.parquet")
    assert (summary.songs, summary.windows, summary.splits) == (6, 18, 36)
    assert summary.hours == pytest.approx(18 * 10 / 3600)
    assert summary.sources == Counter(part.source_text for window in plan.windows for part in window.splits)
    assert list(summary.sources.values()) == sorted(summary.sources.values(), reverse=True)


def test_no_manifest_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"songs.parquet: no such file"):
        split(tmp_path / "songs.parquet", tmp_path / "splits.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window_s": 0.0}, "window_s 0.0 .* must be at least 0.1"),
        ({"window_s": float("nan")}, "window_s nan"),
        ({"hop_s": -1.0}, "hop_s -1.0 must be at least"),
        ({"hop_s": float("inf")}, "hop_s inf"),
        ({"splits_per_window": 0}, "splits_per_window 0 must be at least 1"),
        ({"min_source_active": 0.0}, "min_source_active 0.0 is a share"),
        ({"min_submix_active": 1.1}, "min_submix_active 1.1 is a share"),
        ({"seed": -1}, "seed -1 must not be negative"),
        ({"gain_db": -1.0}, "gain_db -1.0 must be 0"),
        ({"gain_db": float("nan")}, "gain_db nan must be 0"),
        ({"gain_db": 0.001}, "gain_db 0.001 must be 0"),
    ],
)
def test_a_wrong_configuration_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SplitConfig(**change)


def test_gains_are_in_range_and_change_nothing_else() -> None:
    loud = make_plan(SONGS, replace(CONFIG, gain_db=3.0))
    plain = make_plan(SONGS, CONFIG)
    assert tuple(replace(window, gains=()) for window in loud.windows) == plain.windows
    assert all(window.gains == () for window in plain.windows)
    for window in loud.windows:
        assert [gain.stem_id for gain in window.gains] == list(BAND)
    values = [gain.gain_db for window in loud.windows for gain in window.gains]
    assert all(-3 <= value <= 3 and value == round(value, 2) for value in values)
    # 72 draws from [-3, 3]: mean 0 with a standard error of 0.2, standard deviation 1.73.
    assert len(set(values)) > 60
    assert abs(np.mean(values)) < 0.8
    assert 1.4 < np.std(values) < 2.1
    alone = {window.window_id: window.gains for window in make_plan(SONGS[2:3], replace(CONFIG, gain_db=3.0)).windows}
    assert alone == {window.window_id: window.gains for window in loud.windows if window.window_id in alone}
    other_seed = make_plan(SONGS, replace(CONFIG, gain_db=3.0, seed=1))
    assert values != [gain.gain_db for window in other_seed.windows for gain in window.gains]
