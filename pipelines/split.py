"""split: `songs.parquet` -> `splits.parquet`. A deterministic choice from the manifest alone; no audio is read."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from manifests.class_sets import ClassFilter, class_filter
from manifests.songs import Song, iter_songs, song_instruments
from manifests.splits import Plan, PlanRows, Window
from pipelines.draw import SplitConfig, draw_songs
from pipelines.text_table import columns

__all__ = ["Chosen", "SplitConfig", "SplitSummary", "make_plan", "split", "table"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Splits of one corpus and subset whose source has this instrument. A source of two instruments counts for both."""

    corpus: str
    subset: str
    instrument: str
    splits: int
    hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSummary:
    """What the plan holds."""

    songs: int
    windows: int
    splits: int
    hours: float
    sources: dict[str, int]
    """How many splits have this text as their source."""
    chosen: tuple[Chosen, ...]
    passed_over: dict[str, int]
    """Songs, windows and splits that were not planned, by reason; the reason's first word is what was counted."""


def split(songs: Path, out: Path | None, *, config: SplitConfig | None = None) -> SplitSummary:
    """Draw the plan of the manifest ``songs`` and write it to ``out``. Same manifest, config, seed: same bytes.

    With ``out`` None nothing is written.

    Raises:
        ConfigError: classes or exclude name what neither the vocabulary nor the manifest knows.
        ManifestError: the manifest cannot be used.
    """
    config = config or SplitConfig()
    classes = filter_of(config, songs)
    rows, passed_over, sources = PlanRows(), Counter[str](), Counter[str]()
    chosen: Counter[tuple[str, str, str]] = Counter()
    planned = windows = 0
    for draw in draw_songs(lambda: iter_songs(songs), config, classes):
        passed_over.update(draw.passed_over())
        found = draw.windows()
        if not found.starts_s:
            continue
        if out is not None:
            rows.add(found)
        planned += 1
        windows += len(found.starts_s)
        counts = draw.planned.sum(axis=0).tolist()
        for part, instruments, count in zip(draw.splits, draw.instruments(), counts, strict=True):
            if count:
                sources[part.source_text] += count
                for name in instruments:
                    chosen[draw.song.corpus, draw.song.subset, name] += count
    passed = dict(sorted(passed_over.items()))
    if out is not None:
        rows.write(out, asdict(config), passed)
    hours = config.window_s / 3600
    return SplitSummary(
        songs=planned,
        windows=windows,
        splits=sources.total(),
        hours=windows * hours,
        sources=dict(sorted(sources.items(), key=lambda item: (-item[1], item[0]))),
        chosen=tuple(
            Chosen(corpus=corpus, subset=subset, instrument=name, splits=count, hours=count * hours)
            for (corpus, subset, name), count in sorted(chosen.items())
        ),
        passed_over=passed,
    )


def filter_of(config: SplitConfig, songs: Path) -> ClassFilter:
    """The filter that ``config`` asks for over the manifest ``songs``. Raises ConfigError for unknown names."""
    return _filter(config, lambda: song_instruments(songs))


def _filter(config: SplitConfig, instruments: Callable[[], Collection[str]]) -> ClassFilter:
    return class_filter(tuple(config.classes), tuple(config.exclude), config.mix, instruments)


def make_plan(songs: Iterable[Song], config: SplitConfig) -> Plan:
    """The plan over ``songs``; does not depend on their order. Raises ConfigError as `split` does."""
    ordered = sorted(songs, key=lambda song: song.song_id)
    classes = _filter(config, lambda: {stem.instrument for song in ordered for stem in song.stems})
    passed_over: Counter[str] = Counter()
    windows: list[Window] = []
    for draw in draw_songs(lambda: ordered, config, classes):
        passed_over.update(draw.passed_over())
        windows += draw.windows().windows()
    return Plan(windows=tuple(windows), config=asdict(config), passed_over=dict(sorted(passed_over.items())))


def table(summary: SplitSummary) -> str:
    """The summary to be read: totals, what was chosen, what was passed over."""
    lines = [
        f"{summary.songs:,} songs, {summary.windows:,} windows ({summary.hours:,.2f} h), {summary.splits:,} splits"
    ]
    if summary.chosen:
        rows = [(f"{c.corpus} {c.subset}", c.instrument, f"{c.splits:,}", f"{c.hours:,.2f}") for c in summary.chosen]
        lines += ["", "chosen sources", *columns([("corpus, subset", "instrument", "splits", "hours"), *rows], (2, 3))]
    if summary.passed_over:
        passed = [reason.partition(" ") for reason in summary.passed_over]
        order = {"song": 0, "window": 1, "split": 2}
        passed_rows = sorted(
            ((f"{level}s", why, f"{summary.passed_over[f'{level} {why}']:,}") for level, _, why in passed),
            key=lambda row: (order.get(row[0][:-1], 3), row[1]),
        )
        lines += ["", "passed over", *columns(passed_rows, (2,))]
    return "\n".join(lines)
