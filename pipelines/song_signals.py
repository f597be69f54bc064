"""The audio side of encode: decode a song once, and cut the mix of any set of stems at any place."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TypeAlias

import numpy as np
import torch

from manifests.errors import AudioError
from manifests.roots import locate, state
from manifests.songs import Song, Stem
from mgeldm import audio
from mgeldm.fingerprint import Fingerprint, positive
from mgeldm.resampling import resample_on
from pipelines.clock import Clock

PARTIAL_SHARE = 0.5
"""Of a song of which no more than this is needed, only that is read."""
PARTIAL_FROM_S = 30.0
"""Shorter songs are read as a whole: there is little to save."""
MARGIN_S = 0.5
"""Read on both sides of what is needed, so that the resampler's edges lie outside."""
FULL_SCALE = 1.01
"""A mix whose peak is no higher is left as it is."""
SUMS_UP_DB = -40.0
"""Stems of which no more than this is left beside the mixture have its peak, by less than `FULL_SCALE` is above 1."""
# Formats in which reading from the middle gives the very samples that reading everything gives.
_EXACT_SEEKS = (".wav", ".flac", ".aif", ".aiff")

_CPU = torch.device("cpu")

Seconds: TypeAlias = tuple[int, int]
"""A span of a song, from and to. Whole seconds are whole samples at every rate."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A span of a song, decoded."""

    begin_s: int
    waves: dict[int, dict[str, torch.Tensor]]
    """rate -> stem id -> ``[channels, frames]``; all stems of a rate have one shape."""


@dataclass(frozen=True, slots=True)
class SongSignals:
    """Decoded stems of a song at every rate that is needed."""

    pieces: tuple[Piece, ...]
    """The spans that were read, apart from each other."""
    channels: Mapping[int, int]
    """rate -> channels."""
    gain: float
    """Factor on every stem that brings the song's mix within [-1, 1]; 1 where it is no louder than `FULL_SCALE`."""
    device: torch.device = _CPU

    def cut(
        self, stems: Iterable[str], rate: int, start: int, frames: int, gains: Mapping[str, float] | None = None
    ) -> torch.Tensor:
        """The sum of ``stems`` from sample ``start`` (may be negative) as ``[channels, frames]``, zeros outside.

        ``gains`` are factors on single stems.
        """
        out = torch.zeros(self.channels[rate], frames, device=self.device)
        # Sorted, since the order of a floating-point sum decides its last bit.
        names = sorted(stems)
        for piece in self.pieces:
            first = piece.begin_s * rate
            length = next(iter(piece.waves[rate].values())).shape[1] if piece.waves[rate] else 0
            low, high = max(first, start), min(start + frames, first + length)
            if low < high:
                part = out[:, low - start : high - start]
                for name in names:
                    factor = 1.0 if gains is None else gains.get(name, 1.0)
                    part.add_(piece.waves[rate][name][:, low - first : high - first], alpha=factor)
                part.mul_(self.gain)
        return out


def needed_spans(stretches: Iterable[tuple[float, float]], duration_s: float) -> tuple[Seconds, ...] | None:
    """Spans that hold ``stretches`` (from and to, in seconds) of a song; None, all of it, where they are most of it.

    They depend on the plan alone, and so does every sample that is cut from them.
    """
    merged: list[Seconds] = []
    for begin, end in sorted(stretches):
        span = max(0, math.floor(begin - MARGIN_S)), math.ceil(end + MARGIN_S)
        if merged and span[0] <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(span[1], merged[-1][1])
        elif span[1] > 0:
            merged.append(span)
    needed = sum(min(end, duration_s) - min(begin, duration_s) for begin, end in merged)
    return tuple(merged) if duration_s >= PARTIAL_FROM_S and needed <= PARTIAL_SHARE * duration_s else None


def is_within_full_scale(song: Song, stems: Collection[str]) -> bool:
    """Whether the manifest alone tells that the mix of ``stems`` is no louder than `FULL_SCALE`.

    Only of such a song parts may be read: else its gain, and with it each latent, would depend on what was read.
    """
    peaks = [stem.peak_dbfs for stem in song.stems if stem.stem_id in stems]
    if all(peak is not None for peak in peaks) and sum(10 ** (peak / 20) for peak in peaks if peak is not None) <= 1:
        return True
    if (mixture := song.mixture_audio) is None or mixture.peak_dbfs is None or song.sum_residual_db is None:
        return False
    sums_up = song.sum_residual_db <= SUMS_UP_DB and {stem.stem_id for stem in song.usable_stems} <= set(stems)
    return sums_up and mixture.peak_dbfs - (song.sum_gain_db or 0.0) <= 0.0


