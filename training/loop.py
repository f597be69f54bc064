"""train: the joint model from a stream of shards. Plain PyTorch, one process, exact resume."""

import copy
import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from manifests.atomic import content_hash, write_json
from manifests.errors import CheckpointError
from manifests.shards import TRACKS
from mgeldm.checkpoint import CheckpointConfig, save_checkpoint
from mgeldm.devices import choose_device
from mgeldm.diffusion.objective import track_losses, v_loss
from mgeldm.diffusion.schedule import PROCESSES
from mgeldm.model import JointTransformer
from mgeldm.progress import progress
from training.config import TrainConfig
from training.ema import WeightAverage
from training.randomness import Purpose, generator
from training.run_files import METRICS_FILE, STATE_FILE, Metrics, check_finite, load_state, save_state
from training.stream import Batch, ShardSet, Stream, StreamState
from training.validation import Validation

logger = logging.getLogger(__name__)

CHECKPOINT_FOLDER = "checkpoint"
RECIPE_FILE = "recipe.json"
RECENT = 50
"""Steps behind the loss that the progress bar shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSummary:
    """What a training run ended with."""

    steps: int
    parameters: int
    loss: float | None
    """Mean training loss over the last tenth of the steps of this call; None where the run was finished before it."""
    first_loss: float | None
    """The same over its first tenth."""
    val_loss: float | None
    """None where no data set has a validation subset."""
    seconds: float
    checkpoint: str


def train(
    config: TrainConfig, data: Sequence[tuple[Path | str, float | None]], out: Path, *, resume: bool = True
) -> TrainSummary:
    """Train a joint model on the train subset of the data set folders ``data``, blended by their weights (see `blend`).

    Writes ``out/checkpoint`` (averaged weights), ``metrics.jsonl``, ``recipe.json`` and the state from which the same
    call goes on, to the bit; without ``resume`` that is dropped. Latents are normalised by the first data set's card.

    Raises:
        ShardError: a data set cannot be used.
        ConfigError: the data sets do not go together, or training diverged.
        CheckpointError: ``out`` holds the state of another recipe or other data.
    """
    begin = time.monotonic()
    sets, stream = open_data(config, data)
    run = Run(config, sets, stream.shares, out)
    position = run.begin(resume) or stream.start()
    validation = Validation.of([path for path, _ in data], sets, config, run.normalise)
    losses: list[float] = []
    validated: dict[str, float] = {}
    with (
        progress(config.steps, "train", "steps", initial=run.step) as bar,
        Metrics(out / METRICS_FILE, run.step) as metrics,
        closing(stream.batches(position)) as batches,
    ):
        while run.step < config.steps:
            batch = next(batches)
            figures = run.train_step(batch)
            losses.append(figures["loss"])
            bar.set_postfix(loss=f"{np.mean(losses[-RECENT:]):.4f}", refresh=False)
            bar.update()
            last = run.step == config.steps
            if run.step % config.log_every == 0 or last:
                metrics.write(run.step, figures)
            if validation and (run.step % config.validate_every == 0 or last):
                validated = validation(run.averaged())
                metrics.write(run.step, validated)
            if run.step % config.save_every == 0 or last:
                run.save(batch.state)
    final = validated or (validation(run.averaged()) if validation else {})
    tenth = max(1, len(losses) // 10)
    return TrainSummary(
        steps=run.step,
        parameters=_parameters(run.network),
        loss=_mean(losses[-tenth:]),
        first_loss=_mean(losses[:tenth]),
        val_loss=final.get("val_loss"),
        seconds=time.monotonic() - begin,
        checkpoint=str(out / CHECKPOINT_FOLDER),
    )


def preview(config: TrainConfig, data: Sequence[tuple[Path | str, float | None]]) -> dict[str, Any]:
    """What `train` would do, without doing it: sizes of network and data, and how often the data would be seen.

    Raises:
        ShardError: a data set cannot be used.
        ConfigError: the data sets do not go together.
    """
    sets, stream = open_data(config, data)
    card = sets[0].card
    with torch.device("meta"):
        network = JointTransformer(config.model(card.codec["spec"]["latent_channels"], card.embedder["spec"]["dim"]))
    seen = config.steps * config.stream.batch
    return {
        "parameters": _parameters(network),
        "steps": config.steps,
        "batch": config.stream.batch,
        "crop_seconds": config.stream.crop_frames / card.frames_per_second,
        "samples": {str(path): len(s.rows) for (path, _), s in zip(data, sets, strict=True)},
        "epochs": {
            str(path): round(seen * float(share) / len(s.rows), 3)
            for (path, _), s, share in zip(data, sets, stream.shares, strict=True)
        },
        "hours_seen": seen * config.stream.crop_frames / card.frames_per_second / 3600,
    }


def open_data(config: TrainConfig, data: Sequence[tuple[Path | str, float | None]]) -> tuple[list[ShardSet], Stream]:
    """The train subsets of data set folders and the stream that blends them. Raises ShardError and ConfigError."""
    sets = [ShardSet(path, "train", config.stream.crop_frames) for path, _ in data]
    return sets, Stream(sets, [weight for _, weight in data], config.stream)


class Run:
    """Network, optimiser, average and position of one training run."""

    def __init__(
        self, config: TrainConfig, sets: Sequence[ShardSet], shares: npt.NDArray[np.float64], out: Path
    ) -> None:
        card = sets[0].card
        self.config, self.out, self.step = config, out, 0
        self.device = choose_device(config.device)
        model = config.model(card.codec["spec"]["latent_channels"], card.embedder["spec"]["dim"])
        self.network = JointTransformer(model, seed=config.seed).to(self.device)
        self.average = WeightAverage(self.network, config.ema)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.mean = torch.tensor(card.latent_mean, device=self.device)[:, None]
        self.std = torch.tensor(card.latent_std, device=self.device)[:, None]
        used = [
            {"share": float(share), "samples": dict(sorted(Counter(row.corpus for row in s.rows).items()))}
            for s, share in zip(sets, shares, strict=True)
        ]
        self.checkpoint = CheckpointConfig.of(
            card, model, config.objective, config.stream.crop_frames, {"recipe": asdict(config), "data": used}
        )
        self.identity = _identity(config, sets, shares)

    def train_step(self, batch: Batch) -> dict[str, float]:
        """One optimiser step; returns loss, learning rate, gradient norm and the loss of each track.

        Raises ConfigError when the loss or its gradient is no longer finite; the weights are as before the step then.
        """
        latents, embeddings = self.normalise(batch.latents), torch.from_numpy(batch.embeddings).to(self.device)
        # Functions of (seed, step), so that a resumed run draws what it would have drawn.
        rng = generator(self.config.seed, Purpose.NOISE, self.step)
        tau = self.config.patterns.sample(latents.shape[0], rng).to(self.device)
        noise = torch.from_numpy(rng.standard_normal(latents.shape, dtype=np.float32)).to(self.device)
        self.network.train()
        process = PROCESSES[self.config.objective]
        v = self.network(process.corrupt(latents, noise, tau), tau, embeddings)
        target = process.target(latents, noise, tau)
        loss = v_loss(v, target, tau)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip).item()
        check_finite(self.step + 1, loss.item(), norm)
        rate = self.config.learning_rate * inverse_square_root(self.step, self.config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.average.update()
        self.step += 1
        tracks = zip(TRACKS, track_losses(v, target, tau).tolist(), strict=True)
        # A track that was given in every example of the batch has no loss.
        return {"loss": loss.item(), "lr": rate, "norm": norm} | {f"loss_{n}": x for n, x in tracks if x == x}

    def normalise(self, latents: npt.NDArray[np.float32]) -> torch.Tensor:
        """Stored latents ``[B, K, C, L]`` to the network's scale, on its device."""
        return (torch.from_numpy(latents).to(self.device) - self.mean) / self.std

    def averaged(self) -> nn.Module:
        """A copy of the network with the averaged weights, in evaluation mode."""
        network = copy.deepcopy(self.network)
        network.load_state_dict(self._averaged_state())
        return network.eval()

    def save(self, position: StreamState) -> None:
        """Write the checkpoint, then the state to resume from: a run that is killed between them makes both again."""
        training = {**self.checkpoint.training, "steps": self.step}
        save_checkpoint(
            self.out / CHECKPOINT_FOLDER, replace(self.checkpoint, training=training), self._averaged_state()
        )
        state = {
            "identity": self.identity,
            "step": self.step,
            "drawn": position.drawn,
            "positions": list(position.positions),
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        save_state(self.out / STATE_FILE, state)

    def begin(self, resume: bool) -> StreamState | None:
        """Take up the state in the run's folder, and the stream's position; None at the beginning.

        Raises CheckpointError when the state cannot be used; nothing in the folder has been changed then.
        """
        path = self.out / STATE_FILE
        state = load_state(path, self.device) if resume else None
        if state and state.get("identity") != self.identity:
            raise CheckpointError(f"{path}: made with another recipe or other data; use a new --out, or --no-resume")
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / RECIPE_FILE, asdict(self.config))
        if state is None:
            # What is here is another run's: after a kill before the first save, this one must not go on from it.
            path.unlink(missing_ok=True)
            return None
        self.step = state["step"]
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        logger.info("going on at step %d of %s", self.step, path)
        return StreamState(state["drawn"], tuple(state["positions"]))

    def _averaged_state(self) -> dict[str, torch.Tensor]:
        return self.network.state_dict() | self.average.values


def inverse_square_root(step: int, warmup: int) -> float:
    """Factor on the learning rate: linear up to 1 over ``warmup`` steps, then ``sqrt(warmup / step)``."""
    return min((step + 1) / warmup, (warmup / (step + 1)) ** 0.5)


def _parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _mean(losses: Sequence[float]) -> float | None:
    return float(np.mean(losses)) if losses else None


def _identity(config: TrainConfig, sets: Sequence[ShardSet], shares: npt.NDArray[np.float64]) -> str:
    """Hash over what a resumed run must share; its length, and where and how often it reports, may change."""
    free = ("steps", "device", "save_every", "validate_every", "log_every")
    recipe = {key: value for key, value in asdict(config).items() if key not in free}
    cards = [[s.card.encoder, s.card.latent_mean, s.card.latent_std] for s in sets]
    samples = [[[row.key, row.checksum] for row in s.rows] for s in sets]
    return content_hash([recipe, cards, shares.tolist(), samples])
