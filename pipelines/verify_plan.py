"""What `verify` looks at beyond the data set itself: the plan it was made of, and some windows encoded anew."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
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
)
from manifests.songs import read_songs
from manifests.splits import Plan, Window
from manifests.units import Failure
from mgeldm.codec import load_codec
from mgeldm.embedder import load_embedder
from mgeldm.progress import progress
from pipelines.encode_config import PRECISIONS, EncodeConfig, encoder_identity
from pipelines.encode_windows import WindowEncoder, WindowError

TOLERANCE = 1e-3
"""Largest distance of what was encoded anew from what is stored, relative to its norm. float16 alone makes 3e-4."""


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
    gains = {gain.stem_id: gain.gain_db for gain in window.gains}
    if meta["stem_gains_db"] != gains:
        yield Finding(f"{SHARDS_FOLDER}/{row.shard}", "plan", f"{row.key}: gains are not those of the plan")
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

    Raises:
        ShardError: codec or embedder are not those of the card.
        ManifestError: the manifest lacks a song of the plan.
        CheckpointError: codec or embedder cannot be loaded.
    """
    rows = {row.key: row for row in reader.rows}
    by_song: dict[str, list[Window]] = defaultdict(list)
    for window in plan.windows:
        by_song[window.song_id].append(window)
    chosen = choose(sorted(rows.keys() & {window.window_id for window in plan.windows}), config.share, config.seed)
    songs = {song.song_id: song for song in read_songs(config.songs)}
    equal, largest, problems = 0, 0.0, []
    homes = sorted({rows[key].song_id for key in chosen})
    with progress(len(homes), "re-encode", "songs") as bar:
        encoder = WindowEncoder(_same_encoder(reader.card, config))
        for song_id in homes:
            if song_id not in songs:
                raise ManifestError(f"{config.songs}: song {song_id} of the plan is not in it")
            wanted = {key for key in chosen if rows[key].song_id == song_id}
            windows = tuple(sorted(by_song[song_id], key=lambda window: window.window_id))
            made = {window.window_id: new for window, new in encoder.samples([(songs[song_id], windows)], wanted)}
            for key in sorted(wanted):
                where = f"{SHARDS_FOLDER}/{rows[key].shard}"
                if isinstance(new := made[key], WindowError):
                    lost = f"{key}: cannot be encoded anew ({new.code}): {new.message}"
                    problems.append(Finding(where, "reencode", lost))
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


def _same_encoder(card: DatasetCard, config: Reencode) -> EncodeConfig:
    """The configuration that encodes as the data set was encoded. Raises ShardError where there is none."""
    codec, embedder = load_codec(config.codec), load_embedder(config.embedder)
    for option, name, identity, said in (
        ("codec", config.codec, codec.identity, card.codec["identity"]),
        ("embedder", config.embedder, embedder.identity, card.embedder["identity"]),
    ):
        if identity != said:
            raise ShardError(
                f"--{option} {name} is {identity[:16]}, the data set was encoded with {said[:16]}; give that"
            )
    base = EncodeConfig(
        codec=config.codec, embedder=config.embedder, embed_hop_s=card.embed_hop_s, device=config.device
    )
    for precision in PRECISIONS:
        found = replace(base, precision=precision)
        if encoder_identity(found, codec, embedder) == card.encoder:
            return found
    raise ShardError(f"{config.songs}: no precision of this program gives encoder {card.encoder[:16]} of the card")


def _difference(old: Sample, new: Sample) -> float:
    """Distance of latents or of embeddings, whichever is larger, relative to their norm; 0: the same bytes."""
    worst = 0.0
    for have, made in ((old.latents, new.latents), (old.embeddings, new.embeddings)):
        if have.shape != made.shape:
            return float("inf")
        if have.tobytes() != made.tobytes():
            one, two = have.astype(np.float64), made.astype(np.float64)
            norm = float(np.linalg.norm(two)) or 1.0
            worst = max(worst, float(np.linalg.norm(one - two)) / norm, 5e-324)
    return worst
