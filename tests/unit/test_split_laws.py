"""Laws that every plan keeps, over made-up manifests and all configurations."""

import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.class_sets import class_filter
from manifests.labels import lookup
from manifests.songs import SONGS_VERSION, Song, song_rows, write_songs, write_table
from manifests.splits import Window, read_splits
from pipelines.draw import SplitConfig, draw_songs, sounding_shares, spread
from pipelines.split import make_plan, split
from tests.support.songs import made_song, made_stem

LABELS = ("drums", "bass", "piano", "guitar", "electric guitar", "reed", "other", "zither of doom")


@st.composite
def manifests(draw: st.DrawFn) -> list[Song]:
    songs = []
    for number in range(draw(st.integers(1, 5))):
        labels = draw(st.lists(st.sampled_from(LABELS), min_size=1, max_size=5))
        rng = np.random.default_rng(draw(st.integers(0, 99)))
        length = draw(st.integers(3, 90))
        stems = [
            made_stem(label, (rng.random(length) < rng.random()).tolist(), stem_id=f"S{place}")
            for place, label in enumerate(labels)
        ]
        songs.append(made_song(f"{'ab'[number % 2]}/{number}", stems, subset=("train", "test")[number % 3 == 0]))
    return songs


configs = st.builds(
    SplitConfig,
    strategy=st.sampled_from(["single", "stem", "subset"]),
    subset_stems=st.integers(1, 3),
    window_s=st.just(1.0),
    hop_s=st.sampled_from([None, 0.5]),
    min_song_s=st.just(0.5),
    splits_per_window=st.integers(1, 3),
    max_windows_per_song=st.none() | st.integers(1, 4),
    max_splits_per_instrument=st.none() | st.integers(1, 6),
    min_source_active=st.sampled_from([0.1, 0.4]),
    min_submix_active=st.sampled_from([0.1, 0.4]),
    classes=st.sampled_from([(), ("s_a",), ("s_b",), ("s_a", "s_b"), ("family:guitar", "bass"), ("drums", "reed")]),
    exclude=st.sampled_from([(), ("piano",), ("family:guitar",), ("unmapped", "bass")]),
    seed=st.integers(0, 3),
    gain_db=st.sampled_from([0.0, 0.01, 3.0]),
)


def filtered(config: SplitConfig) -> Any:
    return class_filter(tuple(config.classes), tuple(config.exclude), config.mix)


@given(manifests(), configs)
def test_sides_are_disjoint_and_together_the_mix_and_both_sound(songs: list[Song], config: SplitConfig) -> None:
    by_id = {song.song_id: song for song in songs}
    classes = filtered(config)
    for window in make_plan(songs, config).windows:
        song = by_id[window.song_id]
        mix = [stem for stem in song.usable_stems if classes.in_mix(stem.instrument)]
        assert 1 <= len(window.splits) <= config.splits_per_window
        assert len({part.source for part in window.splits}) == len(window.splits)
        for part in window.splits:
            assert not set(part.source) & set(part.submix)
            assert sorted((*part.source, *part.submix)) == sorted(stem.stem_id for stem in mix)
            source, submix = sounding_shares(mix, (part.source, part.submix), [window.start_s], window.duration_s)[:, 0]
            assert source >= config.min_source_active
            assert submix >= config.min_submix_active


@given(manifests(), configs)
def test_the_classes_are_never_left(songs: list[Song], config: SplitConfig) -> None:
    s_a, s_b = {"bass", "drums", "guitar", "piano"}, {"reed"}
    guitars = {"guitar", "electric guitar"}
    sources = {
        (): {*LABELS},
        ("s_a",): s_a,
        ("s_b",): s_b,
        ("s_a", "s_b"): s_a | s_b,
        ("family:guitar", "bass"): {*guitars, "bass"},
        ("drums", "reed"): {"drums", "reed"},
    }[tuple(config.classes)] - {"other"}
    sources -= {(): set(), ("piano",): {"piano"}, ("family:guitar",): guitars}.get(
        tuple(config.exclude), {"zither of doom", "bass"}
    )
    names = {(song.song_id, stem.stem_id): stem.instrument for song in songs for stem in song.stems}
    for window in make_plan(songs, config).windows:
        for part in window.splits:
            assert {names[window.song_id, stem] for stem in part.source} <= sources
            if config.classes == ("s_a",):
                assert {names[window.song_id, stem] for stem in part.submix} <= s_a


@given(manifests(), configs)
def test_caps_are_never_exceeded_and_a_cap_takes_only_what_is_over(songs: list[Song], config: SplitConfig) -> None:
    windows = make_plan(songs, config).windows
    per_song = Counter(window.song_id for window in windows)
    assert max(per_song.values(), default=0) <= (config.max_windows_per_song or 99)
    most = config.max_splits_per_instrument or 10_000
    counts = instrument_counts(songs, windows)
    assert max(counts.values(), default=0) <= most
    uncapped = make_plan(songs, replace(config, max_splits_per_instrument=None)).windows
    available = instrument_counts(songs, uncapped)
    if config.strategy != "subset":
        assert counts == {name: min(count, most) for name, count in available.items()}
    free = {window.window_id: window for window in uncapped}
    for window in windows:
        assert set(window.splits) <= set(free[window.window_id].splits)
        assert window.gains == free[window.window_id].gains


