"""The samples of one subset of a data set, as examples: a crop of a split, with its embeddings and its words.

What is kept of a sample is its row of the index, by columns, and the numbers of its texts once it was read: a few
hundred bytes, however large it is.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import ShardError
from manifests.shards import TRACKS, DatasetCard, npy_header, read_card, read_index_table, read_prompts
from training.conditions import training_conditions
from training.order import Order
from training.shard_bytes import ShardBytes
from training.shard_cache import ShardCache

Half = npt.NDArray[np.float16]
Float = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.int64]
Drawn = tuple[Half, Float, Flags]
"""Latents ``[B, K, C, L]``, conditions ``[B, K, D]`` and which tracks are there ``[B, K]``."""
_UNREAD = -1
_HEADER = 128
"""Length of the header of an ``.npy`` of three dimensions."""
_SLICE = 1 << 16
_INFINITE = 0x7C00
"""Bits of infinity; those of NaNs are above."""


class ShardSet:
    """Random access to examples by row; rows are sorted by key. Safe for threads."""

    levels = 2 + 1 + len(TRACKS)
    """Numbers that make an example: of split and crop, of text and audio, of dropping each track's condition."""

    def __init__(
        self,
        data: Path | str,
        subset: str,
        crop_frames: int,
        *,
        present: Sequence[str] = TRACKS,
        cache: ShardCache | None = None,
        whole_shards: bool = False,
    ) -> None:
        """Open a subset of a data set folder or URL; what comes from far goes through ``cache``.

        Tracks that are not among ``present`` are said to be absent. Raises ManifestError, StoreError, and ShardError
        when the subset is empty or its windows are shorter than the crop.
        """
        self.data, self.crop_frames = str(data), crop_frames
        self.card: DatasetCard = read_card(data)
        self.channels = int(self.card.codec["spec"]["latent_channels"])
        """C of the latents."""
        self.dim = int(self.card.embedder["spec"]["dim"])
        """D of the embeddings."""
        index = read_index_table(data)
        index = self._usable(index.filter(pc.equal(index["subset"], subset))).sort_by("key")
        if not len(index):
            raise ShardError(f"{data}: no sample of subset {subset!r}; it has {self.card.subsets}")
        self._present = np.isin(TRACKS, present)
        self._bytes = ShardBytes(data, index, cache, whole_shards)
        self._keys, self._checksums = index["key"].combine_chunks(), index["checksum"].combine_chunks()
        counted = index["corpus"].value_counts().to_pylist()
        self.corpora: dict[str, int] = {entry["values"]: entry["counts"] for entry in counted}
        """Samples of each corpus."""
        offset = index["offset"].to_numpy()
        self._begins = np.stack(
            [index[name].to_numpy() - offset for name in ("latents_offset", "embeddings_offset", "json_offset")], axis=1
        )
        self._json_sizes = index["json_size"].to_numpy()
        self._splits = index["splits"].to_numpy().astype(np.int64)
        self._first_split = np.concatenate([[0], np.cumsum(self._splits)])
        self._texts = np.full(self._first_split[-1], _UNREAD, np.int32)
        prompts = read_prompts(data)
        self._text_numbers = {text: number for number, text in enumerate(prompts)}
        self._prompts = np.stack(list(prompts.values())) if prompts else np.zeros((0, self.dim), np.float32)
        self._headers: dict[bytes, tuple[tuple[int, ...], int]] = {}
        middle = crop_frames / 2 / self.card.frames_per_second
        self._first_hop = (middle - self.card.embedder["spec"]["window_s"] / 2) / self.card.embed_hop_s
        self._hops_per_frame = 1 / self.card.frames_per_second / self.card.embed_hop_s
        self.examples(np.zeros(1, np.int64), np.zeros((1, 2)))

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def hours(self) -> float:
        """Hours of this subset, from the data set's, as if all windows were equally long."""
        return self.card.hours * len(self) / max(1, self.card.samples)

    @property
    def shards(self) -> Rows:
        """The number of each row's shard ``[rows]``."""
        return self._bytes.shards

    @property
    def largest_far_shard(self) -> int:
        """Bytes of the largest shard of a data set that comes from far; 0 for one on a disk."""
        return self._bytes.largest_far

    def keys(self, rows: Rows) -> list[str]:
        """Window ids."""
        return list(self._keys.take(pa.array(rows)).to_pylist())

    def identity(self, order: Order = "shuffled") -> str:
        """Hash over keys and contents of all samples, and over which share a shard, where the order goes by that."""
        digest = hashlib.sha256()
        if order == "shards":
            digest.update(self.shards.astype("<i8").tobytes())
        for begin in range(0, len(self), _SLICE):
            for column in (self._keys, self._checksums):
                digest.update("\n".join(column.slice(begin, _SLICE).to_pylist()).encode())
        return digest.hexdigest()

    def drawn(self, rows: Rows, levels: npt.NDArray[np.float64], dropout: float) -> Drawn:
        """One example of each row, complete but for its noise, drawn by ``levels`` ``[B, self.levels]`` in [0, 1).

        Raises as `examples`.
        """
        latents, audio, text = self.examples(rows, levels[:, :2])
        conditions = training_conditions(audio, text, TRACKS.index("source"), dropout, levels[:, 2:])
        return latents, conditions, np.tile(self._present, (len(rows), 1))

    def examples(self, rows: Rows, levels: npt.NDArray[np.float64]) -> tuple[Half, Half, Float]:
        """One example of each row, drawn by ``levels`` ``[B, 2]`` in [0, 1): of its splits, and of its crops.

        Returns:
            Latents ``[B, 3, C, L]``, audio embeddings ``[B, 3, D]`` in the middle of the crop, and the embedding of the
            source's text ``[B, D]``.

        Raises:
            ShardError: a shard is missing or damaged, a window is too short, or a text has no embedding.
        """
        latents = np.empty((len(rows), len(TRACKS), self.channels, self.crop_frames), np.float16)
        audio = np.empty((len(rows), len(TRACKS), self.dim), np.float16)
        splits = (levels[:, 0] * self._splits[rows]).astype(np.int64)
        texts = np.empty(len(rows), np.int64)
        contents: Iterator[bytes] = self._bytes.read(rows.tolist())
        drawn = zip(contents, rows.tolist(), splits.tolist(), levels[:, 1].tolist(), strict=True)
        for place, (content, row, split, level) in enumerate(drawn):
            try:
                frames, hops = self._array(content, row, 0), self._array(content, row, 1)
                start = int(level * (frames.shape[2] - self.crop_frames + 1))
                hop = self.embedding_hop(start, hops.shape[1])
                pair = slice(1 + 2 * split, 3 + 2 * split)
                latents[place, 0] = frames[0, :, start : start + self.crop_frames]
                latents[place, 1:] = frames[pair, :, start : start + self.crop_frames]
                audio[place, 0], audio[place, 1:] = hops[0, hop], hops[pair, hop]
                texts[place] = self._text(content, row, split)
            except ShardError:
                raise
            # Damaged bytes make the parsers of JSON and of npy headers raise almost anything.
            except Exception as error:
                raise self._damaged(row, error) from error
        self._check_finite(rows, latents, audio)
        return latents, audio, self._prompts[texts]

    def embedding_hop(self, start: int, hops: int) -> int:
        """The embedding whose window lies best in the middle of a crop: the embedding moves with the crop."""
        return max(0, min(round(self._first_hop + start * self._hops_per_frame), hops - 1))

    def _usable(self, index: pa.Table) -> pa.Table:
        """The rows of a subset's index that make examples."""
        return index

    def _damaged(self, row: int, error: Exception) -> ShardError:
        place, key = self._bytes.place(row), self._key(row)
        return ShardError(f"{place}: sample {key} is damaged ({type(error).__name__}: {error}); verify the shards")

    def _check_finite(self, rows: Rows, latents: Half, audio: Half) -> None:
        for name, array in (("latents", latents), ("embeddings", audio)):
            if not _finite(array):
                row = int(rows[[not _finite(one) for one in array].index(True)])
                raise ShardError(
                    f"{self._bytes.place(row)}: sample {self._key(row)}: {name} hold NaN or infinite values; "
                    "verify the shards"
                )

    def _array(self, content: bytes, row: int, member: int) -> Half:
        begin = int(self._begins[row, member])
        head = content[begin : begin + _HEADER]
        known = self._headers.get(head)
        if known is None:
            known = npy_header(content, begin)
            if known[1] == _HEADER:  # else it does not tell all
                self._headers[head] = known
        shape, length = known
        if (
            shape[0] != 1 + 2 * self._splits[row]
            or len(shape) != 3
            or shape[1 + member] != (self.channels, self.dim)[member]
        ):
            raise ValueError(f"{('latents', 'embeddings')[member]} {list(shape)}")
        if not member and shape[2] < self.crop_frames:
            raise ShardError(
                f"{self.data}: window {self._key(row)} has {shape[2]} frames, fewer than the crop of "
                f"{self.crop_frames}; lower stream.crop_frames, or split with longer windows"
            )
        return np.frombuffer(content, np.float16, shape[0] * shape[1] * shape[2], begin + length).reshape(shape)

    def _text(self, content: bytes, row: int, split: int) -> int:
        place = self._first_split[row] + split
        number = self._texts[place]
        if number == _UNREAD:
            for other, entry in enumerate(self._described(content, row)):
                self._texts[self._first_split[row] + other] = self._number(entry["source_text"], row)
            number = self._texts[place]
        return int(number)

    def _described(self, content: bytes, row: int) -> list[dict[str, Any]]:
        """What the sample's json says of its splits."""
        begin = int(self._begins[row, 2])
        splits: list[dict[str, Any]] = json.loads(content[begin : begin + int(self._json_sizes[row])])["splits"]
        return splits

    def _number(self, text: str, row: int) -> int:
        try:
            return self._text_numbers[text]
        except KeyError:
            raise ShardError(
                f"{self.data}: no text embedding of {text!r}, which window {self._key(row)} needs; "
                "`mgeldm encode` writes them anew"
            ) from None

    def _key(self, row: int) -> str:
        return str(self._keys[row].as_py())


def _finite(array: Half) -> bool:
    # Positive and negative ones by their bits: much faster than isfinite, which goes by way of single precision.
    return bool(array.view(np.int16).max() < _INFINITE and array.view(np.uint16).max() < 0x8000 + _INFINITE)
