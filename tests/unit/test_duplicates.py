"""Songs that are the same, nearly the same, or of one work, and what is none of it."""

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from manifests import sketches
from manifests.duplicates import CROSS_SONG, cross_song_problems, judged_together, near_duplicates
from manifests.songs import Problem, Song
from tests.support.large import large_songs
from tests.support.songs import made_song, made_stem
from tests.support.sounds import sound

RATE = 16_000
Wave = npt.NDArray[np.floating]


def song(name: str, *stems: str, subset: str = "train", **fields: object) -> Song:
    made = made_song(name, [made_stem(stem) for stem in stems], subset=subset)
    return replace(made, **fields)  # type: ignore[arg-type]


def found(*songs: Song) -> dict[str, list[tuple[str, str | None, str]]]:
    """Code, stem and detail of the problems of each song; no matter in which order the songs come."""
    problems = cross_song_problems(sorted(songs, key=lambda song: song.song_id))
    for order in (songs, songs[::-1]):
        judged = {
            song.song_id: tuple(p for p in song.problems if p.code in CROSS_SONG) for song in judged_together(order)
        }
        assert judged == {song.song_id: problems.get(song.song_id, ()) for song in songs}
    return {name: [(p.code, p.stem_id, p.detail) for p in found] for name, found in problems.items()}


def test_songs_of_the_same_stems_are_duplicates_whatever_the_stems_are_called() -> None:
    one, other = song("c/1", "drums", "bass"), song("c/2", "bass", "drums")
    renamed = replace(other, stems=tuple(replace(stem, stem_id=f"S{k}") for k, stem in enumerate(other.stems)))
    assert found(one, renamed, song("c/3", "piano", "guitar")) == {
        "c/1": [("duplicate", None, "c/2 (same stems)")],
        "c/2": [("duplicate", None, "c/1 (same stems)")],
    }


def test_songs_of_the_same_mixture_are_duplicates_though_their_stems_differ() -> None:
    mixture = made_stem("the mix")
    songs = [
        song("a/1", "drums", "bass", mixture_audio=mixture),
        song("b/1", "piano", mixture_audio=replace(mixture, path="other.wav")),
        song("b/2", "guitar", mixture_audio=made_stem("another mix")),
        song("b/3", "organ"),
    ]
    assert found(*songs) == {
        "a/1": [("duplicate", None, "b/1 (same mixture)")],
        "b/1": [("duplicate", None, "a/1 (same mixture)")],
    }


def test_a_stem_in_two_songs_is_told_with_its_names() -> None:
    other = song("c/2", "drums", "piano")
    other = replace(other, stems=(replace(other.stems[0], stem_id="S00"), other.stems[1]))
    assert found(song("c/1", "drums", "bass"), other) == {
        "c/1": [("duplicate", "drums", "c/2 (its stem S00)")],
        "c/2": [("duplicate", "S00", "c/1 (its stem drums)")],
    }


def test_what_is_the_same_as_a_whole_is_not_told_again_of_its_parts() -> None:
    mixture = made_stem("mix")
    songs = [song(f"c/{n}", "drums", "bass", mixture_audio=mixture, sketch=course("c")) for n in range(2)]
    assert [len(problems) for problems in found(*songs).values()] == [1, 1]


def test_stems_that_say_nothing_make_no_duplicate() -> None:
    quiet = made_stem("click", [True] * 9 + [False] * 100)
    assert found(*(replace(song(f"c/{n}", "drums"), stems=(quiet,)) for n in range(2))) == {}
    unread = [replace(made_stem(name), fingerprint=None) for name in ("drums", "bass")]
    assert found(*(replace(song(f"c/{n}", "drums"), stems=tuple(unread)) for n in range(2))) == {}
    damaged = [song(f"c/{n}", "drums", "bass", problems=(Problem(code="silent", stem_id="bass"),)) for n in range(2)]
    only_drums = song("c/2", "drums")
    assert {name: len(problems) for name, problems in found(*damaged, only_drums).items()} == {
        name: 1 for name in ("c/0", "c/1", "c/2")
    }
    truncated = [
        song(f"c/{n}", "drums", f"b{n}", problems=(Problem(code="truncated", stem_id="drums"),)) for n in range(2)
    ]
    assert found(*truncated) == {}
    assert found(song("c/1", "drums", problems=(Problem(code="excluded"),)), song("c/2", "drums", subset="test")) == {}


