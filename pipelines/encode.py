"""encode: `splits.parquet` -> WebDataset shards, index and card. Each song is decoded once, each window sealed once."""

import logging
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from manifests.atomic import abandoned
from manifests.errors import ConfigError, ManifestError, PromptError
from manifests.shards import (
    CARD_FILE,
    PROMPTS_FILE,
    SAMPLE_VERSION,
    SHARDS_FOLDER,
    DatasetCard,
    embedding_count,
    write_card,
    write_index,
    write_prompts,
)
from manifests.songs import Song, read_songs
from manifests.splits import Plan, Window, read_splits, texts
from manifests.store import Store, open_store
from manifests.units import (
    WORKER_DIED,
    Failure,
    Sidecar,
    Unit,
    assign_units,
    read_sidecars,
    read_units,
    write_failures,
    write_units,
)
from mgeldm.codec import Codec, load_codec
from mgeldm.codec.long import silence_latent
from mgeldm.embedder import Embedder, load_embedder
from mgeldm.progress import progress
from pipelines.calibrate import CALIBRATION_S, calibrate
from pipelines.croissant import write_croissant
from pipelines.dataset_readme import ALL_SHARDS, check_no_other_readme, write_readme
from pipelines.encode_config import EncodeConfig, encoder_identity
from pipelines.encode_unit import UnitEncoder, UnitWork, latent_moments
from pipelines.encode_windows import mix_stems, one_core_each, track_stems
from pipelines.runner import RunnerConfig, WorkerDied, run_units

# Tar headers, padding and JSON of a sample.
_BYTES_BESIDE = 5_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeSummary:
    """What an encode run did."""

    shards: int
    samples: int
    hours: float
    encoded: int
    """Shards that were made in this run."""
    kept: int
    """Shards that were complete before it."""
    failures: dict[str, int]
    """Windows that could not be encoded, by problem code."""
    profile: dict[str, float]
    """Shares of the workers' time (of its cores, or of its GPU) that went into each part of the work."""
    seconds: float


def encode(
    splits: Path,
    songs: Path,
    out: Path | str,
    *,
    config: EncodeConfig | None = None,
    runner: RunnerConfig | None = None,
) -> EncodeSummary:
    """Encode the plan ``splits`` over the manifest ``songs`` into the data set ``out``, a folder or URL.

    A shard whose sidecar stands is never made again; after a kill, the same call goes on. A change of plan, audio or
    encoder changes the shard's name. The index names the shards of this plan only.

    Raises:
        ManifestError: plan or manifest cannot be used, or do not belong together.
        CheckpointError: codec or embedder cannot be loaded.
        ConfigError: ``out`` cannot be written.
        StoreError: a file of ``out`` cannot be written or read in the end.
    """
    config, runner = config or EncodeConfig(), runner or RunnerConfig()
    begin = time.monotonic()
    plan, by_id = read_splits(splits), _songs_by_id(songs)
    windows = _windows_by_song(plan, by_id, splits, songs)
    encoder = encoder_identity(config, load_codec(config.codec), load_embedder(config.embedder))
    open_store(out).check_writable(SHARDS_FOLDER)
    check_no_other_readme(out)
    known = read_units(out)
    units = assign_units(known, windows, by_id, config.windows_per_shard)
    if len(units) > len(known):
        write_units(out, units)
    works = list_work(units, windows, by_id)
    # A name is a hash over the plan of the unit: seconds for all of them, so once.
    names = [work.name(encoder) for work in works]
    sealed = read_sidecars(out, names)
    todo = _waiting(works, sealed.values(), config)
    spent: Counter[str] = Counter()
    lost: list[Failure] = []
    total, waiting = (sum(work.size for work in some) for some in (works, todo))
    with progress(total, "encode", "windows", initial=total - waiting) as bar:
        for index, result in run_units(todo, partial(UnitEncoder, config, out), runner):
            if isinstance(result, WorkerDied):
                lost += _lost(todo[index], encoder, result.message)
            else:
                sealed[result.sidecar.shard.removesuffix(".tar")] = result.sidecar
                spent.update(result.seconds)
            bar.update(todo[index].size)
    unsealed = {failure.unit for failure in lost}
    sidecars = [sidecar for name, sidecar in sorted(sealed.items()) if sidecar and name not in unsealed]
    card = finish(out, sidecars, lost, plan, by_id, config)
    failures = Counter(failure.code for failure in (*lost, *(f for sidecar in sidecars for f in sidecar.failures)))
    return EncodeSummary(
        shards=len(works),
        samples=card.samples,
        hours=card.hours,
        encoded=len(todo) - len(unsealed),
        kept=len(works) - len(todo),
        failures=dict(failures.most_common()),
        profile=_profile(spent),
        seconds=time.monotonic() - begin,
    )


