"""The stream: samples of one or more data sets as batches of crops, a pure function of the seed.

Element ``n`` of the stream is drawn with its own random generators, from ``(seed, n)``: which data set (by weight),
which split, which crop, the text/audio mixture, which conditions are dropped. A data set's samples come in the order
of a permutation of ``(seed, data set, epoch)``, each once an epoch. The state to resume from is the number of elements
drawn and how many of them each data set gave; it travels with every batch.
"""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from manifests.errors import ConfigError, ShardError
from manifests.shards import TRACKS, DatasetCard, IndexRow, Sample, ShardReader, read_prompts
from mgeldm.diffusion.conditions import training_conditions
from training.ahead import load_ahead
from training.randomness import Purpose, generator

Float = npt.NDArray[np.float32]
_SOURCE = TRACKS.index("source")


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How crops are drawn."""

    crop_frames: int = 40
    """Latent frames of an example."""
    batch: int = 16
    """Examples of a batch."""
    condition_dropout: float = 0.1
    """Chance that a track's embedding is replaced by zeros, drawn for each track (paper: 0.1; extraction likes 0.5)."""
    seed: int = 0
    """Seed of order, crops and conditions."""

    def __post_init__(self) -> None:
        if self.crop_frames < 1 or self.batch < 1:
            raise ConfigError(f"crop_frames {self.crop_frames} and batch {self.batch} must be at least 1")
        if not 0 <= self.condition_dropout <= 1:
            raise ConfigError(f"condition_dropout {self.condition_dropout} is a probability, between 0 and 1")
        if self.seed < 0:
            raise ConfigError(f"stream seed {self.seed} must not be negative")


@dataclass(frozen=True, slots=True)
class StreamState:
    """Position after a batch."""

    drawn: int
    """Elements drawn so far, over all data sets."""
    positions: tuple[int, ...]
    """How many of them came from each data set."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples and the state after them."""

    latents: Float
    """``[B, 3, C, L]``, as stored (not normalised)."""
    embeddings: Float
    """``[B, 3, D]``: audio for mix and submix, a mixture of text and audio for the source; dropped ones are zeros."""
    keys: tuple[str, ...]
    """Window ids."""
    elements: tuple[int, ...]
    """Places in the stream, over all processes."""
    state: StreamState


@dataclass(frozen=True, slots=True)
class _Plan:
    """A batch before it is read: (element, data set, row) of its examples, and the state after it."""

    picks: tuple[tuple[int, int, int], ...]
    state: StreamState


