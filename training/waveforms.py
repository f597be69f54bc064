"""Random crops of stems, submixes and mixes straight from a manifest, for training the codec and the embedder."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from manifests.errors import ConfigError, ManifestError
from manifests.roots import locate
from manifests.songs import Song, Stem
from mgeldm import audio

Kind = Literal["stem", "submix", "mix"]


@dataclass(frozen=True, slots=True)
class Crop:
    """A crop and what is in it."""

    wave: audio.Wave
    """``[1, frames]`` at the asked rate, peak at most 1."""
    instruments: tuple[str, ...]
    """Canonical instruments of the stems that were summed."""
    song_id: str


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """How crops are drawn."""

    seconds: float = 2.048
    kinds: tuple[Kind, ...] = ("stem", "submix", "mix")
    """Each is drawn equally often."""
    gain_db: tuple[float, float] = (-12.0, 6.0)
    """Range of a random gain, cut so that the peak stays below 1."""
    min_active: float = 0.5
    """Least share of 100 ms frames in which one of the stems is active; tried some times, then taken as it is."""

    def __post_init__(self) -> None:
        if self.seconds <= 0 or not self.kinds:
            raise ConfigError(f"crops need seconds ({self.seconds}) above 0 and at least one kind ({self.kinds})")


class Crops:
    """Draws crop number ``n`` of a seed: a pure function of the manifest's songs, the seed and ``n``."""

    def __init__(self, songs: Sequence[Song], rate: int, config: CropConfig, seed: int) -> None:
        """``songs`` are used where at least two of their stems are usable. Raises ManifestError when none is."""
        self._songs = sorted((s for s in songs if len(s.usable_stems) > 1), key=lambda song: song.song_id)
        if not self._songs:
            raise ManifestError("no song of the manifest has two usable stems; see its problems")
        self._weights = np.array([song.duration_s for song in self._songs])
        self._weights /= self._weights.sum()
        self._rate, self._config, self._seed = rate, config, seed

    def __call__(self, number: int) -> Crop:
        """Crop ``number``."""
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, number]))
        config = self._config
        frames = round(config.seconds * self._rate)
        for attempt in range(8):
            song = self._songs[rng.choice(len(self._songs), p=self._weights)]
            stems = self._choose(song, rng)
            start_s = rng.uniform(0, max(0.0, song.duration_s - config.seconds))
            if attempt == 7 or _active_share(stems, start_s, config.seconds) >= config.min_active:
                break
        wave = np.zeros((1, frames), np.float32)
        for stem in stems:
            wave += read_stem(song, stem, start_s, frames, self._rate)
        peak = float(np.abs(wave).max())
        gain = 10 ** (rng.uniform(*config.gain_db) / 20)
        wave *= min(gain, 0.99 / peak) if peak > 0 else 1.0
        return Crop(wave, tuple(sorted(stem.instrument for stem in stems)), song.song_id)

    def _choose(self, song: Song, rng: np.random.Generator) -> list[Stem]:
        stems = list(song.usable_stems)
        kind = self._config.kinds[rng.integers(len(self._config.kinds))]
        if kind == "mix":
            return stems
        if kind == "stem":
            return [stems[rng.integers(len(stems))]]
        count = int(rng.integers(2, len(stems))) if len(stems) > 2 else 1
        return [stems[index] for index in sorted(rng.choice(len(stems), count, replace=False))]


def read_stem(song: Song, stem: Stem, start_s: float, frames: int, rate: int) -> audio.Wave:
    """Decode a stretch of a song from ``start_s`` on, of one stem, as mono ``[1, frames]`` at ``rate``.

    Zeros where the stem has not begun or has ended. Raises AudioError.
    """
    path = locate(song.root, stem.path)
    if path is None or not stem.sample_rate:
        raise ManifestError(f"{song.song_id}: stem {stem.stem_id} cannot be read; it should have been excluded")
    start = round(start_s * stem.sample_rate) - stem.offset_frames
    length = -(-frames * stem.sample_rate // rate)
    before = min(length, max(0, -start))
    wave = audio.read(path, stem.stream, max(0, start), length - before)
    wave = audio.to_channels(wave if stem.channel is None else wave[stem.channel : stem.channel + 1], 1)
    wave = np.pad(wave, [(0, 0), (before, 0)])
    return audio.fit(audio.resample(wave, stem.sample_rate, rate), frames)


def _active_share(stems: Sequence[Stem], start_s: float, seconds: float) -> float:
    first, last = int(start_s * 10), max(int(start_s * 10) + 1, int((start_s + seconds) * 10))
    frames = np.zeros(last - first, dtype=np.bool_)
    for stem in stems:
        offset = round(stem.offset_frames / (stem.sample_rate or 1) * 10)
        active = np.pad(stem.active(), (offset, 0)) if offset > 0 else stem.active()
        part = active[first:last]
        frames[: part.size] |= part
    return float(frames.mean())


def stable_seed(text: str) -> int:
    """A 32-bit seed from a stable id."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
