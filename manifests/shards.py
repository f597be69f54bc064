"""The shard sample: the one place that knows what a sample is, how it lies in a tar, and how it is found again.

DATA/, a folder or an fsspec URL
  shards/NAME.tar      WebDataset: KEY.latents.npy  KEY.embeddings.npy  KEY.json  for each sample
  shards/NAME.json     sidecar: marks the shard complete (samples, sha256, plan, encoder, failures)
  index.parquet        one row a sample
  dataset.json         the card: codec and embedder identity, latent statistics, counts, licences
  prompts.safetensors  text embeddings of every text of the splits
"""

import hashlib
import io
import json
import math
import mmap
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import safetensors.numpy
from safetensors import SafetensorError

from manifests.atomic import canonical_json, readable_json
from manifests.errors import ShardError, StoreError
from manifests.remote import is_remote
from manifests.songs import read_table, write_table
from manifests.store import Store, open_place, open_store

SAMPLE_VERSION = "1"
INDEX_VERSION = "2"
TRACKS = ("mix", "submix", "source")

INDEX_FILE = "index.parquet"
CARD_FILE = "dataset.json"
PROMPTS_FILE = "prompts.safetensors"
SHARDS_FOLDER = "shards"
MEMBERS = ("latents.npy", "embeddings.npy", "json")
"""What follows ``KEY.`` in the names of a sample's members, in their order."""

