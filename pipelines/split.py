"""split: `songs.parquet` -> `splits.parquet`. A deterministic choice from the manifest alone; no audio is read."""

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from manifests.errors import ConfigError
from manifests.labels import lookup, phrase
from manifests.songs import ACTIVITY_FRAME_S, Song, Stem, iter_songs
from manifests.splits import Plan, PlanRows, SongWindows, Split, StemGain, Window

Activity = npt.NDArray[np.bool_]

SUBSETS_PER_SPLIT = 8
"""Random subsets of a song's stems drawn for each split that a window may have."""
_GAIN_STEP_DB = 0.01


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
    min_source_active: float = 0.2
    """Least share of the window's 100 ms frames in which the source sounds."""
    min_submix_active: float = 0.2
    """The same for the submix."""
    min_song_s: float = 5.0
    """Shorter songs are passed over. Songs shorter than a window are padded with silence."""
    exclude: tuple[str, ...] = ()
    """Instruments that are never a source."""
    seed: int = 0
    """Seed of the choice among more splits than ``splits_per_window``, and of the gains."""
    gain_db: float = 0.0
    """Each stem of each window gets a gain drawn evenly from -gain_db to gain_db, in steps of 0.01 dB. 0: none."""

    def __post_init__(self) -> None:
        hop_s = self.window_s if self.hop_s is None else self.hop_s
        if not all(math.isfinite(seconds) and seconds >= ACTIVITY_FRAME_S for seconds in (self.window_s, hop_s)):
            raise ConfigError(f"window_s {self.window_s} and hop_s {self.hop_s} must be at least {ACTIVITY_FRAME_S}")
        for name in ("splits_per_window", "subset_stems"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        for name in ("min_source_active", "min_submix_active"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)} is a share, above 0 and at most 1")
        if self.seed < 0:
            raise ConfigError(f"seed {self.seed} must not be negative")
        if self.gain_db and not _GAIN_STEP_DB <= self.gain_db <= 60:
            raise ConfigError(f"gain_db {self.gain_db} must be 0 (off) or from {_GAIN_STEP_DB} to 60")


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSummary:
    """What the plan holds."""

    songs: int
    windows: int
    splits: int
    hours: float
    sources: dict[str, int] = field(default_factory=dict)
    """How many splits have this text as their source."""
    passed_over: dict[str, int] = field(default_factory=dict)
    """Windows (or songs) that were not planned, by reason."""


def split(songs: Path, out: Path, *, config: SplitConfig | None = None) -> SplitSummary:
    """Draw the plan of the manifest ``songs`` and write it to ``out``. Same manifest, config, seed: same bytes.

    Raises:
        ManifestError: the manifest cannot be used.
    """
    config = config or SplitConfig()
    rows, passed_over, sources = PlanRows(), Counter[str](), Counter[str]()
    planned = windows = 0
    for song in iter_songs(songs):
        found = _song_windows(song, config, passed_over)
        if found.starts_s:
            rows.add(found)
            planned += 1
            windows += len(found.starts_s)
            sources.update(found.splits[index].source_text for chosen in found.chosen for index in chosen)
    passed = dict(sorted(passed_over.items()))
    rows.write(out, asdict(config), passed)
    return SplitSummary(
        songs=planned,
        windows=windows,
        splits=sources.total(),
        hours=windows * config.window_s / 3600,
        sources=dict(sources.most_common()),
        passed_over=passed,
    )


def make_plan(songs: Iterable[Song], config: SplitConfig) -> Plan:
    """The plan over ``songs``; does not depend on their order."""
    passed_over: Counter[str] = Counter()
    windows: list[Window] = []
    for song in sorted(songs, key=lambda song: song.song_id):
        windows += _song_windows(song, config, passed_over).windows()
    return Plan(windows=tuple(windows), config=asdict(config), passed_over=dict(sorted(passed_over.items())))


def window_starts(duration_s: float, window_s: float, hop_s: float) -> list[float]:
    """Starts of the windows of a song, in whole milliseconds; the last window ends where the song ends.

    A tail shorter than a tenth of the hop gets no window of its own. A song shorter than a window gets one at 0.
    """
    last, hop = max(0, int((duration_s - window_s) * 1000 + 1e-6)), hop_s * 1000
    starts = [round(number * hop) for number in range(int(last / hop) + 1)]
    if last - starts[-1] > hop / 10:
        starts.append(last)
    return [start / 1000 for start in starts]


def _song_windows(song: Song, config: SplitConfig, passed_over: Counter[str]) -> SongWindows:
    """The windows of a song, none where it cannot be used; ``passed_over`` counts what was not planned."""
    starts: list[float] = []
    if not song.usable_stems:
        passed_over["song unusable (see its problems)"] += 1
    elif song.duration_s < config.min_song_s:
        passed_over[f"song shorter than {config.min_song_s:g} s"] += 1
    else:
        starts = window_starts(song.duration_s, config.window_s, config.hop_s or config.window_s)
    stems = song.usable_stems if starts else ()
    splits = _candidates(song.song_id, tuple((stem.stem_id, stem.instrument) for stem in stems), config)
    planned, chosen, gains = [], [], []
    drawn = _draw(_active(stems, splits, starts, config), song.song_id, config)
    louder = _gains(song.song_id, [stem.stem_id for stem in stems], len(starts), config)
    for start, found, gain in zip(starts, drawn, louder, strict=True):
        if found:
            planned.append(start)
            chosen.append(tuple(found))
            gains.append(gain)
        else:
            passed_over["window without an active source beside an active submix"] += 1
    return SongWindows(
        song_id=song.song_id,
        duration_s=config.window_s,
        splits=splits,
        starts_s=tuple(planned),
        chosen=tuple(chosen),
        gains=tuple(gains),
    )