class ShardSet:
    """The samples of one subset of a data set folder, and the text embeddings beside them."""

    def __init__(self, data: Path | str, subset: str, crop_frames: int) -> None:
        """Raises ShardError when the subset is empty or its windows are shorter than the crop."""
        self.reader = ShardReader(data)
        self.card: DatasetCard = self.reader.card
        self.rows: list[IndexRow] = sorted(
            (row for row in self.reader.rows if row.subset == subset), key=lambda row: row.key
        )
        if not self.rows:
            raise ShardError(f"{data}: no sample of subset {subset!r}; it has {self.card.subsets}")
        self.prompts = read_prompts(data)
        self._check_length(self.reader.read(self.rows[0]), crop_frames)

    def example(self, sample: Sample, rng: np.random.Generator, config: StreamConfig) -> tuple[Float, Float]:
        """A random crop of a random split: latents ``[3, C, L]`` and embeddings ``[3, D]``. Raises ShardError."""
        self._check_length(sample, config.crop_frames)
        chosen = int(rng.integers(len(sample.meta["splits"])))
        latents, audio = sample.tracks(chosen)
        start = int(rng.integers(latents.shape[-1] - config.crop_frames + 1))
        heard = audio[:, self.embedding_hop(start, config.crop_frames, audio.shape[1])]
        text = self._prompt(sample, sample.meta["splits"][chosen]["source_text"])
        embeddings = training_conditions(heard, text, _SOURCE, config.condition_dropout, rng)
        return latents[..., start : start + config.crop_frames].astype(np.float32), embeddings

    def embedding_hop(self, start: int, frames: int, hops: int) -> int:
        """The embedding whose window lies best in the middle of a crop: the embedding moves with the crop."""
        middle = (start + frames / 2) / self.card.frames_per_second
        nearest = (middle - self.card.embedder["spec"]["window_s"] / 2) / self.card.embed_hop_s
        return int(np.clip(round(nearest), 0, hops - 1))

    def _check_length(self, sample: Sample, crop_frames: int) -> None:
        frames = sample.latents.shape[-1]
        if frames < crop_frames:
            raise ShardError(
                f"{self.reader.data}: window {sample.key} has {frames} frames, fewer than the crop of {crop_frames}; "
                "lower stream.crop_frames, or split with longer windows"
            )

    def _prompt(self, sample: Sample, text: str) -> Float:
        try:
            return self.prompts[text]
        except KeyError:
            raise ShardError(
                f"{self.reader.data}: no text embedding of {text!r}, which window {sample.key} needs; "
                "`mgeldm encode` writes them anew"
            ) from None


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
        """Blend ``sets`` by ``weights`` (see `blend`); None gives every sample the same share.

        Raises:
            ConfigError: there is no data set, weights make no blend, or the data sets were encoded differently.
        """
        if len({(s.card.encoder, s.card.prompt_template) for s in sets}) > 1:
            raise ConfigError("the data sets were made with different codecs, embedders or prompts; encode them alike")
        self.shares = blend([len(s.rows) for s in sets], weights or [None] * len(sets))
        self._sets, self._config, self._rank, self._world = list(sets), config, rank, world
        self._edges = np.cumsum(self.shares)[:-1]
        self._orders: dict[tuple[int, int], npt.NDArray[np.int64]] = {}

    def start(self) -> StreamState:
        """The state before the first element."""
        return StreamState(0, (0,) * len(self._sets))

    def batches(self, state: StreamState, ahead: int = 4) -> Generator[Batch, None, None]:
        """Batches from ``state`` on, for ever, ``ahead`` of them read by a thread until the generator is closed."""
        return load_ahead(self._load, self._plans(state), ahead)

    def _plans(self, state: StreamState) -> Iterator[_Plan]:
        drawn, positions = state.drawn, list(state.positions)
        while True:
            picks = []
            for _ in range(self._config.batch):
                chosen = self._data_set(drawn)
                epoch, place = divmod(positions[chosen], len(self._sets[chosen].rows))
                picks.append((drawn, chosen, int(self._order(chosen, epoch)[place])))
                positions[chosen] += 1
                drawn += 1
            share = len(picks) // self._world
            yield _Plan(
                tuple(picks[self._rank * share : (self._rank + 1) * share]), StreamState(drawn, tuple(positions))
            )

    def _data_set(self, element: int) -> int:
        if len(self._sets) == 1:
            return 0
        level = generator(self._config.seed, Purpose.DATA_SET, element).random()
        return int(np.searchsorted(self._edges, level, side="right"))

    def _order(self, chosen: int, epoch: int) -> npt.NDArray[np.int64]:
        if (chosen, epoch) not in self._orders:
            self._orders = {key: order for key, order in self._orders.items() if key[0] != chosen}
            rng = generator(self._config.seed, Purpose.ORDER, chosen, epoch)
            self._orders[chosen, epoch] = rng.permutation(len(self._sets[chosen].rows))
        return self._orders[chosen, epoch]

    def _load(self, plan: _Plan) -> Batch:
        examples, keys = [], []
        for element, chosen, row in plan.picks:
            shards = self._sets[chosen]
            rng = generator(self._config.seed, Purpose.EXAMPLE, element)
            keys.append(shards.rows[row].key)
            examples.append(shards.example(shards.reader.read(shards.rows[row]), rng, self._config))
        latents, embeddings = zip(*examples, strict=True)
        return Batch(
            np.stack(latents), np.stack(embeddings), tuple(keys), tuple(pick[0] for pick in plan.picks), plan.state
        )


def blend(samples: Sequence[int], weights: Sequence[float | None]) -> npt.NDArray[np.float64]:
    """Share of each data set in the stream ``[sets]``, summing to 1, from their numbers of samples and their weights.

    Where every data set has a weight, weights are relative to each other. Where some have none, a weight is a share of
    the stream, and those without one divide the rest by their samples.

    Raises:
        ConfigError: there is no data set, a weight is not above 0, or nothing is left for those without one.
    """
    if not samples or len(weights) != len(samples):
        raise ConfigError(f"{len(samples)} data sets and {len(weights)} weights; give at least one data set")
    given = np.array([weight or 0.0 for weight in weights])
    free = np.array([weight is None for weight in weights])
    if not (np.isfinite(given) & ((given > 0) | free)).all():
        raise ConfigError(f"weights {list(weights)}: each must be a number above 0")
    if free.all() or not free.any():
        shares = np.array(samples, dtype=np.float64) if free.all() else given
        return shares / shares.sum()
    if given.sum() >= 1:
        raise ConfigError(f"weights {list(weights)} leave nothing for the data sets without one; they must sum below 1")
    rest = np.where(free, samples, 0)
    return given + (1 - given.sum()) * rest / rest.sum()
