"""One training run: network, optimiser, average, guard and position; a step, a save, a resume."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from manifests.atomic import check_writable, content_hash, write_json
from manifests.errors import CheckpointError, ConfigError, ShardError
from manifests.shards import CARD_FILE, DatasetCard
from mgeldm.checkpoint import CheckpointConfig
from mgeldm.devices import check_compiler
from mgeldm.diffusion.schedule import PROCESSES
from mgeldm.model import JointTransformer
from mgeldm.model_folder import one_line
from training.checkpoints import BEST, LAST, Checkpoints
from training.config import TrainConfig, flat
from training.ema import WeightAverage
from training.guard import DIVERGED, Guard
from training.noising import Examples, noised, track_errors
from training.order import Order
from training.parallel import Workers, accumulating, distribute, like, regather, whole
from training.run_files import RECIPE_FILE, STATE_FILE, load_state, remove_leftovers, save_state
from training.schedules import factor, needs_end
from training.stream import ShardSet, StreamState
from training.validation import Network

logger = logging.getLogger(__name__)

FREE = frozenset(
    {
        *("steps", "device", "parallel", "accumulate", "compile", "recompute", "patience"),
        *("save_every", "keep_last", "validate_every", "log_every", "listen_every", "tensorboard", "wandb", "codec"),
        *("stream.workers", "stream.cache", "stream.cache_gb"),
    }
)
"""What a resumed run may change: how long, where, in how many parts, and what it tells; the others decide the curve."""


class Run:
    """Network, optimiser, average and position of one training run."""

    def __init__(
        self,
        config: TrainConfig,
        sets: Sequence[ShardSet],
        shares: npt.NDArray[np.float64],
        out: Path,
        group: Workers,
    ) -> None:
        card = sets[0].card
        if not config.normalise:
            channels = len(card.latent_mean)
            card = replace(card, latent_mean=(0.0,) * channels, latent_std=(1.0,) * channels)
        self.config, self.out, self.group, self.step = config, out, group, 0
        self.unvalidated = False
        """Whether the step that the run goes on from waits for its validation."""
        self.device, self.stopping = group.device, False
        model = config.network(card.codec["spec"]["latent_channels"], card.embedder["spec"]["dim"])
        self.network = JointTransformer(model, seed=config.seed).to(self.device)
        self.parameters = sum(parameter.numel() for parameter in self.network.parameters())
        if config.recompute:
            for layer in self.network.transformer.layers:
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[method-assign]
        self._module = distribute(self.network, config.parallel, group)
        if config.compile:
            check_compiler(self.device)
            _compile(self.network, config.parallel == "fsdp" and group.world > 1)
        self.average = WeightAverage(self.network, config.ema)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.guard = Guard(config.spike, config.patience)
        self._best = float("inf")
        _check_statistics(sets[0].data, card)
        self.mean = torch.tensor(card.latent_mean, device=self.device)[:, None]
        self.std = torch.tensor(card.latent_std, device=self.device)[:, None]
        used = [
            {"share": float(share), "samples": dict(sorted(s.corpora.items()))}
            for s, share in zip(sets, shares, strict=True)
        ]
        self._checkpoints = Checkpoints(out, config.keep_last)
        self.checkpoint = CheckpointConfig.of(
            card,
            model,
            config.stream.crop_frames,
            {"recipe": asdict(config), "data": used},
            config.objective,
            config.tracks,
        )
        self._data = _data_identity(sets, shares, config.stream.order)

    def train_step(self, examples: Examples, *, stop: bool = False) -> dict[str, float]:
        """One optimiser step; returns loss, learning rate, gradient norm and loss of each track, over all processes.

        Where ``stop`` is True in any of them, ``stopping`` becomes True in each. A step that the guard lets not pass
        leaves the weights as they are and returns the number of those, too.
        """
        self.network.train()
        self.optimizer.zero_grad()
        process, names = PROCESSES[self.config.objective], self.config.tracks
        counts = self.group.total(examples.counted.sum(dim=0))
        # Gradients are the mean over processes; the loss is that over all examples of all of them.
        scale = self.group.world / counts.sum().clamp(min=1)
        errors, parts = torch.zeros(len(names), device=self.device), examples.split(self.config.accumulate)
        for number, part in enumerate(parts):
            noisy, target = noised(part, process, self.mean, self.std)
            with accumulating(self._module, number == len(parts) - 1):
                error = track_errors(self._call(self._module, noisy, part.tau, part.embeddings), target) * part.counted
                (error.sum() * scale).backward()
            errors += error.detach().sum(dim=0)
        norm = whole(nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)).item()
        *totals, asked = self.group.total(torch.cat([errors, errors.new_tensor([float(stop)])]).double()).tolist()
        self.stopping, counted = asked > 0, counts.tolist()
        loss = sum(totals) / max(1.0, sum(counted))
        rate = self.config.learning_rate * factor(
            self.config.schedule,
            self.step,
            warmup=self.config.warmup,
            steps=self.config.steps,
            decay_share=self.config.decay_share,
        )
        figures = {"loss": loss, "lr": rate, "norm": norm}
        # A track that was given or absent in every example of the batch has no loss.
        figures |= {f"loss_{name}": e / n for name, e, n in zip(names, totals, counted, strict=True) if n}
        if self.guard.passes(self.step + 1, loss, norm):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self.average.update()
        else:
            figures["skipped"] = self.guard.skipped
        self.step += 1
        return figures

    @contextmanager
    def averaged(self) -> Iterator[Network]:
        """Within, the network has its averaged weights and is in evaluation mode; a function that calls it."""
        self.network.eval()
        with self.average.applied():
            yield partial(self._call, self.network)
        regather(self.network)  # FSDP holds the average that it has gathered for the last call
        self.network.train()

    def keep_best(self, val_loss: float) -> None:
        """Write the best checkpoint when the validation loss is the lowest so far."""
        if val_loss < self._best:
            self._best = val_loss
            weights = self._averaged_state()
            if self.group.first:
                self._checkpoints.save_best(self._described(), weights)

    def save(self, position: StreamState, *, unvalidated: bool = False) -> None:
        """Write the checkpoint, then the state to resume from: a run that is killed between them makes both again.

        ``unvalidated`` where the step's validation is left to the run that goes on.
        """
        weights = self._averaged_state()
        state = {
            "recipe": _fixed(self.config),
            "data": self._data,
            "step": self.step,
            "stream": asdict(position),
            "network": whole(self.network.state_dict()),
            "average": whole(self.average.state_dict()),
            "optimizer": whole(self.optimizer.state_dict()),
            "guard": self.guard.state_dict(),
            "best": self._best,
            "unvalidated": unvalidated,
        }
        if self.group.first:
            self._checkpoints.save(self.step, self._described(), weights)
            save_state(self.out / STATE_FILE, state)
        self.group.wait()

    def begin(self, resume: bool) -> StreamState | None:
        """Take up the state in the run's folder, and the stream's position; None at the beginning.

        Nothing in the folder is changed: see `take_over`. Raises CheckpointError when the state cannot be used, and
        ConfigError when the folder cannot be written.
        """
        check_writable(self.out)
        path = self.out / STATE_FILE
        state = load_state(path) if resume else None
        step = self._check(path, state) if state else 0
        least, most = self.group.range(step)  # none goes on before all have read
        if least < most:
            raise CheckpointError(
                f"{path}: processes find states of different steps, {least} to {most}; --out must be one folder that "
                "all of them see"
            )
        if state is None:
            return None
        try:
            return self._take_up(path, state)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointError(
                f"{path}: not the whole state of a run ({one_line(error)}); use a new --out, or --no-resume"
            ) from None

    def take_over(self) -> None:
        """Remove what is in the folder of later steps, or of another run where this one is at its beginning."""
        if not self.group.first:
            return
        for folder in (self.out, self.out / LAST, self.out / BEST):
            remove_leftovers(folder)
        self._checkpoints.clear(after=self.step)
        write_json(self.out / RECIPE_FILE, asdict(self.config))
        if not self.step:
            # After a kill before the first save, this run must not go on from what was another's.
            (self.out / STATE_FILE).unlink(missing_ok=True)

    def _take_up(self, path: Path, state: dict[str, Any]) -> StreamState:
        self.step, self._best = state["step"], float(state["best"])
        self.unvalidated = bool(state.get("unvalidated", False))
        own = self.network.state_dict()
        self.network.load_state_dict({key: like(value, own[key]) for key, value in state["network"].items()})
        self.average.load_state_dict(state["average"])
        self.guard.load_state_dict(state["guard"])
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        moments = {
            number: {key: like(value, parameters[number]) for key, value in entry.items()}
            for number, entry in state["optimizer"]["state"].items()
        }
        for number, parameter in enumerate(parameters):
            found = {key: value.shape for key, value in moments.get(number, {}).items() if key != "step"}
            if self.guard.passed and found != dict.fromkeys(("exp_avg", "exp_avg_sq"), parameter.shape):
                raise ValueError(f"the optimizer's moments of parameter {number}")
        self.optimizer.load_state_dict({**state["optimizer"], "state": moments})
        if self.step < self.config.steps:
            logger.info("going on at step %d of %s", self.step, path)
        else:
            logger.warning("%s is at step %d of %d: nothing is left to train", path, self.step, self.config.steps)
        return StreamState(**state["stream"])

    def _call(self, module: nn.Module, noisy: Tensor, tau: Tensor, embeddings: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            v: Tensor = module(noisy, tau, embeddings)
        return v

    def _described(self) -> CheckpointConfig:
        return replace(self.checkpoint, training={**self.checkpoint.training, "steps": self.step})

    def _averaged_state(self) -> dict[str, Tensor]:
        """Raises ConfigError when they are of no use: what was saved before them stays."""
        weights: dict[str, Tensor] = whole(self.network.state_dict() | self.average.values)
        if not all(torch.isfinite(value).all() for value in weights.values()):
            raise ConfigError(f"step {self.step}: weights are no longer finite, and are not saved: {DIVERGED}")
        return weights

    def _check(self, path: Path, state: dict[str, Any]) -> int:
        """Refuse the state of another run; the step of this one's. Raises CheckpointError."""
        anew = "use a new --out, or --no-resume"
        step = state.get("step")
        if not isinstance(step, int) or step < 1 or not isinstance(state.get("recipe"), dict):
            raise CheckpointError(f"{path}: not the state of a training run; {anew}")
        # What was no option yet when the state was saved was as it is by default.
        now, then = _fixed(self.config), _fixed(TrainConfig()) | state["recipe"]
        if changed := [key for key in sorted({*now, *then}) if now.get(key) != then.get(key)]:
            told = ", ".join(f"{key} {then.get(key)}, now {now.get(key)}" for key in changed)
            raise CheckpointError(f"{path}: made with another recipe ({told}); {anew}")
        if state.get("data") != self._data:
            raise CheckpointError(f"{path}: made with other data, or other weights of it; {anew}")
        return step


