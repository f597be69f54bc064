"""The stream beside plain webdataset decoding the same shards, one thread each, from a warm page cache."""

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.result import Result, example_data
from training.stream import ShardSet, Stream, StreamConfig

SECONDS = 4.0


def run() -> Iterator[Result]:
    data = example_data() / "data"
    ours, plain = _stream(data), _webdataset(data)
    yield Result(
        name="stream.samples_vs_webdataset",
        value=ours / plain,
        unit="ratio",
        goal=5.0,
        better="higher",
        detail={"stream_per_s": round(ours), "webdataset_per_s": round(plain)},
    )


def _stream(data: Path) -> float:
    config = StreamConfig(batch=16)
    stream = Stream([ShardSet(data, "train", config.crop_frames)], None, config)
    batches = stream.batches(stream.start())
    next(batches)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < SECONDS:
        count += len(next(batches).keys)
    batches.close()
    return count / (time.perf_counter() - begin)


def _webdataset(data: Path) -> float:
    import webdataset as wds

    def decode(sample: dict[str, bytes]) -> tuple[np.ndarray, np.ndarray, dict[str, object]]:
        return (
            np.load(io.BytesIO(sample["latents.npy"])),
            np.load(io.BytesIO(sample["embeddings.npy"])),
            json.loads(sample["json"]),
        )

    shards = sorted(str(path) for path in (data / "shards").glob("*-train-*.tar"))
    pipeline = wds.DataPipeline(
        wds.SimpleShardList(shards), wds.tarfile_to_samples(), wds.shuffle(100), wds.map(decode), wds.batched(16)
    )
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < SECONDS:
        for batch in pipeline:
            count += len(batch[2])
    return count / (time.perf_counter() - begin)
