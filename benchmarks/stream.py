"""The stream beside other loaders on the same samples, from a warm page cache; its memory, start and mixing."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from fsspec.config import conf, set_conf_env

from benchmarks import reference_loaders
from benchmarks.result import Result
from manifests.remote import filesystem
from manifests.shards import (
    PROMPTS_FILE,
    SAMPLE_VERSION,
    SHARDS_FOLDER,
    DatasetCard,
    IndexRow,
    Sample,
    read_index,
    write_card,
    write_index,
    write_prompts,
    write_shard,
)
from training.ahead import load_ahead

SECONDS = 2.0
ROUNDS = 5
LINK_MB_PER_S, LATENCY_S = 20.0, 0.1
S3_WORKERS = 4
SAMPLES = 2000
PER_SHARD = 200
PER_SONG = 20
CHANNELS, DIM, FRAMES, HOPS = 64, 512, 80, 2
TEXTS = ("bass", "drums")
GOALS = {"webdataset": 5.0, "in_memory": 5.0, "mosaic": 4.0, "litdata": 1.0}
"""By the loader; none for what only shows what is left of memory's speed."""

Batches = Generator[Sequence[Any], None, None]


def run() -> Iterator[Result]:
    with tempfile.TemporaryDirectory(prefix="mgeldm-bench-") as temporary:
        folder = Path(temporary)
        data = dataset(folder / "one", SAMPLES)
        yield from _beside(data, folder)
        yield from _growth(data, dataset(folder / "ten", 10 * SAMPLES))
        yield from _mixing(data)
        yield from _from_s3(data)


def dataset(data: Path, samples: int) -> Path:
    """Samples of about 61 KB each, as long windows with two splits are, with random numbers in them."""
    rng = np.random.default_rng(0)
    rows = []
    for begin in range(0, samples, PER_SHARD):
        shard = data / SHARDS_FOLDER / f"toy-train-{begin:06d}.tar"
        rows += write_shard(shard, (_sample(number, rng) for number in range(begin, begin + PER_SHARD)))[0]
    write_index(data, rows)
    write_prompts(data / PROMPTS_FILE, {text: rng.standard_normal(DIM, dtype=np.float32) for text in TEXTS})
    codec = {"sample_rate": 16_000, "hop": 2048, "latent_channels": CHANNELS, "channels": 1, "context": 0}
    card = DatasetCard(
        version=SAMPLE_VERSION,
        encoder="benchmark",
        codec={"identity": "benchmark", "spec": codec},
        embedder={"identity": "benchmark", "spec": {"sample_rate": 16_000, "window_s": 5.12, "dim": DIM}},
        embed_hop_s=5.12,
        prompt_template="{}",
        latent_mean=(0.0,) * CHANNELS,
        latent_std=(1.0,) * CHANNELS,
        silence_latent=(0.0,) * CHANNELS,
        samples=samples,
        songs=samples // PER_SONG,
        hours=samples * FRAMES / 7.8125 / 3600,
        subsets={"train": samples},
        instruments={},
        licenses={},
        failures=0,
    )
    write_card(data, card)
    return data


def _sample(number: int, rng: np.random.Generator) -> Sample:
    return Sample(
        key=f"toy-{number:06d}",
        latents=rng.standard_normal((5, CHANNELS, FRAMES), dtype=np.float32).astype(np.float16),
        embeddings=rng.standard_normal((5, HOPS, DIM), dtype=np.float32).astype(np.float16),
        meta={
            "corpus": "toy",
            "subset": "train",
            "song_id": f"toy/{number // PER_SONG}",
            "stem_gains": {f"S{stem:02d}": 0.5 for stem in range(8)},
            "splits": [{"source_text": text, "source_instruments": [text], "submix": ["S01", "S02"]} for text in TEXTS],
        },
    )


def _beside(data: Path, folder: Path) -> Iterator[Result]:
    """Samples a second of each loader, in turns, so that all meet the same moods of the machine."""
    makers: dict[str, Callable[[], Batches]] = {
        "webdataset": partial(reference_loaders.webdataset, data),
        "in_memory": partial(reference_loaders.in_memory, data),
        "in_memory_bare": partial(reference_loaders.in_memory_bare, data),
        "mosaic": partial(reference_loaders.mosaic, data, folder / "mosaic"),
        "litdata": partial(reference_loaders.litdata, data, folder / "litdata"),
    }
    loaders: dict[str, Batches] = {"stream": _stream(data)}
    for name, make in makers.items():
        loader = make()
        try:
            next(loader)
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        loaders[name] = loader
    next(loaders["stream"])
    rates: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(ROUNDS):
        for name, loader in loaders.items():
            rates[name].append(_rate(loader))
    median = {name: float(np.median(found)) for name, found in rates.items()}
    for name in list(loaders)[1:]:
        yield Result(
            name=f"stream.samples_vs_{name}",
            value=float(np.median(np.array(rates["stream"]) / np.array(rates[name]))),
            unit="ratio",
            goal=GOALS.get(name),
            better="higher",
            detail={"stream_per_s": round(median["stream"]), f"{name}_per_s": round(median[name])},
        )


def _rate(loader: Batches) -> float:
    samples, begin = 0, time.perf_counter()
    while (passed := time.perf_counter() - begin) < SECONDS:
        samples += len(next(loader))
    return samples / passed


def _stream(data: Path | str, workers: int = 1) -> Batches:
    from training.stream import Stream, StreamConfig

    config = StreamConfig(batch=reference_loaders.BATCH, crop_frames=reference_loaders.CROP, workers=workers)
    stream = Stream([config.open(data, "train")], None, config)
    for batch in stream.batches(stream.start()):
        yield batch.latents