Array = npt.NDArray[np.float16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One window with its mix and K splits."""

    key: str
    """The window id."""
    latents: Array
    """``[1 + 2K, C, L]``: mix, then submix and source of each split; the VAE's mean."""
    embeddings: Array
    """``[1 + 2K, W, D]``: audio embeddings at W hops, unit length."""
    meta: dict[str, Any]
    """Song id, corpus, subset, start, splits with labels and texts, loudness, versions."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", self.key):
            raise ShardError(f"{self.key!r}: a key is 1 to 80 letters, digits, '-' and '_', without a dot")
        splits = len(self.meta["splits"])
        if not splits:
            raise ShardError(f"{self.key}: a sample has at least one split")
        for name, array in (("latents", self.latents), ("embeddings", self.embeddings)):
            if array.dtype != np.float16 or array.ndim != 3 or array.shape[0] != 1 + 2 * splits or not array.size:
                raise ShardError(
                    f"{self.key}: {name} must be float16 [{1 + 2 * splits}, ., .], got {array.dtype} {array.shape}"
                )
            if not np.isfinite(array).all():
                raise ShardError(f"{self.key}: {name} hold NaN or infinite values")

    def tracks(self, split: int) -> tuple[Array, Array]:
        """Latents ``[3, C, L]`` and embeddings ``[3, W, D]`` of one split, in the order mix, submix, source."""
        rows = [0, 1 + 2 * split, 2 + 2 * split]
        return self.latents[rows], self.embeddings[rows]


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexRow:
    """Where a sample lies. Offsets are bytes from the beginning of the tar file."""

    root: str = ""
    """"" where the shard lies in this data set's own folder of shards, else the data set, a full path or URL, that has
    it in its."""
    shard: str
    offset: int
    size: int
    key: str
    corpus: str
    subset: str
    song_id: str
    splits: int
    instruments: tuple[str, ...]
    """Instruments that are a source in one of the splits."""
    latents_offset: int
    embeddings_offset: int
    json_offset: int
    json_size: int
    checksum: str
    """Hex SHA-256 of the sample's bytes in the tar."""


INDEX_SCHEMA = pa.schema(
    [
        pa.field("root", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("size", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("corpus", pa.string(), nullable=False),
        pa.field("subset", pa.string(), nullable=False),
        pa.field("song_id", pa.string(), nullable=False),
        pa.field("splits", pa.int32(), nullable=False),
        pa.field("instruments", pa.list_(pa.string()), nullable=False),
        pa.field("latents_offset", pa.int64(), nullable=False),
        pa.field("embeddings_offset", pa.int64(), nullable=False),
        pa.field("json_offset", pa.int64(), nullable=False),
        pa.field("json_size", pa.int64(), nullable=False),
        pa.field("checksum", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetCard:
    """`dataset.json`: what a reader must know before it opens a shard."""

    version: str
    encoder: str
    """Hash over everything that decides the latents and embeddings."""
    codec: dict[str, Any]
    """Identity and spec."""
    embedder: dict[str, Any]
    """Identity and spec."""
    embed_hop_s: float
    prompt_template: str
    """Text embeddings are of this template with the split's text in place of ``{}``."""
    latent_mean: tuple[float, ...]
    """Per channel, over all tracks."""
    latent_std: tuple[float, ...]
    silence_latent: tuple[float, ...]
    """The codec's answer to digital silence, per channel, away from edges."""
    samples: int
    songs: int
    hours: float
    subsets: dict[str, int]
    instruments: dict[str, int]
    licenses: dict[str, int]
    failures: int

    @property
    def frames_per_second(self) -> float:
        """Latent frames a second."""
        return float(self.codec["spec"]["sample_rate"] / self.codec["spec"]["hop"])


def embedding_count(duration_s: float, embed_window_s: float, embed_hop_s: float) -> int:
    """W of a window: hops whose embedding begins in it and, where there is more than one, ends in it."""
    return 1 + max(0, int((duration_s - embed_window_s) / embed_hop_s + 1e-9))


def encode_array(array: npt.NDArray[Any]) -> bytes:
    """The array as an ``.npy`` file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def write_shard(path: Path | str, samples: Iterable[Sample]) -> tuple[list[IndexRow], str, int]:
    """Write samples as a tar atomically. Returns their index rows, the file's SHA-256 and its size in bytes.

    The bytes depend on the samples alone: no times, owners or host names go into the headers. Raises StoreError.
    """
    rows: list[IndexRow] = []
    store, name = open_place(path)
    with store.create(name) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                begin = tar.offset
                contents = (
                    encode_array(sample.latents),
                    encode_array(sample.embeddings),
                    canonical_json(sample.meta).encode(),
                )
                offsets = [
                    _add(tar, f"{sample.key}.{suffix}", content)
                    for suffix, content in zip(MEMBERS, contents, strict=True)
                ]
                rows.append(_row(name, sample, begin, tar.offset - begin, offsets, len(contents[-1])))
        size = file.tell()
        digest = hashlib.sha256()
        file.seek(0)
        for number, row in enumerate(rows):
            part = file.read(row.size)
            digest.update(part)
            rows[number] = replace(row, checksum=hashlib.sha256(part).hexdigest())
        digest.update(file.read())
    return rows, digest.hexdigest(), size


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(info, io.BytesIO(data))
    return offset


def _row(shard: str, sample: Sample, begin: int, size: int, offsets: list[int], json_size: int) -> IndexRow:
    splits = sample.meta["splits"]
    return IndexRow(
        shard=shard,
        offset=begin,
        size=size,
        key=sample.key,
        corpus=sample.meta["corpus"],
        subset=sample.meta["subset"],
        song_id=sample.meta["song_id"],
        splits=len(splits),
        instruments=tuple(sorted({name for split in splits for name in split["source_instruments"]})),
        latents_offset=offsets[0],
        embeddings_offset=offsets[1],
        json_offset=offsets[2],
        json_size=json_size,
        checksum="",
    )


def write_index(data: Path | str, rows: Iterable[IndexRow]) -> None:
    """Write ``index.parquet``, rows sorted by root, shard and offset. Raises StoreError."""
    ordered = sorted(rows, key=lambda row: (row.root, row.shard, row.offset))
    table = pa.Table.from_pylist([asdict(row) for row in ordered], schema=INDEX_SCHEMA)
    write_table(open_store(data).location(INDEX_FILE), table, "index", INDEX_VERSION, {})


def read_index(data: Path | str) -> list[IndexRow]:
    """Read ``index.parquet`` of a data set. Raises ManifestError or StoreError."""
    table = read_index_table(data)
    return [IndexRow(**{**row, "instruments": tuple(row["instruments"])}) for row in table.to_pylist()]


def read_index_table(data: Path | str) -> pa.Table:
    """The index as it lies, by columns: for data sets of many millions of samples. Raises as `read_index`."""
    return read_table(open_store(data).location(INDEX_FILE), "index", INDEX_VERSION, INDEX_SCHEMA)[0]


def write_card(data: Path | str, card: DatasetCard) -> None:
    """Write ``dataset.json``. Raises StoreError."""
    open_store(data).write(CARD_FILE, readable_json(asdict(card)))


def read_card(data: Path | str) -> DatasetCard:
    """Read ``dataset.json``. Raises ShardError or StoreError."""
    store = open_store(data)
    path = store.location(CARD_FILE)
    try:
        raw = json.loads(store.read(CARD_FILE))
    except FileNotFoundError:
        raise ShardError(f"{path}: missing; {data} is no finished data set (run `mgeldm encode` to its end)") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ShardError(f"{path}: not readable ({error})") from None
    if not isinstance(raw, dict):
        raise ShardError(f"{path}: not a data set card")
    if raw.get("version") != SAMPLE_VERSION:
        raise ShardError(f"{path}: samples of version {raw.get('version')!r}, this program reads {SAMPLE_VERSION!r}")
    try:
        vectors = {name: tuple(raw[name]) for name in ("latent_mean", "latent_std", "silence_latent")}
        card = DatasetCard(**{**raw, **vectors})
        _ = card.frames_per_second, card.codec["spec"]["latent_channels"], card.embedder["spec"]["window_s"]
        return card
    except (KeyError, TypeError, ZeroDivisionError) as error:
        raise ShardError(f"{path}: not a data set card ({error})") from None


def write_prompts(path: Path | str, prompts: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Write text embeddings: one tensor ``[P, D]`` and, in the metadata, the list of texts. Raises StoreError."""
    texts = sorted(prompts)
    store, name = open_place(path)
    vectors = {"embeddings": np.stack([prompts[text] for text in texts])}
    store.write(name, safetensors.numpy.save(vectors, {"texts": json.dumps(texts)}))


def read_prompts(data: Path | str) -> dict[str, npt.NDArray[np.float32]]:
    """Text -> embedding ``[D]`` of a data set. Raises ShardError or StoreError."""
    store = open_store(data)
    try:
        content = store.read(PROMPTS_FILE)
        # The library has no reader of metadata that are not in a file.
        head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        texts = json.loads(head["__metadata__"]["texts"])
        return dict(zip(texts, safetensors.numpy.load(content)["embeddings"], strict=True))
    except StoreError:
        raise
    except FileNotFoundError:
        raise ShardError(f"{store.location(PROMPTS_FILE)}: missing; encode writes it anew") from None
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        place = store.location(PROMPTS_FILE)
        raise ShardError(f"{place}: not readable ({error}); encode writes it anew") from None


class ShardReader:
    """Random access to the samples of a data set: ``reader[window_id]``.

    Shards of a folder are mapped into memory, not read: only the pages of the samples that are asked for are touched.
    Of a remote shard each sample is one request.
    """

    def __init__(self, data: Path | str) -> None:
        """Open a data set folder or URL. Raises ManifestError, ShardError or StoreError."""
        self.data = str(data)
        self.card = read_card(data)
        self.rows = read_index(data)
        self._by_key = {row.key: row for row in self.rows}
        self._stores: dict[str, Store] = {}
        self._maps: dict[tuple[str, str], mmap.mmap] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_key)

    def __contains__(self, key: object) -> bool:
        return key in self._by_key

    def __getitem__(self, key: str) -> Sample:
        """The sample of a window id. Raises KeyError for an unknown id, and as `read`."""
        return self.read(self._by_key[key])

    def read(self, row: IndexRow) -> Sample:
        """The sample at an index row. Raises ShardError when the shard is missing or damaged there, or StoreError."""
        return read_sample(self.raw(row), row, self._store(row).location(shard_name(row)))

    def raw(self, row: IndexRow) -> memoryview:
        """The sample's bytes in the tar, as the checksum of the index covers them. Raises as `read`."""
        store, name = self._store(row), shard_name(row)
        if is_remote(store.root):
            try:
                return memoryview(store.read_range(name, row.offset, row.size))
            except FileNotFoundError:
                raise ShardError(f"{store.location(name)}: missing, though the index names it") from None
        if (row.root, row.shard) not in self._maps:
            self._maps[row.root, row.shard] = map_shard(store, name)
        return sample_bytes(self._maps[row.root, row.shard], row)

    def _store(self, row: IndexRow) -> Store:
        if row.root not in self._stores:
            self._stores[row.root] = open_store(row.root or self.data)
        return self._stores[row.root]


def shard_name(row: IndexRow) -> str:
    """Name of the row's shard in the data set that it lies in."""
    return f"{SHARDS_FOLDER}/{row.shard}"


def map_shard(store: Store, name: str) -> mmap.mmap:
    """Map a shard into memory. Raises ShardError."""
    try:
        return store.map(name)
    except (OSError, ValueError) as error:
        raise ShardError(f"{store.location(name)}: cannot be opened ({error}), though the index names it") from None


def sample_bytes(shard: mmap.mmap, row: IndexRow) -> memoryview:
    """The bytes of a sample, fewer where the shard ends before; nothing is copied."""
    return memoryview(shard)[row.offset : row.offset + row.size]


def read_sample(content: memoryview, row: IndexRow, place: str) -> Sample:
    """The sample of ``row`` from its bytes; its arrays are read-only views. Raises ShardError that names ``place``.

    Only headers are checked, not the checksum, which would touch every page.
    """
    if len(content) < row.size:
        raise ShardError(f"{place}: ends before sample {row.key}; verify the shards")
    json_begin = row.json_offset - row.offset
    try:
        return Sample(
            key=row.key,
            latents=_array(content, row.latents_offset - row.offset),
            embeddings=_array(content, row.embeddings_offset - row.offset),
            meta=json.loads(bytes(content[json_begin : json_begin + row.json_size])),
        )
    # Damaged bytes make the parsers of JSON and of npy headers raise almost anything.
    except Exception as error:
        raise ShardError(f"{place}: sample {row.key} is damaged ({error!r}); verify the shards") from error


def _array(content: memoryview, begin: int) -> Array:
    """The ``.npy`` at ``begin``."""
    shape, length = npy_header(content, begin)
    return np.frombuffer(content, np.float16, math.prod(shape), begin + length).reshape(shape)


def npy_header(content: memoryview | bytes, begin: int) -> tuple[tuple[int, ...], int]:
    """Shape of the float16 ``.npy`` at ``begin`` of a sample's bytes, and the length of its header.

    Raises ValueError, and nearly anything else where the bytes are damaged.
    """
    header = io.BytesIO(content[begin : begin + tarfile.BLOCKSIZE])
    version = np.lib.format.read_magic(header)
    if version != (1, 0):
        raise ValueError(f"npy version {version}")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(header)
    if fortran or dtype != np.float16 or not 0 <= math.prod(shape) <= (len(content) - begin - header.tell()) // 2:
        raise ValueError(f"npy of {dtype} {shape}, Fortran order {fortran}")
    return shape, header.tell()
