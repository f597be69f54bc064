"""split explain: why a window is in the plan with these splits, or is not. It draws anew with the code of `split`."""

import difflib
import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from manifests.class_sets import ClassFilter
from manifests.errors import ConfigError, ManifestError
from manifests.problems import Effect, effect
from manifests.songs import find_song, iter_songs, song_ids
from manifests.splits import Window, find_window, song_key, splits_config, window_id
from pipelines.draw import SILENT_WINDOW, SongDraw, SplitConfig, draw_songs, sounding_shares
from pipelines.split import filter_of
from pipelines.text_table import columns

PLANNED = "planned"
_NEAR = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StemStory:
    """A stem of the song in the window."""

    stem_id: str
    label: str
    instrument: str
    family: str
    active: float
    """Share of the window's 100 ms frames in which it sounds."""
    gain_db: float | None
    """None: as recorded."""
    left_out: str | None
    """Why it is not in the mix; None where it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitStory:
    """A split that the window could have had."""

    source: tuple[str, ...]
    submix: tuple[str, ...]
    source_text: str
    submix_text: str
    source_active: float
    submix_active: float
    place: int | None
    """Place in the draw of this window, from 1; None where it took no part."""
    cap_rank: float | None
    """Under ``max_splits_per_instrument``, those of the whole plan with the lowest stay; None where it took no part."""
    verdict: str
    """"planned", or the reason why not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """All that decides on one window."""

    window_id: str
    song_id: str
    corpus: str
    subset: str
    start_s: float
    end_s: float
    song_s: float
    verdict: str
    """"planned", or the reason why the window or its song is not."""
    problems: tuple[str, ...]
    """Problems of the song in the manifest."""
    stems: tuple[StemStory, ...]
    splits: tuple[SplitStory, ...]
    """In the order of the draw; those that took no part last."""
    refused: tuple[tuple[str, str], ...]
    """Instruments of sources that no window of the song can have, and why."""
    config: dict[str, Any]


def explain(window: str, plan: Path, songs: Path) -> Explanation:
    """Tell of the window with this id, or of the one at ``SONG_ID@SECONDS``; it need not be in the ``plan``.

    With ``max_splits_per_instrument`` the whole manifest is drawn, else one song alone.

    Raises:
        ConfigError: no such window; the message has near matches.
        ManifestError: a file cannot be used, or the plan was drawn from another manifest.
    """
    config = _config(plan)
    song_id, at = _song_of(window, songs)
    song = find_song(songs, song_id)
    classes = filter_of(config, songs)
    capped = config.max_splits_per_instrument is not None
    draws = draw_songs(lambda: iter_songs(songs) if capped else iter([song]), config, classes)
    draw = next(draw for draw in draws if draw.song.song_id == song_id)
    if draw.reason:
        return explain_song(draw, classes, 0.0 if at is None else at)
    number = _number(draw, window, at)
    key = window_id(song_id, draw.starts_s[number])
    if find_window(plan, key) != planned_window(draw, key):
        raise ManifestError(f"{plan}: {key} is not as {songs} gives it; the plan was drawn from another manifest")
    return explain_window(draw, number, classes)


def planned_window(draw: SongDraw, key: str) -> Window | None:
    """The window ``key`` as the draw plans it, None where it does not."""
    return next((row for row in draw.windows().windows() if row.window_id == key), None)


def explain_song(draw: SongDraw, classes: ClassFilter, start_s: float) -> Explanation:
    """Tell of a song that was passed over as a whole, at ``start_s``."""
    return _explanation(draw, classes, start_s, draw.reason or SILENT_WINDOW, (), {})