def _lost(work: UnitWork, encoder: str, message: str) -> list[Failure]:
    """The windows of a unit that no worker lived through. It is not sealed, so that the next run tries again."""
    return [
        Failure(
            unit=work.name(encoder),
            song_id=window.song_id,
            window_id=window.window_id,
            stage="encode",
            code=WORKER_DIED,
            message=message,
        )
        for windows in work.windows.values()
        for window in windows
    ]


def _profile(spent: Mapping[str, float]) -> dict[str, float]:
    """Shares of the time that the workers had."""
    available = spent.get("available", 0.0)
    return {name: round(seconds / available, 4) for name, seconds in sorted(spent.items()) if name != "available"}


def preview(
    splits: Path,
    songs: Path,
    out: Path | str,
    config: EncodeConfig | None = None,
    *,
    calibration_s: float = CALIBRATION_S,
) -> dict[str, Any]:
    """What `encode` would do: units, windows, hours of signal through the codec, bytes of all shards. Writes nothing.

    Some songs of the plan are encoded on the device at hand for ``calibration_s`` seconds (0: none), which tells how
    many hours of such a device the whole would take.

    Raises:
        ManifestError, CheckpointError: as `encode`.
    """
    if not calibration_s >= 0:
        raise ConfigError(f"calibration_s {calibration_s:g} must not be negative; 0 measures nothing")
    config = config or EncodeConfig()
    plan, by_id = read_splits(splits), _songs_by_id(songs)
    windows = _windows_by_song(plan, by_id, splits, songs)
    codec, embedder = load_codec(config.codec), load_embedder(config.embedder)
    encoder = encoder_identity(config, codec, embedder)
    works = list_work(assign_units(read_units(out), windows, by_id, config.windows_per_shard), windows, by_id)
    sealed = read_sidecars(out, [work.name(encoder) for work in works])
    todo = _waiting(works, sealed.values(), config)
    bytes_, hours = 0, 0.0
    for window in plan.windows:
        tracks = track_stems(window.splits)
        count = embedding_count(window.duration_s, embedder.spec.window_s, config.embed_hop_s)
        values = codec.spec.frames(window.duration_s) * codec.spec.latent_channels + count * embedder.spec.dim
        bytes_ += 2 * values * len(tracks) + _BYTES_BESIDE
        hours += len(set(tracks)) * window.duration_s / 3600
    waiting = [window for work in todo for found in work.windows.values() for window in found]
    hours_to_encode = sum(window.duration_s for window in waiting) / 3600
    found: dict[str, Any] = {
        "shards": len(works),
        "shards_to_encode": len(todo),
        "windows": len(plan.windows),
        "windows_to_encode": len(waiting),
        "hours": sum(window.duration_s for window in plan.windows) / 3600,
        "hours_to_encode": hours_to_encode,
        "hours_through_codec": hours,
        "bytes": bytes_,
    }
    measured = calibrate(todo, config, calibration_s) if calibration_s and todo else None
    if measured:
        found[f"{measured.device}_hours"] = hours_to_encode / measured.window_seconds_per_s
        found["calibration"] = asdict(measured)
    return found


def list_work(
    units: Sequence[Unit], windows: Mapping[str, tuple[Window, ...]], songs: Mapping[str, Song]
) -> list[UnitWork]:
    """The units as far as the plan needs them: songs that left it, or moved to another subset, are left out."""
    works = []
    for unit in units:
        chosen = tuple(
            name
            for name in unit.songs
            if name in windows and (songs[name].corpus, songs[name].subset) == (unit.corpus, unit.subset)
        )
        if chosen:
            trimmed = replace(unit, songs=chosen)
            works.append(UnitWork(trimmed, {s: songs[s] for s in chosen}, {s: windows[s] for s in chosen}))
    return works


def finish(
    out: Path | str,
    sidecars: Sequence[Sidecar],
    lost: Sequence[Failure],
    plan: Plan,
    songs: Mapping[str, Song],
    config: EncodeConfig,
) -> DatasetCard:
    """Write prompts, failures, index, README and card of a data set from its sidecars, and what no sidecar tells."""
    store, named = open_store(out), {sidecar.shard for sidecar in sidecars}
    present = [name for name in store.sizes(SHARDS_FOLDER) if name.endswith(".tar") and not name.startswith(".")]
    if others := set(present) - named:
        logger.warning("%s: %d shards hold no window of this plan and leave the index", out, len(others))
    codec, embedder = load_codec(config.codec), load_embedder(config.embedder)
    prompts = embed_prompts(embedder, texts(plan.windows), config)
    failures = [*lost, *(failure for sidecar in sidecars for failure in sidecar.failures)]
    card = _card(sidecars, songs, config, codec, embedder, len(failures))
    # Until all is written there is no card, so that nobody takes the new index for one of the old encoder.
    store.remove(CARD_FILE)
    write_prompts(store.location(PROMPTS_FILE), prompts)
    write_failures(out, failures)
    write_index(out, [row for sidecar in sidecars for row in sidecar.rows])
    mine = [f"{SHARDS_FOLDER}/{sidecar.shard}" for sidecar in sidecars if sidecar.rows]
    write_readme(out, card, mine if others else ALL_SHARDS)
    write_croissant(out, card, [("", sidecar) for sidecar in sidecars])
    write_card(out, card)
    _remove_leftovers(store)
    return card


