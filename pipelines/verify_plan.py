"""What `verify` looks at beyond the data set itself: the plan it was made of, and some windows encoded anew."""

import hashlib
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from manifests.atomic import canonical_json
from manifests.errors import ConfigError, ManifestError, ShardError
from manifests.shards import (
    INDEX_FILE,
    SHARDS_FOLDER,
    DatasetCard,
    IndexRow,
    Sample,
    ShardReader,
    map_shard,
    read_sample,
    sample_bytes,
)
from manifests.songs import Song, read_songs
from manifests.splits import Plan, Window
from manifests.store import open_store
from manifests.units import Failure, Unit, parse_sidecar
from mgeldm.codec import load_codec
from mgeldm.embedder import load_embedder
from mgeldm.progress import progress
from pipelines.encode_unit import EncodeConfig, UnitEncoder, UnitWork, mix_stems

TOLERANCE = 1e-3
"""Largest difference of a value that was encoded anew, relative to the root mean square of its array."""


class Finding(NamedTuple):
    """Something found; ``file`` is below the data set folder, ``code`` one of `pipelines.verify.CODES`."""

    file: str
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reencode:
    """Which windows are encoded anew, and with what."""

    songs: Path
    """Manifest that the plan was drawn from."""
    share: float = 0.01
    """Of the windows of the index; at least one is taken."""
    seed: int = 0
    codec: str = "default"
    embedder: str = "default"
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"reencode {self.share}: a share of the windows is above 0 and at most 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reencoded:
    """What came of it."""

    windows: int
    equal: int
    """Of them with the same bytes of latents and embeddings."""
    largest_difference: float
    """Of all others, relative as `TOLERANCE`."""
    problems: tuple[Finding, ...]


def check_plan(reader: ShardReader, plan: Plan, failures: Sequence[Failure]) -> Iterator[Finding]:
    """Every window of the plan is in the index once or has failed with a code; no other is; splits are the plan's."""
    planned = {window.window_id: window for window in plan.windows}
    failed = {failure.window_id: failure.code for failure in failures}
    counts = Counter(row.key for row in reader.rows)
    for key in sorted(planned):
        if counts[key] + (key in failed) != 1:
            state = f"{counts[key]} rows of the index and {'a' if key in failed else 'no'} failure"
            yield Finding(INDEX_FILE, "not_encoded", f"{key}: {state}, a planned window has one of them")
        elif key in failed and not failed[key]:
            yield Finding(INDEX_FILE, "not_encoded", f"{key}: failed without a code")
    for key in sorted((counts.keys() | failed.keys()) - planned.keys()):
        yield Finding(INDEX_FILE, "not_planned", f"{key}: no window of the plan")
    for row in reader.rows:
        if row.key in planned:
            try:
                sample = reader.read(row)
            except ShardError:
                continue  # told by the look at the shards
            yield from _differences(sample, row, planned[row.key], 0.5 / reader.card.frames_per_second)


def _differences(sample: Sample, row: IndexRow, window: Window, grid_s: float) -> Iterator[Finding]:
    """``grid_s``: how far the codec's grid of frames moves a time."""
    meta = sample.meta
    stored = [
        {name: value for name, value in split.items() if name != "source_instruments"} for split in meta["splits"]
    ]
    wanted = json.loads(canonical_json([asdict(split) for split in window.splits]))
    where = f"{SHARDS_FOLDER}/{row.shard}"
    if meta["song_id"] != window.song_id:
        yield Finding(where, "plan", f"{row.key}: of song {meta['song_id']}, planned of {window.song_id}")
    for name, planned_s in (("start_s", window.start_s), ("duration_s", window.duration_s)):
        if abs(meta[name] - planned_s) > grid_s * (1 + 1e-6) and not (name == "duration_s" and planned_s < grid_s):
            yield Finding(where, "plan", f"{row.key}: {name} is {meta[name]}, planned {planned_s}")
    if stored != wanted:
        number = next((i for i, (a, b) in enumerate(zip(stored, wanted, strict=False)) if a != b), len(wanted))
        yield Finding(
            where, "plan", f"{row.key}: {len(stored)} splits, planned {len(wanted)}; split {number} is not the plan's"
        )


