"""The stream: examples of one or more data sets as batches, a pure function of the seed.

- Element ``n`` of the stream has random numbers of its own, from ``(seed, n)``: which data set (by weight), which
  split, which crop, how much of text and audio, which conditions are dropped. A data set's samples come in the order
  of ``(seed, data set, epoch)``, each once an epoch.
- A batch is the next ``batch`` elements; of ``world`` processes each takes an equal part, in order. So the number of
  processes, threads and shards changes nothing of the sequence, and all processes have the same number of batches.
- The state to go on from is the number of elements drawn and how many of them each data set gave: the same for all
  processes, and with every batch. It fits any number of processes and any batch.
"""

import logging
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from manifests.errors import ConfigError
from manifests.shards import TRACKS
from training.ahead import load_ahead
from training.blend import blend
from training.order import Order, epoch_order
from training.randomness import Purpose, generator, uniforms
from training.shard_cache import ShardCache
from training.shard_set import Flags, Float, Half, Rows, ShardSet
from training.stem_tracks import StemSet

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=np.generic)

__all__ = ["Batch", "Float", "ShardSet", "Stream", "StreamConfig", "StreamState", "blend"]


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How examples are drawn."""

    crop_frames: int = 40
    """Latent frames of an example."""
    batch: int = 16
    """Examples of a batch, over all processes."""
    condition_dropout: float = 0.1
    """Chance that a track's embedding is replaced by zeros, drawn for each track (paper: 0.1; extraction likes 0.5)."""
    seed: int = 0
    """Seed of order, crops and conditions."""
    temperature: float = 1.0
    """Data sets without a weight share the stream by hours ** (1 / temperature)."""
    order: Order = "shuffled"
    """"shuffled": any sample may follow any other; "shards": some shards at a time, for data that is far away."""
    buffer_shards: int = 32
    """Shards that are mixed at a time, in the order "shards"."""
    workers: int = 1
    """Threads that read, of each process."""
    cache: str = ""
    """Folder to keep what comes from far in, shared by all processes of a machine; "": nothing is kept."""
    cache_gb: float = 50.0
    """Most that the cache holds; in the order "shards" it keeps whole shards, and needs room for the buffer's."""

    def __post_init__(self) -> None:
        if self.crop_frames < 1 or self.batch < 1:
            raise ConfigError(f"crop_frames {self.crop_frames} and batch {self.batch} must be at least 1")
        if not 0 <= self.condition_dropout <= 1:
            raise ConfigError(f"condition_dropout {self.condition_dropout} is a probability, between 0 and 1")
        if self.seed < 0:
            raise ConfigError(f"stream seed {self.seed} must not be negative")
        if not 0 < self.temperature < math.inf or not 0 < self.cache_gb < math.inf:
            raise ConfigError(f"temperature {self.temperature} and cache_gb {self.cache_gb} must be numbers above 0")
        if self.buffer_shards < 1 or self.workers < 1:
            raise ConfigError(f"buffer_shards {self.buffer_shards} and workers {self.workers} must be at least 1")

    def open(
        self, data: Path | str, subset: str, *, present: Sequence[str] = TRACKS, stems: Sequence[str] = ()
    ) -> ShardSet:
        """A subset of a data set, as this stream reads it: with the tracks ``present``, or ``stems`` as its tracks.

        Raises as `ShardSet` and `StemSet`.
        """
        cache, whole = ShardCache(self.cache, int(self.cache_gb * 1e9)) if self.cache else None, self.order == "shards"
        if stems:
            return StemSet(data, subset, self.crop_frames, stems, cache=cache, whole_shards=whole)
        return ShardSet(data, subset, self.crop_frames, present=present, cache=cache, whole_shards=whole)

    def look_at_cache(self, sets: Sequence[ShardSet]) -> None:
        """Warn where the cache cannot hold the shards of far data sets that are read from at a time."""
        if not self.cache or self.order != "shards":
            return
        needed = sum(
            min(self.buffer_shards + 1, int(opened.shards.max()) + 1) * opened.largest_far_shard for opened in sets
        )
        if needed > self.cache_gb * 1e9:
            logger.warning(
                "%s: shards that are read from at a time have up to %.3g GB, and stream.cache_gb is %g: they are "
                "fetched again and again; raise it to %g, or lower stream.buffer_shards",
                ", ".join(opened.data for opened in sets),
                needed / 1e9,
                self.cache_gb,
                math.ceil(needed / 1e7) / 100,
            )


@dataclass(frozen=True, slots=True)
class StreamState:
    """Position after a batch, the same for all processes."""

    drawn: int
    """Elements drawn so far, over all data sets."""
    positions: tuple[int, ...]
    """How many of them came from each data set."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """A batch of this process before it is read."""

    first: int
    """Its first element."""
    sets: Rows
    """Data set of each element ``[B]``."""
    rows: Rows
    """Row in the data set ``[B]``."""
    state: StreamState


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples of this process and the state after the batch of all."""

    latents: Half
    """``[B, K, C, L]``, as stored (not normalised)."""
    embeddings: Float
    """``[B, K, D]``: audio for mix and submix, a mixture of text and audio for a source; dropped ones are zeros."""
    present: Flags
    """``[B, K]``: which tracks are there."""
    _plan: _Plan
    _sets: Sequence[ShardSet]

    @property
    def keys(self) -> tuple[str, ...]:
        """Window ids."""
        keys = np.empty(len(self._plan.rows), object)
        for number in np.unique(self._plan.sets):
            here = self._plan.sets == number
            keys[here] = self._sets[number].keys(self._plan.rows[here])
        return tuple(keys.tolist())

    @property
    def elements(self) -> tuple[int, ...]:
        """Places in the stream, over all processes."""
        return tuple(range(self._plan.first, self._plan.first + len(self._plan.rows)))

    @property
    def state(self) -> StreamState:
        """Where the stream goes on after this batch, the same for all processes."""
        return self._plan.state


