"""encode beside the reference loop: song by song, every track of every split as a whole-song forward at batch 1."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torchaudio.transforms import Resample

from benchmarks.result import LOCAL, Result, example_data
from manifests.songs import Song, read_songs, write_songs
from manifests.splits import Window, read_splits, write_splits
from mgeldm import audio
from mgeldm.codec import load_codec
from mgeldm.embedder import load_embedder
from pipelines.encode import encode


def run() -> Iterator[Result]:
    folder = example_data()
    songs = {song.song_id: song for song in read_songs(folder / "songs.parquet")}
    windows = [w for w in read_splits(folder / "splits.parquet").windows if songs[w.song_id].subset == "test"]
    seconds = sum(window.duration_s for window in windows)
    reference = _timed(lambda: _reference(songs, windows, folder / "reference"))
    ours = _timed(lambda: _ours(folder, [window.song_id for window in windows]))
    yield Result(
        name="encode.windows_vs_reference",
        value=reference / ours,
        unit="ratio",
        goal=4.0,
        better="higher",
        detail={
            "window_seconds": round(seconds, 1),
            "reference_per_s": round(seconds / reference, 2),
            "encode_per_s": round(seconds / ours, 2),
        },
    )


def _timed(work: Callable[[], None]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _ours(folder: Path, song_ids: list[str]) -> None:
    plan = read_splits(folder / "splits.parquet")
    kept = set(song_ids)
    write_splits(folder / "part.parquet", replace(plan, windows=tuple(w for w in plan.windows if w.song_id in kept)))
    write_songs(folder / "part-songs.parquet", [s for s in read_songs(folder / "songs.parquet") if s.song_id in kept])
    encode(folder / "part.parquet", folder / "part-songs.parquet", folder / f"part-{time.time_ns()}", runner=LOCAL)


@torch.inference_mode()
def _reference(songs: dict[str, Song], windows: list[Window], out: Path) -> None:
    codec, embedder = load_codec(), load_embedder()
    out.mkdir(exist_ok=True)
    for song_id in sorted({window.song_id for window in windows}):
        song = songs[song_id]
        splits = {split.source: split for window in windows if window.song_id == song_id for split in window.splits}
        for number, stems in enumerate(
            [
                sorted({s for split in splits.values() for s in (*split.source, *split.submix)}),
                *(part for split in splits.values() for part in (split.source, split.submix)),
            ]
        ):
            wave = _sum(song, stems, codec.spec.sample_rate)
            padded = torch.nn.functional.pad(wave, (0, -wave.shape[-1] % codec.spec.hop))
            np.save(out / f"latents-{number}.npy", codec.encode(padded[None]).numpy())
            length, rate = embedder.spec.window, embedder.spec.sample_rate
            longer = torch.nn.functional.pad(wave, (0, length))
            vectors = [
                embedder.embed_audio(longer[:, start : start + length]) for start in range(0, wave.shape[-1], rate)
            ]
            np.save(out / f"embeddings-{number}.npy", torch.cat(vectors).numpy())


def _sum(song: Song, stems: list[str] | tuple[str, ...], rate: int) -> torch.Tensor:
    total = torch.zeros(1, 0)
    for stem in song.stems:
        if stem.stem_id in stems:
            wave = torch.from_numpy(audio.read(Path(song.root) / stem.path, stem.stream)).mean(0, keepdim=True)
            wave = Resample(stem.sample_rate or rate, rate)(wave)
            longest = max(total.shape[-1], wave.shape[-1])
            total = torch.nn.functional.pad(total, (0, longest - total.shape[-1]))
            total = total + torch.nn.functional.pad(wave, (0, longest - wave.shape[-1]))
    return total