def _candidates(song_id: str, stems: tuple[tuple[str, str], ...], config: SplitConfig) -> tuple[Split, ...]:
    """The splits of a song of ``stems``, pairs of id and instrument, that the strategy can choose from."""
    if config.strategy != "subset":
        return _named_candidates(stems, config.strategy, config.exclude)
    allowed = [number for number, (_, name) in enumerate(stems) if _may_be_source(name, config.exclude)]
    most = min(config.subset_stems, len(allowed), len(stems) - 1)
    rng = _generator(config.seed, song_id, "subset")
    # There may be thousands of subsets: a window chooses from some of them.
    drawn = {
        tuple(sorted(rng.choice(allowed, size=rng.integers(1, most + 1), replace=False).tolist()))
        for _ in range(SUBSETS_PER_SPLIT * config.splits_per_window if most > 0 else 0)
    }
    return tuple(_split(stems, chosen) for chosen in sorted(drawn))


# The songs of a corpus often have the same stems.
@lru_cache(maxsize=1024)
def _named_candidates(stems: tuple[tuple[str, str], ...], strategy: str, exclude: tuple[str, ...]) -> tuple[Split, ...]:
    """A split for each instrument, or for each stem."""
    sources: dict[str, list[int]] = {}
    for number, (stem_id, name) in enumerate(stems):
        if _may_be_source(name, exclude):
            sources.setdefault(name if strategy == "single" else stem_id, []).append(number)
    return tuple(_split(stems, chosen) for _, chosen in sorted(sources.items()) if len(chosen) < len(stems))


def _may_be_source(instrument: str, exclude: Sequence[str]) -> bool:
    return instrument not in exclude and not lookup(instrument).aggregate


def _split(stems: Sequence[tuple[str, str]], chosen: Collection[int]) -> Split:
    source = [stem for number, stem in enumerate(stems) if number in chosen]
    submix = [stem for number, stem in enumerate(stems) if number not in chosen]
    return Split(
        source=tuple(stem_id for stem_id, _ in source),
        submix=tuple(stem_id for stem_id, _ in submix),
        source_text=phrase(name for _, name in source),
        submix_text=phrase(name for _, name in submix),
    )


def _active(stems: Sequence[Stem], splits: Sequence[Split], starts: Sequence[float], config: SplitConfig) -> Activity:
    """Which splits sound on both sides long enough in the windows at ``starts``: ``[starts, splits]``."""
    sides = [side for split in splits for side in (split.source, split.submix)]
    taken = np.array([[stem.stem_id in side for stem in stems] for side in sides], np.float32)
    if not taken.size:
        return np.zeros((len(starts), len(splits)), np.bool_)
    count = round(config.window_s / ACTIVITY_FRAME_S)
    first = np.rint(np.array(starts) / ACTIVITY_FRAME_S).astype(np.int64)
    sounding = taken @ _activity(stems).astype(np.float32) > 0
    sums = np.zeros((len(sides), sounding.shape[1] + 1), np.int32)
    np.cumsum(sounding, axis=1, out=sums[:, 1:])
    begin, end = (np.minimum(frame, sounding.shape[1]) for frame in (first, first + count))
    shares = ((sums[:, end] - sums[:, begin]) / count).reshape(len(splits), 2, len(starts))
    enough = shares >= np.array([config.min_source_active, config.min_submix_active])[:, None]
    return np.asarray(enough.all(axis=1).T)


def _activity(stems: Sequence[Stem]) -> Activity:
    """100 ms frames of the song in which each stem sounds, ``[stems, frames]``."""
    rows = []
    for stem in stems:
        lead = round(stem.offset_frames / (stem.sample_rate or 1) / ACTIVITY_FRAME_S)
        rows.append(np.concatenate([np.zeros(lead, dtype=np.bool_), stem.active()]))
    total = np.zeros((len(rows), max((row.size for row in rows), default=0)), dtype=np.bool_)
    for line, row in zip(total, rows, strict=True):
        line[: row.size] = row
    return total


def _draw(active: Activity, song_id: str, config: SplitConfig) -> list[list[int]]:
    """Up to K of the splits that are ``active`` ``[windows, splits]`` in each window, in order."""
    # One generator a song: to seed one takes longer than all else that is done for a window.
    rng = _generator(config.seed, song_id)
    places = np.where(active, rng.random(active.shape), np.inf).argsort(axis=1, kind="stable")
    counts = np.minimum(active.sum(axis=1), config.splits_per_window)
    return [sorted(row[:count]) for row, count in zip(places.tolist(), counts.tolist(), strict=True)]


def _gains(song_id: str, stems: Sequence[str], windows: int, config: SplitConfig) -> list[tuple[StemGain, ...]]:
    """The gains of each window of a song, from a generator that decides nothing else; none where they are off."""
    if not config.gain_db:
        return [()] * windows
    most = math.floor(config.gain_db / _GAIN_STEP_DB + 1e-6)
    drawn = _generator(config.seed, song_id, "gains").integers(-most, most, (windows, len(stems)), endpoint=True)
    return [
        tuple(StemGain(stem_id=stem, gain_db=steps / 100) for stem, steps in zip(stems, row, strict=True))
        for row in drawn.tolist()
    ]


def _generator(seed: int, *names: str) -> np.random.Generator:
    digests = [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") for name in names]
    return np.random.default_rng(np.random.SeedSequence([seed, *digests]))