def instrument_counts(songs: list[Song], windows: tuple[Window, ...]) -> dict[str, int]:
    names = {(song.song_id, stem.stem_id): stem.instrument for song in songs for stem in song.stems}
    return Counter(
        name
        for window in windows
        for part in window.splits
        for name in {names[window.song_id, stem] for stem in part.source}
    )


@given(manifests(), configs, st.integers(0, 9))
def test_other_songs_change_nothing_where_instruments_are_not_capped(
    songs: list[Song], config: SplitConfig, kept: int
) -> None:
    config = replace(config, max_splits_per_instrument=None)
    whole = [window for window in make_plan(songs, config).windows if int(window.song_id.split("/")[1]) <= kept]
    assert list(make_plan(songs[: kept + 1], config).windows) == whole


@given(manifests(), configs)
def test_gains_are_of_the_mix_in_range_and_do_not_touch_the_draw(songs: list[Song], config: SplitConfig) -> None:
    plain = make_plan(songs, replace(config, gain_db=0.0))
    loud = make_plan(songs, config)
    assert [replace(window, gains=()) for window in loud.windows] == list(plain.windows)
    for window in loud.windows:
        mix = {stem for part in window.splits for stem in (*part.source, *part.submix)}
        assert {gain.stem_id for gain in window.gains} == (mix if config.gain_db else set())
        assert all(abs(gain.gain_db) <= config.gain_db for gain in window.gains)
        assert all(gain.gain_db == round(gain.gain_db, 2) for gain in window.gains)
    alone = {window.window_id: window.gains for song in songs for window in make_plan([song], config).windows}
    assert all(alone[window.window_id] == window.gains for window in loud.windows if window.window_id in alone)


@settings(max_examples=30)
@given(manifests(), configs, st.randoms(use_true_random=False))
def test_bytes_do_not_depend_on_the_call_or_on_the_order_of_rows(
    songs: list[Song], config: SplitConfig, shuffle: random.Random
) -> None:
    shuffled = list(songs)
    shuffle.shuffle(shuffled)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        write_songs(root / "songs.parquet", songs)
        write_table(root / "shuffled.parquet", song_rows(shuffled), "songs", SONGS_VERSION, {})
        first = split(root / "songs.parquet", root / "a.parquet", config=config)
        assert split(root / "songs.parquet", root / "b.parquet", config=config) == first
        assert split(root / "shuffled.parquet", root / "c.parquet", config=config) == first
        assert split(root / "songs.parquet", None, config=config) == first
        plans = [(root / f"{name}.parquet").read_bytes() for name in "abc"]
        assert plans[0] == plans[1] == plans[2]
        assert read_splits(root / "a.parquet").windows == make_plan(shuffled, config).windows


@given(manifests(), configs)
def test_all_is_planned_or_passed_over_for_one_reason(songs: list[Song], config: SplitConfig) -> None:
    draws = list(draw_songs(lambda: songs, config, filtered(config)))
    plan = make_plan(songs, config)
    levels: dict[str, int] = defaultdict(int)
    for reason, count in plan.passed_over.items():
        assert count > 0
        levels[reason.split()[0]] += count
    assert levels["song"] + len({window.song_id for window in plan.windows}) == len(songs)
    assert levels["window"] + len(plan.windows) == sum(len(draw.starts_s) for draw in draws)
    possible = sum(len(draw.starts_s) * (len(draw.splits) + len(draw.refused)) for draw in draws)
    assert levels["split"] + sum(len(window.splits) for window in plan.windows) == possible


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 12))
def test_windows_are_spread_evenly(possible: list[bool], most: int) -> None:
    mask = np.array(possible, np.bool_)
    kept = spread(mask, most)
    assert not (kept & ~mask).any()
    assert kept.sum() == min(most, mask.sum())
    ranks = np.flatnonzero(kept[mask])
    if mask.sum() > most and most > 1:
        distances = np.diff(ranks)
        assert distances.max() - distances.min() <= 1
    assert spread(np.ones(12, np.bool_), 3).nonzero()[0].tolist() == [2, 6, 10]


def test_a_cap_on_an_instrument_takes_from_all_songs_and_depends_on_the_seed() -> None:
    songs = [made_song(f"c/{number}", [made_stem(name) for name in ("drums", "bass")]) for number in range(60)]
    config = SplitConfig(window_s=1.0, max_splits_per_instrument=300)
    plans = [make_plan(songs, replace(config, seed=seed)) for seed in (0, 1)]
    for plan in plans:
        counts = Counter(window.song_id for window in plan.windows for part in window.splits if "drums" in part.source)
        # 300 of 1800 splits in 60 songs: 5 a song, standard deviation 2.
        assert counts.total() == 300
        assert len(counts) > 50
        assert max(counts.values()) < 15
        assert plan.passed_over["split over max_splits_per_instrument"] == 2 * 1500
    assert {w.window_id for w in plans[0].windows} != {w.window_id for w in plans[1].windows}
    # A lower cap keeps some of what a higher one keeps.
    fewer = make_plan(songs, replace(config, max_splits_per_instrument=20))
    more = {window.window_id: window.splits for window in plans[0].windows}
    assert all(set(window.splits) <= set(more[window.window_id]) for window in fewer.windows)


def test_the_labels_of_these_laws_are_what_they_seem() -> None:
    assert [lookup(label).instrument for label in LABELS] == list(LABELS)
