"""The draw of one song's windows and splits, with all that is passed over and why.

`pipelines.split` makes the plan of it and `pipelines.explain` tells of single windows: both read the same arrays.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from manifests.class_sets import ClassFilter
from manifests.errors import ConfigError
from manifests.labels import phrase
from manifests.songs import ACTIVITY_FRAME_S, Song, Stem
from manifests.splits import SongWindows, Split

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SUBSETS_PER_SPLIT = 8
"""Random subsets of a song's stems drawn for each split that a window may have."""
_GAIN_STEP_DB = 0.01

UNUSABLE_SONG = "song unusable (see its problems)"
SONG_WITHOUT_SPLIT = "song without a possible split"
SONG_WITHOUT_WINDOW = "song of which no window is left"
SILENT_WINDOW = "window without an active source beside an active submix"
WINDOW_OVER_SONG = "window over max_windows_per_song"
WINDOW_OVER_INSTRUMENT = "window of which max_splits_per_instrument leaves no split"
NO_SUBMIX = "split without a stem left for the submix"
SILENT_SOURCE = "split with a silent source"
SILENT_SUBMIX = "split with a silent submix"
LOST_THE_DRAW = "split that lost the draw (more than splits_per_window)"
SPLIT_OVER_SONG = "split over max_windows_per_song"
SPLIT_OVER_INSTRUMENT = "split over max_splits_per_instrument"


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig:
    """How windows and their splits are chosen."""

    strategy: Literal["single", "stem", "subset"] = "single"
    """"single": all stems of one canonical instrument are the source (the paper); "stem": one stem as the corpus has
    it; "subset": some stems at random, up to ``subset_stems``."""
    subset_stems: int = 3
    """Most stems of a source under "subset"."""
    window_s: float = 20.48
    """Length of a window."""
    hop_s: float | None = None
    """Distance of windows; by default the window's length. The end of a song gets a window of its own, unless it is
    less than a tenth of the hop."""
    splits_per_window: int = 3
    """Largest number of splits of one window, K."""
    max_windows_per_song: int | None = None
    """Most windows of one song, taken at even distances from those that could be planned."""
    max_splits_per_instrument: int | None = None
    """Most splits of the whole plan whose source has this instrument, drawn from the seed."""
    min_source_active: float = 0.2
    """Least share of the window's 100 ms frames in which the source sounds."""
    min_submix_active: float = 0.2
    """The same for the submix."""
    min_song_s: float = 5.0
    """Shorter songs are passed over. Songs shorter than a window are padded with silence."""
    classes: tuple[str, ...] | str = ()
    """Only these are a source: instruments, families (``family:guitar``, where it is an instrument too), or a named
    set (s_a, s_b), with commas between; by default any."""
    mix: Literal["all", "classes"] | None = None
    """Stems of the mix: "all" of a song, or those of ``classes`` alone. By default as a named set says, else all."""
    exclude: tuple[str, ...] | str = ()
    """Instruments and families that are never a source, but stay in the mix."""
    seed: int = 0
    """Seed of the choice among more splits than ``splits_per_window``, of the caps, and of the gains."""
    gain_db: float = 0.0
    """Each stem of each window gets a gain drawn evenly from -gain_db to gain_db, in steps of 0.01 dB. 0: none."""

    def __post_init__(self) -> None:
        for name in ("classes", "exclude"):
            value = getattr(self, name)
            words = value.split(",") if isinstance(value, str) else value
            object.__setattr__(self, name, tuple(word.strip() for word in words if word.strip()))
        hop_s = self.window_s if self.hop_s is None else self.hop_s
        if not all(math.isfinite(seconds) and seconds >= ACTIVITY_FRAME_S for seconds in (self.window_s, hop_s)):
            raise ConfigError(f"window_s {self.window_s} and hop_s {self.hop_s} must be at least {ACTIVITY_FRAME_S}")
        for name in ("splits_per_window", "subset_stems", "max_windows_per_song", "max_splits_per_instrument"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} {value} must be at least 1")
        for name in ("min_source_active", "min_submix_active"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} is a share, above 0 and at most 1")
        if self.mix == "classes" and not self.classes:
            raise ConfigError("mix 'classes' needs classes")
        if self.seed < 0:
            raise ConfigError(f"seed {self.seed} must not be negative")
        if self.gain_db and not _GAIN_STEP_DB <= self.gain_db <= 60:
            raise ConfigError(f"gain_db {self.gain_db} must be 0 (off) or from {_GAIN_STEP_DB} to 60")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Stems that might be a source, were it not for the ``reason``."""

    stems: tuple[str, ...]
    text: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SongDraw:
    """All windows and splits that a song could have, and what became of each. Arrays are ``[windows, splits]``."""

    song: Song
    reason: str | None
    """Why the song was passed over as a whole; there are no windows then."""
    stems: tuple[Stem, ...]
    """Stems of the mix."""
    splits: tuple[Split, ...]
    refused: tuple[Refused, ...]
    starts_s: tuple[float, ...]
    shares: Floats
    """``[2, windows, splits]``: share of the frames in which source and submix sound."""
    sounding: Bools
    """On both sides long enough."""
    places: Ints
    """Place in the draw of the window, from 0; those that do not sound come last."""
    drawn: Bools
    chosen: Bools
    """Drawn, and in a window within ``max_windows_per_song``."""
    planned: Bools
    """Chosen, and within ``max_splits_per_instrument``."""
    config: SplitConfig

    def split_reasons(self) -> dict[str, Bools]:
        """Why a split is not planned, ``[windows, splits]`` for each reason: one of them holds, or it is planned."""
        loud = _loud(self.shares, self.config)
        return {
            SILENT_SOURCE: ~loud[0],
            SILENT_SUBMIX: loud[0] & ~loud[1],
            LOST_THE_DRAW: self.sounding & ~self.drawn,
            SPLIT_OVER_SONG: self.drawn & ~self.chosen,
            SPLIT_OVER_INSTRUMENT: self.chosen & ~self.planned,
        }

    def window_reasons(self) -> dict[str, Bools]:
        """Why a window is not planned, ``[windows]`` for each reason: one of them holds, or it is planned."""
        drawn, chosen, planned = (np.asarray(mask.any(axis=1)) for mask in (self.drawn, self.chosen, self.planned))
        return {
            SILENT_WINDOW: ~drawn,
            WINDOW_OVER_SONG: drawn & ~chosen,
            WINDOW_OVER_INSTRUMENT: chosen & ~planned,
        }

    def passed_over(self) -> dict[str, int]:
        """Splits, windows and songs that are not in the plan, by reason. Refused sources count for each window."""
        song = self.reason or (None if self.planned.any() else SONG_WITHOUT_WINDOW)
        counts = {song: 1} if song else {}
        for reasons in (self.window_reasons(), self.split_reasons()):
            counts |= {reason: int(mask.sum()) for reason, mask in reasons.items()}
        for refused in self.refused:
            counts[refused.reason] = counts.get(refused.reason, 0) + len(self.starts_s)
        return {reason: count for reason, count in counts.items() if count}

    def gains_db(self) -> list[tuple[float, ...]]:
        """Gains of ``stems`` in each window, from a generator that decides nothing else; empty where they are off."""
        if not self.config.gain_db:
            return [()] * len(self.starts_s)
        most = math.floor(self.config.gain_db / _GAIN_STEP_DB + 1e-6)
        rng = _generator(self.config.seed, self.song.song_id, "gains")
        drawn = rng.integers(-most, most, (len(self.starts_s), len(self.stems)), endpoint=True) / 100
        return [tuple(row) for row in drawn.tolist()]

    def cap_ranks(self) -> Floats:
        """``[windows, splits]``: under ``max_splits_per_instrument`` the lowest stay. They depend on the song alone."""
        return _generator(self.config.seed, self.song.song_id, "cap").random(self.chosen.shape)

    def instruments(self) -> list[tuple[str, ...]]:
        """Canonical instruments of the source of each split."""
        names = {stem.stem_id: stem.instrument for stem in self.stems}
        return [tuple(sorted({names[stem] for stem in split.source})) for split in self.splits]

    def windows(self) -> SongWindows:
        """The planned windows."""
        gains = self.gains_db()
        rows = [number for number, row in enumerate(self.planned.tolist()) if True in row]
        return SongWindows(
            song_id=self.song.song_id,
            duration_s=self.config.window_s,
            splits=self.splits,
            starts_s=tuple(self.starts_s[row] for row in rows),
            chosen=tuple(tuple(self.planned[row].nonzero()[0].tolist()) for row in rows),
            gain_stems=tuple(stem.stem_id for stem in self.stems) if self.config.gain_db else (),
            gains_db=tuple(gains[row] for row in rows),
        )


def draw_songs(songs: Callable[[], Iterable[Song]], config: SplitConfig, classes: ClassFilter) -> Iterator[SongDraw]:
    """The draw of each song. ``songs`` gives them twice in one order where instruments are capped."""
    most = config.max_splits_per_instrument
    if most is None:
        yield from (draw_song(song, config, classes) for song in songs())
        return
    cap = _InstrumentCap()
    for song in songs():
        cap.add(draw_song(song, config, classes))
    kept, begin = cap.kept(most), 0
    for song in songs():
        draw = draw_song(song, config, classes)
        planned = np.zeros_like(draw.chosen)
        count = int(draw.chosen.sum())
        planned[draw.chosen] = kept[begin : begin + count]
        begin += count
        yield replace(draw, planned=planned)


class _InstrumentCap:
    """The chosen splits of all songs, twelve bytes each."""

    def __init__(self) -> None:
        self._ranks: list[Floats] = []
        self._kinds: list[npt.NDArray[np.int32]] = []
        self._numbers: dict[tuple[str, ...], int] = {}

    def add(self, draw: SongDraw) -> None:
        """Take up the chosen splits of a song."""
        if draw.chosen.any():
            numbers = [self._numbers.setdefault(names, len(self._numbers)) for names in draw.instruments()]
            kinds = np.broadcast_to(np.array(numbers, np.int32), draw.chosen.shape)
            self._ranks.append(draw.cap_ranks()[draw.chosen])
            self._kinds.append(kinds[draw.chosen])

    def kept(self, most: int) -> Bools:
        """Which splits stay, in the order that they came: by rank, while each instrument of the source has room."""
        if not self._ranks:
            return np.zeros(0, np.bool_)
        kinds = np.concatenate(self._kinds)
        names = list(self._numbers)
        counts = dict.fromkeys((name for kind in names for name in kind), 0)
        kept = np.zeros(kinds.size, np.bool_)
        for place in np.argsort(np.concatenate(self._ranks), kind="stable").tolist():
            instruments = names[kinds[place]]
            if all(counts[name] < most for name in instruments):
                kept[place] = True
                for name in instruments:
                    counts[name] += 1
        return kept


def draw_song(song: Song, config: SplitConfig, classes: ClassFilter) -> SongDraw:
    """The windows and splits of a song, without regard to other songs."""
    stems = tuple(stem for stem in song.usable_stems if classes.in_mix(stem.instrument))
    reason: str | None = None
    splits: tuple[Split, ...] = ()
    refused: tuple[Refused, ...] = ()
    if not song.usable_stems:
        reason = UNUSABLE_SONG
    elif song.duration_s < config.min_song_s:
        reason = f"song shorter than {config.min_song_s:g} s"
    else:
        pairs = tuple((stem.stem_id, stem.instrument) for stem in stems)
        splits, refused = _candidates(song.song_id, pairs, config, classes)
        reason = None if splits else SONG_WITHOUT_SPLIT
    starts = [] if reason else window_starts(song.duration_s, config.window_s, config.hop_s or config.window_s)
    shares = _shares(stems, splits, starts, config.window_s)
    sounding = np.asarray(_loud(shares, config).all(axis=0))
    places = draw_places(sounding, song.song_id, config.seed)
    drawn = sounding & (places < config.splits_per_window)
    chosen = drawn & spread(np.asarray(drawn.any(axis=1)), config.max_windows_per_song)[:, None]
    return SongDraw(
        song=song,
        reason=reason,
        stems=stems,
        splits=splits,
        refused=refused,
        starts_s=tuple(starts),
        shares=shares,
        sounding=sounding,
        places=places,
        drawn=drawn,
        chosen=chosen,
        planned=chosen,
        config=config,
    )


def window_starts(duration_s: float, window_s: float, hop_s: float) -> list[float]:
    """Starts of the windows of a song, in whole milliseconds; the last window ends where the song ends.

    A tail shorter than a tenth of the hop gets no window of its own. A song shorter than a window gets one at 0.
    """
    last, hop = max(0, int((duration_s - window_s) * 1000 + 1e-6)), hop_s * 1000
    starts = [round(number * hop) for number in range(int(last / hop) + 1)]
    if last - starts[-1] > hop / 10:
        starts.append(last)
    return [start / 1000 for start in starts]


def draw_places(active: Bools, song_id: str, seed: int) -> Ints:
    """The place in the draw of each of the splits that are ``active`` ``[windows, splits]``; the others come last."""
    # One generator a song: to seed one takes longer than all else that is done for a window.
    keys = np.where(active, _generator(seed, song_id).random(active.shape), np.inf)
    return keys.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")


def spread(possible: Bools, most: int | None) -> Bools:
    """``most`` of the ``possible`` windows, in the middle of as many equal parts of their row.

    Not at random: neighbours are alike or overlap, so that even distances hold more of the song.
    """
    numbers = possible.nonzero()[0]
    if most is None or len(numbers) <= most:
        return possible
    kept = np.zeros_like(possible)
    kept[numbers[(2 * np.arange(most) + 1) * len(numbers) // (2 * most)]] = True
    return kept


def _candidates(
    song_id: str, stems: tuple[tuple[str, str], ...], config: SplitConfig, classes: ClassFilter
) -> tuple[tuple[Split, ...], tuple[Refused, ...]]:
    """The splits of ``stems``, pairs of id and instrument, that the strategy can choose from, and those it cannot."""
    if config.strategy != "subset":
        return _named_candidates(stems, config.strategy, classes)
    allowed, refused = [], []
    for number, (stem_id, name) in enumerate(stems):
        reason = classes.refusal(name) or (NO_SUBMIX if len(stems) == 1 else None)
        if reason:
            refused.append(Refused(stems=(stem_id,), text=name, reason=reason))
        else:
            allowed.append(number)
    most = min(config.subset_stems, len(allowed), len(stems) - 1)
    rng = _generator(config.seed, song_id, "subset")
    # There may be thousands of subsets: a window chooses from some of them.
    drawn = {
        tuple(sorted(rng.choice(allowed, size=rng.integers(1, most + 1), replace=False).tolist()))
        for _ in range(SUBSETS_PER_SPLIT * config.splits_per_window if most > 0 else 0)
    }
    return tuple(_split(stems, chosen) for chosen in sorted(drawn)), tuple(refused)


# The songs of a corpus often have the same stems.
@lru_cache(maxsize=1024)
def _named_candidates(
    stems: tuple[tuple[str, str], ...], strategy: str, classes: ClassFilter
) -> tuple[tuple[Split, ...], tuple[Refused, ...]]:
    """A split for each instrument, or for each stem."""
    sources: dict[str, list[int]] = {}
    for number, (stem_id, name) in enumerate(stems):
        sources.setdefault(name if strategy == "single" else stem_id, []).append(number)
    splits, refused = [], []
    for _, chosen in sorted(sources.items()):
        instrument = stems[chosen[0]][1]
        reason = classes.refusal(instrument) or (NO_SUBMIX if len(chosen) == len(stems) else None)
        if reason:
            refused.append(Refused(stems=tuple(stems[number][0] for number in chosen), text=instrument, reason=reason))
        else:
            splits.append(_split(stems, chosen))
    return tuple(splits), tuple(refused)


def _split(stems: Sequence[tuple[str, str]], chosen: Collection[int]) -> Split:
    source = [stem for number, stem in enumerate(stems) if number in chosen]
    submix = [stem for number, stem in enumerate(stems) if number not in chosen]
    return Split(
        source=tuple(stem_id for stem_id, _ in source),
        submix=tuple(stem_id for stem_id, _ in submix),
        source_text=phrase(name for _, name in source),
        submix_text=phrase(name for _, name in submix),
    )


def _shares(stems: Sequence[Stem], splits: Sequence[Split], starts: Sequence[float], window_s: float) -> Floats:
    """Share of the frames of the windows at ``starts`` in which each side sounds: ``[2, starts, splits]``."""
    sides = [side for split in splits for side in (split.source, split.submix)]
    shares = sounding_shares(stems, sides, starts, window_s)
    return shares.reshape(len(splits), 2, len(starts)).transpose(1, 2, 0)


def _loud(shares: Floats, config: SplitConfig) -> Bools:
    """Which sides reach their floor, ``[2, windows, splits]``."""
    return np.asarray(shares >= np.array([config.min_source_active, config.min_submix_active])[:, None, None])


def sounding_shares(
    stems: Sequence[Stem], groups: Sequence[Collection[str]], starts: Sequence[float], window_s: float
) -> Floats:
    """Share of the 100 ms frames of each window in which some stem of the group sounds, ``[groups, starts]``."""
    if not groups or not stems or not starts:
        return np.zeros((len(groups), len(starts)))
    taken = np.array([[stem.stem_id in group for stem in stems] for group in groups], np.float32)
    count = round(window_s / ACTIVITY_FRAME_S)
    first = np.rint(np.array(starts) / ACTIVITY_FRAME_S).astype(np.int64)
    sounding = taken @ _activity(stems).astype(np.float32) > 0
    sums = np.zeros((len(groups), sounding.shape[1] + 1), np.int32)
    np.cumsum(sounding, axis=1, out=sums[:, 1:])
    begin, end = (np.minimum(frame, sounding.shape[1]) for frame in (first, first + count))
    return (sums[:, end] - sums[:, begin]) / count


def _activity(stems: Sequence[Stem]) -> Bools:
    """100 ms frames of the song in which each stem sounds, ``[stems, frames]``."""
    rows = []
    for stem in stems:
        lead = round(stem.offset_frames / (stem.sample_rate or 1) / ACTIVITY_FRAME_S)
        rows.append(np.concatenate([np.zeros(lead, dtype=np.bool_), stem.active()]))
    total = np.zeros((len(rows), max((row.size for row in rows), default=0)), dtype=np.bool_)
    for line, row in zip(total, rows, strict=True):
        line[: row.size] = row
    return total


def _generator(seed: int, *names: str) -> np.random.Generator:
    digests = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") for name in names]
    return np.random.default_rng(np.random.SeedSequence([seed, *digests]))
