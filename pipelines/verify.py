"""verify: is a data set folder whole? Every shard against its sidecar, the index, the card and the texts."""

import hashlib
import mmap
import tarfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

import numpy as np

from manifests.atomic import TEMPORARY_PREFIX
from manifests.errors import ConfigError, MGELDMError, ShardError
from manifests.shards import (
    CARD_FILE,
    INDEX_FILE,
    MEMBERS,
    PROMPTS_FILE,
    SHARDS_FOLDER,
    DatasetCard,
    IndexRow,
    Sample,
    ShardReader,
    embedding_count,
    map_shard,
    read_card,
    read_index,
    read_prompts,
    read_sample,
    sample_bytes,
)
from manifests.splits import read_splits
from manifests.store import open_store
from manifests.units import FAILURES_FILE, WORKER_DIED, Failure, Sidecar, parse_sidecar, read_failures
from mgeldm.progress import progress
from pipelines.encode_unit import Totals
from pipelines.verify_plan import Finding, Reencode, Reencoded, check_plan, check_reencoded

T = TypeVar("T")

CODES = {
    "missing": "a file of the data set is not there",
    "unreadable": "a file is not what its name says",
    "sidecar": "shard and sidecar do not say the same",
    "members": "a shard holds other members than its index rows say",
    "checksum": "the bytes of a sample are not those that were indexed",
    "sample": "a sample cannot be read, or has a wrong type, shape, or values that are not finite",
    "meta": "the JSON of a sample and its index row or the card do not say the same",
    "prompt": "a text of a split has no embedding",
    "duplicate": "a window stands more than once in the index",
    "card": "the card counts otherwise than the index",
    "not_planned": "a window that is not in the plan",
    "not_encoded": "a window of the plan that is not in the index once, or has not failed with a code",
    "plan": "song, time or splits of a sample are not the plan's",
    "reencode": "encoding a window anew gives something else",
    "leftover": "a file that belongs to no sample, such as one that a killed run left behind",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """What was looked at and what is wrong with it."""

    samples: int
    """Rows of the index."""
    shards: int
    """Shards that the index or the table of failures names."""
    problems: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    """Nothing is lost, but a person may want to know."""
    reencoded: Reencoded | None = None
    """Where windows were encoded anew; what differs is among the problems."""


def verify(data: Path | str, splits: Path | None = None, reencode: Reencode | None = None) -> VerifyReport:
    """Check the data set ``data``, a folder or URL; whatever is damaged becomes a problem of the report.

    ``splits`` is the plan to check it against, ``reencode`` says which windows of the plan to encode anew.

    Raises:
        ShardError: there is no such folder, or nothing below the URL; or codec or embedder are not the card's.
        ConfigError: windows are to be encoded anew without a plan.
        ManifestError: plan or manifest cannot be used.
        StoreError: it cannot be listed.
    """
    store = open_store(data)
    if not store.sizes() and not store.sizes(SHARDS_FOLDER) and not Path(store.root).is_dir():
        raise ShardError(f"{data}: no such folder, or no data set in it")
    if reencode and splits is None:
        raise ConfigError("windows are encoded anew by a plan; give --splits, too")
    plan = None if splits is None else read_splits(splits)
    verifier = _Verifier(data)
    report = verifier.run()
    if plan is None:
        return report
    if verifier.card is None or any(problem.file == INDEX_FILE for problem in report.problems):
        skipped = Finding(str(splits), "plan", "not compared with the data set, whose card or index is damaged")
        return replace(report, problems=(*report.problems, skipped))
    reader = ShardReader(data)
    report = replace(report, problems=(*report.problems, *check_plan(reader, plan, verifier.failures)))
    if reencode is None:
        return report
    reencoded = check_reencoded(reader, plan, reencode)
    return replace(report, problems=(*report.problems, *reencoded.problems), reencoded=reencoded)


class _Verifier:
    def __init__(self, data: Path | str) -> None:
        self.data, self.store = data, open_store(data)
        self.problems: list[Finding] = []
        self.card: DatasetCard | None = self._read(CARD_FILE, read_card)
        self.rows: list[IndexRow] = self._read(INDEX_FILE, read_index) or []
        self.failures: list[Failure] = self._read(FAILURES_FILE, read_failures) or []
        self.prompts = self._read(PROMPTS_FILE, read_prompts)
        self.totals: Totals | None = None
        self.readable = 0
        self.licenses: dict[str, str] = {}

    def run(self) -> VerifyReport:
        """Look at everything."""
        by_shard: dict[tuple[str, str], list[IndexRow]] = defaultdict(list)
        for row in self.rows:
            by_shard[row.root, row.shard].append(row)
        # A shard whose every window failed has no row.
        units = {failure.unit for failure in self.failures if failure.code != WORKER_DIED}
        rowless = {f"{unit}.tar" for unit in units} - {shard for _, shard in by_shard}
        # Of a data set that was put together by index, nothing says in which other one it lies.
        named = sorted({*by_shard, *(("", shard) for shard in rowless if not any(root for root, _ in by_shard))})
        with progress(len(named), "verify", "shards") as bar:
            for root, shard in named:
                name = f"{SHARDS_FOLDER}/{shard}"
                file = f"{root}/{name}" if root else name
                with self._caught(file, "unreadable"):
                    self._check_shard(file, root, name, by_shard[root, shard])
                bar.update()
        for key, count in Counter(row.key for row in self.rows).items():
            if count > 1:
                self._problem(INDEX_FILE, "duplicate", f"{key}: {count} rows")
        with self._caught(CARD_FILE, "card"):
            self._check_card()
        return VerifyReport(
            samples=len(self.rows),
            shards=len(named),
            problems=tuple(self.problems),
            notes=tuple(self._leftovers({shard.removesuffix(".tar") for root, shard in named if not root})),
        )

    def _problem(self, file: str, code: str, message: str) -> None:
        self.problems.append(Finding(file, code, message))

    @contextmanager
    def _caught(self, file: str, code: str, about: str = "") -> Iterator[None]:
        """Damaged bytes make parsers raise almost anything; here it becomes a problem."""
        try:
            yield
        except MGELDMError as error:
            self._problem(file, code, " ".join(str(error).split()))
        except Exception as error:  # its text alone often says little
            self._problem(file, code, f"{about}{' '.join(repr(error).split())}")

    def _read(self, name: str, read: Callable[[Path | str], T]) -> T | None:
        if not self.store.exists(name):
            self._problem(name, "missing", "encode writes it at its end; run it again")
            return None
        with self._caught(name, "unreadable"):
            return read(self.data)
        return None

    def _check_shard(self, file: str, root: str, name: str, rows: Sequence[IndexRow]) -> None:
        """Check ``name`` in the data set ``root``, "" for this one, which problems call ``file``."""
        store = open_store(root) if root else self.store
        unit = name.removeprefix(f"{SHARDS_FOLDER}/").removesuffix(".tar")
        if not store.exists(name):
            with self._caught(file, "sidecar"):
                if rows or parse_sidecar(store.root, unit).size:
                    self._problem(file, "missing", f"the index has {len(rows)} samples in it")
            return
        shard = map_shard(store, name)
        whole = rows
        with self._caught(file, "sidecar"):
            sidecar = parse_sidecar(store.root, unit)
            self._check_sidecar(file, shard, sidecar)
            own = tuple(replace(row, root="") for row in rows)
            if root and set(own) <= set(sidecar.rows):
                # The index may have chosen from the samples of a shard that lies elsewhere.
                whole = sidecar.rows
            elif sidecar.rows != own:
                self._problem(file, "sidecar", f"its {len(sidecar.rows)} rows are not the {len(rows)} of the index")
        with self._caught(file, "members"):
            self._check_members(file, shard, whole)
        for row in rows:
            content = sample_bytes(shard, row)
            if hashlib.sha256(content).hexdigest() != row.checksum:
                self._problem(file, "checksum", f"{row.key}: bytes {row.offset} to {row.offset + row.size}")
            with self._caught(file, "sample", f"{row.key}: "):
                self._check_sample(file, read_sample(content, row, store.location(name)), row)

    def _check_sidecar(self, file: str, shard: mmap.mmap, sidecar: Sidecar) -> None:
        if sidecar.size != len(shard):
            self._problem(file, "sidecar", f"{len(shard)} bytes, the sidecar says {sidecar.size}")
        elif sidecar.sha256 != hashlib.sha256(shard).hexdigest():
            self._problem(file, "sidecar", f"SHA-256 is not {sidecar.sha256}, as the sidecar says")
        if self.card and sidecar.encoder != self.card.encoder:
            self._problem(file, "sidecar", f"encoder {sidecar.encoder}, the card says {self.card.encoder}")

    def _check_members(self, file: str, shard: mmap.mmap, rows: Sequence[IndexRow]) -> None:
        expected = [
            (f"{row.key}.{suffix}", offset)
            for row in rows
            for suffix, offset in zip(
                MEMBERS, (row.latents_offset, row.embeddings_offset, row.json_offset), strict=True
            )
        ]
        with tarfile.open(fileobj=shard, mode="r:") as tar:  # type: ignore[arg-type]
            found = [(member.name, member.offset_data) for member in tar]
        for number, (have, want) in enumerate(zip_longest(found, expected)):
            if have != want:
                self._problem(file, "members", f"member {number}: {_member(have)}, the index says {_member(want)}")
                return

    def _check_sample(self, file: str, sample: Sample, row: IndexRow) -> None:
        meta = sample.meta
        stated = {name: (meta[name], getattr(row, name)) for name in ("song_id", "corpus", "subset")}
        sources = sorted({name for split in meta["splits"] for name in split["source_instruments"]})
        stated |= {"splits": (len(meta["splits"]), row.splits), "instruments": (tuple(sources), row.instruments)}
        for name, (own, indexed) in stated.items():
            if own != indexed:
                self._problem(file, "meta", f"{row.key}: {name} is {own!r}, the index says {indexed!r}")
        if self.card:
            if meta["encoder"] != self.card.encoder:
                self._problem(file, "meta", f"{row.key}: encoder {meta['encoder']}, the card says {self.card.encoder}")
            self._check_shapes(file, sample, self.card)
        if self.prompts is not None:
            texts = {text for split in meta["splits"] for text in (split["source_text"], split["submix_text"])}
            for text in sorted(texts - self.prompts.keys()):
                self._problem(file, "prompt", f"{row.key}: {text!r} is not in {PROMPTS_FILE}")
        self.totals = self.totals or Totals(sample.latents.shape[1])
        if sample.latents.shape[1] == len(self.totals.sum):
            self.totals.add(sample)
            self.readable += 1
        self.licenses[row.song_id] = meta["license"]

    def _check_shapes(self, file: str, sample: Sample, card: DatasetCard) -> None:
        codec, embedder = card.codec["spec"], card.embedder["spec"]
        seconds = sample.meta["duration_s"]
        hops = embedding_count(seconds, embedder["window_s"], card.embed_hop_s)
        for name, array, shape in (
            ("latents", sample.latents, (codec["latent_channels"], round(seconds * card.frames_per_second))),
            ("embeddings", sample.embeddings, (hops, embedder["dim"])),
        ):
            if array.shape[1:] != shape:
                self._problem(file, "sample", f"{sample.key}: {name} of shape {array.shape}, expected [., {shape}]")

    def _check_card(self) -> None:
        if self.card is None:
            return
        self._check_values(self.card)
        counted = {
            "samples": len(self.rows),
            "songs": len({row.song_id for row in self.rows}),
            "subsets": dict(Counter(row.subset for row in self.rows)),
            "instruments": dict(Counter(name for row in self.rows for name in row.instruments)),
            "failures": len(self.failures),
        }
        # What only the samples say can be counted only where all of them can be read.
        if self.readable == len(self.rows):
            hours = self.totals.seconds / 3600 if self.totals else 0.0
            counted |= {"licenses": dict(Counter(self.licenses.values())), "hours": round(hours, 6)}
        for name, value in counted.items():
            said = getattr(self.card, name)
            if (round(said, 6) if name == "hours" else said) != value:
                self._problem(CARD_FILE, "card", f"{name} is {said}, counted {value}")

    def _check_values(self, card: DatasetCard) -> None:
        """What training and sampling take from the card."""
        channels = card.codec["spec"]["latent_channels"]
        # What is damaged has other moments.
        moments = self.totals.moments() if self.totals and not self.problems else (None, None)
        for name, counted in zip(("latent_mean", "latent_std", "silence_latent"), (*moments, None), strict=True):
            values = getattr(card, name)
            try:
                said = np.array(values, np.float64)
            except ValueError:
                said = np.zeros(0)
            if said.shape != (channels,) or not np.isfinite(said).all():
                self._problem(CARD_FILE, "card", f"{name} is no list of {channels} finite numbers")
            elif counted is not None and not np.allclose(said, counted, rtol=1e-6, atol=1e-6):
                worst = int(np.abs(said - counted).argmax())
                self._problem(
                    CARD_FILE,
                    "card",
                    f"{name} of channel {worst} is {said[worst]:g}, the samples say {counted[worst]:g}",
                )
        if "{}" not in str(card.prompt_template):
            self._problem(CARD_FILE, "card", f"prompt_template {card.prompt_template!r} has no {{}} for the words")
        if not card.embed_hop_s > 0:
            self._problem(CARD_FILE, "card", f"embed_hop_s {card.embed_hop_s} is not above 0")

    def _leftovers(self, named: set[str]) -> Iterator[Finding]:
        for folder in ("", f"{SHARDS_FOLDER}/"):
            for name in sorted(self.store.sizes(folder.rstrip("/"))):
                stem, _, suffix = name.rpartition(".")
                if name.startswith(TEMPORARY_PREFIX):
                    message = "a run that was killed left it; delete it when none is running"
                elif folder and suffix in ("tar", "json") and stem not in named:
                    message = "the index names no sample in it: of an earlier plan, or not finished"
                else:
                    continue
                yield Finding(folder + name, "leftover", message)


def _member(found: tuple[str, int] | None) -> str:
    return f"{found[0]} at byte {found[1]}" if found else "none"
