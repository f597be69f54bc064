"""Songs that are the same recording, nearly the same, or of the same work; and what of that leaks between subsets.

The same recording is told by fingerprints. Nearly the same is told by sketches (see `manifests.sketches`): the course
of level and tilt stays when a recording is louder, coded again, resampled, or begins later. Candidates are songs that
share landmarks: frames where 24 fixed projections of the next five seconds are farthest from changing sign. These signs
are one number, looked up in a sorted table of all songs. A candidate counts when both courses agree over the whole
overlap, so that songs of one tempo, or with one drum track, do not.
"""

import hashlib
from array import array
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import islice, pairwise
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from manifests.problems import Effect, effect
from manifests.sketches import unpack
from manifests.songs import Problem, Song, Stem

CROSS_SONG = ("duplicate", "near_duplicate", "leak")
"""Codes that the other songs of the manifest decide, not the song alone. They come last among a song's problems."""

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
Course = tuple[Floats, Floats]

# A detail names this many other songs.
_SHOWN = 3
# Frames of 100 ms. What sounds for less than a second says little: clicks and test tones stand in many songs.
_LEAST_ACTIVE = 10

# Sums over six frames hardly change when a copy begins between two frames.
_SMOOTH = 6
_BITS, _SPAN, _STEP = 24, 49, 4
_LANDMARKS = 96
# What is this much quieter than the loudest frame is left to codecs and noise.
_FLOOR_DB = 40.0
# How far coding moves a projection of level and of tilt, in dB.
_NOISE_DB = (1.0, 0.15)
# With fewer landmarks than this (songs under about 20 s) one that is shared makes a candidate, else two.
_FEW_LANDMARKS = 40
# How many places after a song in the list of one landmark are compared with it: many copies of a song lie in chains.
_NEIGHBOURS = 8
_BLOCK = 4096
_LAG_BITS = 20

# Between real songs and copies of them (128 and 48 kbit/s AAC, Vorbis, resampled to 16 kHz, gains, cuts within a frame)
# the correlations of level and tilt were at least 0.94 and 0.89, the levels 1.6 dB apart or less; of other songs, where
# they are most alike, one of the two was at most 0.78 and the levels were at least 2.5 dB apart.
_LEAST_OVERLAP = 60
_HEARD_DB = 35.0
_LEVEL_AGREES, _TILT_AGREES, _LEVEL_APART_DB = 0.92, 0.85, 2.0
# Levels that hardly move agree with each other by chance.
_LEAST_COURSE_DB = 1.0


def judged_together(songs: Sequence[Song]) -> list[Song]:
    """The songs with their problems of `CROSS_SONG` found anew; all else stays."""
    found = cross_song_problems(sorted(songs, key=attrgetter("song_id")))
    return [
        replace(
            song,
            problems=(*(p for p in song.problems if p.code not in CROSS_SONG), *found.get(song.song_id, ())),
        )
        for song in songs
    ]


def cross_song_problems(songs: Iterable[Song]) -> dict[str, tuple[Problem, ...]]:
    """The problems of `CROSS_SONG` by song id, of the songs that have any. Each detail names the other songs.

    ``songs`` come in the order of their ids, as a manifest has them, since a detail names the first few. They may be a
    stream: only hashes of fingerprints, works and sketches are kept. Songs that their corpus leaves
    out are left out here too.
    """
    seen = _Seen()
    for song in songs:
        if not any(problem.code == "excluded" for problem in song.problems):
            seen.add(song)
    relations = _Relations(seen.song_ids, seen.corpora, seen.subsets)
    for how, whole in (("same stems", seen.stem_sets), ("same mixture", seen.mixtures)):
        for group in whole.groups():
            relations.same_song(group, how)
    for group in seen.stems.groups():
        relations.same_stem(group)
    for first, second, lag in near_duplicates(seen.sketches):
        relations.near(first, second, lag)
    for group in seen.works.groups():
        relations.same_work(group)
    return relations.problems()


def outdated_problems(songs: Iterable[Song]) -> dict[str, tuple[Problem, ...]]:
    """Of songs that were judged among others, which may be gone: their problems of `CROSS_SONG` as they are now, by
    song id, where they are not those that the song has.

    Where songs only leave, none that was like no other becomes so: only songs with such problems are judged anew.
    """
    told: dict[str, tuple[Problem, ...]] = {}

    def related() -> Iterator[Song]:
        for song in songs:
            if problems := tuple(problem for problem in song.problems if problem.code in CROSS_SONG):
                told[song.song_id] = problems
                yield song

    found = cross_song_problems(related())
    return {name: found.get(name, ()) for name, problems in told.items() if found.get(name, ()) != problems}