def check_reencoded(reader: ShardReader, plan: Plan, config: Reencode) -> Reencoded:
    """Encode a random share of the windows anew and compare.

    Songs are decoded with every stem that the plan uses of them, on which their gain depends: some more windows of
    the same song may be encoded for it.

    Raises:
        ShardError: codec or embedder are not those of the card.
        ManifestError: the manifest lacks a song of the plan.
        CheckpointError: codec or embedder cannot be loaded.
    """
    _check_models(reader.card, config)
    rows = {row.key: row for row in reader.rows}
    by_song: dict[str, list[Window]] = defaultdict(list)
    for window in plan.windows:
        by_song[window.song_id].append(window)
    chosen = choose(sorted(rows.keys() & {window.window_id for window in plan.windows}), config.share, config.seed)
    songs = {song.song_id: song for song in read_songs(config.songs)}
    equal, largest, problems = 0, 0.0, []
    encoding = EncodeConfig(
        codec=config.codec, embedder=config.embedder, embed_hop_s=reader.card.embed_hop_s, device=config.device
    )
    homes = sorted({rows[key].song_id for key in chosen})
    with tempfile.TemporaryDirectory() as folder, progress(len(homes), "re-encode", "songs") as bar:
        encoder = UnitEncoder(encoding, Path(folder))
        for song_id in homes:
            if song_id not in songs:
                raise ManifestError(f"{config.songs}: song {song_id} of the plan is not in it")
            wanted = {key for key in chosen if rows[key].song_id == song_id}
            made = _encoded(encoder, Path(folder), songs[song_id], _enough(by_song[song_id], wanted))
            for key in sorted(wanted):
                where = f"{SHARDS_FOLDER}/{rows[key].shard}"
                if isinstance(new := made.get(key, "was not encoded"), str):
                    problems.append(Finding(where, "reencode", f"{key}: {new}"))
                    continue
                try:
                    difference = _difference(reader[key], new)
                except ShardError:
                    continue  # told by the look at the shards
                equal += difference == 0
                largest = max(largest, difference)
                if not difference <= TOLERANCE:
                    message = f"{key}: differs by {difference:.2g} relative from what encoding it anew gives"
                    problems.append(Finding(where, "reencode", message))
            bar.update()
    return Reencoded(windows=len(chosen), equal=equal, largest_difference=largest, problems=tuple(problems))


def choose(keys: Sequence[str], share: float, seed: int) -> set[str]:
    """The keys whose hash with the seed is among the lowest ``share``; at least one, if there is any."""

    def place(key: str) -> float:
        return int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8], "big") / 2**64

    return {key for key in keys if place(key) < share} or set(sorted(keys, key=place)[:1])


def _check_models(card: DatasetCard, config: Reencode) -> None:
    for option, name, identity, said in (
        ("codec", config.codec, load_codec(config.codec).identity, card.codec["identity"]),
        ("embedder", config.embedder, load_embedder(config.embedder).identity, card.embedder["identity"]),
    ):
        if identity != said:
            raise ShardError(
                f"--{option} {name} is {identity[:16]}, the data set was encoded with {said[:16]}; give that"
            )


def _enough(windows: Sequence[Window], wanted: set[str]) -> tuple[Window, ...]:
    """The wanted windows and as many others as use, together, each stem that the song's windows use."""
    taken = [window for window in windows if window.window_id in wanted]
    covered = {stem for window in taken for stem in mix_stems(window.splits)}
    for window in windows:
        if not mix_stems(window.splits) <= covered:
            taken.append(window)
            covered |= mix_stems(window.splits)
    return tuple(sorted(taken, key=lambda window: window.window_id))


def _encoded(encoder: UnitEncoder, folder: Path, song: Song, windows: tuple[Window, ...]) -> Mapping[str, Sample | str]:
    """Window id -> its sample, or why there is none."""
    unit = Unit(corpus=song.corpus, subset=song.subset, songs=(song.song_id,))
    encoder(UnitWork(unit, {song.song_id: song}, {song.song_id: windows}))
    store = open_store(folder)
    made: dict[str, Sample | str] = {}
    for name in [name for name in store.sizes(SHARDS_FOLDER) if name.endswith(".tar")]:
        sidecar = parse_sidecar(folder, name.removesuffix(".tar"))
        content = map_shard(store, f"{SHARDS_FOLDER}/{name}")
        # Their memory stays when the file goes.
        made |= {row.key: read_sample(sample_bytes(content, row), row, name) for row in sidecar.rows}
        made |= {lost.window_id: f"cannot be encoded anew ({lost.code}): {lost.message}" for lost in sidecar.failures}
        store.remove(f"{SHARDS_FOLDER}/{name}")
        store.remove(f"{SHARDS_FOLDER}/{name.removesuffix('.tar')}.json")
    return made


def _difference(old: Sample, new: Sample) -> float:
    """Largest difference of latents and embeddings, relative to each array's root mean square; 0: the same bytes."""
    worst = 0.0
    for have, made in ((old.latents, new.latents), (old.embeddings, new.embeddings)):
        if have.shape != made.shape:
            return float("inf")
        if have.tobytes() != made.tobytes():
            one, two = have.astype(np.float64), made.astype(np.float64)
            scale = max(float(np.sqrt(np.square(two).mean())), 1e-9)
            worst = max(worst, float(np.abs(one - two).max()) / scale, 5e-324)
    return worst
