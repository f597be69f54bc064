"""merge, select: data sets made of the samples of others by index only. No shard is copied: rows name where it lies."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from manifests.errors import ConfigError, ShardError
from manifests.index_queries import matching_rows
from manifests.remote import is_remote
from manifests.shards import (
    CARD_FILE,
    INDEX_FILE,
    PROMPTS_FILE,
    SHARDS_FOLDER,
    DatasetCard,
    IndexRow,
    ShardReader,
    read_prompts,
    write_card,
    write_index,
    write_prompts,
)
from manifests.store import open_store
from manifests.units import FAILURES_FILE, Failure, Sidecar, parse_sidecar, read_failures, write_failures
from pipelines.croissant import write_croissant
from pipelines.dataset_readme import check_no_other_readme, write_readme
from pipelines.encode_unit import latent_moments

Place = Path | str


@dataclass(frozen=True, slots=True, kw_only=True)
class CombineSummary:
    """What a data set that was put together by index holds."""

    samples: int
    of: int
    """Samples of all data sets that it was made of; a window that stands in several counts each time."""
    songs: int
    hours: float
    roots: tuple[str, ...]
    """Data sets whose shards it reads: they must stay where they are."""


def merge(sources: Sequence[Place], out: Place) -> CombineSummary:
    """Make the data set ``out`` of all samples of ``sources``, whose shards stay where they are.

    A window with the same bytes in several of them is taken once, from the first.

    Raises:
        ConfigError: ``out`` holds something already.
        ShardError: a source is no finished data set, two were encoded differently, or a window differs.
        ManifestError, StoreError: a table cannot be read or written.
    """
    if not sources:
        raise ConfigError("merge needs at least one data set")
    readers = [ShardReader(source) for source in sources]
    for reader in readers[1:]:
        _check_alike(readers[0], reader)
    rows: dict[str, IndexRow] = {}
    for reader in readers:
        for row in reader.rows:
            found = _rooted(row, reader.data)
            known = rows.setdefault(row.key, found)
            if known.checksum != found.checksum:
                raise ShardError(
                    f"window {row.key} is in {known.root} and in {found.root} with different bytes; leave it out "
                    "of one (`mgeldm shards select`)"
                )
    failures = {failure.window_id: failure for reader in readers for failure in _failures(reader.data)}
    lost = [failure for key, failure in failures.items() if key not in rows]
    return _write(out, readers, list(rows.values()), lost)


def select(source: Place, where: str, out: Place) -> CombineSummary:
    """Make the data set ``out`` of the samples of ``source`` for which the SQL expression ``where`` is true.

    Failures stay as far as their song is chosen; latent moments are those of the chosen samples.

    Raises:
        ConfigError: the expression is wrong or chooses nothing, or ``out`` holds something already.
        ShardError, ManifestError, StoreError: as `merge`.
    """
    reader = ShardReader(source)
    chosen = matching_rows([_rooted(row, reader.data) for row in reader.rows], where)
    if not chosen:
        raise ConfigError(f"--where {where}: no sample of the {len(reader)} in {source} is chosen")
    songs = {row.song_id for row in chosen}
    return _write(out, [reader], chosen, [failure for failure in _failures(source) if failure.song_id in songs])


def _check_alike(first: ShardReader, other: ShardReader) -> None:
    """Raise ShardError unless latents, embeddings and texts of both can stand in one data set."""
    one, two = first.card, other.card
    for name, have, want in (
        ("codec", two.codec["identity"], one.codec["identity"]),
        ("embedder", two.embedder["identity"], one.embedder["identity"]),
        ("embed_hop_s", two.embed_hop_s, one.embed_hop_s),
        ("encoder", two.encoder, one.encoder),
        ("prompt_template", two.prompt_template, one.prompt_template),
    ):
        if have != want:
            raise ShardError(f"{other.data}: {name} {have}, but {first.data} has {want}; encode both alike")


def _rooted(row: IndexRow, data: str) -> IndexRow:
    """The row for a data set that lies elsewhere."""
    if row.root:
        return row
    return replace(row, root=data if is_remote(data) else str(Path(data).resolve()))


def _failures(data: Place) -> list[Failure]:
    return read_failures(data) if open_store(data).exists(FAILURES_FILE) else []


def _write(
    out: Place, readers: Sequence[ShardReader], rows: Sequence[IndexRow], failures: Sequence[Failure]
) -> CombineSummary:
    store = open_store(out)
    if any(store.exists(name) for name in (CARD_FILE, INDEX_FILE)) or store.sizes(SHARDS_FOLDER):
        raise ConfigError(f"{out}: holds a data set already; choose another folder")
    check_no_other_readme(out)
    prompts: dict[str, npt.NDArray[np.float32]] = {}
    for reader in readers:
        prompts = read_prompts(reader.data) | prompts
    sidecars, licenses = _sidecars(readers[0], rows)
    card = _card(readers[0].card, rows, [sidecar for _, sidecar in sidecars], licenses, len(failures))
    write_prompts(store.location(PROMPTS_FILE), prompts)
    write_failures(out, failures)
    write_index(out, rows)
    roots = tuple(sorted({row.root for row in rows}))
    write_readme(out, card, roots=roots)
    write_croissant(out, card, sidecars)
    write_card(out, card)
    return CombineSummary(
        samples=card.samples,
        of=sum(len(reader) for reader in readers),
        songs=card.songs,
        hours=card.hours,
        roots=roots,
    )


def _sidecars(reader: ShardReader, rows: Sequence[IndexRow]) -> tuple[list[tuple[str, Sidecar]], dict[str, str]]:
    """Each shard's root and sidecar, trimmed to ``rows``; and the licence of each song.

    Rows name their roots, so that any reader can read them.
    """
    by_shard: dict[tuple[str, str], list[IndexRow]] = defaultdict(list)
    for row in rows:
        by_shard[row.root, row.shard].append(row)
    sidecars, licenses = [], {}
    for (root, shard), chosen in sorted(by_shard.items()):
        sidecar = parse_sidecar(root, shard.removesuffix(".tar"))
        sidecars.append((root, _trimmed(sidecar, chosen, reader)))
        for row in {row.song_id: row for row in chosen}.values():
            licenses[row.song_id] = reader.read(row).meta["license"]
    return sidecars, licenses


def _card(
    first: DatasetCard,
    rows: Sequence[IndexRow],
    sidecars: Sequence[Sidecar],
    licenses: Mapping[str, str],
    failures: int,
) -> DatasetCard:
    """The card over ``rows``, with the moments and hours that `encode` would have found for these samples alone."""
    mean, deviation = latent_moments(sidecars, int(first.codec["spec"]["latent_channels"]))
    return replace(
        first,
        latent_mean=tuple(mean),
        latent_std=tuple(deviation),
        samples=len(rows),
        songs=len(licenses),
        hours=sum(sidecar.seconds for sidecar in sidecars) / 3600,
        subsets=_counts(row.subset for row in rows),
        instruments=_counts(name for row in rows for name in row.instruments),
        licenses=_counts(licenses.values()),
        failures=failures,
    )


def _trimmed(sidecar: Sidecar, chosen: Sequence[IndexRow], reader: ShardReader) -> Sidecar:
    """The sidecar as if its shard held the chosen samples only; they are read only where some are left out."""
    if {row.key for row in sidecar.rows} == {row.key for row in chosen}:
        return sidecar
    count, seconds = 0, 0.0
    total, squares = np.zeros(len(sidecar.latent_sum)), np.zeros(len(sidecar.latent_sum))
    for row in sorted(chosen, key=lambda row: row.offset):
        sample = reader.read(row)
        values = sample.latents.astype(np.float64)
        count += values.shape[0] * values.shape[2]
        seconds += sample.meta["duration_s"]
        total += values.sum(axis=(0, 2))
        squares += np.square(values).sum(axis=(0, 2))
    return replace(
        sidecar,
        latent_count=count,
        latent_sum=tuple(total.tolist()),
        latent_squares=tuple(squares.tolist()),
        seconds=seconds,
    )


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
