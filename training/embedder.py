"""train-embedder: the joint text/audio encoder, from the stems of a manifest and the words of their labels.

Contrastive in both directions (InfoNCE) with a learned temperature. Sounds with the same set of instruments fit the
same texts, so all of them are positives of each other's. No instrument is named here: words and classes are the
manifest's and the vocabulary's.
"""

import itertools
import logging
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from manifests.atomic import content_hash, write_bytes
from manifests.errors import CheckpointError, ConfigError
from manifests.labels import vocabulary
from manifests.songs import Song, read_songs
from mgeldm.devices import choose_device
from mgeldm.embedder import DualConfig, DualEncoder
from mgeldm.embedder.dual import GLUE, tokens
from mgeldm.progress import progress
from training.flags import flags_of
from training.retrieval import retrieval
from training.run_files import METRICS_FILE, STATE_FILE, Metrics, load_state, save_state
from training.scenes import Example, SceneConfig, Scenes

logger = logging.getLogger(__name__)

METRICS_EVERY = 10
MACHINE = ("threads", "readers", "device")
"""Options that say where and how fast to train, not what."""
MAX_SCALE = 100.0
"""Largest inverse temperature (CLIP's)."""

_CARD = """# Text/audio embedder

A dual encoder of {millions:.1f} M parameters: log-mel convolutions for sound, a bag of words for text, one space of
{dim} dimensions. Sound: mono, {rate} Hz, exactly {window_s} s. Text: the names of instruments; it knows {words} words
and passes over all others. Gain and the order of words change nothing. Weights are stored in fp16.

Identity: `{identity}`

## Trained on

{data}

Instruments heard: {instruments}. Other words of the vocabulary have vectors, but no sound was ever tied to them.

    mgeldm train-embedder SONGS --out DIR{flags}

{steps} steps of {batch} scenes (single stems and sums of stems of one window), InfoNCE both ways.

## Figures

Retrieval at 1 on songs of the validation and test subsets, of which none was trained on or chosen by. Text to stem: the
name of an instrument picks one of the stems that sound in the window. Stem to text: a stem picks one of the instruments
heard in training. Chance is the share of right answers.

| songs | task | accuracy | chance | trials |
| --- | --- | --- | --- | --- |
{rows}
"""


