"""split: `songs.parquet` -> `splits.parquet`. A deterministic choice from the manifest alone; no audio is read."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from manifests.errors import ConfigError
from manifests.labels import lookup, phrase
from manifests.songs import ACTIVITY_FRAME_S, Song, Stem, read_songs
from manifests.splits import Plan, Split, Window, window_id, write_splits


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig:
    """How windows and their splits are chosen."""

    strategy: Literal["single"] = "single"
    """"single": all stems of one canonical instrument are the source (the paper)."""
    window_s: float = 20.48
    """Length of a window."""
    hop_s: float | None = None
    """Distance of windows; by default the window's length. The end of a song always gets a window of its own."""
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
    """Seed of the choice among more splits than ``splits_per_window``."""

    def __post_init__(self) -> None:
        if self.window_s <= 0 or (self.hop_s is not None and self.hop_s <= 0):
            raise ConfigError(f"window_s {self.window_s} and hop_s {self.hop_s} must be above 0")
        if self.splits_per_window < 1:
            raise ConfigError(f"splits_per_window {self.splits_per_window} must be at least 1")


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
    plan = make_plan(read_songs(songs), config)
    write_splits(out, plan)
    sources = Counter(split.source_text for window in plan.windows for split in window.splits)
    return SplitSummary(
        songs=len({window.song_id for window in plan.windows}),
        windows=len(plan.windows),
        splits=sources.total(),
        hours=sum(window.duration_s for window in plan.windows) / 3600,
        sources=dict(sources.most_common()),
        passed_over=plan.passed_over,
    )


def make_plan(songs: Sequence[Song], config: SplitConfig) -> Plan:
    """The plan over ``songs``; does not depend on their order."""
    passed_over: Counter[str] = Counter()
    windows: list[Window] = []
    for song in sorted(songs, key=lambda song: song.song_id):
        if not song.usable_stems:
            passed_over["song unusable (see its problems)"] += 1
        elif song.duration_s < config.min_song_s:
            passed_over[f"song shorter than {config.min_song_s:g} s"] += 1
        else:
            windows += _song_windows(song, config, passed_over)
    return Plan(windows=tuple(windows), config=asdict(config), passed_over=dict(sorted(passed_over.items())))


def window_starts(duration_s: float, window_s: float, hop_s: float) -> list[float]:
    """Starts of the windows of a song, in milliseconds' precision; the last one ends where the song ends."""
    last = max(0.0, duration_s - window_s)
    starts = [round(number * hop_s, 3) for number in range(int(last / hop_s + 1e-9) + 1)]
    # A tail shorter than a tenth of the hop is not worth a window of its own.
    return starts if last - starts[-1] <= hop_s / 10 else [*starts, round(last, 3)]


def _song_windows(song: Song, config: SplitConfig, passed_over: Counter[str]) -> Iterator[Window]:
    stems = song.usable_stems
    activity = {stem.stem_id: _song_activity(stem) for stem in stems}
    for start in window_starts(song.duration_s, config.window_s, config.hop_s or config.window_s):
        splits = [
            _split(stems, instrument)
            for instrument in sorted({stem.instrument for stem in stems})
            if _suits(instrument, stems, activity, start, config)
        ]
        if not splits:
            passed_over["window without an active source beside an active submix"] += 1
            continue
        key = window_id(song.song_id, start)
        yield Window(
            window_id=key,
            song_id=song.song_id,
            start_s=start,
            duration_s=config.window_s,
            splits=_draw(splits, key, config),
        )


def _draw(splits: list[Split], key: str, config: SplitConfig) -> tuple[Split, ...]:
    digest = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, digest]))
    chosen = rng.permutation(len(splits))[: config.splits_per_window]
    return tuple(splits[index] for index in sorted(chosen))


def _split(stems: Sequence[Stem], instrument: str) -> Split:
    source = [stem for stem in stems if stem.instrument == instrument]
    submix = [stem for stem in stems if stem.instrument != instrument]
    return Split(
        source=tuple(stem.stem_id for stem in source),
        submix=tuple(stem.stem_id for stem in submix),
        source_text=instrument,
        submix_text=phrase(stem.instrument for stem in submix),
    )


def _suits(
    instrument: str,
    stems: Sequence[Stem],
    activity: dict[str, npt.NDArray[np.bool_]],
    start_s: float,
    config: SplitConfig,
) -> bool:
    if instrument in config.exclude or lookup(instrument).aggregate:
        return False
    first, count = round(start_s / ACTIVITY_FRAME_S), round(config.window_s / ACTIVITY_FRAME_S)

    def share(chosen: Sequence[Stem]) -> float:
        frames = np.zeros(count, dtype=np.bool_)
        for stem in chosen:
            part = activity[stem.stem_id][first : first + count]
            frames[: part.size] |= part
        return float(frames.mean())

    source = [stem for stem in stems if stem.instrument == instrument]
    submix = [stem for stem in stems if stem.instrument != instrument]
    return (
        bool(submix)
        and share(source) >= config.min_source_active
        and share(submix) >= config.min_submix_active
    )


def _song_activity(stem: Stem) -> npt.NDArray[np.bool_]:
    """Activity on the song's time."""
    lead = round(stem.offset_frames / (stem.sample_rate or 1) / ACTIVITY_FRAME_S)
    return np.concatenate([np.zeros(lead, dtype=np.bool_), stem.active()])