def _check_statistics(data: str, card: DatasetCard) -> None:
    """Raises ShardError when latents cannot be normalised by a card."""
    channels = card.codec["spec"]["latent_channels"]
    values = [*card.latent_mean, *card.latent_std]
    complete = {len(card.latent_mean), len(card.latent_std)} == {channels}
    numbers = all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    if not complete or not numbers or min(np.float32(value) for value in card.latent_std) <= 0:
        raise ShardError(
            f"{data}/{CARD_FILE}: latent_mean and latent_std must be {channels} numbers each, and no deviation 0 "
            "(a channel that never changes); `mgeldm encode` writes them anew"
        )


def _compile(network: JointTransformer, by_block: bool) -> None:
    if by_block:  # FSDP gathers the weights of a block around its call
        for layer in network.transformer.layers:
            layer.compile()
    else:
        network.compile()


def _fixed(config: TrainConfig) -> dict[str, Any]:
    """What a resumed run must share."""
    free = FREE - ({"steps"} if needs_end(config.schedule) else set())
    return {key: value for key, value in flat(asdict(config)).items() if key not in free}


def _data_identity(sets: Sequence[ShardSet], shares: npt.NDArray[np.float64], order: Order) -> str:
    cards = [[s.card.encoder, s.card.latent_mean, s.card.latent_std] for s in sets]
    return content_hash([cards, shares.tolist(), [s.identity(order) for s in sets]])
