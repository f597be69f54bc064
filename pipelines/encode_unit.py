"""The work of one encode unit: songs -> latents and embeddings -> one shard."""

import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from manifests.atomic import content_hash
from manifests.errors import ConfigError
from manifests.shards import SAMPLE_VERSION, SHARDS_FOLDER, Array, Sample, embedding_count, write_shard
from manifests.songs import Song
from manifests.splits import Split, Window
from manifests.store import open_store
from manifests.units import Failure, Sidecar, Unit, plan_hash, sidecar_name, unit_name, write_sidecar
from mgeldm.audio import to_channels
from mgeldm.codec import Codec, load_codec
from mgeldm.devices import choose_device, keep_freed_memory
from mgeldm.embedder import Embedder, load_embedder
from mgeldm.measure import decibels
from pipelines.song_signals import SongSignals, decode_song

_NOT_FINITE = "latents or embeddings are NaN, infinite or beyond the range of float16"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeConfig:
    """How windows become latents and embeddings."""

    codec: str = "default"
    """Codec folder, or "default" for the one shipped with the package."""
    embedder: str = "default"
    """Embedder folder, or "default"."""
    embed_hop_s: float = 1.28
    """Distance of the audio embeddings within a window."""
    prompt_template: str = "the sound of {}"
    """Text embeddings are of this, with the split's text in place of {}."""
    windows_per_shard: int = 256
    """A shard takes whole songs until it holds this many windows."""
    batch: int = 16
    """Signals in one forward of the codec on a GPU. A CPU takes one on each core: more only fall out of its cache, and
    the size of a batch decides the last bits of a sum."""
    device: str = "auto"
    """"auto", "cpu", "cuda" or "cuda:1"."""
    retry_failed: bool = False
    """Encode units with failures again, though their shards are sealed."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.embed_hop_s) and self.embed_hop_s > 0):
            raise ConfigError(f"embed_hop_s {self.embed_hop_s} must be above 0")
        if self.windows_per_shard < 1 or self.batch < 1:
            raise ConfigError(f"windows_per_shard {self.windows_per_shard} and batch {self.batch} must be at least 1")
        if "{}" not in self.prompt_template:
            raise ConfigError(f"prompt_template {self.prompt_template!r} has no {{}} where the text goes")

    def prompt(self, text: str) -> str:
        """What the embedder reads for a text of a split."""
        return self.prompt_template.replace("{}", text)


@dataclass(frozen=True, slots=True)
class UnitWork:
    """Everything a worker needs for one shard."""

    unit: Unit
    songs: dict[str, Song]
    windows: dict[str, tuple[Window, ...]]
    """song id -> its windows."""

    @property
    def plan(self) -> str:
        """Hash over the unit's windows and splits."""
        return plan_hash((window for song in self.unit.songs for window in self.windows[song]), self.songs)

    @property
    def size(self) -> int:
        """Number of windows."""
        return sum(len(self.windows[song]) for song in self.unit.songs)

    def name(self, encoder: str) -> str:
        """The shard's name, without suffix."""
        return unit_name(self.unit, self.plan, encoder)


def encoder_identity(config: EncodeConfig, codec: Codec, embedder: Embedder) -> str:
    """Hash over all that decides what a sample holds, apart from the plan and the audio."""
    return content_hash(
        {
            "sample": SAMPLE_VERSION,
            "codec": codec.identity,
            "embedder": embedder.identity,
            "embed_hop_s": config.embed_hop_s,
        }
    )


