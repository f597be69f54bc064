"""What a manifest holds, in figures. Sums are made by DuckDB over the columns, so that 100,000 songs take seconds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.labels import UNMAPPED
from manifests.queries import opened

Rows = list[tuple[str, ...]]

_ACTIVE = "coalesce(bit_count(TRY_CAST(activity AS BIT)), 0)"
_FRAMES = "coalesce((frames * 10 + sample_rate - 1) // sample_rate, 0)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Songs of one corpus and subset."""

    corpus: str
    subset: str
    songs: int
    usable: int
    """Songs that the plan can use."""
    stems: int
    hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The stems of one instrument or family."""

    name: str
    family: str
    stems: int
    songs: int
    hours: float
    active: float | None
    """Share of 100 ms frames that are active; None where nothing could be read."""
    lufs: float | None
    """Median of the integrated loudness of those that have one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loudness:
    """Integrated loudness of the stems in LUFS."""

    stems: int
    """Stems that have one; the rest is silent, short or unread."""
    least: float
    low: float
    """Fifth percentile."""
    median: float
    high: float
    """95th percentile."""
    most: float
    histogram: dict[int, int]
    """Stems by loudness, rounded down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SongStats:
    """The figures of a manifest."""

    songs: int
    usable: int
    stems: int
    hours: float
    """Duration of the songs."""
    stem_hours: float
    active: float | None
    """Share of stem time that is active."""
    groups: tuple[Group, ...]
    instruments: tuple[Part, ...]
    """By number of stems."""
    families: tuple[Part, ...]
    loudness: Loudness | None
    sample_rates: dict[int, int]
    """Stems by rate in Hz."""
    channels: dict[int, int]
    """Stems by number of channels."""
    bandwidth_khz: dict[int, int]
    """Stems by bandwidth, to the nearest kHz."""
    problems: dict[str, int]
    """Problems by code, most frequent first."""
    songs_with_problems: int
    licenses: dict[str, dict[str, float]]
    """Songs and hours by licence."""
    unmapped: dict[str, int]
    """Stems by raw label that the vocabulary does not know."""


def song_stats(path: Path | str) -> SongStats:
    """The figures of the manifest ``path``.

    Raises:
        ManifestError: the file is missing or is no manifest of this version.
    """
    with opened(path) as connection:

        def rows(sql: str) -> list[tuple[Any, ...]]:
            return connection.execute(sql).fetchall()

        def counts(sql: str) -> dict[Any, int]:
            return dict(rows(sql))

        groups = rows(
            "SELECT corpus, subset, count(*), count(*) FILTER (usable), sum(stem_count)::BIGINT, sum(hours) "
            "FROM songs GROUP BY ALL ORDER BY ALL"
        )
        per_stem = (
            "(SELECT *, coalesce(frames / sample_rate, 0) / 3600 AS hours, "
            f"{_ACTIVE} AS active, {_FRAMES} AS activity_frames FROM stems)"
        )
        part = (
            "count(*) AS stems, count(DISTINCT song_id), sum(hours), "
            "sum(least(active, activity_frames)) / nullif(sum(activity_frames), 0), median(lufs)"
        )
        whole = rows(
            f"SELECT count(*), coalesce(sum(hours), 0), sum(active) / nullif(sum(activity_frames), 0) FROM {per_stem}"
        )[0]
        instruments = rows(
            f"SELECT instrument, any_value(family), {part} FROM {per_stem} GROUP BY 1 ORDER BY stems DESC, 1"
        )
        families = rows(f"SELECT family, family, {part} FROM {per_stem} GROUP BY 1 ORDER BY stems DESC, 1")
        loud = rows(
            "SELECT count(lufs), min(lufs), quantile_cont(lufs, 0.05), median(lufs), quantile_cont(lufs, 0.95),"
            " max(lufs) FROM stems"
        )[0]
        histogram = counts(
            "SELECT floor(lufs)::INT, count(*) FROM stems WHERE isfinite(lufs) GROUP BY ALL ORDER BY ALL"
        )
        problems = counts(
            "SELECT problem.code, count(*) FROM (SELECT unnest(problems) AS problem FROM songs) GROUP BY 1 "
            "ORDER BY 2 DESC, 1"
        )
        licenses = rows("SELECT license, count(*), sum(hours) FROM songs GROUP BY 1 ORDER BY 2 DESC, 1")
        return SongStats(
            songs=sum(group[2] for group in groups),
            usable=sum(group[3] for group in groups),
            stems=whole[0],
            hours=sum(group[5] for group in groups),
            stem_hours=whole[1],
            active=whole[2],
            groups=tuple(Group(**dict(zip(Group.__slots__, group, strict=True))) for group in groups),
            instruments=tuple(_part(row) for row in instruments),
            families=tuple(_part(row) for row in families),
            loudness=Loudness(**dict(zip(Loudness.__slots__, (*loud, histogram), strict=True))) if loud[0] else None,
            sample_rates=counts(_by("sample_rate")),
            channels=counts(_by("channels")),
            bandwidth_khz=counts(_by("round(bandwidth_hz / 1000)::INT")),
            problems=problems,
            songs_with_problems=rows("SELECT count(*) FROM songs WHERE len(problems) > 0")[0][0],
            licenses={name: {"songs": songs, "hours": hours} for name, songs, hours in licenses},
            unmapped=counts(
                f"SELECT label, count(*) FROM stems WHERE family = '{UNMAPPED}' GROUP BY 1 ORDER BY 2 DESC, 1"
            ),
        )


def _by(value: str) -> str:
    return f"SELECT {value} AS value, count(*) FROM stems WHERE value IS NOT NULL GROUP BY 1 ORDER BY 1"


def _part(row: tuple[Any, ...]) -> Part:
    return Part(**dict(zip(Part.__slots__, row, strict=True)))


def table(stats: SongStats) -> str:
    """The figures as text, one block of aligned columns after another."""
    blocks: list[Rows] = [
        [
            ("songs", f"{stats.songs:,}"),
            ("usable", f"{stats.usable:,}"),
            ("with problems", f"{stats.songs_with_problems:,}"),
            ("stems", f"{stats.stems:,}"),
            ("hours", f"{stats.hours:,.2f}"),
            ("stem hours", f"{stats.stem_hours:,.2f}"),
            ("active", share(stats.active)),
        ],
        [("corpus", "subset", "songs", "usable", "stems", "hours"), *map(_group_line, stats.groups)],
        [("family", "stems", "songs", "hours", "active", "LUFS"), *map(_part_line, stats.families)],
        [("instrument", "stems", "songs", "hours", "active", "LUFS"), *map(_part_line, stats.instruments)],
    ]
    if loud := stats.loudness:
        figures = (f"{value:.1f}" for value in (loud.least, loud.low, loud.median, loud.high, loud.most))
        blocks.append([("LUFS of stems", "least", "5 %", "median", "95 %", "most"), (f"{loud.stems:,}", *figures)])
    counted: list[tuple[str, dict[Any, int]]] = [
        ("sample rate (Hz)", stats.sample_rates),
        ("channels", stats.channels),
        ("bandwidth (kHz)", stats.bandwidth_khz),
        ("problem", stats.problems),
        ("unmapped label", stats.unmapped),
    ]
    for title, counts in counted:
        if counts:
            head = (title, "count" if counts is stats.problems else "stems")
            blocks.append([head, *((one_line(str(name)), f"{count:,}") for name, count in counts.items())])
    licences = [
        (one_line(name) or "none given", f"{found['songs']:,}", f"{found['hours']:,.2f}")
        for name, found in stats.licenses.items()
    ]
    blocks.append([("licence", "songs", "hours"), *licences])
    return "\n\n".join(_aligned(block) for block in blocks if len(block) > 1)


def share(value: float | None) -> str:
    """A share in percent, or a dash."""
    return "-" if value is None else f"{value:.1%}"


def one_line(text: str) -> str:
    """Labels and licences are other people's words, and may hold anything."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _group_line(group: Group) -> tuple[str, ...]:
    figures = (f"{group.songs:,}", f"{group.usable:,}", f"{group.stems:,}", f"{group.hours:,.2f}")
    return (one_line(group.corpus), one_line(group.subset), *figures)


def _part_line(part: Part) -> tuple[str, ...]:
    lufs = "-" if part.lufs is None else f"{part.lufs:.1f}"
    return (
        one_line(part.name),
        f"{part.stems:,}",
        f"{part.songs:,}",
        f"{part.hours:,.2f}",
        share(part.active),
        lufs,
    )


def _aligned(rows: Rows) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    words = 2 if rows[0][1:2] == ("subset",) else 1
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < words else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
