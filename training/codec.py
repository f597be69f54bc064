"""train-codec: an Oobleck VAE on random crops of stems, submixes and mixes of a manifest.

Reconstruction is the multi-resolution log-magnitude STFT loss of stable-audio-tools, a log-mel term and the error in
time of the low frequencies; the VAE's divergence keeps the latents near a unit normal. The learning rate is constant
after a warm-up and falls linearly to zero over the last part, so that a run may be prolonged.
"""

import logging
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from manifests.errors import CheckpointError, ConfigError
from manifests.songs import Song, read_songs
from mgeldm.codec import AutoencoderCodec
from mgeldm.codec.autoencoder import oobleck_config, save_codec
from mgeldm.codec.quietly import quietly
from mgeldm.devices import choose_device
from mgeldm.progress import progress
from training.ahead import load_ahead
from training.codec_card import EvaluationConfig, evaluate_codec, write_card
from training.codec_init import initialise
from training.ema import WeightAverage
from training.flags import flags_of
from training.run_files import METRICS_FILE, STATE_FILE, Metrics, check_finite, load_state, save_state
from training.waveforms import CropConfig, Crops

logger = logging.getLogger(__name__)

LOG_EVERY = 20
"""Steps between lines of metrics.jsonl."""
RECENT = 100
"""Steps that the losses told are means of."""
MACHINE = ("threads", "readers", "device")
"""Options that say where and how fast to train, not what."""


