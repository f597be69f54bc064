"""scan: corpora on disk -> `songs.parquet`. Every file is decoded once and measured; nothing wrong is dropped."""

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from manifests.atomic import content_hash
from manifests.corpora import Corpus, SongListing, StemListing, get_corpus
from manifests.errors import AudioError, CorpusError, ManifestError
from manifests.labels import UNMAPPED, lookup
from manifests.songs import (
    SONGS_VERSION,
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


@dataclass(frozen=True, slots=True)
class _Unit:
    corpus: str
    root: str
    listing: SongListing


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
    units = list_units(sources)
    identity = content_hash({"config": asdict(config), "version": SONGS_VERSION})
    journal = out.with_name(out.name + ".journal")
    known = _known(out, journal, identity)
    songs: list[Song] = []
    waiting: list[_Unit] = []
    for unit in units:
        earlier = known.get(f"{unit.corpus}/{unit.listing.song}")
        if earlier and _unchanged(earlier, unit):
            songs.append(earlier)
        else:
            waiting.append(unit)
    reused = len(songs)
    songs += _measure_all(waiting, journal, identity, config, runner)
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


def list_units(sources: Sequence[tuple[str, Path]]) -> list[_Unit]:
    """List the songs of all sources without opening audio. Raises CorpusError."""
    units = []
    for name, root in sources:
        corpus: Corpus = get_corpus(name)
        if not root.is_dir():
            raise CorpusError(f"{root}: no such folder (root of corpus {corpus.name})")
        listed = [_Unit(corpus.name, str(root.resolve()), listing) for listing in corpus.songs(root)]
        logger.info("%s: %d songs below %s", corpus.name, len(listed), root)
        units += listed
    return units


def _measure_all(
    units: list[_Unit], journal: Path, identity: str, config: ScanConfig, runner: RunnerConfig
) -> list[Song]:
    songs: list[Song] = []
    fresh: list[Song] = []
    written = time.monotonic()
    with progress(len(units), "scan", "songs") as bar:
        for _, song in run_units(units, partial(_Measurer, config), runner):
            songs.append(song)
            fresh.append(song)
            bar.update()
            if time.monotonic() - written > JOURNAL_SECONDS:
                write_songs(journal / f"{len(songs):09d}-{time.time_ns()}.parquet", fresh, {"config": identity})
                fresh, written = [], time.monotonic()
    return songs


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


def _unchanged(song: Song, unit: _Unit) -> bool:
    """True when the listing and every file behind ``song`` are what was measured."""
    if song.root != unit.root or any(stem.size is None for stem in song.stems):
        return False
    blank = _song(unit, ScanConfig(), measured=False)
    if (song.subset, song.mixture, song.license, song.extra) != (
        blank.subset,
        blank.mixture,
        blank.license,
        blank.extra,
    ):
        return False
    return [_identity(stem) for stem in song.stems] == [
        _identity(replace(stem, **_file_state(Path(unit.root), stem.path))) for stem in blank.stems
    ]


def _identity(stem: Stem) -> tuple[Any, ...]:
    return (stem.stem_id, stem.path, stem.stream, stem.label, stem.instrument, stem.size, stem.mtime_ns)


class _Measurer:
    """Worker of the scan: one unit is one song."""

    def __init__(self, config: ScanConfig) -> None:
        self.config = config

    def __call__(self, unit: _Unit) -> Song:
        return _song(unit, self.config, measured=True)


def _song(unit: _Unit, config: ScanConfig, *, measured: bool) -> Song:
    listing = unit.listing
    root = Path(unit.root)
    problems = list(listing.problems)
    stems = [_stem(root, stem, config, problems, measured=measured) for stem in listing.stems]
    mixture = listing.mixture
    if mixture is not None and measured:
        mixture = _checked_mixture(root, mixture, problems)
    readable = [stem for stem in stems if stem.frames and stem.sample_rate]
    rate = max((stem.sample_rate or 0 for stem in readable), default=None)
    duration = max(((stem.frames or 0) / (stem.sample_rate or 1) for stem in readable), default=0.0)
    # A stem may lack up to 0.1 s without a word: codecs and resamplers round.
    if any(duration - (stem.frames or 0) / (stem.sample_rate or 1) > 0.1 for stem in readable):
        shortest = min((stem.frames or 0) / (stem.sample_rate or 1) for stem in readable)
        problems.append(Problem(code="unequal_length", detail=f"{shortest:.2f} to {duration:.2f} s"))
    song = Song(
        song_id=f"{unit.corpus}/{listing.song}",
        corpus=unit.corpus,
        root=unit.root,
        subset=listing.subset,
        sample_rate=rate,
        frames=round(duration * rate) if rate else None,
        duration_s=duration,
        mixture=mixture,
        stems=tuple(stems),
        license=listing.license,
        problems=tuple(problems),
        extra=listing.extra,
    )
    return replace(song, problems=(*problems, *_song_problems(song))) if measured else song


def _song_problems(song: Song) -> list[Problem]:
    if not song.stems:
        return [Problem(code="no_stems", detail=f"{song.root}: {song.song_id}")]
    if len(song.usable_stems) < 2 and not any(problem.code == "metadata" for problem in song.problems):
        return [Problem(code="single_stem", detail=f"{len(song.usable_stems)} of {len(song.stems)} stems usable")]
    return []


def _stem(root: Path, listing: StemListing, config: ScanConfig, problems: list[Problem], *, measured: bool) -> Stem:
    label = lookup(listing.instrument or listing.label)
    stem = Stem(
        stem_id=listing.stem_id,
        path=listing.path,
        stream=listing.stream,
        label=listing.label,
        instrument=label.instrument,
        family=label.family,
    )
    if not measured:
        return stem

    def problem(code: str, detail: str) -> None:
        problems.append(Problem(code=code, stem_id=listing.stem_id, detail=detail))

    if label.family == UNMAPPED:
        problem("unmapped_label", f"{listing.label!r}")
    path = inside(root, listing.path)
    if path is None:
        problem("outside_root", listing.path)
        return stem
    stem = replace(stem, **_file_state(root, listing.path))
    try:
        found = measure(path, listing.stream, config.activity)
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
        activity=_packed(found.activity),
        fingerprint=found.fingerprint,
    )


def _packed(activity: Any) -> bytes:
    import numpy as np

    return np.packbits(activity).tobytes()


def _file_state(root: Path, relative: str) -> dict[str, int | None]:
    path = inside(root, relative)
    try:
        status = path.stat() if path else None
    except OSError:
        status = None
    return {"size": status.st_size if status else None, "mtime_ns": status.st_mtime_ns if status else None}


def _checked_mixture(root: Path, mixture: str, problems: list[Problem]) -> str | None:
    path = inside(root, mixture)
    try:
        if path is None:
            raise AudioError(f"{mixture} leaves the root of the corpus", "outside_root")
        probe(path)
        return mixture
    except AudioError as error:
        problems.append(Problem(code="mixture_unreadable", detail=str(error)))
        return None
