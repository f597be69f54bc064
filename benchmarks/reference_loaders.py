"""Other ways to load the same samples: webdataset, all in memory (the official way), mosaicml-streaming and litdata.

Each iterates for ever over shuffled batches of decoded arrays; the number of samples of a batch is the length of what
comes. Those that are not installed raise ImportError.
"""

import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manifests.shards import Sample, ShardReader

BATCH = 16
CROP = 40


def webdataset(data: Path) -> Iterator[Sequence[Any]]:
    """Plain webdataset over the shards, decoded, shuffled in a buffer."""
    import webdataset as wds

    def decode(sample: dict[str, bytes]) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
        return (
            np.load(io.BytesIO(sample["latents.npy"])),
            np.load(io.BytesIO(sample["embeddings.npy"])),
            json.loads(sample["json"]),
        )

    shards = sorted(str(path) for path in (data / "shards").glob("*.tar"))
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(shards), wds.tarfile_to_samples(), wds.shuffle(100), wds.map(decode), wds.batched(BATCH)
    )
    while True:
        for latents, _, _ in pipeline:
            yield latents


def in_memory(data: Path) -> Iterator[Sequence[Any]]:
    """All latents in memory as single precision, crops at random, made into a batch by torch's own loader."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    reader = ShardReader(data)

    class Preloaded(Dataset[dict[str, Any]]):
        def __init__(self) -> None:
            self.samples: list[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]] = []
            for row in reader.rows:
                sample: Sample = reader.read(row)
                latents, embeddings = (
                    torch.from_numpy(array.astype(np.float32)) for array in (sample.latents, sample.embeddings)
                )
                self.samples.append((latents, embeddings, sample.meta))

        def __len__(self) -> int:
            return len(self.samples)

        def __getitem__(self, index: int) -> dict[str, Any]:
            latents, embeddings, meta = self.samples[index]
            split = int(torch.randint(len(meta["splits"]), ()))
            start = int(torch.randint(latents.shape[-1] - CROP + 1, ()))
            rows = [0, 1 + 2 * split, 2 + 2 * split]
            hop = min(start // 10, embeddings.shape[1] - 1)
            return {
                **{
                    name: latents[row, :, start : start + CROP].clone()
                    for name, row in zip(("mix", "submix", "source"), rows, strict=True)
                },
                "embeddings": embeddings[rows, hop].clone(),
                "text": meta["splits"][split]["source_text"],
            }

    loader = DataLoader(Preloaded(), batch_size=BATCH, shuffle=True)
    while True:
        for batch in loader:
            yield batch["mix"]


def mosaic(data: Path, folder: Path) -> Iterator[Sequence[Any]]:
    """mosaicml-streaming over a copy of the samples in its own format."""
    from streaming import MDSWriter, StreamingDataset
    from torch.utils.data import DataLoader

    reader = ShardReader(data)
    columns = {"latents": "ndarray:float16", "embeddings": "ndarray:float16", "json": "json"}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for row in reader.rows:
            sample = reader.read(row)
            writer.write({"latents": sample.latents, "embeddings": sample.embeddings, "json": sample.meta})
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    loader = DataLoader(dataset, batch_size=BATCH)
    while True:
        for batch in loader:
            yield batch["latents"]


def litdata(data: Path, folder: Path) -> Iterator[Sequence[Any]]:
    """litdata over a copy of the samples in its own format."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    reader = ShardReader(data)
    folder.mkdir(parents=True)
    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for number, row in enumerate(reader.rows):
        sample = reader.read(row)
        writer[number] = {
            "latents": sample.latents,
            "embeddings": sample.embeddings,
            "json": json.dumps(sample.meta),
        }
    writer.done()
    writer.merge()
    loader = StreamingDataLoader(StreamingDataset(str(folder), shuffle=True), batch_size=BATCH, num_workers=0)
    while True:
        for batch in loader:
            yield batch["latents"]