def test_two_equal_stems_within_one_song_are_not_its_matter() -> None:
    twice = song("c/1", "drums", "bass")
    twice = replace(twice, stems=(*twice.stems, replace(twice.stems[0], stem_id="again")))
    assert found(twice, song("c/2", "piano", "guitar")) == {}


def test_a_detail_names_a_few_of_many() -> None:
    problems = found(*(song(f"c/{n}", "drums", "bass") for n in range(6)))
    assert len(problems) == 6
    detail = "c/0 (same stems), c/1 (same stems), c/2 (same stems), more"
    assert problems["c/5"] == [("duplicate", None, detail)]
    assert problems["c/0"] == [("duplicate", None, "c/1 (same stems), c/2 (same stems), c/3 (same stems), more")]


@pytest.mark.parametrize("subset", ["validation", "test"])
def test_the_same_audio_in_another_subset_is_a_leak(subset: str) -> None:
    songs = [song("c/1", "drums", "bass"), song("c/2", "drums", "bass"), song("c/3", "drums", "bass", subset=subset)]
    problems = found(*songs)
    assert problems["c/1"] == [
        ("duplicate", None, "c/2 (same stems), c/3 (same stems)"),
        ("leak", None, f"c/3 ({subset}, same stems)"),
    ]
    assert problems["c/3"][1] == ("leak", None, "c/1 (train, same stems), c/2 (train, same stems)")
    assert [code for code, _, _ in found(songs[0], songs[1])["c/1"]] == ["duplicate"]


def test_a_shared_stem_and_a_shared_mixture_leak_too() -> None:
    part = found(song("c/1", "drums", "bass"), song("c/2", "drums", "piano", subset="test"))
    assert part["c/1"][1] == ("leak", "drums", "c/2 (test, same stem)")
    mixture = made_stem("mix")
    songs = song("a/1", "bass", mixture_audio=mixture), song("b/1", "piano", mixture_audio=mixture, subset="test")
    assert found(*songs)["a/1"][1] == ("leak", None, "b/1 (test, same mixture)")


def test_the_same_work_in_two_subsets_is_a_leak_and_in_one_corpus_and_subset_is_nothing() -> None:
    songs = [
        song("slakh/1", "drums", extra={"works": ["lakh:abc"]}),
        song("slakh/2", "bass", extra={"works": ["lakh:other", "lakh:abc"]}),
        song("redux/1", "piano", subset="test", extra={"works": ["lakh:abc"]}),
        song("redux/2", "guitar", subset="test", extra={"works": ["lakh:xyz", 5]}),
        song("redux/3", "organ", extra={"works": "not a list"}),
    ]
    assert found(*songs) == {
        "redux/1": [("leak", None, "slakh/1 (train, same work lakh:abc), slakh/2 (train, same work lakh:abc)")],
        "slakh/1": [("leak", None, "redux/1 (test, same work lakh:abc)")],
        "slakh/2": [("leak", None, "redux/1 (test, same work lakh:abc)")],
    }