@dataclass(frozen=True, kw_only=True)
class CodecTrainConfig:
    """How the codec is built and trained."""

    channels: int = 16
    """Width of the first layer; the widths go up to 16 times it (16: 2.6 M parameters, 32: 10.1 M)."""
    steps: int = 4_000
    """Optimiser steps in all."""
    batch: int = 4
    """Crops a step."""
    learning_rate: float = 6e-4
    """Peak of AdamW's learning rate."""
    warmup: int = 100
    """Steps of linear warm-up."""
    cooldown: float = 0.2
    """Share of the steps over which the learning rate falls to zero at the end."""
    kl: float = 2e-5
    """Weight of the VAE's divergence, summed over channels."""
    wave: float = 0.5
    """Weight of the error in time, in low bands."""
    mel: float = 1.0
    """Weight of the log-mel term."""
    ema: float = 0.999
    """Decay of the averaged weights, which are what is saved."""
    save_every: int = 250
    """Steps between checkpoints."""
    threads: int = 0
    """CPU threads of the network; 0: torch's choice."""
    readers: int = 1
    """Threads that read audio ahead; they change nothing but speed."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of the initial weights, the crops and the VAE's noise."""
    crops: CropConfig = field(default_factory=CropConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """What the finished codec is measured on for its card."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch, self.channels, self.save_every, self.readers) < 1:
            raise ConfigError("steps, batch, channels, save_every and readers must be at least 1")
        if not 0 <= self.cooldown <= 1:
            raise ConfigError(f"cooldown {self.cooldown} is a share of the steps, between 0 and 1")


def learning_rate_factor(step: int, config: CodecTrainConfig) -> float:
    """Factor on the peak learning rate at ``step``: linear up, constant, linear down to 0 at the last step."""
    fall = max(1.0, config.cooldown * config.steps)
    return min(1.0, (step + 1) / max(1, config.warmup), max(0.0, (config.steps - step) / fall))


def wave_error(wave: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
    """Energy of the error in time over that of the wave ``[B, 1, T]``, in two low bands; a silent output scores 1.

    High frequencies are beyond what so few latents can hold in phase. Averages over 16 and 64 samples keep the low,
    where most of the energy of music lies: at 16 kHz, 64 values in 2048 samples, just as many as there are latents.
    """
    parts = []
    for width in (16, 64):
        reference, error = F.avg_pool1d(wave, width), F.avg_pool1d(decoded - wave, width)
        parts.append(error.square().mean((1, 2)) / (reference.square().mean((1, 2)) + 1e-4))
    return torch.stack(parts).mean()


class CodecLoss(nn.Module):
    """Weighted sum of the codec's training losses, built on stable-audio-tools' STFT losses."""

    def __init__(self, config: CodecTrainConfig, sample_rate: int) -> None:
        super().__init__()
        with quietly():
            # Slow to import, so only here.
            from stable_audio_tools.training.losses.auraloss import MelSTFTLoss, MultiResolutionSTFTLoss

        sizes = [2048, 1024, 512, 256, 128]
        self.config = config
        # Log magnitude only: spectral convergence is a ratio, and quiet crops would rule the gradient.
        self.spectral = MultiResolutionSTFTLoss(sizes, [size // 4 for size in sizes], sizes, w_sc=0.0, eps=1e-5)
        self.mel = MelSTFTLoss(sample_rate, 1024, 256, 1024, w_sc=0.0, n_mels=80, eps=1e-5)

    def forward(
        self, wave: torch.Tensor, decoded: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Losses by name, ``total`` among them. Waves ``[B, 1, T]``; posterior ``[B, C, L]``."""
        variance = deviation.square()
        parts = {
            "spectral": self.spectral(decoded, wave),
            "mel": self.mel(decoded, wave),
            "wave": wave_error(wave, decoded),
            "kl": (mean.square() + variance - variance.log() - 1).sum(1).mean(),
        }
        weights = {"spectral": 1.0, "mel": self.config.mel, "wave": self.config.wave, "kl": self.config.kl}
        return {"total": sum((weights[name] * value for name, value in parts.items()), wave.new_zeros(())), **parts}


def train_codec(songs: Path, out: Path, *, config: CodecTrainConfig | None = None) -> dict[str, float]:
    """Train a codec on the train subset of the manifest ``songs``; go on from ``out`` where there is a state.

    Writes ``out/config.json``, ``out/model.safetensors`` (averaged weights, fp16), ``out/metrics.jsonl``, the state to
    resume from and, when all steps are done, ``out/README.md``: the model card, with figures on the other subsets.

    Returns:
        The losses averaged over the last steps, and the figures of the card as ``CORPUS/KIND/ESTIMATE/FIGURE``.

    Raises:
        ManifestError: the manifest cannot be used.
        ConfigError: training diverged.
        CheckpointError: the state in ``out`` is of another configuration.
    """
    config = config or CodecTrainConfig()
    if config.threads:
        torch.set_num_threads(config.threads)
    manifest = read_songs(songs)
    heard = [song for song in manifest if song.subset == "train"]
    run = _Run(config, heard, out)
    run.resume()
    recent: list[dict[str, float]] = []
    means: dict[str, float] = {}
    with (
        progress(config.steps, "train-codec", "steps", initial=run.step) as bar,
        Metrics(out / METRICS_FILE, run.step) as metrics,
        closing(run.batches()) as batches,
    ):
        for wave in batches:
            losses = run.train_step(wave)
            recent = [*recent, losses][-RECENT:]
            means = {name: float(np.mean([entry[name] for entry in recent])) for name in losses}
            bar.set_postfix({name: f"{value:.3g}" for name, value in means.items()}, refresh=False)
            bar.update()
            if run.step % LOG_EVERY == 0:
                metrics.write(run.step, means)
            if run.step % config.save_every == 0 or run.step == config.steps:
                run.save()
    return means | _finish(out, config, manifest, heard)


def _finish(out: Path, config: CodecTrainConfig, manifest: list[Song], heard: list[Song]) -> dict[str, float]:
    """Measure the codec as it was saved and write its card; returns the figures."""
    codec = AutoencoderCodec.load(out)
    figures = evaluate_codec(codec, manifest, config.evaluation)
    command = f"mgeldm train-codec SONGS --out DIR{flags_of(config, MACHINE)}"
    training = f"{config.steps} steps of {config.batch} crops of {config.crops.seconds} s."
    used = [song for song in heard if len(song.usable_stems) > 1]
    write_card(out, codec, figures, used, command=command, training=training)
    named = {f"{figure.corpus}/{figure.kind}/{figure.estimate}": figure for figure in figures}
    return {f"{name}/log_mel_l1": figure.log_mel_l1 for name, figure in named.items()} | {
        f"{name}/si_sdr": figure.si_sdr for name, figure in named.items() if figure.si_sdr is not None
    }


class _Run:
    """Network, optimiser and position of one training run."""

    def __init__(self, config: CodecTrainConfig, songs: list[Song], out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.config, self.out, self.step = config, out, 0
        self.device = choose_device(config.device)
        # A generator of its own, since layers draw their first weights from the global one.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.codec = AutoencoderCodec(oobleck_config(channels=config.channels))
            initialise(self.codec.network, self.codec.spec.latent_channels)
        self.codec.to(self.device)
        self.average = WeightAverage(self.codec.network, config.ema)
        self.loss = CodecLoss(config, self.codec.spec.sample_rate).to(self.device)
        self.optimizer = torch.optim.AdamW(
            self.codec.parameters(), lr=config.learning_rate, betas=(0.8, 0.99), weight_decay=1e-3, fused=True
        )
        self.crops = Crops(songs, self.codec.spec.sample_rate, config.crops, config.seed)

    def batches(self) -> Generator[torch.Tensor, None, None]:
        """Batches ``[B, 1, T]`` of the steps from the present one on, decoded ahead by threads."""
        hop, size = self.codec.spec.hop, self.config.batch
        with ThreadPoolExecutor(self.config.readers) as readers:

            def load(step: int) -> torch.Tensor:
                crops = readers.map(self.crops, range(step * size, (step + 1) * size))
                wave = torch.from_numpy(np.stack([crop.wave for crop in crops]))
                return wave[..., : wave.shape[-1] // hop * hop]

            yield from load_ahead(load, range(self.step, self.config.steps))

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
        wave = wave.to(self.device)
        losses = self.loss(wave, *self.forward(wave, noise.to(self.device)))
        self.optimizer.zero_grad()
        losses["total"].backward()
        norm = nn.utils.clip_grad_norm_(self.codec.parameters(), 50.0).item()
        check_finite(self.step + 1, losses["total"].item(), norm)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * learning_rate_factor(self.step, self.config)
        self.optimizer.step()
        self.average.update()
        self.step += 1
        return {name: value.item() for name, value in losses.items()} | {"norm": norm}

    def save(self) -> None:
        """Write the averaged codec, then the state to resume from: a run killed between them makes both again."""
        state = {
            "step": self.step,
            "config": self._identity(),
            "network": self.codec.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        save_codec(self.out, self.codec.config, self.average.values)
        save_state(self.out / STATE_FILE, state)

    def resume(self) -> None:
        """Take up the state in the run's folder, if there is one."""
        path = self.out / STATE_FILE
        state = load_state(path, self.device)
        if state is None:
            return
        if state.get("config") != self._identity():
            raise CheckpointError(
                f"{path}: made with {state.get('config')}, asked for {self._identity()}; use a new --out"
            )
        self.step = state["step"]
        self.codec.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        logger.info("going on at step %d of %s", self.step, path)

    def _identity(self) -> dict[str, Any]:
        """The part of the configuration that a resumed run must share; length and speed may change."""
        config = asdict(self.config)
        return {key: config[key] for key in ("channels", "batch", "kl", "wave", "mel", "ema", "seed")}