def explain_window(draw: SongDraw, number: int, classes: ClassFilter) -> Explanation:
    """Tell of the window ``number`` of a song that has some."""
    verdict = next((reason for reason, mask in draw.window_reasons().items() if mask[number]), PLANNED)
    reasons = draw.split_reasons()
    ranks = draw.cap_ranks()
    capped = draw.config.max_splits_per_instrument is not None
    splits = []
    for index, part in enumerate(draw.splits):
        sounding, chosen = bool(draw.sounding[number, index]), bool(draw.chosen[number, index])
        story = SplitStory(
            **{name: getattr(part, name) for name in ("source", "submix", "source_text", "submix_text")},
            source_active=round(float(draw.shares[0, number, index]), 6),
            submix_active=round(float(draw.shares[1, number, index]), 6),
            place=int(draw.places[number, index]) + 1 if sounding else None,
            cap_rank=float(ranks[number, index]) if capped and chosen else None,
            verdict=next((reason for reason, mask in reasons.items() if mask[number, index]), PLANNED),
        )
        splits.append((draw.places[number, index], story))
    ordered = tuple(story for _, story in sorted(splits, key=lambda pair: pair[0]))
    # No gains at all where they are off.
    gains = dict(zip((stem.stem_id for stem in draw.stems), draw.gains_db()[number], strict=bool(draw.config.gain_db)))
    return _explanation(draw, classes, draw.starts_s[number], verdict, ordered, gains)


def _explanation(
    draw: SongDraw,
    classes: ClassFilter,
    start_s: float,
    verdict: str,
    splits: tuple[SplitStory, ...],
    gains: dict[str, float],
) -> Explanation:
    song, config = draw.song, draw.config
    shares = sounding_shares(song.stems, [(stem.stem_id,) for stem in song.stems], [start_s], config.window_s)
    out = _left_out(draw, classes)
    stems = tuple(
        StemStory(
            stem_id=stem.stem_id,
            label=stem.label,
            instrument=stem.instrument,
            family=stem.family,
            active=round(float(share), 6),
            gain_db=gains.get(stem.stem_id),
            left_out=out.get(stem.stem_id),
        )
        for stem, share in zip(song.stems, shares[:, 0], strict=True)
    )
    return Explanation(
        window_id=window_id(song.song_id, start_s),
        song_id=song.song_id,
        corpus=song.corpus,
        subset=song.subset,
        start_s=start_s,
        end_s=round(start_s + config.window_s, 6),
        song_s=song.duration_s,
        verdict=verdict,
        problems=tuple(
            " ".join(filter(None, (problem.code, problem.stem_id, problem.detail))) for problem in song.problems
        ),
        stems=stems,
        splits=splits,
        refused=tuple((refused.text, refused.reason) for refused in draw.refused),
        config=asdict(config),
    )


def _left_out(draw: SongDraw, classes: ClassFilter) -> dict[str, str]:
    """Why stems of the song are not in the mix."""
    mixed = {stem.stem_id for stem in draw.stems}
    codes = {problem.stem_id: problem.code for problem in draw.song.problems if effect(problem.code) is Effect.STEM}
    usable = bool(draw.song.usable_stems)
    return {
        stem.stem_id: codes.get(stem.stem_id)
        or ("not in the classes" if usable and not classes.in_mix(stem.instrument) else "song unusable")
        for stem in draw.song.stems
        if stem.stem_id not in mixed
    }


def _config(plan: Path) -> SplitConfig:
    found = splits_config(plan)
    if found.keys() != {field.name for field in fields(SplitConfig)}:
        raise ManifestError(f"{plan}: its configuration is not one of `mgeldm split`; draw the plan anew")
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
    return SplitConfig(**values)