@dataclass(frozen=True, kw_only=True)
class EmbedderTrainConfig:
    """How the embedder is built and trained."""

    steps: int = 900
    """Optimiser steps in all."""
    batch: int = 24
    """Scenes a step; each gives some stems and a sum of stems."""
    dim: int = 128
    """Length of an embedding."""
    learning_rate: float = 1e-3
    """Peak of AdamW's learning rate; half a cosine takes it to zero at the last step."""
    warmup: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.02
    """AdamW's weight decay."""
    temperature: float = 0.1
    """Temperature at the start; it is learned."""
    save_every: int = 100
    """Steps between checkpoints."""
    threads: int = 0
    """CPU threads of the network; 0: torch's choice."""
    readers: int = 2
    """Threads that read audio ahead; they change nothing but speed."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of the initial weights and the scenes."""
    scenes: SceneConfig = field(default_factory=SceneConfig)
    """How scenes are drawn."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "dim", "save_every", "readers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must be at least 1")
        if self.temperature < 1 / MAX_SCALE:
            raise ConfigError(f"temperature {self.temperature} must be at least {1 / MAX_SCALE}")


def train_embedder(songs: Path, out: Path, *, config: EmbedderTrainConfig | None = None) -> dict[str, Any]:
    """Train an embedder on the train subset of the manifest ``songs``; go on from ``out`` where there is a state.

    Writes ``out/config.json``, ``out/model.safetensors`` (fp16), ``out/README.md`` (model card), ``out/metrics.jsonl``
    and the state to resume from. The other subsets are only measured, once, at the end.

    Returns:
        The figures of `training.retrieval.retrieval` over validation and test songs.

    Raises:
        ManifestError: the manifest cannot be used.
        CheckpointError: the state in ``out`` is of another configuration or other songs.
    """
    config = config or EmbedderTrainConfig()
    if config.threads:
        torch.set_num_threads(config.threads)
    manifest = read_songs(songs)
    heard = [song for song in manifest if song.subset == "train"]
    run = _Run(config, heard, out)
    run.resume()
    with (
        progress(config.steps, "train-embedder", "steps", initial=run.step) as bar,
        Metrics(out / METRICS_FILE, run.step) as metrics,
    ):
        for examples in run.batches():
            figures = run.train_step(examples)
            bar.set_postfix({name: f"{value:.3g}" for name, value in figures.items()}, refresh=False)
            bar.update()
            if run.step % METRICS_EVERY == 0:
                metrics.write(run.step, figures)
            if run.step % config.save_every == 0 or run.step == config.steps:
                run.save()
    run.encoder.save(out)
    encoder = DualEncoder.load(out)
    unheard = [song for song in manifest if song.subset != "train"]
    found = retrieval(encoder, unheard, encoder.config.instruments)
    write_bytes(out / "README.md", model_card(encoder, config, heard, found).encode())
    return found


def model_card(
    encoder: DualEncoder, config: EmbedderTrainConfig, songs: Sequence[Song], figures: dict[str, dict[str, Any]]
) -> str:
    """Markdown: what the embedder is, what it was trained on, how well it retrieves, and the command."""
    spec, parameters = encoder.spec, sum(p.numel() for p in encoder.parameters())
    rows = [
        f"| {corpus} | {task.replace('_', ' ')} | {score['accuracy']:.3f} | {score['chance']:.3f} | {score['trials']} |"
        for corpus, tasks in figures.items()
        for task, score in tasks.items()
    ]
    data = [
        f"- {corpus}: {len(chosen)} songs, {sum(song.duration_s for song in chosen) / 3600:.2f} h, "
        f"{', '.join(sorted({song.license or 'licence unknown' for song in chosen}))}"
        for corpus in sorted({song.corpus for song in songs})
        for chosen in [[song for song in songs if song.corpus == corpus]]
    ]
    return _CARD.format(
        rate=spec.sample_rate,
        window_s=spec.window_s,
        dim=spec.dim,
        millions=parameters / 1e6,
        words=len(encoder.config.words),
        instruments=", ".join(encoder.config.instruments),
        data="\n".join(data),
        steps=config.steps,
        batch=config.batch,
        rows="\n".join(rows),
        flags=flags_of(config, MACHINE),
        identity=encoder.identity,
    )


def known_words(songs: Sequence[Song]) -> tuple[str, ...]:
    """Words of every name in the vocabulary and of the instruments and families of ``songs``, sorted.

    Glue is left out, but for a name that is nothing else.
    """
    table = vocabulary()
    names = {*table.aliases, *table.families, *table.families.values()}
    names |= {name for song in songs for stem in song.stems for name in (stem.instrument, stem.family)}
    spoken = [tokens(name) for name in names]
    return tuple(sorted({word for name in spoken for word in ([w for w in name if w not in GLUE] or name)}))


def fits(examples: Sequence[Example]) -> torch.Tensor:
    """Which sound fits which text: bool ``[sounds, texts]``, by instruments or families as the text was made."""
    return torch.tensor(
        [
            [
                sound.families == text.families if text.by_family else sound.instruments == text.instruments
                for text in examples
            ]
            for sound in examples
        ]
    )


def contrastive_loss(
    audio: torch.Tensor, text: torch.Tensor, positive: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """InfoNCE both ways, the target spread evenly over the positives.

    ``audio`` and ``text`` ``[N, D]`` of unit length, ``positive`` bool ``[N, N]`` (sounds by texts) with at least one
    in each row and column, ``scale`` the inverse temperature.
    """
    logits = scale * audio @ text.T
    target = positive.to(logits)
    to_text = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
    to_audio = F.cross_entropy(logits.T, target.T / target.T.sum(1, keepdim=True))
    return (to_text + to_audio) / 2


def learning_rate_factor(step: int, config: EmbedderTrainConfig) -> float:
    """Factor on the peak learning rate at ``step``: linear up, then half a cosine to 0 at the last step."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return 0.5 + 0.5 * math.cos(math.pi * (step - config.warmup) / max(1, config.steps - config.warmup))


