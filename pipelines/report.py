"""report: what a folder of artefacts holds -> one self-contained HTML page to read, look at and listen to.

The page needs no network and no other file: figures are inline SVG, sound is FLAC in data URIs. The same input gives
the same bytes.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from manifests.atomic import write_bytes
from manifests.errors import MGELDMError
from manifests.problems import PROBLEMS
from manifests.song_stats import Group, Part, SongStats, song_stats
from manifests.splits import read_splits
from pipelines import report_plots as plots

logger = logging.getLogger(__name__)

LOOKED_FOR = "summary.json, songs.parquet, splits.parquet, metrics.jsonl, run/metrics.jsonl, and results.json anywhere"
_MOST = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of texts ready to show; the columns after the first ``words`` hold figures and stand on the right."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    words: int = 1
    total: tuple[str, ...] = ()
    commands: bool = False
    """The cells are paths and commands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One result: what was asked, with which settings, and what came out."""

    task: str
    prompt: str
    settings: list[tuple[str, str]]
    clips: list[plots.Clip]
    figures: list[tuple[str, str]]
    colours_db: tuple[str, str] | None
    """Levels of the darkest and the brightest colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One part of the page."""

    title: str
    file: str
    page_title: str = ""
    notes: list[str] = field(default_factory=list)
    tiles: list[tuple[str, str]] = field(default_factory=list)
    tables: list[tuple[str, Table]] = field(default_factory=list)
    figures: list[tuple[str, Markup]] = field(default_factory=list)
    cards: list[Card] = field(default_factory=list)


Builder = Callable[[Path, Path], Section]


def report(thing: Path, out: Path) -> Path:
    """Write the page ``out`` about ``thing``, a folder of artefacts or one of its files, and return its path.

    In a folder, an artefact or a recording that cannot be read becomes a note on the page.

    Raises:
        MGELDMError: ``thing`` is missing or holds nothing that can be shown (the message names what was looked for),
            or ``out`` is not named ``.html``.
    """
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise MGELDMError(f"{out}: a report is one HTML page; give a file name that ends with .html")
    root = thing if thing.is_dir() else thing.parent
    sections: list[Section] = []
    errors: list[MGELDMError] = []
    for path, build in _artefacts(thing):
        try:
            sections.append(build(path, root))
        except (MGELDMError, OSError) as error:
            logger.warning("%s", error)
            errors.append(error if isinstance(error, MGELDMError) else MGELDMError(str(error)))
            sections.append(Section(title="Not readable", file=_below(path, root), notes=[str(error)]))
    if len(errors) == len(sections):
        raise errors[0] if errors else MGELDMError(f"{thing}: nothing to report on; looked for {LOOKED_FOR}")
    title = next((section.page_title for section in sections if section.page_title), thing.resolve().name)
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = page.from_string(template).render(title=title, sections=sections, colours=plots.colour_scale())
    write_bytes(out, text.encode("utf-8", "backslashreplace"))
    return out


def _artefacts(thing: Path) -> list[tuple[Path, Builder]]:
    """What ``thing`` holds that a page can show, in the order of the page. Raises MGELDMError for no such thing."""
    if thing.is_dir():
        fixed: list[tuple[Path, Builder]] = [
            (thing / "summary.json", _summary),
            (thing / "songs.parquet", _songs),
            (thing / "splits.parquet", _splits),
            (thing / "metrics.jsonl", _metrics),
            (thing / "run" / "metrics.jsonl", _metrics),
        ]
        found = sorted(path for path in thing.rglob("results.json") if path.is_file())
        return [*((path, build) for path, build in fixed if path.is_file()), *((path, _results) for path in found)]
    if not thing.is_file():
        raise MGELDMError(f"{thing}: no such file or folder; a report looks for {LOOKED_FOR}")
    if thing.suffix == ".parquet":
        return [(thing, _splits if _is_plan(thing) else _songs)]
    builders = {"summary.json": _summary, "metrics.jsonl": _metrics, "results.json": _results}
    return [(thing, builders[thing.name])] if thing.name in builders else []


def _is_plan(path: Path) -> bool:
    try:
        return b"mgeldm.splits.version" in (pq.read_schema(path).metadata or {})
    except (pa.ArrowInvalid, OSError):
        return False


def _summary(path: Path, root: Path) -> Section:
    summary = _object(path)
    seconds = _numbers(path, "seconds", summary.get("seconds", {}))
    counts = summary.get("counts", {})
    if not isinstance(counts, dict):
        raise MGELDMError(f'{path}: "counts" must be an object, found {counts!r}')
    counts = dict(counts)
    problems = _numbers(path, "counts.problems", counts.pop("problems", {}))
    tiles = [(name, _figure(value)) for name, value in _numbers(path, "counts", counts).items()]
    title = str(summary.get("title") or "")
    section = Section(title="Summary", file=_below(path, root), page_title=title, tiles=tiles)
    if "counts" in summary:
        tiles.append(("problems", _figure(sum(problems.values()))))
    if seconds:
        whole = sum(seconds.values())
        tiles.append(("seconds in all", f"{whole:,.1f}"))
        stages = [(name, f"{s:,.1f}", _share(s, whole)) for name, s in seconds.items()]
        table = Table(columns=("stage", "seconds", "share"), rows=stages, total=("total", f"{whole:,.1f}", ""))
        section.tables.append(("Seconds per stage", table))
    if problems:
        section.tables.append(("Problems found", _problem_table({code: int(n) for code, n in problems.items()})))
    look = summary.get("look") or []
    if not isinstance(look, list) or not all(isinstance(item, dict) for item in look):
        raise MGELDMError(f'{path}: "look" must be a list of objects with "path" and "how"')
    rows = [(str(item.get("path", "")), str(item.get("how", ""))) for item in look]
    if rows:
        table = Table(columns=("artefact", "how"), rows=rows, words=2, commands=True)
        section.tables.append(("How to look at each artefact", table))
    return section


def _songs(path: Path, root: Path) -> Section:
    stats = song_stats(path)
    tiles = [*_song_tiles(stats), ("of stem time active", _share(stats.active or 0.0, 1.0))]
    section = Section(title="Songs", file=_below(path, root), tiles=tiles)
    section.tables.append(("By corpus and subset", _subset_table(stats)))
    if stats.problems:
        section.tables.append(("Problems by code", _problem_table(stats.problems)))
    else:
        section.notes.append("No problems found.")
    if stats.licenses:
        rows = [(name or "none given", f"{n['songs']:,}", f"{n['hours']:,.2f}") for name, n in stats.licenses.items()]
        section.tables.append(("Licences", Table(columns=("licence", "songs", "hours"), rows=rows)))
    if stats.unmapped:
        section.tables.append(("Labels that the vocabulary does not know", _counts("label", _most(stats.unmapped))))
    if stats.loudness:
        without = stats.stems - stats.loudness.stems
        title = "Loudness of stems" + (f" ({without:,} silent, short or unread)" if without else "")
        picture = plots.columns(stats.loudness.histogram, "integrated loudness (LUFS)", "stems")
        section.figures.append((title, picture))
    section.figures.extend(_part_figures("family", stats.families))
    section.figures.extend(_part_figures("instrument", stats.instruments))
    if stats.bandwidth_khz:
        picture = plots.columns(stats.bandwidth_khz, "highest frequency that sounds (kHz)", "stems")
        section.figures.append(("Bandwidth of stems", picture))
    for title, name, counts in (
        ("Sample rates of stems", "Hz", stats.sample_rates),
        ("Channels of stems", "channels", stats.channels),
    ):
        if counts:
            section.tables.append((title, _counts(name, {f"{value:,}": stems for value, stems in counts.items()})))
    return section


def _part_figures(kind: str, parts: Sequence[Part]) -> list[tuple[str, Markup]]:
    """Stems and activity of each instrument or family."""
    stems = _most({part.name: part.stems for part in parts})
    shares = {part.name: part.active for part in parts if part.name in stems and part.active is not None}
    figures = [(f"Stems per {kind}", plots.bars(stems, f"stems per {kind}"))] if stems else []
    if shares:
        axis = f"share of 100 ms frames that are active, per {kind}"
        figures.append((f"Activity per {kind}", plots.bars(shares, axis, share=True)))
    return figures


def _counts(name: str, counts: Mapping[str, float]) -> Table:
    return Table(columns=(name, "stems"), rows=[(key, f"{count:,}") for key, count in counts.items()])


def _song_tiles(found: SongStats | Group) -> list[tuple[str, str]]:
    return [
        ("songs", f"{found.songs:,}"),
        ("usable", f"{found.usable:,}"),
        ("stems", f"{found.stems:,}"),
        ("hours", f"{found.hours:,.2f}"),
    ]


def _subset_table(stats: SongStats) -> Table:
    rows = [(group.corpus, group.subset, *(value for _, value in _song_tiles(group))) for group in stats.groups]
    columns = ("corpus", "subset", "songs", "usable", "stems", "hours")
    return Table(columns=columns, rows=rows, words=2, total=("total", "", *(value for _, value in _song_tiles(stats))))


def _problem_table(problems: Mapping[str, int]) -> Table:
    rows = []
    for code, count in sorted(problems.items(), key=lambda item: (-item[1], item[0])):
        follows, meaning = PROBLEMS.get(code, ("", ""))
        rows.append((code, meaning, str(follows) if follows in ("song", "stem") else "", f"{count:,}"))
    total = ("total", "", "", f"{sum(problems.values()):,}")
    return Table(columns=("problem", "meaning", "left out", "count"), rows=rows, words=3, total=total)


def _splits(path: Path, root: Path) -> Section:
    plan = read_splits(path)
    texts = Counter(split.source_text for window in plan.windows for split in window.splits)
    tiles = [
        ("windows", f"{len(plan.windows):,}"),
        ("splits", f"{texts.total():,}"),
        ("songs", f"{len({window.song_id for window in plan.windows}):,}"),
        ("hours", f"{sum(window.duration_s for window in plan.windows) / 3600:,.2f}"),
    ]
    section = Section(title="Splits", file=_below(path, root), tiles=tiles)
    if texts:
        section.figures.append(("Splits by source text", plots.bars(_most(texts), "splits")))
    passed = sorted(plan.passed_over.items(), key=lambda item: (-item[1], item[0]))
    rows = [(reason, f"{count:,}") for reason, count in passed]
    if rows:
        section.tables.append(("Passed over", Table(columns=("reason", "count"), rows=rows)))
    else:
        section.notes.append("Nothing was passed over.")
    rows = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in plan.config.items()]
    if rows:
        section.tables.append(("Configuration", Table(columns=("option", "value"), rows=rows)))
    return section


def _metrics(path: Path, root: Path) -> Section:
    section = Section(title="Training", file=_below(path, root))
    series: dict[str, dict[int, float]] = {}
    spoilt = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
            step = int(row["step"])
        except (ValueError, KeyError, TypeError, OverflowError):
            spoilt += bool(line.strip())
            continue
        for name, value in row.items():
            if name != "step" and _is_number(value):
                # A resumed run may write a step again: the later line holds.
                series.setdefault(name, {})[step] = float(value)
    if not series:
        raise MGELDMError(f'{path}: no line holds a "step" and a figure; it should be one JSON object a line')
    if spoilt:
        section.notes.append(f"Lines that could not be read, as after a run that was cut off: {spoilt:,}.")
    section.tiles.append(("last step", f"{max(max(points) for points in series.values()):,}"))
    finite = {name: {s: v for s, v in points.items() if math.isfinite(v)} for name, points in series.items()}
    for name, points in series.items():
        if len(finite[name]) < len(points):
            section.notes.append(f"{name}: {len(points) - len(finite[name]):,} values are NaN or infinite.")
    panels = list(dict.fromkeys(name.removeprefix("val_") for name in sorted(series, key=lambda n: n != "loss")))
    for name in panels:
        training, validation = finite.get(name, {}), finite.get(f"val_{name}", {})
        if training or validation:
            label = name if training else f"val_{name}"
            section.figures.append((label, plots.curve(label, training, validation)))
    rows = [_curve_row(name, points) for name, points in finite.items() if points]
    columns = ("figure", "first", "last", "lowest", "at step")
    section.tables.append(("Curves in figures", Table(columns=columns, rows=rows)))
    return section


def _curve_row(name: str, points: Mapping[int, float]) -> tuple[str, ...]:
    first, last, best = min(points), max(points), min(points, key=lambda step: (points[step], step))
    figures = (_figure(points[step]) for step in (first, last, best))
    return (name, *figures, f"{best:,}")


def _results(path: Path, root: Path) -> Section:
    value = _object(path)
    results = value.get("results")
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise MGELDMError(f'{path}: expected an object with "results", a list of objects')
    title = "Results" if path.parent == root else f"Results: {_below(path.parent, root)}"
    section = Section(title=title, file=_below(path, root))
    if value.get("model"):
        section.notes.append(f"Model: {value['model']}")
    if not results:
        section.notes.append("No results in this file.")
    section.cards.extend(_card(result, path.parent, root) for result in results)
    return section


def _card(result: Mapping[str, Any], folder: Path, root: Path) -> Card:
    items: list[plots.Recording | plots.Clip] = []
    for role in ("given", "outputs", "reference"):
        label = role.removesuffix("s")
        named = result.get(role) or {}
        for name, relative in named.items() if isinstance(named, dict) else [("?", named)]:
            try:
                items.append(plots.excerpt(label, name, _inside(relative, folder, root)))
            except (OSError, ValueError) as error:
                message = str(error).replace(f"{folder}/", "")
                logger.warning("%s: %s", folder / "results.json", message)
                items.append(plots.Clip(role=label, name=name, note=f"Cannot be played: {message}"))
    clips, top_db = plots.clips(items)
    asked = {name: result.get(name) for name in ("input", "steps", "guidance", "seed", "seconds")}
    figures = result.get("figures")
    return Card(
        task=str(result.get("task") or "result"),
        prompt=str(result.get("prompt") or ""),
        settings=[(k, _figure(v) if isinstance(v, float) else str(v)) for k, v in asked.items() if v is not None],
        clips=clips,
        figures=[(k, _figure(v)) for k, v in figures.items()] if isinstance(figures, dict) else [],
        colours_db=(_figure(top_db - plots.DYNAMIC_RANGE_DB), _figure(top_db)) if any(c.sound for c in clips) else None,
    )


def _inside(relative: object, folder: Path, root: Path) -> Path:
    if not isinstance(relative, str):
        raise ValueError(f"expected a path, found {relative!r}")
    path = folder / relative
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{relative}: lies outside the folder that is reported on")
    return path


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, OSError) as error:
        raise MGELDMError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise MGELDMError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def _numbers(path: Path, key: str, value: object) -> dict[str, float]:
    if not isinstance(value, dict) or not all(_is_number(n) and math.isfinite(n) for n in value.values()):
        raise MGELDMError(f'{path}: "{key}" must be an object of numbers, found {value!r}')
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _most(counts: Mapping[str, int]) -> dict[str, int]:
    """The most frequent names, ties by name, and how many others there are."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = ordered[_MOST:]
    return dict(ordered[:_MOST]) | ({f"{len(rest)} others": sum(n for _, n in rest)} if rest else {})


def _figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}".replace("-", "\N{MINUS SIGN}") if abs(value) < 1e6 else f"{value:.4g}"
    return f"{value:,}" if _is_number(value) else str(value)


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "none"


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()
