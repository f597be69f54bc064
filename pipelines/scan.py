"""scan: corpora on disk -> `songs.parquet`. Every file is decoded once and measured; nothing wrong is dropped."""

import json
import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from manifests.atomic import canonical_json, content_hash
from manifests.corpora import Corpus, SongListing, StemListing, get_corpus
from manifests.duplicates import judged_together
from manifests.errors import AudioError, CorpusError, ManifestError
from manifests.labels import UNMAPPED, lookup
from manifests.problems import Effect, effect
from manifests.songs import (
    SONGS_VERSION,
    SUBSETS,
    Problem,
    Song,
    Stem,
    count_problems,
    inside,
    read_songs,
    songs_metadata,
    write_songs,
)
from mgeldm.audio import probe
from mgeldm.measure import ActivityConfig, measure
from mgeldm.progress import progress
from pipelines.runner import RunnerConfig, run_units

logger = logging.getLogger(__name__)

JOURNAL_SECONDS = 30.0

# A stem may lack this much at its end without a word: codecs and resamplers round.
_TOLERANCE_S = 0.1
# What may be mended without a trace in a file's size or time: the song is measured again.
_RETRIED = frozenset({"missing", "unreadable"})
# Codes that come from listing a corpus, not from measuring its files.
_LISTED = frozenset({"metadata", "excluded", "unknown_subset", "bad_name", "unlabelled", "no_audio", "unmapped_label"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanConfig:
    """What the scan measures."""

    activity: ActivityConfig = field(default_factory=ActivityConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanSummary:
    """What a scan found."""

    songs: int
    stems: int
    hours: float
    measured: int
    """Songs whose audio was read in this run."""
    reused: int
    """Songs whose rows were taken from an earlier or interrupted scan, unchanged files."""
    problems: dict[str, int]
    seconds: float


def scan(
    sources: Sequence[tuple[str, Path]],
    out: Path,
    *,
    config: ScanConfig | None = None,
    runner: RunnerConfig | None = None,
) -> ScanSummary:
    """Scan ``sources``, pairs of a corpus (name or layout path) and its root folder, into the manifest ``out``.

    Rows of an existing ``out`` are kept where size and modification time of every file are unchanged; a scan that was
    killed goes on from its journal (``<out>.journal/``).

    Raises:
        CorpusError: a source is no such corpus.
        ManifestError: two songs share an id, or ``out`` exists and is no manifest.
    """
    config, runner = config or ScanConfig(), runner or RunnerConfig()
    begin = time.monotonic()
    listed = list_units(sources)
    identity = content_hash({"config": asdict(config), "version": SONGS_VERSION})
    journal = out.with_name(out.name + ".journal")
    known = _known(out, journal, identity)
    songs: list[Song] = []
    waiting: list[Song] = []
    for song in listed:
        earlier = known.pop(song.song_id, None)
        if earlier and _unchanged(earlier, song):
            songs.append(earlier)
        else:
            waiting.append(song)
    if known:
        logger.warning("%s: %d songs of an earlier scan are not among these corpora and leave it", out, len(known))
    reused = len(songs)
    songs = judged_together(songs + _measure_all(waiting, journal, identity, config, runner))
    write_songs(out, songs, {"config": identity})
    shutil.rmtree(journal, ignore_errors=True)
    return ScanSummary(
        songs=len(songs),
        stems=sum(len(song.stems) for song in songs),
        hours=sum(song.duration_s for song in songs) / 3600,
        measured=len(waiting),
        reused=reused,
        problems=count_problems(songs),
        seconds=time.monotonic() - begin,
    )


def preview(sources: Sequence[tuple[str, Path]]) -> dict[str, Any]:
    """What a scan would read, without opening audio: songs, stems, bytes of their files, problems of the listing.

    Raises:
        CorpusError: a source is no such corpus.
        ManifestError: two songs share an id.
    """
    songs = list_units(sources)
    stems = [_with_file_state(Path(song.root), stem) for song in songs for stem in song.stems]
    size = sum(stem.size or 0 for stem in stems)
    return {"songs": len(songs), "stems": len(stems), "bytes": size, "problems": count_problems(songs)}


def list_units(sources: Sequence[tuple[str, Path]]) -> list[Song]:
    """List the songs of all sources without opening audio: rows of the manifest in which nothing is measured yet.

    Raises:
        CorpusError: a source is no such corpus.
        ManifestError: two songs share an id.
    """
    songs: dict[str, Song] = {}
    for name, folder in sources:
        corpus: Corpus = get_corpus(name)
        root = folder.resolve()
        if not os.path.isdir(root):
            raise CorpusError(f"{folder}: no such folder (root of corpus {corpus.name})")
        if _utf8(str(root)) != str(root):
            raise CorpusError(f"{_utf8(str(root))}: the path is not UTF-8, so that no table can hold it; rename it")
        count = len(songs)
        for listing in corpus.songs(root):
            song = _listed(corpus, root, listing)
            if other := songs.get(song.song_id):
                raise ManifestError(f"{song.song_id}: two songs with this id, below {other.root} and {song.root}")
            songs[song.song_id] = song
        logger.info("%s: %d songs below %s", corpus.name, len(songs) - count, root)
    return list(songs.values())


def _measure_all(
    waiting: list[Song], journal: Path, identity: str, config: ScanConfig, runner: RunnerConfig
) -> list[Song]:
    songs: list[Song] = []
    written, saved = time.monotonic(), 0
    with progress(len(waiting), "scan", "songs") as bar:
        try:
            for _, song in run_units(waiting, partial(_Measurer, config), runner):
                songs.append(song)
                bar.update()
                if time.monotonic() - written > JOURNAL_SECONDS:
                    _write_journal(journal, songs[saved:], identity)
                    written, saved = time.monotonic(), len(songs)
        except BaseException:
            _write_journal(journal, songs[saved:], identity)
            raise
    return songs


def _write_journal(journal: Path, songs: list[Song], identity: str) -> None:
    if songs:
        write_songs(journal / f"{time.time_ns()}.parquet", songs, {"config": identity})


def _known(out: Path, journal: Path, identity: str) -> dict[str, Song]:
    known: dict[str, Song] = {}
    for path in [out, *sorted(journal.glob("*.parquet"))]:
        if not path.exists():
            continue
        try:
            if songs_metadata(path).get("config") == identity:
                known |= {song.song_id: song for song in read_songs(path)}
        except ManifestError:
            if path == out:
                raise
            logger.warning("%s: unreadable part of an interrupted scan, measured again", path)
    return known


def _unchanged(earlier: Song, listed: Song) -> bool:
    """True when the listing and every file behind ``earlier`` are what was measured."""
    rest = earlier.problems[len(listed.problems) :]
    if earlier.problems[: len(listed.problems)] != listed.problems or any(problem.code in _LISTED for problem in rest):
        return False
    if any(problem.code in _RETRIED for problem in rest):
        return False
    fields = ("root", "subset", "mixture", "license", "extra")
    if any(getattr(earlier, name) != getattr(listed, name) for name in fields):
        return False
    root = Path(listed.root)
    return [_identity(stem) for stem in earlier.stems] == [
        _identity(_with_file_state(root, stem)) for stem in listed.stems
    ]


def _identity(stem: Stem) -> tuple[object, ...]:
    names = ("stem_id", "path", "stream", "channel", "label", "instrument", "family", "size", "mtime_ns")
    return tuple(getattr(stem, name) for name in names)


def _listed(corpus: Corpus, root: Path, listing: SongListing) -> Song:
    """A listing as a row of the manifest: nothing is measured yet, and every text is UTF-8."""
    if listing.subset not in SUBSETS:
        raise CorpusError(f"{corpus.name}: {listing.song!r} is in subset {listing.subset!r}, not {', '.join(SUBSETS)}")
    if len({stem.stem_id for stem in listing.stems}) < len(listing.stems):
        raise CorpusError(f"{corpus.name}: {listing.song!r} has two stems with one id")
    problems = [replace(p, stem_id=p.stem_id and _utf8(p.stem_id), detail=_line(p.detail)) for p in listing.problems]
    stems = tuple(_listed_stem(stem, problems) for stem in listing.stems)
    mixture = listing.mixture
    if mixture is not None and _utf8(mixture) != mixture:
        problems.append(Problem(code="mixture_unreadable", detail=f"{mixture!r} is not UTF-8"))
        mixture = None
    extra = listing.extra | ({"works": list(listing.works)} if listing.works else {})
    return Song(
        song_id=f"{corpus.name}/{_utf8(listing.song)}",
        corpus=corpus.name,
        root=str(root),
        subset=listing.subset,
        mixture=mixture,
        stems=stems,
        license=listing.license,
        problems=tuple(problems),
        extra=json.loads(canonical_json(extra).encode("utf-8", "replace")),
    )


def _listed_stem(listing: StemListing, problems: list[Problem]) -> Stem:
    label = lookup(listing.instrument or listing.label)
    stem = Stem(
        stem_id=_utf8(listing.stem_id),
        path=_utf8(listing.path),
        stream=listing.stream,
        channel=listing.channel,
        label=_utf8(listing.label),
        instrument=_utf8(label.instrument),
        family=label.family,
    )
    if stem.path != listing.path:
        problems.append(Problem(code="bad_name", stem_id=stem.stem_id, detail=stem.path))
    if label.family == UNMAPPED:
        problems.append(Problem(code="unmapped_label", stem_id=stem.stem_id, detail=_line(f"{listing.label!r}")))
    return stem


class _Measurer:
    """Worker of the scan: one unit is one song."""

    def __init__(self, config: ScanConfig) -> None:
        self.config = config

    def __call__(self, song: Song) -> Song:
        problems = list(song.problems)
        excluded = {problem.stem_id for problem in problems if effect(problem.code) is Effect.STEM}
        root = Path(song.root)
        stems = tuple(
            stem if stem.stem_id in excluded else _measured(root, stem, self.config, problems) for stem in song.stems
        )
        readable = [(stem.frames / stem.sample_rate, stem) for stem in stems if stem.frames and stem.sample_rate]
        duration = max((seconds for seconds, _ in readable), default=0.0)
        shortest = min((seconds for seconds, _ in readable), default=0.0)
        if duration - shortest > _TOLERANCE_S:
            problems.append(Problem(code="unequal_length", detail=f"{shortest:.2f} to {duration:.2f} s"))
        rate = max((stem.sample_rate or 0 for _, stem in readable), default=None)
        song = replace(
            song,
            sample_rate=rate,
            frames=round(duration * rate) if rate else None,
            duration_s=duration,
            mixture=_checked_mixture(root, song.mixture, problems),
            stems=stems,
            problems=tuple(problems),
        )
        return replace(song, problems=(*problems, *_song_problems(song)))


def _song_problems(song: Song) -> list[Problem]:
    if not song.stems:
        return [Problem(code="no_stems", detail=_line(f"{song.root}: {song.song_id}"))]
    whole = any(effect(problem.code) is Effect.SONG for problem in song.problems)
    if len(song.usable_stems) < 2 and not whole:
        return [Problem(code="single_stem", detail=f"{len(song.usable_stems)} of {len(song.stems)} stems usable")]
    return []


def _measured(root: Path, stem: Stem, config: ScanConfig, problems: list[Problem]) -> Stem:
    def problem(code: str, detail: str) -> None:
        problems.append(Problem(code=code, stem_id=stem.stem_id, detail=_line(detail)))

    path = inside(root, stem.path)
    if path is None:
        problem("outside_root", stem.path)
        return stem
    # The state before the first read: a file that changes meanwhile is measured again by the next scan.
    stem = _with_file_state(root, stem)
    try:
        found = measure(path, stem.stream, config.activity)
    except AudioError as error:
        problem(error.code, str(error))
        return stem
    if found.problem:
        problem(found.problem.code, str(found.problem))
    elif not found.activity.any():
        problem("silent", f"no 100 ms frame reaches {config.activity.on_dbfs:g} dBFS")
    return replace(
        stem,
        sample_rate=found.sample_rate,
        channels=found.channels,
        frames=found.frames,
        lufs=found.lufs,
        peak_dbfs=found.peak_dbfs,
        activity=np.packbits(found.activity).tobytes(),
        fingerprint=found.fingerprint,
    )


def _with_file_state(root: Path, stem: Stem) -> Stem:
    path = inside(root, stem.path)
    try:
        status = path.stat() if path else None
    except OSError:
        status = None
    return replace(stem, size=status.st_size, mtime_ns=status.st_mtime_ns) if status else stem


def _checked_mixture(root: Path, mixture: str | None, problems: list[Problem]) -> str | None:
    if mixture is None:
        return None
    path = inside(root, mixture)
    try:
        if path is None:
            raise AudioError(f"{mixture} leaves the root of the corpus", "outside_root")
        probe(path)
        return mixture
    except AudioError as error:
        problems.append(Problem(code="mixture_unreadable", detail=_line(str(error))))
        return None


def _utf8(text: str) -> str:
    """File names may hold bytes that are not UTF-8, which no Parquet text can; here they become ``\\udcXX``."""
    return text.encode("utf-8", "backslashreplace").decode()


def _line(text: str) -> str:
    return _utf8(" ".join(text.split()))