class Decoding:
    """A song that is being decoded, its stems side by side in a pool."""

    def __init__(
        self,
        pool: Executor,
        song: Song,
        stems: Iterable[str],
        rates: Mapping[int, int],
        spans: Sequence[Seconds] | None = None,
        device: torch.device = _CPU,
        clock: Clock | None = None,
    ) -> None:
        """Begin with ``stems`` of a song at the rates of ``rates`` (rate -> channels), all of it or ``spans``."""
        by_id = {stem.stem_id: stem for stem in song.stems}
        self._rates, self._spans, self._device, self._clock = rates, spans, device, clock or Clock(device)
        self._running = {name: pool.submit(self._stem, song, by_id[name]) for name in sorted(stems)}

    def result(self) -> tuple[SongSignals, dict[str, AudioError]]:
        """The signals of the stems that could be decoded, and an error for each of the others.

        The file went missing, is broken, or is not the one that was scanned (``changed``).
        """
        decoded: dict[str, list[dict[int, torch.Tensor]]] = {}
        errors: dict[str, AudioError] = {}
        for name, running in self._running.items():
            try:
                decoded[name] = running.result()
            except AudioError as error:
                errors[name] = error
        begins = [0] if self._spans is None else [begin for begin, _ in self._spans]
        pieces = []
        for number, begin in enumerate(begins):
            at_rates = {rate: {name: parts[number][rate] for name, parts in decoded.items()} for rate in self._rates}
            pieces.append(Piece(begin, {rate: _fitted(waves) for rate, waves in at_rates.items()}))
        return SongSignals(tuple(pieces), self._rates, _gain(pieces), self._device), errors

    def _stem(self, song: Song, stem: Stem) -> list[dict[int, torch.Tensor]]:
        """The stem in each span, at every rate."""
        with self._clock("decode"):
            waves, own_rate = _decode(song, stem, self._spans)
        with self._clock("resample"):
            return [
                {
                    rate: resample_on(self._device, audio.to_channels(wave, channels), own_rate, rate)
                    for rate, channels in self._rates.items()
                }
                for wave in waves
            ]


def decode_song(
    song: Song, stems: Iterable[str], rates: Mapping[int, int], spans: Sequence[Seconds] | None = None
) -> tuple[SongSignals, dict[str, AudioError]]:
    """`Decoding` at once, on a CPU, one stem after the other."""
    with ThreadPoolExecutor(1) as pool:
        return Decoding(pool, song, stems, rates, spans).result()


def _decode(song: Song, stem: Stem, spans: Sequence[Seconds] | None) -> tuple[list[audio.Wave], int]:
    """The samples of a stem in each span, or all of them, and its rate. Raises AudioError unless they were scanned."""
    path = locate(song.root, stem.path)
    if path is None:
        raise AudioError(f"{stem.path}: leaves the root {song.root}", "outside_root")
    rate = audio.probe(path, stem.stream).sample_rate
    changed = AudioError(f"{path}: its audio is not what was scanned; scan the corpus again", "changed")
    if rate != stem.sample_rate:
        raise changed
    places = [_place(span, rate, stem.offset_frames) for span in spans or ()]
    untouched = (stem.size, stem.mtime_ns) == state(song.root, stem.path)
    if spans and untouched and PurePosixPath(stem.path).suffix.lower() in _EXACT_SEEKS:
        waves = [audio.read(path, stem.stream, start, frames) for start, frames, _ in places]
        return [_placed(stem, wave, lead) for wave, (_, _, lead) in zip(waves, places, strict=True)], rate
    # What was not touched since it was scanned needs no proof; anything else has to be read to its end.
    parts = list(audio.blocks(path, stem.stream))
    if stem.channel is not None:
        parts = [part[stem.channel : stem.channel + 1] for part in parts]
    if not parts:
        raise AudioError(f"{path}: the file holds no samples", "empty")
    if _fingerprint(rate, parts) != stem.fingerprint:
        raise changed
    whole = np.concatenate(parts, axis=1)
    if spans is None:
        return [np.pad(whole, ((0, 0), (stem.offset_frames, 0))) if stem.offset_frames else whole], rate
    return [np.pad(whole[:, start : start + frames], ((0, 0), (lead, 0))) for start, frames, lead in places], rate


def _place(span: Seconds, rate: int, offset: int) -> tuple[int, int, int]:
    """First frame, number of frames and zeros before them, of a stem that begins ``offset`` frames into the song."""
    begin, end = span[0] * rate - offset, span[1] * rate - offset
    return max(0, begin), max(0, end) - max(0, begin), max(0, min(-begin, end - begin))


def _placed(stem: Stem, wave: audio.Wave, lead: int) -> audio.Wave:
    if stem.channel is not None:
        wave = wave[stem.channel : stem.channel + 1]
    return np.pad(wave, ((0, 0), (lead, 0)))


def _fingerprint(rate: int, parts: Sequence[audio.Wave]) -> str:
    """The hash that `mgeldm.measure` takes of a stem."""
    digest = Fingerprint(rate, parts[0].shape[0])
    for part in parts:
        digest.add(positive(part.T))
    return digest.hexdigest()


def _fitted(waves: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    longest = max((wave.shape[1] for wave in waves.values()), default=0)
    return {name: torch.nn.functional.pad(wave, (0, longest - wave.shape[1])) for name, wave in waves.items()}


def _gain(pieces: Iterable[Piece]) -> float:
    """One gain for the song, so that a window's latents are those of the whole song."""
    peak = 1.0
    for piece in pieces:
        for decoded in piece.waves.values():
            waves = [decoded[name] for name in sorted(decoded)]
            if waves and waves[0].numel():
                mix = waves[0].clone()
                for wave in waves[1:]:
                    mix += wave
                peak = max(peak, float(mix.abs().max()))
    return 1.0 if peak <= FULL_SCALE else 1.0 / peak