def _remove_leftovers(store: Store) -> None:
    """Remove what killed runs were writing, where the file stands now."""
    for folder in ("", f"{SHARDS_FOLDER}/"):
        present = store.sizes(folder.rstrip("/"))
        for name in present:
            if abandoned(name) in present:
                store.remove(folder + name)


@torch.inference_mode()
def embed_prompts(
    embedder: Embedder, prompts: Iterable[str], config: EncodeConfig
) -> dict[str, npt.NDArray[np.float32]]:
    """Text -> embedding ``[D]``; zeros, the null embedding, for a text that says nothing to the embedder."""
    vectors: dict[str, npt.NDArray[np.float32]] = {}
    unknown: list[str] = []
    # One at a time, so that a text's embedding does not depend on the others.
    for text in prompts:
        try:
            vectors[text] = embedder.embed_text([config.prompt(text)])[0].float().cpu().numpy()
        except PromptError:
            vectors[text] = np.zeros(embedder.spec.dim, np.float32)
            unknown.append(text)
    if unknown:
        logger.warning(
            "%d texts mean nothing to the embedder, such as %r; they condition nothing", len(unknown), unknown[0]
        )
    return vectors


def _card(
    sidecars: Sequence[Sidecar],
    songs: Mapping[str, Song],
    config: EncodeConfig,
    codec: Codec,
    embedder: Embedder,
    failures: int,
) -> DatasetCard:
    rows = [row for sidecar in sidecars for row in sidecar.rows]
    mean, deviation = latent_moments(sidecars, codec.spec.latent_channels)
    with one_core_each(torch.device("cpu")):
        silence = silence_latent(codec)
    encoded = [name for sidecar in sidecars for name in sidecar.songs]
    return DatasetCard(
        version=SAMPLE_VERSION,
        encoder=encoder_identity(config, codec, embedder),
        codec={"identity": codec.identity, "spec": asdict(codec.spec)},
        embedder={"identity": embedder.identity, "spec": asdict(embedder.spec)},
        embed_hop_s=config.embed_hop_s,
        prompt_template=config.prompt_template,
        latent_mean=tuple(mean),
        latent_std=tuple(deviation),
        silence_latent=tuple(silence.tolist()),
        samples=len(rows),
        songs=len(encoded),
        hours=sum(sidecar.seconds for sidecar in sidecars) / 3600,
        subsets=_counts(row.subset for row in rows),
        instruments=_counts(name for row in rows for name in row.instruments),
        licenses=_counts(songs[name].license for name in encoded),
        failures=failures,
    )


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _waiting(works: Sequence[UnitWork], sealed: Iterable[Sidecar | None], config: EncodeConfig) -> list[UnitWork]:
    return [
        work
        for work, sidecar in zip(works, sealed, strict=True)
        if sidecar is None or (config.retry_failed and sidecar.failures)
    ]


def _songs_by_id(path: Path) -> dict[str, Song]:
    return {song.song_id: song for song in read_songs(path)}


def _windows_by_song(
    plan: Plan, songs: Mapping[str, Song], splits_path: Path, songs_path: Path
) -> dict[str, tuple[Window, ...]]:
    if not plan.windows:
        raise ManifestError(
            f"{splits_path}: the plan has no window; passed over: {plan.passed_over or 'no song at all'}"
        )
    grouped: dict[str, list[Window]] = defaultdict(list)
    for window in plan.windows:
        song = songs.get(window.song_id)
        if song is None:
            raise ManifestError(f"{splits_path}: song {window.song_id} is not in {songs_path}; make the plan anew")
        if not window.splits:
            raise ManifestError(f"{splits_path}: window {window.window_id} has no split; make the plan anew")
        if missing := sorted(mix_stems(window.splits) - {stem.stem_id for stem in song.stems}):
            raise ManifestError(
                f"{splits_path}: window {window.window_id} uses stem {missing[0]}, which {window.song_id} lacks in "
                f"{songs_path}; make the plan anew"
            )
        grouped[window.song_id].append(window)
    return {name: tuple(sorted(found, key=lambda window: window.window_id)) for name, found in grouped.items()}
