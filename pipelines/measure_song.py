"""Measuring a song: all its files are decoded once, in lock step, so that their sum meets the mixture on the way."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from manifests.errors import AudioError
from manifests.problems import Effect, effect
from manifests.remote import Blob, is_remote
from manifests.roots import locate, state
from manifests.sketches import pack
from manifests.songs import Problem, Song, Stem
from mgeldm import audio
from mgeldm.bandwidth import bandwidth
from mgeldm.measure import ActivityConfig, Levels, Measurement, Meter
from mgeldm.stem_sum import LockStep, SumComparison, SumMatch

# A stem may lack this much at its end without a word: codecs and resamplers round.
_TOLERANCE_S = 0.1

Report = Callable[[str, Stem | None, str], None]
"""Adds a problem: its code, the stem (None for the song) and the detail."""


# No slots in what is nested in a configuration: the command line's parser reads defaults by their __dict__.
@dataclass(frozen=True, kw_only=True)
class NoteConfig:
    """From where on something measured is worth a note."""

    clipped: float = 1e-4
    """Share of samples in runs of three or more at full scale."""
    dc: float = 0.01
    """Mean of the samples, full scale 1."""
    cut_db: float = 24.0
    """Fall of the spectrum, within 6 per cent of a frequency, that is no instrument's."""
    lag_s: float = 0.001
    """Lag between the mixture and the sum of the stems."""
    match_db: float = -10.0
    """Residual below which the two match well enough to speak of a lag."""


@dataclass(frozen=True, slots=True)
class SongUnit:
    """A song to be measured."""

    song: Song
    """As it was listed, with size and time of each file."""
    residual_db: float | None
    """Least residual of the mixture against the sum of the stems that is worth a problem; None: none is."""


def measure_song(unit: SongUnit, activity: ActivityConfig, notes: NoteConfig) -> Song:
    """Decode every file of a song once and fill its row, problems included."""
    song = unit.song
    problems = list(song.problems)

    def report(code: str, stem: Stem | None, detail: str) -> None:
        problems.append(Problem(code=code, stem_id=stem.stem_id if stem else None, detail=_line(detail)))

    excluded = {problem.stem_id for problem in problems if effect(problem.code) is Effect.STEM}
    tracks = [_Track(stem, locate(song.root, stem.path)) for stem in song.stems if stem.stem_id not in excluded]
    mixture = _Track(song.mixture_audio, locate(song.root, song.mixture_audio.path)) if song.mixture_audio else None
    match, sketch = _decode(tracks, mixture, summed=len(tracks) == len(song.stems))

    found = {track.stem.stem_id: track.finished(activity, notes, report) for track in tracks}
    stems = tuple(found.get(stem.stem_id, stem) for stem in song.stems)
    _report_repeated(stems, problems, report)
    mixture_audio = _finished_mixture(mixture, activity, notes, report) if mixture else None
    if mixture_audio and not mixture_audio.active().any() and any(stem.active().any() for stem in stems):
        report("mixture_unreadable", None, f"{song.mixture} is silent, though stems sound")
        mixture_audio = None
    song = replace(
        song,
        mixture=song.mixture if mixture_audio else None,
        mixture_audio=mixture_audio,
        stems=stems,
        sketch=sketch,
    )
    _report_changed(song, problems, report)
    song = _with_length(song, report)
    broken = any(effect(p.code) is Effect.STEM and p.code != "silent" for p in problems)
    if match and mixture_audio and not broken:
        song = replace(song, sum_gain_db=match.gain_db, sum_lag_s=match.lag_s, sum_residual_db=match.residual_db)
        _report_match(match, unit.residual_db, notes, report)
    song = replace(song, problems=tuple(problems))
    return replace(song, problems=(*problems, *_song_problems(song)))


def sum_differs(residual_db: float | None, limit: float | None) -> bool:
    """Whether a song's ``sum_residual_db`` is a problem where the corpus promises less than ``limit``."""
    return residual_db is not None and limit is not None and residual_db > limit


@dataclass(slots=True)
class _Track:
    """A stem or the mixture while it is measured."""

    stem: Stem
    path: Path | Blob | None
    meter: Meter | None = None
    """None until the file could be opened."""
    channels: int = 0
    error: AudioError | None = None

    def finished(self, activity: ActivityConfig, notes: NoteConfig, report: Report) -> Stem:
        """The stem with what was measured; its problems are reported."""
        if self.meter is None or self.path is None:
            if self.error:
                report(self.error.code, self.stem, str(self.error))
            return self.stem
        found = self.meter.result(self.path, activity, self.error)
        width, cut = bandwidth(found.spectrum, found.sample_rate, notes.cut_db)
        if found.problem:
            report(found.problem.code, self.stem, str(found.problem))
        elif not found.activity.any():
            report("silent", self.stem, f"no 100 ms frame reaches {activity.on_dbfs:g} dBFS")
        else:
            if found.clipped >= notes.clipped:
                report("clipped", self.stem, f"{found.clipped:.2%} of the samples")
            if abs(found.dc) >= notes.dc:
                report("dc_offset", self.stem, f"mean {found.dc:.4f}")
            if cut:
                report("narrow_band", self.stem, f"nothing above {width:.0f} Hz at a rate of {found.sample_rate} Hz")
        return _measured(self.stem, found, width)