class _Run:
    """Network, optimiser and position of one training run."""

    def __init__(self, config: EmbedderTrainConfig, songs: list[Song], out: Path) -> None:
        self.config, self.out, self.step = config, out, 0
        self.device = choose_device(config.device)
        instruments = sorted({stem.instrument for song in songs for stem in song.usable_stems})
        shape = DualConfig(words=known_words(songs), instruments=tuple(instruments), dim=config.dim)
        # A generator of its own, since layers draw their first weights from the global one.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.encoder = DualEncoder(shape).to(self.device)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(config.temperature), device=self.device))
        self.scenes = Scenes(songs, self.encoder.spec, config.scenes, config.seed)
        plain = [p for p in self.encoder.parameters() if p.ndim < 2]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in self.encoder.parameters() if p.ndim >= 2]},
            {"params": [*plain, self.log_scale], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
        self._identity = content_hash(
            {
                "config": {k: v for k, v in asdict(config).items() if k not in (*MACHINE, "save_every")},
                "songs": [[song.song_id, [stem.fingerprint for stem in song.usable_stems]] for song in songs],
                "words": shape.words,
            }
        )
        out.mkdir(parents=True, exist_ok=True)

    def batches(self) -> Iterator[list[Example]]:
        """Examples of each step from the present one on, read ahead by threads."""
        size, steps = self.config.batch, iter(range(self.step, self.config.steps))
        with ThreadPoolExecutor(self.config.readers) as pool:

            def load(step: int) -> list[Any]:
                return [pool.submit(self.scenes, step * size + index) for index in range(size)]

            ahead = [load(step) for step in itertools.islice(steps, 3)]
            try:
                while ahead:
                    examples = [example for scene in ahead.pop(0) for example in scene.result()]
                    ahead += [load(step) for step in itertools.islice(steps, 1)]
                    yield examples
            finally:
                pool.shutdown(cancel_futures=True)

    def train_step(self, examples: list[Example]) -> dict[str, float]:
        """One optimiser step; returns the loss, the share of sounds whose best text fits, and the scale."""
        wave = torch.from_numpy(np.stack([example.wave for example in examples])).to(self.device)
        positive = fits(examples).to(self.device)
        audio = self.encoder.embed_audio(wave)
        text = self.encoder.embed_text([example.text for example in examples])
        scale = self.log_scale.exp()
        loss = contrastive_loss(audio, text, positive, scale)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.encoder.parameters(), 5.0, error_if_nonfinite=True)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * learning_rate_factor(self.step, self.config)
        self.optimizer.step()
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(MAX_SCALE))
            best = (audio @ text.T).argmax(1, keepdim=True)
        self.step += 1
        right = positive.gather(1, best).float().mean()
        return {"loss": loss.item(), "right": right.item(), "scale": scale.item()}

    def save(self) -> None:
        """Write the state to resume from."""
        state = {
            "step": self.step,
            "identity": self._identity,
            "encoder": self.encoder.state_dict(),
            "log_scale": self.log_scale.detach(),
            "optimizer": self.optimizer.state_dict(),
        }
        save_state(self.out / STATE_FILE, state)

    def resume(self) -> None:
        """Take up the state in the run's folder, if there is one."""
        path = self.out / STATE_FILE
        state = load_state(path, self.device)
        if state is None:
            return
        if state.get("identity") != self._identity:
            raise CheckpointError(f"{path}: of another configuration or other songs; use a new --out")
        self.step = state["step"]
        self.encoder.load_state_dict(state["encoder"])
        with torch.no_grad():
            self.log_scale.copy_(state["log_scale"])
        self.optimizer.load_state_dict(state["optimizer"])
        logger.info("going on at step %d of %s", self.step, path)
