"""The work of one encode unit: songs -> latents and embeddings -> one shard."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from manifests.shards import SHARDS_FOLDER, Sample, write_shard
from manifests.songs import Song
from manifests.splits import Window
from manifests.store import open_store
from manifests.units import Failure, Sidecar, Unit, plan_hash, sidecar_name, unit_name, write_sidecar
from pipelines.encode_config import EncodeConfig
from pipelines.encode_windows import WindowEncoder, WindowError


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


@dataclass(frozen=True, slots=True)
class UnitResult:
    """What a worker gives back for a unit."""

    sidecar: Sidecar
    seconds: dict[str, float]
    """Where the time of its cores, or of its GPU, went: "codec", "embedder", ...; and "available", all of it."""


class UnitEncoder:
    """Worker of the encode job: one unit is one shard. Models are loaded once per worker."""

    def __init__(self, config: EncodeConfig, out: Path | str) -> None:
        self.out, self.windows = out, WindowEncoder(config)

    def __call__(self, work: UnitWork) -> UnitResult:
        """Encode a unit, write its shard and then its sidecar."""
        begin = time.perf_counter()
        cores = torch.get_num_threads() if self.windows.forwards.device.type == "cpu" else 1
        self.windows.clock.take()
        name = work.name(self.windows.encoder)
        failures: list[Failure] = []
        totals = Totals(self.windows.codec.spec.latent_channels)
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
            encoder=self.windows.encoder,
            rows=tuple(rows),
            failures=tuple(failures),
            latent_count=totals.frames,
            latent_sum=tuple(totals.sum.tolist()),
            latent_squares=tuple(totals.squares.tolist()),
            seconds=totals.seconds,
            songs=tuple(sorted({row.song_id for row in rows})),
        )
        write_sidecar(self.out, name, sidecar)
        return UnitResult(sidecar, self.windows.clock.take() | {"available": cores * (time.perf_counter() - begin)})

    def _samples(self, work: UnitWork, name: str, failures: list[Failure], totals: "Totals") -> Iterator[Sample]:
        songs = ((work.songs[song_id], work.windows[song_id]) for song_id in work.unit.songs)
        for window, found in self.windows.samples(songs):
            if isinstance(found, WindowError):
                failures.append(
                    Failure(
                        unit=name,
                        song_id=window.song_id,
                        window_id=window.window_id,
                        stage=found.stage,
                        code=found.code,
                        message=found.message,
                    )
                )
            else:
                totals.add(found)
                yield found


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
