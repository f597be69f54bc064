"""A large manifest, made up: songs with plausible stems, activity and sketches, written in batches."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from manifests.labels import lookup
from manifests.sketches import pack
from manifests.songs import SONGS_SCHEMA, SONGS_VERSION, Problem, Song, Stem, song_rows

CORPORA = ("slakh2100", "moisesdb", "medleydb", "jamendo")
LABELS = (
    "Drums", "Bass", "Piano", "Guitar", "Strings", "LeadVox", "Organ", "Synth Pad", "Brass", "Zither of doom", "Other",
)  # fmt: skip
RATE = 44_100
ROW_GROUP = 10_000


def large_songs(count: int, *, stems: int = 8, seed: int = 0) -> Iterator[Song]:
    """``count`` songs in the order of their ids, of two to six minutes.

    One song in a thousand is a copy, 3.7 s shorter at its beginning, of the one before it, in another subset.
    """
    rng = np.random.default_rng(seed)
    per_corpus = -(-count // len(CORPORA))
    level, tilt = np.zeros(0), np.zeros(0)
    for number in range(count):
        corpus = sorted(CORPORA)[number // per_corpus]
        copy = number % 1000 == 999
        if copy:
            level, tilt = level[37:], tilt[37:]
        else:
            level, tilt = _course(rng, int(rng.integers(1200, 3600)))
        frames = len(level)
        song_id = f"{corpus}/{number:07d}"
        subset = "test" if copy else ("train", "train", "train", "validation")[number % 4]
        silent = (Problem(code="silent", stem_id="S00", detail="made up"),) if number % 50 == 0 else ()
        unmapped = number % 7
        labels = [LABELS[(number + k) % len(LABELS)] for k in range(stems)]
        problems = silent + tuple(
            Problem(code="unmapped_label", stem_id=f"S{k:02d}", detail=repr(label))
            for k, label in enumerate(labels)
            if label.startswith("Zither") and unmapped
        )
        yield Song(
            song_id=song_id,
            corpus=corpus,
            root=f"/data/{corpus}",
            subset=subset,
            sample_rate=RATE,
            frames=frames * RATE // 10,
            duration_s=frames / 10,
            mixture=f"{number:07d}/mix.flac",
            sketch=pack(level, level + tilt),
            stems=tuple(_stem(rng, song_id, k, label, frames) for k, label in enumerate(labels)),
            license=("CC-BY-4.0", "CC-BY-NC-SA-4.0", "CC0-1.0", "")[CORPORA.index(corpus)],
            problems=problems,
            extra={"works": [f"work:{number - copy}"]} if number % 3 == 0 or copy else {},
        )


def _course(rng: np.random.Generator, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Level and tilt of 100 ms frames in dB, ``[frames]`` each: sections, a beat of the song's own tempo, chance."""
    period, time = rng.uniform(3.5, 9.0), np.arange(frames)
    sections = np.repeat(rng.normal(0, 4, frames // 150 + 1), 150)[:frames]
    accents = np.tile(rng.normal(0, 3, 16), frames // 16 + 1)[(time / period).astype(int) % 16]
    beat = 6 * np.exp(-(time % period))
    level = -22 + sections + accents + beat + rng.normal(0, 1.5, frames)
    tilt = 0.3 * np.roll(accents, 3) - 0.2 * beat + 0.2 * sections + rng.normal(0, 0.7, frames)
    return level, tilt


def _stem(rng: np.random.Generator, song_id: str, number: int, label: str, frames: int) -> Stem:
    active = np.repeat(rng.random(frames // 80 + 1) < 0.7, 80)[:frames]
    known = lookup(label)
    return Stem(
        stem_id=f"S{number:02d}",
        path=f"{song_id.split('/')[1]}/stems/S{number:02d}.flac",
        label=label,
        instrument=known.instrument,
        family=known.family,
        sample_rate=RATE,
        channels=1 + number % 2,
        frames=frames * RATE // 10,
        lufs=float(rng.normal(-24, 5)),
        peak_dbfs=float(-abs(rng.normal(3, 2))),
        clipped=0.0,
        dc=0.0,
        bandwidth_hz=float(rng.choice([16_000.0, 20_500.0, 21_500.0])),
        activity=np.packbits(active).tobytes(),
        fingerprint=hashlib.blake2b(f"{song_id} {number}".encode(), digest_size=16).hexdigest(),
        size=int(rng.integers(1 << 20, 1 << 24)),
        mtime_ns=1_700_000_000_000_000_000,
    )


def write_large(path: Path, count: int, **options: int) -> None:
    """Write `large_songs` as a manifest, a row group at a time."""
    schema = SONGS_SCHEMA.with_metadata({"mgeldm.songs.version": SONGS_VERSION, "mgeldm.config": "made up"})
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        batch: list[Song] = []
        for song in large_songs(count, **options):
            batch.append(song)
            if len(batch) == ROW_GROUP:
                writer.write_table(song_rows(batch))
                batch = []
        if batch:
            writer.write_table(song_rows(batch))
