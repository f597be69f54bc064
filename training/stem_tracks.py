"""Stems as tracks: the sources of a window's splits side by side, one track for each of some named instruments.

A plan of the strategy "single" has a split for each instrument that sounds in a window, whose source is all stems of
that instrument. So the shards of such a plan hold the stems of a model with fixed classes.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from manifests.errors import ShardError
from training.conditions import training_conditions
from training.shard_cache import ShardCache
from training.shard_set import Drawn, Rows, ShardSet

ABSENT = -1
_UNREAD = -2


class StemSet(ShardSet):
    """A `ShardSet` whose tracks are the sources of a window's splits, in the order of the named instruments.

    The track of an instrument is the source of the window's first split whose source is that instrument alone; where
    there is none, the instrument is absent: its latents and its condition are zeros. Windows that have none of the
    instruments in a source are not among the rows.
    """

    def __init__(
        self,
        data: Path | str,
        subset: str,
        crop_frames: int,
        instruments: Sequence[str],
        *,
        cache: ShardCache | None = None,
        whole_shards: bool = False,
    ) -> None:
        """Open a subset of a data set as `ShardSet` does.

        Raises as that, and ShardError when no window of the subset has one of the instruments.
        """
        self.tracks = tuple(instruments)
        self.levels = 1 + 2 * len(self.tracks)
        """Of the crop, then for each track of text and audio and of dropping its condition."""
        self.windows: dict[str, int] = {}
        """Windows that have an instrument in one of their sources, for all instruments of the subset."""
        super().__init__(data, subset, crop_frames, cache=cache, whole_shards=whole_shards)
        self._stems = np.full((len(self), len(self.tracks)), _UNREAD, np.int32)

    def drawn(self, rows: Rows, levels: npt.NDArray[np.float64], dropout: float) -> Drawn:
        """As `ShardSet.drawn`; every track that is there is conditioned as a source: by its words and its sound."""
        size, tracks = len(rows), len(self.tracks)
        latents = np.zeros((size, tracks, self.channels, self.crop_frames), np.float16)
        audio = np.zeros((size, tracks, self.dim), np.float16)
        texts = np.zeros((size, tracks, self.dim), np.float32)
        present = np.zeros((size, tracks), bool)
        contents = zip(self._bytes.read(rows.tolist()), rows.tolist(), levels[:, 0].tolist(), strict=True)
        for place, (content, row, level) in enumerate(contents):
            try:
                frames, hops = self._array(content, row, 0), self._array(content, row, 1)
                start = int(level * (frames.shape[2] - self.crop_frames + 1))
                hop = self.embedding_hop(start, hops.shape[1])
                for track, split in enumerate(self._splits_of_stems(content, row)):
                    if split != ABSENT:
                        source = 2 + 2 * split
                        latents[place, track] = frames[source, :, start : start + self.crop_frames]
                        audio[place, track] = hops[source, hop]
                        texts[place, track] = self._prompts[self._text(content, row, split)]
                        present[place, track] = True
            except ShardError:
                raise
            except Exception as error:
                raise self._damaged(row, error) from error
        self._check_finite(rows, latents, audio)
        conditions = training_conditions(
            audio.reshape(size * tracks, 1, self.dim),
            texts.reshape(size * tracks, self.dim),
            0,
            dropout,
            levels[:, 1:].reshape(size * tracks, 2),
        )
        return latents, conditions.reshape(texts.shape), present

    def _usable(self, index: pa.Table) -> pa.Table:
        column = index["instruments"].combine_chunks()
        names, rows = pc.list_flatten(column), pc.list_parent_indices(column)
        self.windows = {entry["values"]: entry["counts"] for entry in pc.value_counts(names).to_pylist()}
        kept = pc.unique(rows.filter(pc.is_in(names, pa.array(self.tracks))))
        if len(index) and not len(kept):
            raise ShardError(f"{self.data}: {_missing(self.tracks, self.windows)}")
        return index.take(kept)

    def _splits_of_stems(self, content: bytes, row: int) -> list[int]:
        """The split of each track, or `ABSENT`."""
        if self._stems[row, 0] == _UNREAD:
            alone = _alone(self._described(content, row))
            self._stems[row] = [alone.get(name, ABSENT) for name in self.tracks]
        splits: list[int] = self._stems[row].tolist()
        return splits


def windows_by_instrument(sets: Sequence[ShardSet], instruments: Sequence[str]) -> dict[str, int]:
    """How many windows of the sets have each instrument in a source. Raises ShardError where none has."""
    windows: Counter[str] = sum((Counter(stems.windows) for stems in sets if isinstance(stems, StemSet)), Counter())
    if missing := [name for name in instruments if not windows[name]]:
        raise ShardError(f"{', '.join(stems.data for stems in sets)}: {_missing(missing, windows)}")
    return {name: windows[name] for name in instruments}


def _alone(splits: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """The first split of each instrument that is the whole source of one."""
    found: dict[str, int] = {}
    for number, split in enumerate(splits):
        if len(split["source_instruments"]) == 1:
            found.setdefault(split["source_instruments"][0], number)
    return found


def _missing(instruments: Sequence[str], windows: Mapping[str, int]) -> str:
    near = {name: get_close_matches(name, windows, 1) for name in instruments}
    hints = [f"did you mean {found[0]!r}? " for found in near.values() if found]
    return (
        f"no window has {' or '.join(map(repr, instruments))} as a source; {''.join(hints)}sources are "
        f"{', '.join(sorted(windows)) or 'none'}; choose stems.instruments of these, or plan with "
        f"`mgeldm split --strategy single --classes {','.join(instruments)}`"
    )