@dataclass(frozen=True, slots=True)
class Stretch:
    """The sum of some stems over some latent frames: what is encoded once, however many splits name it."""

    start: int
    frames: int
    stems: frozenset[str]


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of a stretch."""

    latents: Array
    """``[C, L]``"""
    embeddings: Array
    """``[W, D]``"""
    rms_dbfs: float | None
    """None for digital silence."""


class UnitEncoder:
    """Worker of the encode job: one unit is one shard. Models are loaded once per worker."""

    def __init__(self, config: EncodeConfig, out: Path | str) -> None:
        self.config, self.out = config, out
        keep_freed_memory()
        self.device = choose_device(config.device)
        self.codec = load_codec(config.codec).to(self.device)
        self.embedder = load_embedder(config.embedder).to(self.device)
        self.encoder = encoder_identity(config, self.codec, self.embedder)
        # At a rate that both take, the embedder hears the mean of the codec's channels.
        self._rates = {self.embedder.spec.sample_rate: 1} | {self.codec.spec.sample_rate: self.codec.spec.channels}

    def __call__(self, work: UnitWork) -> Sidecar:
        """Encode a unit, write its shard and then its sidecar, which is returned."""
        name = work.name(self.encoder)
        failures: list[Failure] = []
        totals = Totals(self.codec.spec.latent_channels)
        store, shard = open_store(self.out), f"{name}.tar"
        # A sidecar never stands beside a shard that it was not written for.
        store.remove(sidecar_name(name))
        path = store.location(f"{SHARDS_FOLDER}/{shard}")
        rows, digest, size = write_shard(path, self._samples(work, name, failures, totals))
        sidecar = Sidecar(
            shard=shard,
            sha256=digest,
            size=size,
            plan=work.plan,
            encoder=self.encoder,
            rows=tuple(rows),
            failures=tuple(failures),
            latent_count=totals.frames,
            latent_sum=tuple(totals.sum.tolist()),
            latent_squares=tuple(totals.squares.tolist()),
            seconds=totals.seconds,
            songs=tuple(sorted({row.song_id for row in rows})),
        )
        write_sidecar(self.out, name, sidecar)
        return sidecar

    def _samples(self, work: UnitWork, name: str, failures: list[Failure], totals: "Totals") -> Iterator[Sample]:
        def fail(window: Window, stage: str, code: str, message: str) -> None:
            failures.append(
                Failure(
                    unit=name,
                    song_id=window.song_id,
                    window_id=window.window_id,
                    stage=stage,
                    code=code,
                    message=message,
                )
            )

        for song_id in work.unit.songs:
            song, windows = work.songs[song_id], work.windows[song_id]
            used = {stem for window in windows for stem in mix_stems(window.splits)}
            signals, errors = decode_song(song, used, self._rates)
            whole: list[Window] = []
            for window in windows:
                if broken := sorted(mix_stems(window.splits) & errors.keys()):
                    fail(window, "decode", errors[broken[0]].code, str(errors[broken[0]]))
                else:
                    whole.append(window)
            for window, sample in self.encode_windows(song, signals, whole):
                if sample is None:
                    fail(window, "encode", "not_finite", _NOT_FINITE)
                else:
                    totals.add(sample)
                    yield sample

    def encode_windows(
        self, song: Song, signals: SongSignals, windows: Sequence[Window]
    ) -> Iterator[tuple[Window, Sample | None]]:
        """Encode windows of one song; a sample is None where the models gave values that cannot be stored."""
        tracks = [self._tracks(window) for window in windows]
        stretches = list(dict.fromkeys(chain.from_iterable(tracks)))
        with one_core_each(self.device) as pool:
            parts = pool.map(partial(self._encode, signals), batches(stretches, self._batch))
            encoded = dict(zip(stretches, chain.from_iterable(parts), strict=True))
        for window, track in zip(windows, tracks, strict=True):
            rows = [encoded[stretch] for stretch in track]
            latents, embeddings = np.stack([row.latents for row in rows]), np.stack([row.embeddings for row in rows])
            if np.isfinite(latents).all() and np.isfinite(embeddings).all():
                meta = self._meta(song, window, track[0], signals.gain, [row.rms_dbfs for row in rows])
                yield window, Sample(key=window.window_id, latents=latents, embeddings=embeddings, meta=meta)
            else:
                yield window, None

    @property
    def _batch(self) -> int:
        return 1 if self.device.type == "cpu" else self.config.batch

    def _tracks(self, window: Window) -> list[Stretch]:
        """Rows of the window's sample, on the codec's grid of frames."""
        spec = self.codec.spec
        start, frames = spec.frames(window.start_s), max(1, spec.frames(window.duration_s))
        return [Stretch(start, frames, stems) for stems in track_stems(window.splits)]

    @torch.inference_mode()
    def _encode(self, signals: SongSignals, batch: Sequence[Stretch]) -> list[Encoded]:
        """Stretches of one length, encoded with the codec's context on both sides, which is trimmed off."""
        spec = self.codec.spec
        hop, context, frames = spec.hop, spec.context // spec.hop, batch[0].frames
        waves = np.stack(
            [
                signals.cut(s.stems, spec.sample_rate, (s.start - context) * hop, (frames + 2 * context) * hop)
                for s in batch
            ]
        )
        latents = self.codec.encode(torch.from_numpy(waves).to(self.device))[..., context : context + frames]
        inner = waves[..., context * hop : (context + frames) * hop]
        levels = np.sqrt(np.square(inner, dtype=np.float64).mean(axis=(1, 2)))
        return [
            Encoded(values, self._embed(signals, stretch), decibels(float(level)))
            for stretch, values, level in zip(batch, latents.half().cpu().numpy(), levels, strict=True)
        ]

    def _embed(self, signals: SongSignals, stretch: Stretch) -> Array:
        """``[W, D]``: embedding w is of the embedder's window that begins w hops into the stretch."""
        begin, seconds = self.codec.spec.seconds(stretch.start), self.codec.spec.seconds(stretch.frames)
        spec, hop = self.embedder.spec, self.config.embed_hop_s
        starts = [
            round((begin + number * hop) * spec.sample_rate)
            for number in range(embedding_count(seconds, spec.window_s, hop))
        ]
        waves = [signals.cut(stretch.stems, spec.sample_rate, start, spec.window) for start in starts]
        mono = torch.from_numpy(np.concatenate([to_channels(wave, 1) for wave in waves]))
        vectors: Array = self.embedder.embed_audio(mono.to(self.device)).half().cpu().numpy()
        return vectors

    def _meta(
        self, song: Song, window: Window, mix: Stretch, gain: float, levels: Sequence[float | None]
    ) -> dict[str, Any]:
        instruments = {stem.stem_id: stem.instrument for stem in song.stems}
        return {
            "version": SAMPLE_VERSION,
            "encoder": self.encoder,
            "song_id": song.song_id,
            "corpus": song.corpus,
            "subset": song.subset,
            "license": song.license,
            "start_s": self.codec.spec.seconds(mix.start),
            "duration_s": self.codec.spec.seconds(mix.frames),
            "gain": gain,
            "rms_dbfs": [None if level is None else round(level, 2) for level in levels],
            "splits": [
                {**asdict(split), "source_instruments": sorted({instruments[stem] for stem in split.source})}
                for split in window.splits
            ],
        }