def test_the_same_work_of_two_corpora_in_one_subset_is_nearly_a_duplicate() -> None:
    works = {"works": ["musdb18:a"]}
    songs = [
        song("musdb18/a", "drums", extra=works),
        song("musdb18hq/a", "bass", extra=works),
        song("musdb18hq/b", "piano", extra={"works": ["musdb18:b"]}),
        song("medleydb/a", "guitar", subset="test", extra=works),
    ]
    assert found(*songs) == {
        "medleydb/a": [
            ("leak", None, "musdb18/a (train, same work musdb18:a), musdb18hq/a (train, same work musdb18:a)")
        ],
        "musdb18/a": [
            ("near_duplicate", None, "musdb18hq/a (same work musdb18:a)"),
            ("leak", None, "medleydb/a (test, same work musdb18:a)"),
        ],
        "musdb18hq/a": [
            ("near_duplicate", None, "musdb18/a (same work musdb18:a)"),
            ("leak", None, "medleydb/a (test, same work musdb18:a)"),
        ],
    }
    copies = [song("musdb18/a", "drums", extra=works), song("musdb18hq/a", "drums", extra=works)]
    assert found(*copies) == {
        "musdb18/a": [("duplicate", None, "musdb18hq/a (same stems)")],
        "musdb18hq/a": [("duplicate", None, "musdb18/a (same stems)")],
    }


def test_problems_are_found_anew_and_nothing_else_changes() -> None:
    stale = tuple(Problem(code=code, detail="long gone") for code in CROSS_SONG)
    mine = (Problem(code="unequal_length"), Problem(code="silent", stem_id="bass"))
    songs = [
        song("c/1", "drums", "bass", problems=(*mine, *stale)),
        song("c/2", "drums", "piano"),
        song("c/3", "organ"),
    ]
    judged = judged_together(songs)
    assert [p.code for p in judged[0].problems] == ["unequal_length", "silent", "duplicate"]
    assert [replace(song, problems=()) for song in judged] == [replace(song, problems=()) for song in songs]
    assert judged[2] == songs[2]
    assert judged_together(judged) == judged


# What follows works on sketches.