def _growth(one: Path, ten: Path) -> Iterator[Result]:
    """Memory that an epoch needs beside the imports, and the time to a first batch, over one and ten times the data."""
    found = []
    for data, samples in ((one, SAMPLES), (ten, 10 * SAMPLES)):
        command = [sys.executable, "-m", "benchmarks.stream_memory", str(data), str(samples)]
        found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    yield Result(
        name="stream.resident",
        value=found[1]["mb"],
        unit="MB",
        goal=300.0,
        better="lower",
        detail={"at_one_tenth": found[0]["mb"], "besides_imports_of": found[1]["imports_mb"]},
    )
    yield Result(
        name="stream.first_batch",
        value=found[1]["first_s"],
        unit="s",
        goal=2.0,
        better="lower",
        detail={"at_one_tenth": found[0]["first_s"]},
    )


def _mixing(data: Path) -> Iterator[Result]:
    """Pairs of one song in a batch, in the order by shards, against an order where all are equally likely."""
    from training.stream import Stream, StreamConfig

    shares = {}
    for name, buffer in (("shuffled", 1), ("buffer_1", 1), ("buffer_2", 2), ("buffer_4", 4), ("buffer_8", 8)):
        order = "shuffled" if name == "shuffled" else "shards"
        config = StreamConfig(batch=100, order=order, buffer_shards=buffer)
        stream = Stream([config.open(data, "train")], None, config)
        pairs = same = 0
        for number, batch in enumerate(stream.batches(stream.start())):
            songs = np.array([int(key[4:]) // PER_SONG for key in batch.keys])
            same += int((songs[:, None] == songs).sum()) - len(songs)
            pairs += len(songs) * (len(songs) - 1)
            if number + 1 >= 5 * SAMPLES // config.batch:
                break
        shares[name] = same / pairs
    yield Result(
        name="stream.same_song_pairs",
        value=shares["buffer_8"] / shares["shuffled"],
        unit="ratio",
        goal=None,
        better="lower",
        detail={name: f"{share:.4f}" for name, share in shares.items()} | {"shards": SAMPLES // PER_SHARD},
    )


def _from_s3(data: Path) -> Iterator[Result]:
    """The stream over S3 beside bare requests of the same samples, with nothing done to them.

    Through a link that one client can use up, with the latency of an object store; and from a server that is as quick
    as this machine, which tells what a client costs.
    """
    links: dict[str, tuple[float, ...]] = {"link": (LINK_MB_PER_S, LATENCY_S), "quick": ()}
    found = {name: _rates_from_s3(data, *link) for name, link in links.items()}
    median = {name: {of: float(np.median(values)) for of, values in rates.items()} for name, rates in found.items()}
    yield Result(
        name="stream.s3_share_of_bandwidth",
        value=median["link"]["stream"] / LINK_MB_PER_S,
        unit="ratio",
        goal=0.9,
        better="higher",
        detail=_rounded(median["link"]) | {"latency_s": LATENCY_S},
    )
    yield Result(
        name="stream.s3_vs_bare_requests",
        value=float(np.median(np.array(found["quick"]["stream"]) / np.array(found["quick"]["bare"]))),
        unit="ratio",
        goal=0.9,
        better="higher",
        detail=_rounded(median["quick"]),
    )


def _rounded(mb_per_s: dict[str, float]) -> dict[str, float]:
    return {f"{name}_mb_per_s": round(value, 1) for name, value in mb_per_s.items()}


def _rates_from_s3(data: Path, *link: float) -> dict[str, list[float]]:
    """MB/s of the stream and of bare requests, as many at a time and as many threads, in turns."""
    rng = np.random.default_rng(0)
    with _served(data, *link) as url:
        system, base = filesystem(url)
        rows = read_index(url)

        def fetched(picked: Sequence[IndexRow]) -> Sequence[bytes]:
            return system.cat_ranges(
                [f"{base}/{SHARDS_FOLDER}/{row.shard}" for row in picked],
                [row.offset for row in picked],
                [row.offset + row.size for row in picked],
            )

        def bare() -> Batches:
            plans = ([rows[n] for n in rng.integers(len(rows), size=reference_loaders.BATCH)] for _ in count())
            return load_ahead(fetched, plans, S3_WORKERS + 1, S3_WORKERS)

        rates: dict[str, list[float]] = {"stream": [], "bare": []}
        for _ in range(ROUNDS):
            for name, loader in (("stream", _stream(url, S3_WORKERS)), ("bare", bare())):
                for _ in range(4 * S3_WORKERS):  # so that what was read ahead is not counted
                    next(loader)
                rates[name].append(_rate(loader))
                loader.close()  # nor read while others are timed
    size = float(np.mean([row.size for row in rows])) / 1e6
    return {name: [rate * size for rate in values] for name, values in rates.items()}


@contextmanager
def _served(data: Path, *link: float) -> Iterator[str]:
    """The URL of a data set on a server of this machine, which the environment of fsspec points to."""
    command = [sys.executable, "-m", "benchmarks.object_server", str(data), *map(str, link)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        os.environ["FSSPEC_S3_ENDPOINT_URL"] = f"http://127.0.0.1:{int(server.stdout.readline())}"
        os.environ |= {"FSSPEC_S3_KEY": "key", "FSSPEC_S3_SECRET": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        set_conf_env(conf)
        yield "s3://bench"
    finally:
        server.kill()
        server.wait()