def mix_stems(splits: Sequence[Split]) -> frozenset[str]:
    """Every stem of the splits: the window's mix."""
    return frozenset(stem for split in splits for stem in (*split.source, *split.submix))


def track_stems(splits: Sequence[Split]) -> list[frozenset[str]]:
    """Stem sets of a sample's rows: mix, then submix and source of each split."""
    return [mix_stems(splits), *(frozenset(side) for split in splits for side in (split.submix, split.source))]


class Totals:
    """Running sums over the samples of a shard, in float64."""

    def __init__(self, channels: int) -> None:
        self.seconds = 0.0
        self.frames = 0
        self.sum = np.zeros(channels)
        self.squares = np.zeros(channels)

    def add(self, sample: Sample) -> None:
        """Take in a sample."""
        values = sample.latents.astype(np.float64)
        self.seconds += sample.meta["duration_s"]
        self.frames += values.shape[0] * values.shape[2]
        self.sum += values.sum(axis=(0, 2))
        self.squares += np.square(values).sum(axis=(0, 2))


def latent_moments(sidecars: Iterable[Sidecar], channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel over all sidecars; 0 and 1 where there is no sample."""
    count, total, squares = 0, np.zeros(channels), np.zeros(channels)
    for sidecar in sidecars:
        count += sidecar.latent_count
        total += np.asarray(sidecar.latent_sum)
        squares += np.asarray(sidecar.latent_squares)
    if not count:
        return [0.0] * channels, [1.0] * channels
    mean: npt.NDArray[np.float64] = total / count
    return mean.tolist(), np.sqrt(np.maximum(squares / count - mean**2, 1e-12)).tolist()


@contextmanager
def one_core_each(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """A pool with a thread for each core that torch may use, in which every thread computes on its own core.

    The number of cores that share a sum decides its last bits, so that a shard's bytes would depend on the machine. A
    GPU gets one thread.
    """
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(cores if device.type == "cpu" else 1) as pool:
            yield pool
    finally:
        torch.set_num_threads(cores)


def batches(stretches: Iterable[Stretch], size: int) -> Iterator[list[Stretch]]:
    """Runs of at most ``size`` stretches of one length."""
    for _, group in groupby(stretches, key=lambda stretch: stretch.frames):
        run = list(group)
        for begin in range(0, len(run), size):
            yield run[begin : begin + size]
