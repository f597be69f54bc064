"""train-codec: an Oobleck VAE on random crops of stems, submixes and mixes of a manifest.

Reconstruction is the multi-resolution STFT loss of stable-audio-tools (spectral convergence and log magnitude), a log-mel
term and L1 in time; the VAE's divergence keeps the latents near a unit normal. The learning rate is constant after a
warm-up and falls linearly to zero over the last part, so that a run may be prolonged.
"""

import itertools
import json
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from manifests.atomic import atomic_path
from manifests.errors import CheckpointError, ConfigError
from manifests.songs import Song, read_songs
from mgeldm.codec import AutoencoderCodec
from mgeldm.codec.autoencoder import oobleck_config, save_codec
from mgeldm.progress import progress
from training.ema import WeightAverage
from training.waveforms import CropConfig, Crops

logger = logging.getLogger(__name__)

STATE_FILE = "state.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecTrainConfig:
    """How the codec is built and trained."""

    channels: int = 16
    """Width of the first layer; the widths go up to 16 times it (16: 2.6 M parameters, 32: 10.1 M)."""
    steps: int = 9_000
    """Optimiser steps in all."""
    batch: int = 4
    """Crops a step."""
    learning_rate: float = 8e-4
    """Peak of AdamW's learning rate."""
    warmup: int = 100
    """Steps of linear warm-up."""
    cooldown: float = 0.2
    """Share of the steps over which the learning rate falls to zero at the end."""
    kl: float = 1e-4
    """Weight of the VAE's divergence, summed over channels."""
    l1: float = 10.0
    """Weight of L1 in time."""
    mel: float = 1.0
    """Weight of the log-mel term."""
    ema: float = 0.999
    """Decay of the averaged weights, which are what is saved."""
    save_every: int = 250
    """Steps between checkpoints."""
    threads: int = 0
    """CPU threads of the network; 0: torch's choice."""
    seed: int = 0
    """Seed of the initial weights, the crops and the VAE's noise."""
    crops: CropConfig = field(default_factory=CropConfig)

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.channels, self.save_every) < 1:
            raise ConfigError("steps, batch, channels and save_every must be at least 1")
        if not 0 <= self.cooldown <= 1:
            raise ConfigError(f"cooldown {self.cooldown} is a share of the steps, between 0 and 1")


def learning_rate_factor(step: int, config: CodecTrainConfig) -> float:
    """Factor on the peak learning rate at ``step``: linear up, constant, linear down to 0 at the last step."""
    fall = max(1.0, config.cooldown * config.steps)
    return min(1.0, (step + 1) / max(1, config.warmup), max(0.0, (config.steps - step) / fall))


