"""Other ways to load the same samples: webdataset, all in memory (the official way), mosaicml-streaming and litdata.

Each iterates for ever over shuffled batches of decoded arrays; the number of samples of a batch is the length of what
comes. Those that are not installed raise ImportError; `make bench` installs them beside the rest.
"""

import io
import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manifests.shards import Sample, ShardReader

BATCH = 16
CROP = 40
TEMPLATES = [
    f"{before}{{}}{after}"
    for before in ("", "only ", "the sound of ", "the part of ", "music of ", "a recording of ")
    for after in ("", " alone", " stem", " in a song")
]


def webdataset(data: Path) -> Generator[Sequence[Any], None, None]:
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


def in_memory(data: Path) -> Generator[Sequence[Any], None, None]:
    """All songs in memory, sliced as the official training code does (github.com/yoongi43/MGE-LDM, data/).

    For each example that makes two generators, one to choose the data set and one for what follows; it chooses the song
    and the split by their names, draws crops until one of the source is away from silence (here the first one is, which
    is as quick as it gets), and writes two prompts from templates. torch's own loader makes the batch.
    """
    from torch.utils.data import DataLoader

    loader = DataLoader(_Concatenated([_Preloaded(data)]), batch_size=BATCH, shuffle=True, drop_last=True)
    while True:
        for batch in loader:
            yield batch["mix_latent"]


class _Concatenated:
    """Chooses a data set by its share."""

    def __init__(self, sets: Sequence["_Preloaded"]) -> None:
        self._sets = sets
        self._shares = [len(one) / len(self) for one in sets]

    def __len__(self) -> int:
        return sum(map(len, self._sets))

    def __getitem__(self, index: int) -> dict[str, Any]:
        state = np.random.RandomState(index)
        chosen = self._sets[state.choice(len(self._sets), p=self._shares)]
        return chosen[state.randint(len(chosen))]


class _Preloaded:
    """The songs of a data set: latents ``[C, T]`` and embeddings ``[D, S]`` of the mixture and of each split."""

    examples = 64_000
    tries = 15
    threshold = 0.1

    def __init__(self, data: Path) -> None:
        reader = ShardReader(data)
        windows: dict[str, list[Sample]] = {}
        for row in reader.rows:
            windows.setdefault(row.song_id, []).append(reader.read(row))
        self._songs = {name: self._song(samples) for name, samples in windows.items()}
        self._names = sorted(self._songs)
        self._silence = np.ones((reader.card.codec["spec"]["latent_channels"], 1), np.float32)
        self._seconds_per_frame = 1 / reader.card.frames_per_second

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        state = np.random.RandomState(index)
        song = self._songs[state.choice(self._names)]
        split = song[state.choice([name for name in song if name.startswith("split")])]
        for _ in range(self.tries):
            start = state.randint(0, split["source"].shape[-1] - CROP)
            source = split["source"][..., start : start + CROP]
            if abs(np.mean(source - self._silence).item()) > self.threshold:
                break
        hop = min(int(start * self._seconds_per_frame), split["source_embedding"].shape[-1] - 1)
        return {
            "mix_latent": song["mix"]["latents"][..., start : start + CROP],
            "mix_embedding": song["mix"]["embedding"][:, hop],
            "source_latent": source,
            "source_embedding": split["source_embedding"][:, hop],
            "source_prompt": self._prompt(split["source_labels"], state),
            "submix_latent": split["submix"][..., start : start + CROP],
            "submix_embedding": split["submix_embedding"][:, hop],
            "submix_prompt": self._prompt(split["submix_labels"], state),
        }

    @staticmethod
    def _song(samples: Sequence[Sample]) -> dict[str, dict[str, Any]]:
        latents = np.concatenate([sample.latents for sample in samples], axis=-1).astype(np.float32)
        embeddings = np.concatenate([sample.embeddings for sample in samples], axis=1).astype(np.float32)
        embeddings = np.ascontiguousarray(embeddings.swapaxes(1, 2))
        song: dict[str, dict[str, Any]] = {"mix": {"latents": latents[0], "embedding": embeddings[0]}}
        for number, split in enumerate(samples[0].meta["splits"]):
            submix, source = 1 + 2 * number, 2 + 2 * number
            song[f"split{number}"] = {
                "source": latents[source],
                "source_embedding": embeddings[source],
                "source_labels": split["source_instruments"],
                "submix": latents[submix],
                "submix_embedding": embeddings[submix],
                "submix_labels": split["submix"],
            }
        return song

    @staticmethod
    def _prompt(labels: Sequence[str], state: np.random.RandomState) -> str:
        text = ", ".join(label.replace("_", " ").lower() for label in labels)
        return str(state.choice(TEMPLATES)).format(text)


def in_memory_bare(data: Path) -> Generator[Sequence[Any], None, None]:
    """All windows in memory and nothing but slices of them, by torch's numbers: how quick memory lets one be."""
    import torch
    from torch.utils.data import DataLoader

    reader = ShardReader(data)
    samples = [reader.read(row) for row in reader.rows]
    latents = [torch.from_numpy(sample.latents.astype(np.float32)) for sample in samples]
    embeddings = [torch.from_numpy(sample.embeddings.astype(np.float32)) for sample in samples]

    class Sliced:
        def __len__(self) -> int:
            return len(samples)

        def __getitem__(self, index: int) -> dict[str, Any]:
            splits = samples[index].meta["splits"]
            split = int(torch.randint(len(splits), ()))
            start = int(torch.randint(latents[index].shape[-1] - CROP + 1, ()))
            tracks = {"mix": 0, "submix": 1 + 2 * split, "source": 2 + 2 * split}
            return {
                **{name: latents[index][row, :, start : start + CROP].clone() for name, row in tracks.items()},
                "embeddings": embeddings[index][list(tracks.values()), 0].clone(),
                "text": splits[split]["source_text"],
            }

    loader = DataLoader(Sliced(), batch_size=BATCH, shuffle=True)
    while True:
        for batch in loader:
            yield batch["mix"]


def mosaic(data: Path, folder: Path) -> Generator[Sequence[Any], None, None]:
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


def litdata(data: Path, folder: Path) -> Generator[Sequence[Any], None, None]:
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