@dataclass(slots=True)
class _Source:
    """A file, or one stream of it, that is decoded once for all tracks that are in it."""

    path: Path | Blob
    rate: int
    blocks: Iterator[audio.Wave]
    tracks: list[tuple[int, _Track]] = field(default_factory=list)
    """With their numbers in the song."""
    seconds: float = 0.0


def _decode(tracks: Sequence[_Track], mixture: _Track | None, summed: bool) -> tuple[SumMatch | None, bytes]:
    """Feed every meter. Returns how the sum of the stems matches the mixture, if it is ``summed``, and the sketch."""
    everything = [*tracks, mixture] if mixture else list(tracks)
    sources = _opened(everything)
    opened = {number: source.rate for source in sources for number, _ in source.tracks}
    has_mixture = mixture is not None and mixture.meter is not None
    rate = opened[len(tracks)] if has_mixture else max(opened.values(), default=0)
    summed = summed and has_mixture and 0 < len(tracks) < len(opened)
    sided = _sided(everything) if summed else []
    comparison = SumComparison(rate, 2 if sided else 1) if summed else None
    # Without a mixture the sum of the stems is what is sketched.
    levels = Levels(rate, 1) if opened and not has_mixture else None
    numbers = sorted(opened) if comparison or levels else []
    steps = LockStep([opened[number] for number in [*numbers, *sided]], rate)
    place = {number: index for index, number in enumerate(numbers)}
    side_place = {number: index for index, number in enumerate(sided, start=len(numbers))}
    while sources:
        source = min(sources, key=lambda source: source.seconds)
        if not _advance(source, steps, place, side_place):
            sources.remove(source)
        if place and (pieces := steps.take()) and len(pieces[0]):
            means, sides = pieces[: len(numbers)], pieces[len(numbers) :]
            if comparison:
                # The mixture comes last.
                parts = [means, sides] if sides else [means]
                comparison.add([_sum(part[:-1]) for part in parts], [part[-1] for part in parts])
            elif levels:
                levels.add(_sum(means)[:, None])
    if has_mixture and mixture and mixture.meter:
        levels = mixture.meter.levels
    match = comparison.result() if comparison else None
    return match, pack(levels.rms_dbfs(), levels.weighted_dbfs()) if levels else b""


def _sided(tracks: Sequence[_Track]) -> list[int]:
    """Numbers of the tracks, the mixture last, whose left and right are to be told apart.

    Those of two channels where the mixture and some stem are such, for a mono stem stands in both channels alike. None
    where there are more channels, of which nobody knows which is which.
    """
    sided = [number for number, track in enumerate(tracks) if track.channels == 2]
    surround = any(track.channels > 2 for track in tracks)
    return sided if len(sided) > 1 and sided[-1] == len(tracks) - 1 and not surround else []


def _sum(signals: Sequence[audio.Wave]) -> audio.Wave:
    total = signals[0].copy()
    for signal in signals[1:]:
        total += signal
    return total


def _opened(tracks: Sequence[_Track]) -> list[_Source]:
    """The files behind ``tracks``, headers read; whichever cannot be opened leaves its error in its tracks."""
    sources: dict[tuple[Path | Blob, int | None], _Source] = {}
    for number, track in enumerate(tracks):
        stem = track.stem
        try:
            if track.path is None:
                raise AudioError(f"{stem.path}: leaves the root of the corpus", "outside_root")
            info = audio.probe(track.path, stem.stream)
            if stem.channel is not None:
                audio.one_channel(np.zeros((0, info.channels), np.float32), stem.channel, track.path)
        except AudioError as error:
            track.error = error
            continue
        track.channels = info.channels if stem.channel is None else 1
        track.meter = Meter(info.sample_rate, track.channels)
        key = (track.path, stem.stream)
        if key not in sources:
            sources[key] = _Source(track.path, info.sample_rate, audio.interleaved(track.path, stem.stream))
        sources[key].tracks.append((number, track))
    return list(sources.values())


def _advance(source: _Source, steps: LockStep, place: dict[int, int], side_place: dict[int, int]) -> bool:
    """Measure the next block of a file, and put means and sides in their places; False at its end."""
    error: AudioError | None = None
    try:
        block = next(source.blocks, None)
    except AudioError as raised:
        block, error = None, raised
    for number, track in source.tracks:
        track.error = error
        if block is None:
            signal = np.zeros(0, np.float32)
        elif track.meter:
            channel = track.stem.channel
            signal = track.meter.add(block if channel is None else audio.one_channel(block, channel, source.path))
        if number in place:
            steps.add(place[number], signal, last=block is None)
        if number in side_place:
            if block is None or not (track.meter and track.meter.finite):
                # Nobody looks at the sum when samples are not finite.
                side = np.zeros_like(signal)
            else:
                side = signal - block[:, 1]
            steps.add(side_place[number], side, last=block is None)
    if block is not None:
        source.seconds += len(block) / source.rate
    return block is not None


