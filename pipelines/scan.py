"""scan: corpora on disk -> `songs.parquet`. Every file is decoded once and measured; nothing wrong is dropped."""

import json
import logging
import shutil
import time
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from manifests.atomic import canonical_json, check_writable, content_hash
from manifests.corpora import Corpus, SongListing, StemListing, get_corpus
from manifests.duplicates import judged_together
from manifests.errors import ConfigError, CorpusError, ManifestError
from manifests.labels import UNMAPPED, lookup
from manifests.roots import OpenRoot, container, open_root, state
from manifests.songs import (
    SONGS_VERSION,
    SUBSETS,
    Problem,
    Song,
    Stem,
    count_problems,
    iter_songs,
    read_songs,
    songs_metadata,
    write_songs,
)
from mgeldm.measure import ActivityConfig
from mgeldm.progress import progress
from pipelines.measure_song import NoteConfig, SongUnit, measure_song, sum_differs
from pipelines.runner import RunnerConfig, WorkerDied, run_units

logger = logging.getLogger(__name__)

JOURNAL_SECONDS = 5.0

# What may be mended without a trace in a file's size or time: the song is measured again.
_RETRIED = frozenset({"missing", "unreadable", "changed", "worker_died"})
# Names and values in metadata may be megabytes long.
_DETAIL_LENGTH = 500
# Codes that come from listing a corpus, not from measuring its files.
_LISTED = frozenset(
    {
        *("metadata", "excluded", "unknown_subset", "mixture_only", "bad_name", "listed_twice"),
        *("unlabelled", "no_audio", "unmapped_label", "known_defect", "known_flaw", "bleed"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanConfig:
    """What the scan measures."""

    activity: ActivityConfig = field(default_factory=ActivityConfig)
    notes: NoteConfig = field(default_factory=NoteConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanSummary:
    """What a scan found."""

    songs: int
    stems: int
    hours: float
    measured: int
    """Songs whose audio was read in this run."""
    reused: int
    """Songs whose rows were taken from an earlier or interrupted scan: unchanged, or of a corpus not named now."""
    problems: dict[str, int]
    seconds: float


def scan(
    sources: Sequence[tuple[str, Path | str]],
    out: Path,
    *,
    config: ScanConfig | None = None,
    runner: RunnerConfig | None = None,
) -> ScanSummary:
    """Scan ``sources``, pairs of a corpus (name or layout path) and its root (a folder, or a URL
    that fsspec reaches), into the manifest ``out``.

    Rows of an existing ``out`` are kept where size and modification time of every file are unchanged, and those of
    corpora and roots that are not among ``sources``; a scan that was killed goes on from its journal
    (``<out>.journal/``).

    Raises:
        CorpusError: a source is no such corpus.
        ManifestError: two songs share an id, or ``out`` exists and is no manifest.
        ConfigError: ``out`` cannot be written, or holds other corpora that were measured otherwise.
    """
    config, runner = config or ScanConfig(), runner or RunnerConfig()
    begin = time.monotonic()
    listed = _units(sources)
    check_writable(out.parent)
    identity = content_hash({"config": asdict(config), "version": SONGS_VERSION})
    journal = out.with_name(out.name + ".journal")
    named = {(unit.song.corpus, unit.song.root) for unit in listed}
    known = _known(out, journal, identity, named)
    songs: list[Song] = []
    waiting: list[SongUnit] = []
    for unit in listed:
        earlier = known.pop(unit.song.song_id, None)
        if earlier and _unchanged(earlier, unit):
            songs.append(earlier)
        else:
            waiting.append(unit)
    songs += [song for song in known.values() if (song.corpus, song.root) not in named]
    if gone := sum((song.corpus, song.root) in named for song in known.values()):
        logger.warning("%s: %d songs of an earlier scan are no longer in their corpora and leave it", out, gone)
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


def preview(sources: Sequence[tuple[str, Path | str]]) -> dict[str, Any]:
    """What a scan would read, without opening audio: songs, stems, bytes of their files, problems of the listing.

    Raises:
        CorpusError: a source is no such corpus.
        ManifestError: two songs share an id.
    """
    songs = [_with_file_states(song) for song in list_units(sources)]
    stems = [stem for song in songs for stem in song.stems]
    # A file may hold several stems.
    sizes = {
        (song.root, container(audio.path)): audio.size or 0
        for song in songs
        for audio in (*song.stems, song.mixture_audio)
        if audio
    }
    return {"songs": len(songs), "stems": len(stems), "bytes": sum(sizes.values()), "problems": count_problems(songs)}


def list_units(sources: Sequence[tuple[str, Path | str]]) -> list[Song]:
    """List the songs of all sources without opening audio: rows of the manifest in which nothing is measured yet.

    Raises:
        CorpusError: a source is no such corpus.
        ManifestError: two songs share an id.
    """
    return [unit.song for unit in _units(sources)]


def _units(sources: Sequence[tuple[str, Path | str]]) -> list[SongUnit]:
    units: dict[str, SongUnit] = {}
    for name, root in sources:
        corpus: Corpus = get_corpus(name)
        before = len(units)
        with open_root(root) as place:
            for unit in _listed_units(corpus, place, units):
                if other := units.get(unit.song.song_id):
                    roots = f"{other.song.root} and {place.root}"
                    raise ManifestError(f"{unit.song.song_id}: two songs with this id, below {roots}")
                units[unit.song.song_id] = unit
            logger.info("%s: %d songs below %s", corpus.name, len(units) - before, place.root)
    return list(units.values())


def _listed_units(corpus: Corpus, place: OpenRoot, known: Container[str]) -> Iterator[SongUnit]:
    try:
        for listing in corpus.songs(place.folder):
            song = _listed(corpus, place, listing)
            if _utf8(listing.song) != listing.song:
                song = replace(song, song_id=_unused(song.song_id, known))
            yield SongUnit(song, listing.residual_db)
    except CorpusError as error:
        raise CorpusError(place.named(str(error))) from None


def _measure_all(
    waiting: list[SongUnit], journal: Path, identity: str, config: ScanConfig, runner: RunnerConfig
) -> list[Song]:
    songs: list[Song] = []
    written, saved = time.monotonic(), 0
    with progress(len(waiting), "scan", "songs") as bar:
        try:
            for index, measured in run_units(waiting, partial(_Measurer, config), runner):
                if isinstance(measured, WorkerDied):
                    song, problem = waiting[index].song, Problem(code="worker_died", detail=measured.message)
                    measured = replace(song, problems=(*song.problems, problem))
                songs.append(measured)
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


def _known(out: Path, journal: Path, identity: str, named: Collection[tuple[str, str]]) -> dict[str, Song]:
    """Rows of earlier scans with the same configuration. Raises ConfigError where others would be lost."""
    known: dict[str, Song] = {}
    for path in [out, *sorted(journal.glob("*.parquet"))]:
        if not path.exists():
            continue
        try:
            if songs_metadata(path).get("config") == identity:
                known |= {song.song_id: song for song in read_songs(path)}
            elif path == out and (others := {s.corpus for s in iter_songs(out) if (s.corpus, s.root) not in named}):
                raise ConfigError(
                    f"{out}: its songs of {', '.join(sorted(others))} were measured with other options; scan them too, "
                    "or choose another --out"
                )
        except ManifestError:
            if path == out:
                raise
            logger.warning("%s: unreadable part of an interrupted scan, measured again", path)
    return known


def _unchanged(earlier: Song, unit: SongUnit) -> bool:
    """True when the listing and every file behind ``earlier`` are what was measured."""
    listed = unit.song
    rest = earlier.problems[len(listed.problems) :]
    if earlier.problems[: len(listed.problems)] != listed.problems or any(problem.code in _LISTED for problem in rest):
        return False
    if any(problem.code in _RETRIED for problem in rest):
        return False
    fields = ("root", "subset", "mixture", "license", "extra")
    if any(getattr(earlier, name) != getattr(listed, name) for name in fields):
        return False
    # The layout may have changed what it promises.
    if any(problem.code == "sum_differs" for problem in rest) != sum_differs(earlier.sum_residual_db, unit.residual_db):
        return False
    now = _with_file_states(listed)
    return [_identity(stem) for stem in (*earlier.stems, earlier.mixture_audio)] == [
        _identity(stem) for stem in (*now.stems, now.mixture_audio)
    ]


def _identity(stem: Stem | None) -> tuple[object, ...]:
    names = ("stem_id", "path", "stream", "channel", "label", "instrument", "family", "size", "mtime_ns")
    return tuple(getattr(stem, name) for name in names) if stem else ()


def _listed(corpus: Corpus, place: OpenRoot, listing: SongListing) -> Song:
    """A listing as a row of the manifest: nothing is measured yet, and every text is UTF-8."""
    if listing.subset not in SUBSETS:
        raise CorpusError(f"{corpus.name}: {listing.song!r} is in subset {listing.subset!r}, not {', '.join(SUBSETS)}")
    if len({stem.stem_id for stem in listing.stems}) < len(listing.stems):
        raise CorpusError(f"{corpus.name}: {listing.song!r} has two stems with one id")
    problems = [
        replace(p, stem_id=p.stem_id and _utf8(p.stem_id), detail=_line(place.named(p.detail)))
        for p in listing.problems
    ]
    stems = tuple(place.with_state(_listed_stem(stem, problems)) for stem in _distinct(listing.stems, problems))
    mixture = listing.mixture
    if mixture is not None and _utf8(mixture) != mixture:
        problems.append(Problem(code="mixture_unreadable", detail=f"{mixture!r} is not UTF-8"))
        mixture = None
    extra = listing.extra | ({"works": list(listing.works)} if listing.works else {})
    return Song(
        song_id=f"{corpus.name}/{_utf8(listing.song)}",
        corpus=corpus.name,
        root=place.root,
        subset=listing.subset,
        mixture=mixture,
        mixture_audio=place.with_state(_listed_mixture(mixture, listing.mixture_stream)) if mixture else None,
        stems=stems,
        license=listing.license,
        problems=tuple(problems),
        extra=json.loads(canonical_json(extra).encode("utf-8", "replace")),
    )


def _distinct(stems: Sequence[StemListing], problems: list[Problem]) -> list[StemListing]:
    """The stems, with ids that are still distinct once they are UTF-8; one recording under two ids is a problem."""
    out: list[StemListing] = []
    ids, recordings = {stem.stem_id for stem in stems if _utf8(stem.stem_id) == stem.stem_id}, set()
    for stem in stems:
        if _utf8(stem.stem_id) != stem.stem_id:
            stem = replace(stem, stem_id=_unused(_utf8(stem.stem_id), ids))
            ids.add(stem.stem_id)
        recording = (PurePosixPath(stem.path), stem.stream, stem.channel)
        if recording in recordings:
            problems.append(Problem(code="listed_twice", stem_id=stem.stem_id, detail=_line(stem.path)))
        recordings.add(recording)
        out.append(stem)
    return out


def _unused(name: str, names: Container[str]) -> str:
    """``name``, which stands for one that is no UTF-8, or with a number behind it where that is another's own."""
    return next(text for n in count(1) if (text := f"{name}~{n}" if n > 1 else name) not in names)


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
        problems.append(Problem(code="bad_name", stem_id=stem.stem_id, detail=_line(stem.path)))
    if label.family == UNMAPPED:
        problems.append(Problem(code="unmapped_label", stem_id=stem.stem_id, detail=_line(f"{listing.label!r}")))
    return stem


def _listed_mixture(path: str, stream: int | None) -> Stem:
    label = lookup("mixture")
    return Stem(
        stem_id="mixture", path=path, stream=stream, label="mixture", instrument=label.instrument, family=label.family
    )


class _Measurer:
    """Worker of the scan: one unit is one song."""

    def __init__(self, config: ScanConfig) -> None:
        self.config = config

    def __call__(self, unit: SongUnit) -> Song:
        # The state before the first read: a file that changes meanwhile is measured again by the next scan.
        unit = replace(unit, song=_with_file_states(unit.song))
        return measure_song(unit, self.config.activity, self.config.notes)


def _with_file_states(song: Song) -> Song:
    root, mixture = song.root, song.mixture_audio
    return replace(
        song,
        stems=tuple(_with_file_state(root, stem) for stem in song.stems),
        mixture_audio=_with_file_state(root, mixture) if mixture else None,
    )


def _with_file_state(root: str, stem: Stem) -> Stem:
    # The listing of a remote root has told already.
    if stem.mtime_ns is not None or (found := state(root, stem.path)) is None:
        return stem
    return replace(stem, size=found[0], mtime_ns=found[1])


def _utf8(text: str) -> str:
    """File names may hold bytes that are not UTF-8, which no Parquet text can; here they become ``\\udcXX``."""
    return text.encode("utf-8", "backslashreplace").decode()


def _line(text: str) -> str:
    return _utf8(" ".join(text.split()))[:_DETAIL_LENGTH]
