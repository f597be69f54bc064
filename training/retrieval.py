"""How well an embedder joins sound and words: retrieval among the stems of songs it has never heard."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from manifests.errors import PromptError
from manifests.songs import Song, Stem
from mgeldm.embedder import Embedder
from training.scenes import sounding
from training.waveforms import read_stem

TASKS = ("text_to_stem", "stem_to_text")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalConfig:
    """Which windows are tried."""

    windows: int = 48
    """Most windows of a song, spread evenly; they never overlap."""
    min_active: float = 0.2
    """Least share of a window in which a stem is active to take part."""


@dataclass(slots=True)
class _Score:
    """Sums over the trials of one task."""

    right: float = 0.0
    chance: float = 0.0
    trials: int = 0

    def add(self, right: bool, chance: float) -> None:
        self.right += right
        self.chance += chance
        self.trials += 1

    def figures(self) -> dict[str, float]:
        count = max(1, self.trials)
        return {"accuracy": self.right / count, "chance": self.chance / count, "trials": self.trials}


@torch.no_grad()
def retrieval(
    embedder: Embedder, songs: Sequence[Song], instruments: Sequence[str], *, config: RetrievalConfig | None = None
) -> dict[str, dict[str, Any]]:
    """Retrieval at 1 over non-overlapping windows of ``songs``, by corpus, and over ``all``.

    ``text_to_stem``: the name of each sounding stem's instrument picks one of the sounding stems of the window; right
    when that one has the same instrument. Windows with one instrument only are no trial. ``stem_to_text``: a stem picks
    one of ``instruments``; stems of other instruments are no trial. A text that the embedder refuses is a miss.

    Returns:
        corpus -> task -> ``accuracy``, ``chance`` (mean over trials of the share of right answers) and ``trials``.
    """
    config = config or RetrievalConfig()
    embed = _Texts(embedder)
    candidates = sorted(set(instruments))
    scores = {name: {task: _Score() for task in TASKS} for name in ["all", *sorted({song.corpus for song in songs})]}
    for song in songs:
        for start_s in window_starts(song.duration_s, embedder.spec.window_s, config.windows):
            stems = sounding(song, start_s, embedder.spec.window_s, config.min_active)
            if not stems:
                continue
            heard = _embed_stems(embedder, song, stems, start_s)
            names = [stem.instrument for stem in stems]
            targets = [scores["all"], scores[song.corpus]]
            for score in targets:
                _text_to_stem(score["text_to_stem"], heard, names, embed)
                _stem_to_text(score["stem_to_text"], heard, names, candidates, embed)
    return {corpus: {task: score.figures() for task, score in tasks.items()} for corpus, tasks in scores.items()}


def window_starts(duration_s: float, window_s: float, most: int) -> list[float]:
    """Starts in seconds of at most ``most`` whole windows without overlap, spread over the song."""
    count = int(duration_s / window_s + 1e-9)
    chosen = np.linspace(0, max(0, count - 1), min(count, most)).round()
    return [float(index) * window_s for index in chosen]


class _Texts:
    """Embeddings of instrument names, each made once; NaN, which is near nothing, where the embedder refuses."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self._known: dict[str, torch.Tensor] = {}

    def __call__(self, name: str) -> torch.Tensor:
        if name not in self._known:
            try:
                self._known[name] = self._embedder.embed_text([name])[0].cpu()
            except PromptError:
                self._known[name] = torch.full((self._embedder.spec.dim,), torch.nan)
        return self._known[name]


def _embed_stems(embedder: Embedder, song: Song, stems: Sequence[Stem], start_s: float) -> torch.Tensor:
    spec = embedder.spec
    waves = np.concatenate([read_stem(song, stem, start_s, spec.window, spec.sample_rate) for stem in stems])
    return embedder.embed_audio(torch.from_numpy(waves)).cpu()


def _best(similarity: torch.Tensor) -> int | None:
    """Index of the largest similarity, NaN aside; None where all are NaN."""
    if similarity.isnan().all():
        return None
    return int(similarity.nan_to_num(-torch.inf).argmax())


def _text_to_stem(score: _Score, heard: torch.Tensor, names: list[str], embed: _Texts) -> None:
    if len(set(names)) < 2:
        return
    for name in names:
        best = _best(heard @ embed(name))
        score.add(best is not None and names[best] == name, names.count(name) / len(names))


def _stem_to_text(score: _Score, heard: torch.Tensor, names: list[str], candidates: list[str], embed: _Texts) -> None:
    texts = torch.stack([embed(name) for name in candidates]) if candidates else torch.zeros(0, heard.shape[1])
    for vector, name in zip(heard, names, strict=True):
        if name in candidates:
            best = _best(texts @ vector)
            score.add(best is not None and candidates[best] == name, 1 / len(candidates))