def _measured(stem: Stem, found: Measurement, width: float | None) -> Stem:
    return replace(
        stem,
        sample_rate=found.sample_rate,
        channels=found.channels,
        frames=found.frames,
        # Its last bits depend on where in memory a block lies; a manifest must not.
        lufs=None if found.lufs is None else round(found.lufs, 6),
        peak_dbfs=found.peak_dbfs,
        clipped=found.clipped,
        dc=found.dc,
        bandwidth_hz=width,
        activity=np.packbits(found.activity).tobytes(),
        fingerprint=found.fingerprint,
    )


def _finished_mixture(mixture: _Track, activity: ActivityConfig, notes: NoteConfig, report: Report) -> Stem | None:
    """The mixture with what was measured, or None, and a problem, when it cannot be used."""
    if mixture.meter is None or mixture.path is None:
        report("mixture_unreadable", None, str(mixture.error))
        return None
    failed: list[str] = []
    notable = {"clipped", "dc_offset", "narrow_band"}

    def report_mixture(code: str, stem: Stem | None, detail: str) -> None:
        if code in notable:
            report(code, None, f"the mixture: {detail}")
        elif code != "silent":
            failed.append(detail)

    stem = mixture.finished(activity, notes, report_mixture)
    if failed:
        report("mixture_unreadable", None, failed[0])
        return None
    return stem


def _report_repeated(stems: Sequence[Stem], problems: Sequence[Problem], report: Report) -> None:
    broken = {problem.stem_id for problem in problems if effect(problem.code) is Effect.STEM}
    first: dict[str, Stem] = {}
    for stem in stems:
        if stem.fingerprint and stem.stem_id not in broken:
            other = first.setdefault(stem.fingerprint, stem)
            if other is not stem:
                report("repeated_stem", stem, f"the same as {other.stem_id}")


def _report_changed(song: Song, problems: Sequence[Problem], report: Report) -> None:
    """Stems whose file is no longer what it was before it was read. An object is either read whole or not at all."""
    excluded = {problem.stem_id for problem in problems if effect(problem.code) is Effect.STEM}
    for stem in song.stems if not is_remote(song.root) else ():
        if stem.stem_id not in excluded and state(song.root, stem.path) != (stem.size, stem.mtime_ns):
            report("changed", stem, f"{stem.path} changed while it was read; scan again")


def _report_match(match: SumMatch, limit: float | None, notes: NoteConfig, report: Report) -> None:
    if sum_differs(match.residual_db, limit):
        report(
            "sum_differs", None, f"{match.residual_db:.1f} dB of the mixture are left, {limit:g} dB at most expected"
        )
    if match.inverted and match.residual_db < notes.match_db:
        report("misaligned", None, "the mixture is the sum of the stems with its polarity inverted")
    if match.lag_s is not None and match.residual_db < notes.match_db and abs(match.lag_s) > notes.lag_s:
        report("misaligned", None, f"the mixture comes {match.lag_s * 1000:.1f} ms after the sum of the stems")


def _with_length(song: Song, report: Report) -> Song:
    """The song with rate and length of its longest stem, or of its mixture where it has no stems."""
    audible = song.stems or ((song.mixture_audio,) if song.mixture_audio else ())
    readable = [(stem.frames / stem.sample_rate, stem) for stem in audible if stem.frames and stem.sample_rate]
    duration = max((seconds for seconds, _ in readable), default=0.0)
    shortest = min((seconds for seconds, _ in readable), default=0.0)
    if duration - shortest > _TOLERANCE_S:
        report("unequal_length", None, f"{shortest:.2f} to {duration:.2f} s")
    mixture = song.mixture_audio
    if song.stems and duration and mixture and mixture.frames and mixture.sample_rate:
        seconds = mixture.frames / mixture.sample_rate
        if abs(seconds - duration) > _TOLERANCE_S:
            report("unequal_length", None, f"the mixture has {seconds:.2f} s, the longest stem {duration:.2f} s")
    rate = max((stem.sample_rate or 0 for _, stem in readable), default=None)
    return replace(song, sample_rate=rate, frames=round(duration * rate) if rate else None, duration_s=duration)


def _song_problems(song: Song) -> list[Problem]:
    if not song.stems:
        if any(problem.code == "mixture_only" for problem in song.problems):
            return []
        return [Problem(code="no_stems", detail=_line(f"{song.root}: {song.song_id}"))]
    whole = any(effect(problem.code) is Effect.SONG for problem in song.problems)
    if len(song.usable_stems) < 2 and not whole:
        return [Problem(code="single_stem", detail=f"{len(song.usable_stems)} of {len(song.stems)} stems usable")]
    return []


def _line(text: str) -> str:
    return " ".join(text.split()).encode("utf-8", "backslashreplace").decode()