def levels(wave: Wave, rate: int = RATE) -> bytes:
    """The sketch of ``wave [frames]``; a first difference stands for the K-weighting, which lifts the treble too."""
    count = len(wave) * 10 // rate
    parts = [part[: count * rate // 10].reshape(count, rate // 10) for part in (wave, np.diff(wave, prepend=0) * 3)]
    with np.errstate(divide="ignore"):
        level, weighted = (10 * np.log10(np.square(part, dtype=np.float64).mean(axis=1)) for part in parts)
    return sketches.pack(level, weighted)


def music(name: str, seconds: float = 40.0, tempo: float = 120.0, beat: str = "") -> Wave:
    """Notes of chance pitch, strength and length on a beat of ``tempo``, with drums whose pattern is drawn from
    ``beat``, ``[frames]``."""
    rng, drummer = random.Random(name), random.Random(beat or f"{name} drums")
    wave = np.zeros(int(seconds * RATE) + 4 * RATE)
    noise = np.random.default_rng(3).standard_normal(RATE)
    step = 30 / tempo
    hits = [drummer.choice([0, 0, 0.2, 0.5]) for _ in range(16)]
    for index in range(int(seconds / step)):
        begin = int(index * step * RATE)
        for _ in range(rng.choice([0, 1, 2])):
            length = int(rng.uniform(0.1, 1.5) * RATE)
            time = np.arange(length) / RATE
            tone = np.sin(2 * np.pi * 55 * 2 ** rng.uniform(0, 5) * time) * np.exp(-3 * time)
            wave[begin : begin + length] += rng.uniform(0.02, 0.3) * tone
        decay = np.exp(-np.arange(RATE // 4) / RATE * 30)
        wave[begin : begin + RATE // 4] += hits[index % 16] * 0.3 * decay * noise[: RATE // 4]
    return wave[: int(seconds * RATE)]


def course(name: str) -> bytes:
    return levels(music(name))


COPIES: dict[str, Callable[[Wave], Wave]] = {
    "the same": lambda wave: wave,
    "10 dB softer": lambda wave: wave * 10**-0.5,
    "3.7 s cut from the beginning": lambda wave: wave[int(3.7 * RATE) :],
    "a cut between two frames": lambda wave: wave[int(3.743 * RATE) :],
    "silence in front": lambda wave: np.concatenate([np.zeros(int(1.234 * RATE)), wave]),
    "the end cut off": lambda wave: wave[: 25 * RATE],
    "the middle": lambda wave: wave[7 * RATE : 30 * RATE],
    "noise of a codec": lambda wave: wave + 0.003 * np.random.default_rng(1).standard_normal(len(wave)),
    "clipped": lambda wave: np.clip(wave, -0.5, 0.5),
    "a shade brighter": lambda wave: wave + 0.1 * np.diff(wave, prepend=0),
}
OTHERS = [course(f"other {n}") for n in range(20)]


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_found_among_others_and_nothing_else(copy: str) -> None:
    original = music("original")
    songs = [*OTHERS[:10], levels(original), *OTHERS[10:], levels(COPIES[copy](original))]
    assert [(first, second) for first, second, _ in near_duplicates(songs)] == [(10, 21)]


def test_where_a_copy_begins_is_told() -> None:
    original = music("original")
    assert [lag for *_, lag in near_duplicates([levels(original), levels(original[37 * RATE // 10 :])])] == [37]
    assert [lag for *_, lag in near_duplicates([levels(original[37 * RATE // 10 :]), levels(original)])] == [-37]
    whole = song("c/1", "drums", sketch=levels(original))
    assert found(whole, song("c/2", "bass", sketch=levels(original[37 * RATE // 10 :]), subset="test")) == {
        "c/1": [
            ("near_duplicate", None, "c/2 (almost the same, begins 3.7 s later)"),
            ("leak", None, "c/2 (test, almost the same)"),
        ],
        "c/2": [
            ("near_duplicate", None, "c/1 (almost the same, begins 3.7 s earlier)"),
            ("leak", None, "c/1 (train, almost the same)"),
        ],
    }


def test_songs_of_one_tempo_and_one_drum_track_are_not_duplicates() -> None:
    assert list(near_duplicates([levels(music(f"song {n}", tempo=96, beat="one groove")) for n in range(40)])) == []


def test_the_drums_of_one_song_under_another_are_no_duplicate() -> None:
    drums, rest, other = music("drums"), music("rest"), music("other")
    assert list(near_duplicates([levels(drums + rest), levels(drums + other), levels(rest + other)])) == []


@pytest.mark.parametrize(
    "wave",
    [
        np.zeros(40 * RATE),
        np.full(40 * RATE, 0.5),
        0.2 * np.sin(np.arange(40 * RATE) / 5),
        0.1 * np.random.default_rng(0).standard_normal(40 * RATE),
        music("short", 6.0),
        np.zeros(0),
        music("shorter", 0.3),
    ],
    ids=["silence", "constant", "tone", "noise", "short", "none", "less than a frame's sum"],
)
def test_what_has_no_course_is_like_nothing(wave: Wave) -> None:
    is_noise = wave.any() and wave.std() == pytest.approx(0.1, abs=0.001)
    changed = np.random.default_rng(1).permutation(wave) if is_noise else 0.5 * wave
    assert list(near_duplicates([levels(wave), levels(changed), *OTHERS[:3]])) == []


def test_a_short_excerpt_does_not_make_a_long_song_a_duplicate() -> None:
    one, other = music("one"), music("two")
    quoted = np.concatenate([other[: 20 * RATE], one[20 * RATE : 30 * RATE], other[20 * RATE :]])
    assert list(near_duplicates([levels(one), levels(quoted)])) == []


def test_many_copies_are_all_found() -> None:
    wave = music("copied")
    songs = [*OTHERS, *(levels(wave * 0.9**n) for n in range(40))]
    pairs = [(first, second) for first, second, _ in near_duplicates(songs)]
    assert {index for pair in pairs for index in pair} == set(range(20, 60))


def test_fixtures_of_one_tone_each_are_like_nothing() -> None:
    assert list(near_duplicates([levels(sound("song", n, seconds=20.0)[0]) for n in range(30)])) == []


def test_in_a_large_manifest_only_the_copies_are_found() -> None:
    problems = cross_song_problems(large_songs(2000, stems=1))
    assert {name.split("/")[1]: {p.code for p in found} for name, found in problems.items()} == {
        number: {"near_duplicate", "leak"} for number in ("0000998", "0000999", "0001998", "0001999")
    }
