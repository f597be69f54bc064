"""The work of one encode unit: songs -> latents and embeddings -> one shard."""

import hashlib
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
        """Encode a unit, write its shard, if it has a sample, and then its sidecar."""
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
        if not rows:
            # Some readers take a tar without samples for a damaged data set.
            store.remove(f"{SHARDS_FOLDER}/{shard}")
            digest, size = hashlib.sha256().hexdigest(), 0
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
    """Running sums over samples, in float64."""

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

    def moments(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per channel; 0 and 1 where there is no sample."""
        if not self.frames:
            return [0.0] * len(self.sum), [1.0] * len(self.sum)
        mean: npt.NDArray[np.float64] = self.sum / self.frames
        return mean.tolist(), np.sqrt(np.maximum(self.squares / self.frames - mean**2, 1e-12)).tolist()


def latent_moments(sidecars: Iterable[Sidecar], channels: int) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel over all sidecars, as `Totals.moments`."""
    totals = Totals(channels)
    for sidecar in sidecars:
        totals.frames += sidecar.latent_count
        totals.sum += np.asarray(sidecar.latent_sum)
        totals.squares += np.asarray(sidecar.latent_squares)
    return totals.moments()
