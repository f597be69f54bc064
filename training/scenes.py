"""Scenes for training the embedder: a window of a song, some of its sounding stems, a sum of them, and their words.

Labels name what is heard: a stem that is listed in a song but silent in the window is not among them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from manifests.errors import ConfigError, ManifestError
from manifests.labels import UNMAPPED, phrase, vocabulary
from manifests.songs import ACTIVITY_FRAME_S, Song, Stem
from mgeldm.audio import Wave
from mgeldm.embedder import EmbedderSpec
from training.waveforms import read_stem


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """How scenes are drawn."""

    stems: int = 3
    """Most single stems taken from one window."""
    min_active: float = 0.2
    """Least share of the window in which a stem is active to count as sounding."""
    gain_db: float = 6.0
    """Each stem of a sum is made up to this much louder or softer."""
    pitch: float = 1.0
    """A scene is played faster or slower by up to this many semitones."""
    alias: float = 0.5
    """Chance of another name for an instrument instead of the canonical one."""
    family: float = 0.1
    """Chance that a text names families instead of instruments."""

    def __post_init__(self) -> None:
        if self.stems < 1:
            raise ConfigError(f"stems {self.stems} must be at least 1")
        if not 0 < self.min_active <= 1:
            raise ConfigError(f"min_active {self.min_active} is a share of a window, above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Example:
    """A sound and words for it."""

    wave: Wave
    """``[window]``"""
    instruments: str
    """The canonical instruments that sound, as a phrase."""
    families: str
    text: str
    by_family: bool
    """True where the text names families, so that it fits every sound of the same families."""


class Scenes:
    """Draws scene number ``n`` of a seed: a pure function of the songs, the seed and ``n``."""

    def __init__(self, songs: Sequence[Song], spec: EmbedderSpec, config: SceneConfig, seed: int) -> None:
        """Stems are drawn by the square root of how long their instrument sounds. Raises ManifestError for none."""
        self._spec, self._config, self._seed = spec, config, seed
        ordered = sorted(songs, key=lambda song: song.song_id)
        self._stems = [(song, stem) for song in ordered for stem in song.usable_stems if stem.active().any()]
        if not self._stems:
            raise ManifestError("no song to train on has a usable stem; see the manifest's problems and subsets")
        active = np.array([float(stem.active().sum()) for _, stem in self._stems])
        totals: dict[str, float] = {}
        for (_, stem), amount in zip(self._stems, active, strict=True):
            totals[stem.instrument] = totals.get(stem.instrument, 0.0) + amount
        weights = active / np.sqrt([totals[stem.instrument] for _, stem in self._stems])
        self._weights = weights / weights.sum()
        self._names = names_of(totals)

    def __call__(self, number: int) -> list[Example]:
        """Scene ``number``: single stems, and where two or more sound, a sum of some or all of them."""
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, number]))
        song, focus = self._stems[rng.choice(len(self._stems), p=self._weights)]
        start_s = self._start(song, focus, rng)
        stems = sounding(song, start_s, self._spec.window_s, self._config.min_active)
        others = [stem for stem in stems if stem is not focus]
        stems = [focus, *(others[index] for index in rng.permutation(len(others)))]
        rate = round(self._spec.sample_rate * 2 ** (rng.uniform(-1, 1) * self._config.pitch / 12))
        waves = [read_stem(song, stem, start_s, self._spec.window, rate)[0] for stem in stems]
        singles = list(zip(waves, stems, strict=True))[: self._config.stems]
        examples = [self._example(wave, [stem], rng) for wave, stem in singles]
        if len(stems) > 1:
            count = len(stems) if rng.random() < 0.5 else int(rng.integers(2, len(stems) + 1))
            chosen = rng.permutation(len(stems))[:count]
            gains = 10 ** (rng.uniform(-1, 1, count) * self._config.gain_db / 20)
            total = np.einsum("i,it->t", gains, np.stack(waves)[chosen]).astype(np.float32)
            examples.append(self._example(total, [stems[index] for index in chosen], rng))
        return examples

    def _start(self, song: Song, focus: Stem, rng: np.random.Generator) -> float:
        """A window that holds a random active frame of ``focus`` at a random place."""
        frame = rng.choice(np.flatnonzero(focus.active())) + rng.random()
        start_s = frame * ACTIVITY_FRAME_S + offset_s(focus) - rng.random() * self._spec.window_s
        return float(np.clip(start_s, 0.0, max(0.0, song.duration_s - self._spec.window_s)))

    def _example(self, wave: Wave, stems: list[Stem], rng: np.random.Generator) -> Example:
        instruments = sorted({stem.instrument for stem in stems})
        families = sorted({stem.family for stem in stems})
        by_family = bool(rng.random() < self._config.family) and UNMAPPED not in families
        text = phrase(families) if by_family else phrase(self._name(name, rng) for name in instruments)
        return Example(wave, phrase(instruments), phrase(families), text, by_family)

    def _name(self, instrument: str, rng: np.random.Generator) -> str:
        names = self._names[instrument]
        return names[rng.integers(len(names))] if rng.random() < self._config.alias else instrument


def names_of(instruments: Iterable[str]) -> dict[str, list[str]]:
    """Instrument -> its names: itself, then its aliases in the vocabulary."""
    aliases = vocabulary().aliases
    return {
        name: [name, *sorted(alias for alias, instrument in aliases.items() if instrument == name and alias != name)]
        for name in instruments
    }


def offset_s(stem: Stem) -> float:
    """Where a stem begins in its song, in seconds."""
    return stem.offset_frames / stem.sample_rate if stem.sample_rate else 0.0


def active_share(stem: Stem, start_s: float, seconds: float) -> float:
    """Share of a window of the song in which a stem is active; 0 past its ends."""
    first = round((start_s - offset_s(stem)) / ACTIVITY_FRAME_S)
    count = max(1, round(seconds / ACTIVITY_FRAME_S))
    return float(stem.active()[max(0, first) : max(0, first + count)].sum()) / count


def sounding(song: Song, start_s: float, seconds: float, min_active: float) -> list[Stem]:
    """Usable stems that are active in at least ``min_active`` of a window."""
    return [stem for stem in song.usable_stems if active_share(stem, start_s, seconds) >= min_active]