def _song_of(window: str, songs: Path) -> tuple[str, float | None]:
    """The song that ``window`` names, and the second (of ``SONG_ID@SECONDS``, or the start that an id says)."""
    ids = song_ids(songs)
    song_id, sign, seconds = window.rpartition("@")
    if sign and re.fullmatch(r"\d{1,9}(\.\d{1,9})?", seconds):
        if song_id in ids:
            return song_id, float(seconds)
        raise ConfigError(f"{song_id}: no such song in {songs}{_near(song_id, sorted(ids))}")
    key, _, milliseconds = window.rpartition("-")
    keys = {song_key(song_id): song_id for song_id in ids}
    if key in keys and re.fullmatch(r"\d{8,12}", milliseconds):
        return keys[key], int(milliseconds) / 1000
    # The hash says nothing of likeness.
    readable = {key.rpartition("-")[0]: song_id for key, song_id in keys.items()}
    found = difflib.get_close_matches(window.rsplit("-", 2)[0], sorted(readable), _NEAR)
    raise ConfigError(f"{window}: no window of a song in {songs}{_like([window_id(readable[w], 0.0) for w in found])}")


def _number(draw: SongDraw, window: str, at: float | None) -> int:
    """Which of the song's windows ``window`` names: its own id, or the last to begin before the second ``at``."""
    keys = [window_id(draw.song.song_id, start) for start in draw.starts_s]
    if window in keys:
        return keys.index(window)
    if "@" not in window:
        raise ConfigError(f"{window}: no window of {draw.song.song_id} begins there{_near(window, keys)}")
    before = [number for number, start in enumerate(draw.starts_s) if start <= (at or 0.0)]
    if (at or 0.0) >= min(draw.song.duration_s, draw.starts_s[before[-1]] + draw.config.window_s):
        raise ConfigError(
            f"{window}: no window of {draw.song.song_id} ({draw.song.duration_s:.2f} s) holds this second"
        )
    return before[-1]


def _near(word: str, words: list[str]) -> str:
    return _like(difflib.get_close_matches(word, words, _NEAR))


def _like(near: list[str]) -> str:
    return f"; did you mean {', '.join(near)}?" if near else ""


def told(found: Explanation) -> str:
    """The explanation to be read."""
    config = found.config
    lines = [
        f"{found.window_id}: {found.verdict}",
        *columns(
            [
                ("song", f"{found.song_id} ({found.corpus}, {found.subset}), {found.song_s:.2f} s"),
                ("window", f"{found.start_s:.3f} s to {found.end_s:.3f} s"),
                *(("problem", problem) for problem in found.problems),
            ]
        ),
    ]
    if found.stems:
        head = ("id", "label", "instrument", "family", "sounds", "gain dB", "")
        lines += ["", "stems", *columns([head, *map(_stem_row, found.stems)], (4, 5))]
    if found.splits:
        floors = f"source {config['min_source_active']:.0%}, submix {config['min_submix_active']:.0%}"
        lines += ["", f"splits (at most {config['splits_per_window']} a window; must sound: {floors})"]
        head = ("place", "cap rank", "source", "sounds", "submix", "sounds", "")
        lines += columns([head, *map(_split_row, found.splits)], (0, 1, 3, 5))
    if found.refused:
        lines += ["", "never a source", *columns(found.refused)]
    options = [(name, value if isinstance(value, str) else json.dumps(value)) for name, value in config.items()]
    return "\n".join([*lines, "", "configuration", *columns(options)])


def _stem_row(stem: StemStory) -> tuple[str, ...]:
    gain = "" if stem.gain_db is None else f"{stem.gain_db:+.2f}"
    out = f"not in the mix: {stem.left_out}" if stem.left_out else ""
    return (stem.stem_id, stem.label, stem.instrument, stem.family, f"{stem.active:.1%}", gain, out)


def _split_row(split: SplitStory) -> tuple[str, ...]:
    place = "" if split.place is None else str(split.place)
    rank = "" if split.cap_rank is None else f"{split.cap_rank:.6f}"
    source, submix = (
        f"{text} ({', '.join(stems)})"
        for text, stems in ((split.source_text, split.source), (split.submix_text, split.submix))
    )
    return (place, rank, source, f"{split.source_active:.1%}", submix, f"{split.submix_active:.1%}", split.verdict)