def near_duplicates(sketches: Sequence[bytes]) -> Iterator[tuple[int, int, int]]:
    """Pairs of songs that are nearly the same: indices ``a < b``, and the frame of ``a``, which may be negative, where
    ``b`` begins."""

    @lru_cache(maxsize=1024)
    def course(index: int) -> Course:
        return _course(sketches[index])

    last = None
    for first, second, lag in _candidates(sketches):
        if (first, second) != last and _agree(course(first), course(second), lag):
            last = first, second
            yield first, second, lag


class _Index:
    """Which songs hold a key: a sorted table of hashes, since a dict of every stem would take much more memory."""

    def __init__(self) -> None:
        self._keys = array("q")
        self._songs = array("q")
        self._names: list[str] = []

    def add(self, key: str, song: int, name: str = "") -> None:
        self._keys.append(int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big", signed=True))
        self._songs.append(song)
        self._names.append(name)

    def groups(self) -> Iterator[list[tuple[int, str]]]:
        """Song and name of each entry of a key, of keys that more than one song has."""
        keys, songs = np.array(self._keys, np.int64), np.array(self._songs, np.int64)
        order = np.argsort(keys, kind="stable")
        edges = np.flatnonzero(np.diff(keys[order]) != 0) + 1
        for begin, end in pairwise([0, *edges.tolist(), len(keys)]):
            members = order[begin:end]
            if end - begin > 1 and len(set(songs[members].tolist())) > 1:
                yield [(int(songs[member]), self._names[member]) for member in members]


class _Seen:
    """What is kept of the songs."""

    def __init__(self) -> None:
        self.song_ids: list[str] = []
        self.corpora: list[str] = []
        self.subsets: list[str] = []
        self.sketches: list[bytes] = []
        self.stem_sets, self.mixtures, self.stems, self.works = _Index(), _Index(), _Index(), _Index()

    def add(self, song: Song) -> None:
        index = len(self.song_ids)
        self.song_ids.append(song.song_id)
        self.corpora.append(song.corpus)
        self.subsets.append(song.subset)
        self.sketches.append(song.sketch)
        damaged = {problem.stem_id for problem in song.problems if effect(problem.code) is Effect.STEM}
        sounding = [stem for stem in song.stems if stem.stem_id not in damaged and _sounds(stem)]
        if sounding and not any(problem.code == "mixture_only" for problem in song.problems):
            self.stem_sets.add(" ".join(sorted({stem.fingerprint or "" for stem in sounding})), index)
        for stem in sounding:
            self.stems.add(stem.fingerprint or "", index, stem.stem_id)
        if song.mixture_audio and _sounds(song.mixture_audio):
            self.mixtures.add(song.mixture_audio.fingerprint or "", index)
        works = song.extra.get("works")
        for work in works if isinstance(works, list) else []:
            self.works.add(str(work), index, str(work))


def _sounds(stem: Stem) -> bool:
    return stem.fingerprint is not None and int.from_bytes(stem.activity, "big").bit_count() >= _LEAST_ACTIVE


class _Relations:
    """Who is related to whom, and the problems that follow."""

    def __init__(self, song_ids: Sequence[str], corpora: Sequence[str], subsets: Sequence[str]) -> None:
        self._song_ids = song_ids
        self._corpora = corpora
        self._subsets = subsets
        self._same = list(range(len(song_ids)))
        # Of each song, code and stem: a few of the other songs, and what they share.
        self._found: defaultdict[tuple[int, str, str | None], dict[int, str]] = defaultdict(dict)

    def same_song(self, group: list[tuple[int, str]], how: str) -> None:
        """Songs that are one recording as a whole."""
        songs = {song: None for song, _ in group}
        self._link("duplicate", songs, self._same, lambda _: how)
        self._leak(songs, how)
        first = min(self._same[song] for song in songs)
        for song in songs:
            self._same[song] = first

    def same_stem(self, group: list[tuple[int, str]]) -> None:
        """Songs that share a stem; no news where they are the same as a whole."""
        stems = dict(reversed(group))
        if len({self._same[song] for song in stems}) > 1:
            self._link("duplicate", stems, self._same, lambda other: f"its stem {stems[other]}")
            self._leak(stems, "same stem")

    def near(self, first: int, second: int, lag: int) -> None:
        """``second`` begins at the frame ``lag`` of ``first`` and is nearly the same."""
        if self._same[first] == self._same[second]:
            return
        for song, other, later in ((first, second, lag), (second, first, -lag)):
            shift = f", begins {abs(later) / 10:.1f} s {'later' if later > 0 else 'earlier'}" if later else ""
            self._found[song, "near_duplicate", None][other] = f"almost the same{shift}"
        self._leak({first: None, second: None}, "almost the same")

    def same_work(self, group: list[tuple[int, str]]) -> None:
        """Songs of one work. Within a subset those of two corpora are one recording in two copies; those of one corpus
        are different renderings."""
        how = f"same work {' '.join(group[0][1].split())}"
        self._leak({song: None for song, _ in group}, how)
        # One song of each recording: what is the same as a whole is told already.
        lone: defaultdict[str, dict[int, int]] = defaultdict(dict)
        for song, _ in group:
            lone[self._subsets[song]].setdefault(self._same[song], song)
        for recordings in lone.values():
            self._link("near_duplicate", dict.fromkeys(recordings.values()), self._corpora, lambda _: how)

    def problems(self) -> dict[str, tuple[Problem, ...]]:
        """All that was found, by song id."""
        found: defaultdict[str, list[Problem]] = defaultdict(list)
        order = sorted(self._found, key=lambda key: (key[0], CROSS_SONG.index(key[1]), key[2] or ""))
        for song, code, stem_id in order:
            others = sorted((self._song_ids[other], how) for other, how in self._found[song, code, stem_id].items())
            parts = [f"{name} ({how})" for name, how in others[:_SHOWN]] + ["more"] * (len(others) > _SHOWN)
            found[self._song_ids[song]].append(Problem(code=code, stem_id=stem_id, detail=", ".join(parts)))
        return {song_id: tuple(problems) for song_id, problems in found.items()}

    def _leak(self, songs: Mapping[int, str | None], how: str) -> None:
        self._link("leak", songs, self._subsets, lambda other: f"{self._subsets[other]}, {how}")

    def _link(
        self, code: str, songs: Mapping[int, str | None], kinds: Sequence[Hashable], how: Callable[[int], str]
    ) -> None:
        """Note for each of ``songs`` (with its stem) the others that are of another kind."""
        parts: defaultdict[Hashable, list[int]] = defaultdict(list)
        for song in sorted(songs):
            parts[kinds[song]].append(song)
        for kind, members in parts.items():
            # The first few will do: of a group of a thousand, each would name all the others.
            others = (song for other, part in parts.items() if other != kind for song in part)
            few = list(islice(others, _SHOWN + 1))
            for song in members:
                found = self._found[song, code, songs[song]] if few else {}
                for other in few:
                    found.setdefault(other, how(other))


def _course(sketch: bytes) -> Course:
    """Level (not below the floor) and tilt in dB over six frames, from each frame on: ``[n - 5]`` each."""
    level, tilt = unpack(sketch)
    if len(level) < _SMOOTH:
        return np.zeros(0, np.float32), np.zeros(0, np.float32)
    sums = [
        np.convolve(10 ** (curve / 10), np.ones(_SMOOTH, np.float32) / _SMOOTH, "valid")
        for curve in (level, level + tilt)
    ]
    smooth, weighted = (10 * np.log10(power) for power in sums)
    return np.maximum(smooth, smooth.max() - _FLOOR_DB).astype(np.float32), (weighted - smooth).astype(np.float32)


def _projections() -> Floats:
    """``[2, bits / 2, taps]``: for level and for tilt; of mean 0, so that gain is nothing to them, and of length 1, in
    units of `_NOISE_DB`."""
    drawn = np.random.default_rng(0).standard_normal((2, _BITS // 2, (_SPAN - 1) // _STEP + 1))
    drawn -= drawn.mean(axis=2, keepdims=True)
    drawn /= np.linalg.norm(drawn, axis=2, keepdims=True)
    return np.asarray(drawn / np.reshape(_NOISE_DB, (2, 1, 1)), np.float32)


_PROJECTIONS = _projections()
_BIT_VALUES = 1 << np.arange(_BITS, dtype=np.int32)


def _landmarks(sketch: bytes) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Frames and signs of the landmarks of a song, `_LANDMARKS` at most."""
    courses = _course(sketch)
    if len(courses[0]) < _SPAN:
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    values = np.concatenate(
        [
            projection @ np.lib.stride_tricks.sliding_window_view(curve, len(curve) - _SPAN + 1)[::_STEP]
            for curve, projection in zip(courses, _PROJECTIONS, strict=True)
        ]
    )
    margin = np.pad(np.abs(values).min(axis=0), 1)
    peaks = np.flatnonzero((margin[1:-1] > margin[:-2]) & (margin[1:-1] >= margin[2:]))
    frames = peaks[np.argsort(-margin[peaks + 1], kind="stable")[:_LANDMARKS]]
    return frames.astype(np.int32), _BIT_VALUES @ (values[:, frames] > 0)


def _candidates(sketches: Sequence[bytes]) -> Iterator[tuple[int, int, int]]:
    """Pairs of songs that share landmarks and the lag between them, sorted; a pair may come with several lags."""
    found = [_landmarks(sketch) for sketch in sketches]
    counts = np.array([len(frames) for frames, _ in found], np.int64)
    if not counts.sum():
        return
    frames, signs = (np.concatenate([pair[part] for pair in found]) for part in (0, 1))
    songs = np.repeat(np.arange(len(found), dtype=np.int32), counts)
    del found
    order = np.lexsort((songs, signs))
    frames, signs, songs = frames[order], signs[order], songs[order]
    blocks = songs // _BLOCK
    # The pairs of all songs at once would take many times the memory of the table.
    for block in range(len(sketches) // _BLOCK + 1):
        keys = []
        for distance in range(1, _NEIGHBOURS + 1):
            same = (signs[distance:] == signs[:-distance]) & (songs[distance:] != songs[:-distance])
            pairs = np.flatnonzero(same & (blocks[:-distance] == block))
            pair = songs[pairs].astype(np.int64) * len(sketches) + songs[pairs + distance]
            lag = frames[pairs].astype(np.int64) - frames[pairs + distance]
            keys.append((pair << _LAG_BITS) + lag + (1 << (_LAG_BITS - 1)))
        yield from _voted(np.concatenate(keys), counts)


def _voted(keys: Ints, counts: Ints) -> Iterator[tuple[int, int, int]]:
    """The pairs and lags among ``keys`` that have enough landmarks in common, sorted, most landmarks first."""
    unique, votes = np.unique(keys, return_counts=True)
    # A copy that begins between two frames has landmarks on either side.
    adjacent = np.diff(unique) == 1
    whole = votes.copy()
    whole[1:] += votes[:-1] * adjacent
    whole[:-1] += votes[1:] * adjacent
    first, second = np.divmod(unique >> _LAG_BITS, len(counts))
    chosen = whole >= np.where(np.minimum(counts[first], counts[second]) < _FEW_LANDMARKS, 1, 2)
    first, second, whole = first[chosen], second[chosen], whole[chosen]
    lag = (unique[chosen] & ((1 << _LAG_BITS) - 1)) - (1 << (_LAG_BITS - 1))
    for index in np.lexsort((lag, -whole, second, first)):
        yield int(first[index]), int(second[index]), int(lag[index])


def _agree(one: Course, other: Course, lag: int) -> bool:
    """Whether both courses are the same over the whole overlap; ``other`` begins near the frame ``lag`` of ``one``."""
    half = np.float32(0.5)
    between = (one[0][1:] + one[0][:-1]) * half, (one[1][1:] + one[1][:-1]) * half
    return any(_alike(shifted, other, near) for near in (lag, lag - 1, lag + 1) for shifted in (one, between))


def _alike(one: Course, other: Course, lag: int) -> bool:
    begin, skipped = max(lag, 0), max(-lag, 0)
    count = min(len(one[0]) - begin, len(other[0]) - skipped)
    if count < max(_LEAST_OVERLAP, min(len(one[0]), len(other[0])) / 2):
        return False
    level, tilt = (curve[begin : begin + count] for curve in one)
    level_2, tilt_2 = (curve[skipped : skipped + count] for curve in other)
    heard = (level > level.max() - _HEARD_DB) & (level_2 > level_2.max() - _HEARD_DB)
    if np.count_nonzero(heard) < _LEAST_OVERLAP:
        return False
    level, tilt, level_2, tilt_2 = (curve[heard] for curve in (level, tilt, level_2, tilt_2))
    return bool(
        min(level.std(), level_2.std()) >= _LEAST_COURSE_DB
        and (level - level_2).std() <= _LEVEL_APART_DB
        and _correlation(level, level_2) >= _LEVEL_AGREES
        and _correlation(tilt, tilt_2) >= _TILT_AGREES
        and not _repeats(level)
    )


def _repeats(level: Floats) -> bool:
    """Whether the course is one pattern again and again: two such songs agree when only their tempo does."""
    course, size = level - level.mean(), len(level)
    power = np.square(np.abs(np.fft.rfft(course, 2 * size)))
    mean_products = np.fft.irfft(power)[: size // 2] / (size - np.arange(size // 2))
    away = mean_products[_SMOOTH:]
    # What lies next to a frame is like it anyhow: only what comes after the first fall counts.
    fallen = np.flatnonzero(away < 0)
    return bool(fallen.size and away[fallen[0] :].max() >= _LEVEL_AGREES * course.var())


def _correlation(one: Floats, other: Floats) -> float:
    scale = float(one.std() * other.std())
    return float(np.mean((one - one.mean()) * (other - other.mean()))) / scale if scale > 0 else 0.0
