"""The audio side of encode: decode a song once, and cut the mix of any set of stems at any place."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from manifests.errors import AudioError
from manifests.roots import locate
from manifests.songs import Song, Stem
from mgeldm import audio
from mgeldm.fingerprint import Fingerprint, positive


@dataclass(frozen=True, slots=True)
class SongSignals:
    """Decoded stems of a song at every rate that is needed."""

    waves: dict[int, dict[str, audio.Wave]]
    """rate -> stem id -> ``[channels, frames]``; all stems of a rate have one shape."""
    gain: float
    """Factor on every stem that keeps the song's mix within [-1, 1]; 1 where it is anyway."""

    def cut(self, stems: Collection[str], rate: int, start: int, frames: int) -> audio.Wave:
        """The sum of ``stems`` from sample ``start`` (may be negative) as ``[channels, frames]``, zeros outside."""
        waves = self.waves[rate]
        total = next(iter(waves.values()))
        out = np.zeros((total.shape[0], frames), np.float32)
        low, high = max(0, start), min(start + frames, total.shape[1])
        if low < high:
            # Sorted, since the order of a floating-point sum decides its last bit.
            for stem in sorted(stems):
                out[:, low - start : high - start] += waves[stem][:, low:high]
            out *= np.float32(self.gain)
        return out


def decode_song(
    song: Song, stems: Iterable[str], rates: Mapping[int, int]
) -> tuple[SongSignals, dict[str, AudioError]]:
    """Decode ``stems`` of a song once each, at the rates of ``rates`` (rate -> channels).

    Returns the signals of the stems that could be decoded and an error for each of the others: the file went missing,
    is broken, or is not the one that was scanned (``changed``).
    """
    by_id = {stem.stem_id: stem for stem in song.stems}
    waves: dict[int, dict[str, audio.Wave]] = {rate: {} for rate in rates}
    errors: dict[str, AudioError] = {}
    for name in sorted(stems):
        stem = by_id[name]
        try:
            wave, own_rate = _decode(song, stem)
        except AudioError as error:
            errors[name] = error
            continue
        if stem.offset_frames:
            wave = np.pad(wave, ((0, 0), (stem.offset_frames, 0)))
        for rate, channels in rates.items():
            waves[rate][name] = audio.resample(audio.to_channels(wave, channels), own_rate, rate)
    for rate, decoded in waves.items():
        longest = max((wave.shape[1] for wave in decoded.values()), default=0)
        waves[rate] = {name: audio.fit(wave, longest) for name, wave in decoded.items()}
    return SongSignals(waves, _gain(waves)), errors


def _decode(song: Song, stem: Stem) -> tuple[audio.Wave, int]:
    """The samples of a stem and their rate. Raises AudioError unless they are what was scanned."""
    path = locate(song.root, stem.path)
    if path is None:
        raise AudioError(f"{stem.path}: leaves the root {song.root}", "outside_root")
    rate = audio.probe(path, stem.stream).sample_rate
    parts = list(audio.blocks(path, stem.stream))
    if stem.channel is not None:
        parts = [part[stem.channel : stem.channel + 1] for part in parts]
    if not parts or _fingerprint(rate, parts) != stem.fingerprint:
        raise AudioError(f"{path}: its audio is not what was scanned; scan the corpus again", "changed")
    return np.concatenate(parts, axis=1), rate


def _fingerprint(rate: int, parts: Sequence[audio.Wave]) -> str:
    """The hash that `mgeldm.measure` takes of a stem."""
    digest = Fingerprint(rate, parts[0].shape[0])
    for part in parts:
        digest.add(positive(part.T))
    return digest.hexdigest()


def _gain(waves: dict[int, dict[str, audio.Wave]]) -> float:
    """One gain for the song, so that a window's latents are those of the whole song."""
    peak = 1.0
    for decoded in waves.values():
        if decoded:
            mix = np.zeros_like(next(iter(decoded.values())))
            for name in sorted(decoded):
                mix += decoded[name]
            peak = max(peak, float(np.abs(mix).max(initial=0.0)))
    return 1.0 / peak