class Stream:
    """Endless batches over one or more data sets."""

    def __init__(
        self,
        sets: Sequence[ShardSet],
        weights: Sequence[float | None] | None,
        config: StreamConfig,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """Blend ``sets`` by ``weights`` (see `blend`); None gives every hour the same chance, at temperature 1.

        Raises:
            ConfigError: there is no data set, weights make no blend, the data sets were encoded differently, or a batch
                cannot be divided among the processes.
        """
        for other in sets[1:]:
            if difference := _difference(sets[0], other):
                raise ConfigError(f"{sets[0].data} and {other.data} {difference}; encode them alike")
        if not 0 <= rank < world or config.batch % world:
            raise ConfigError(f"batch {config.batch} cannot be divided among {world} processes (this is {rank})")
        self.shares = blend([s.hours for s in sets], weights or [None] * len(sets), config.temperature)
        self._sets, self._config, self._rank, self._world = list(sets), config, rank, world
        self._edges = np.cumsum(self.shares)[:-1]
        self._orders: dict[tuple[int, int], Rows] = {}

    def start(self) -> StreamState:
        """The state before the first element."""
        return StreamState(0, (0,) * len(self._sets))

    def batches(self, state: StreamState, ahead: int = 4) -> Generator[Batch, None, None]:
        """Batches from ``state`` on, for ever, ``ahead`` of them read by threads until the generator is closed.

        Where there are more threads than that, as many as keep all of them at work.
        """
        workers = self._config.workers
        return load_ahead(self._load, self._plans(state), max(ahead, workers + 1), workers)

    def _plans(self, state: StreamState) -> Iterator[_Plan]:
        size, share = self._config.batch, self._config.batch // self._world
        mine = slice(self._rank * share, (self._rank + 1) * share)
        drawn, positions = state.drawn, np.array(state.positions)
        while True:
            sets = self._data_sets(drawn)
            rows = np.empty(size, np.int64)
            for number in range(len(self._sets)):
                here = np.flatnonzero(sets == number)
                rows[here] = self._rows(number, int(positions[number]), len(here))
                positions[number] += len(here)
            yield _Plan(
                drawn + mine.start, sets[mine], rows[mine], StreamState(drawn + size, tuple(positions.tolist()))
            )
            drawn += size

    def _data_sets(self, first: int) -> Rows:
        size = self._config.batch
        if len(self._sets) == 1:
            return np.zeros(size, np.int64)
        levels = uniforms(self._config.seed, Purpose.DATA_SET, first=first, count=size, width=1)[:, 0]
        return np.searchsorted(self._edges, levels, side="right")

    def _rows(self, number: int, position: int, count: int) -> Rows:
        """The next rows of a data set that has given ``position`` elements."""
        parts, size = [np.empty(0, np.int64)], len(self._sets[number])
        while count:
            epoch, place = divmod(position, size)
            parts.append(self._order(number, epoch)[place : place + count])
            position, count = position + len(parts[-1]), count - len(parts[-1])
        return np.concatenate(parts)

    def _order(self, number: int, epoch: int) -> Rows:
        if (number, epoch) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[0] != number}
            rng = generator(self._config.seed, Purpose.ORDER, number, epoch)
            order, buffer = self._config.order, self._config.buffer_shards
            self._orders[number, epoch] = epoch_order(self._sets[number].shards, order, buffer, rng)
        return self._orders[number, epoch]

    def _load(self, plan: _Plan) -> Batch:
        size = len(plan.rows)
        seed, dropout, width = self._config.seed, self._config.condition_dropout, self._sets[0].levels
        levels = uniforms(seed, Purpose.EXAMPLE, first=plan.first, count=size, width=width)
        order = np.argsort(plan.sets, kind="stable")
        parts = []
        for number in np.unique(plan.sets):
            here = order[plan.sets[order] == number]
            parts.append(self._sets[number].drawn(plan.rows[here], levels[here], dropout))
        latents, embeddings, present = (_placed(part, order) for part in zip(*parts, strict=True))
        return Batch(latents, embeddings, present, plan, self._sets)


def _difference(one: ShardSet, other: ShardSet) -> str | None:
    """Why latents or embeddings of two data sets do not go together; None where they do."""
    for part in ("codec", "embedder"):
        identities = [getattr(shards.card, part)["identity"][:12] for shards in (one, other)]
        if identities[0] != identities[1]:
            return f"were made with different {part}s ({identities[0]}, {identities[1]})"
    templates = one.card.prompt_template, other.card.prompt_template
    if templates[0] != templates[1]:
        return f"have prompts of different templates ({templates[0]!r}, {templates[1]!r})"
    if one.card.encoder != other.card.encoder:
        return f"were encoded with different options ({one.card.encoder[:12]}, {other.card.encoder[:12]})"
    return None


def _placed(parts: Sequence[npt.NDArray[T]], order: Rows) -> npt.NDArray[T]:
    """The rows of ``parts``, one after the other, at the places ``order``."""
    if len(parts) == 1:
        return parts[0]
    placed = np.empty((len(order), *parts[0].shape[1:]), parts[0].dtype)
    placed[order] = np.concatenate(parts)
    return placed