class CodecLoss(nn.Module):
    """Weighted sum of the codec's training losses, built on stable-audio-tools' STFT losses."""

    def __init__(self, config: CodecTrainConfig, sample_rate: int) -> None:
        super().__init__()
        # Slow to import, so only here.
        from stable_audio_tools.training.losses.auraloss import MelSTFTLoss, MultiResolutionSTFTLoss

        sizes = [2048, 1024, 512, 256, 128]
        self.config = config
        self.spectral = MultiResolutionSTFTLoss(sizes, [size // 4 for size in sizes], sizes, eps=1e-5)
        self.mel = MelSTFTLoss(sample_rate, 1024, 256, 1024, w_sc=0.0, n_mels=80, eps=1e-5)

    def forward(
        self, wave: torch.Tensor, decoded: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Losses by name, ``total`` among them. Waves ``[B, 1, T]``; posterior ``[B, C, L]``."""
        variance = deviation.square()
        parts = {
            "spectral": self.spectral(decoded, wave),
            "mel": self.mel(decoded, wave),
            "l1": F.l1_loss(decoded, wave),
            "kl": (mean.square() + variance - variance.log() - 1).sum(1).mean(),
        }
        weights = {"spectral": 1.0, "mel": self.config.mel, "l1": self.config.l1, "kl": self.config.kl}
        return {"total": sum((weights[name] * value for name, value in parts.items()), torch.zeros(())), **parts}


def train_codec(songs: Path, out: Path, *, config: CodecTrainConfig | None = None) -> dict[str, float]:
    """Train a codec on the train subset of the manifest ``songs``; go on from ``out`` where there is a state.

    Writes ``out/config.json``, ``out/model.safetensors`` (averaged weights, fp16), ``out/metrics.jsonl`` and the state
    to resume from. Returns the losses averaged over the last steps.

    Raises:
        ManifestError: the manifest cannot be used.
        CheckpointError: the state in ``out`` is of another configuration.
    """
    config = config or CodecTrainConfig()
    if config.threads:
        torch.set_num_threads(config.threads)
    chosen = [song for song in read_songs(songs) if song.subset == "train"]
    run = _Run(config, chosen, out)
    run.resume()
    recent: list[dict[str, float]] = []
    with (
        progress(config.steps, "train-codec", "steps", initial=run.step) as bar,
        open(out / "metrics.jsonl", "a", encoding="utf-8") as metrics,
    ):
        for wave in run.batches():
            losses = run.train_step(wave)
            recent = [*recent[-99:], losses]
            means = {name: float(np.mean([entry[name] for entry in recent])) for name in losses}
            bar.set_postfix({name: f"{value:.3g}" for name, value in means.items()}, refresh=False)
            bar.update()
            if run.step % 20 == 0:
                metrics.write(json.dumps({"step": run.step, **means}) + "\n")
                metrics.flush()
            if run.step % config.save_every == 0 or run.step == config.steps:
                run.save()
    return means if recent else {}


class _Run:
    """Network, optimiser and position of one training run."""

    def __init__(self, config: CodecTrainConfig, songs: list[Song], out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        self.config, self.out, self.step = config, out, 0
        self.codec = AutoencoderCodec(oobleck_config(channels=config.channels))
        self.average = WeightAverage(self.codec.network, config.ema)
        self.loss = CodecLoss(config, self.codec.spec.sample_rate)
        self.optimizer = torch.optim.AdamW(
            self.codec.parameters(), lr=config.learning_rate, betas=(0.8, 0.99), weight_decay=1e-3, fused=True
        )
        self.crops = Crops(songs, self.codec.spec.sample_rate, config.crops, config.seed)

    def batches(self) -> Iterator[torch.Tensor]:
        """Batches ``[B, 1, T]`` from the present step on, decoded ahead by a thread."""
        hop, size = self.codec.spec.hop, self.config.batch

        def load(step: int) -> torch.Tensor:
            waves = [self.crops(step * size + index).wave for index in range(size)]
            wave = torch.from_numpy(np.stack(waves))
            return wave[..., : wave.shape[-1] // hop * hop]

        with ThreadPoolExecutor(1) as pool:
            steps = iter(range(self.step, self.config.steps))
            ahead = [pool.submit(load, step) for step in itertools.islice(steps, 4)]
            while ahead:
                wave = ahead.pop(0).result()
                ahead += [pool.submit(load, step) for step in itertools.islice(steps, 1)]
                yield wave

    def forward(self, wave: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Decoded wave, posterior mean and deviation, for VAE noise ``[B, C, L]``."""
        mean, scale = self.codec.posterior(wave)
        deviation = F.softplus(scale) + 1e-4
        return self.codec.decode(mean + deviation * noise), mean, deviation

    def train_step(self, wave: torch.Tensor) -> dict[str, float]:
        """One optimiser step; returns its losses and the gradient's norm."""
        spec = self.codec.spec
        generator = torch.Generator().manual_seed(
            int(np.random.SeedSequence([self.config.seed, self.step]).generate_state(1)[0])
        )
        noise = torch.randn(wave.shape[0], spec.latent_channels, wave.shape[-1] // spec.hop, generator=generator)
        losses = self.loss(wave, *self.forward(wave, noise))
        self.optimizer.zero_grad()
        losses["total"].backward()
        norm = nn.utils.clip_grad_norm_(self.codec.parameters(), 50.0, error_if_nonfinite=True)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * learning_rate_factor(self.step, self.config)
        self.optimizer.step()
        self.average.update()
        self.step += 1
        return {name: value.item() for name, value in losses.items()} | {"norm": float(norm)}

    def save(self) -> None:
        """Write the state to resume from, then the averaged codec."""
        state = {
            "step": self.step,
            "config": self._identity(),
            "network": self.codec.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with atomic_path(self.out / STATE_FILE) as temporary:
            torch.save(state, temporary)
        save_codec(self.out, self.codec.config, self.average.values)

    def resume(self) -> None:
        """Take up the state in the run's folder, if there is one."""
        path = self.out / STATE_FILE
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        if state["config"] != self._identity():
            raise CheckpointError(f"{path}: made with {state['config']}, asked for {self._identity()}; use a new --out")
        self.step = state["step"]
        self.codec.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        logger.info("going on at step %d of %s", self.step, path)

    def _identity(self) -> dict[str, Any]:
        """The part of the configuration that a resumed run must share; length and speed may change."""
        config = asdict(self.config)
        return {key: config[key] for key in ("channels", "batch", "kl", "l1", "mel", "ema", "seed")}
