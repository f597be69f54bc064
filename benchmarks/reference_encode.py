"""The reference loop that encode is measured against: song by song, as scripts of this field do it.

Every signal (the mix, and submix and source of each instrument: 2N + 1) is read, resampled by a resampler made for it,
and goes whole through the codec at batch 1 in fp32; the embedder hears one window a call, every second; `.npy` files.
The codec is the network as stable-audio-tools builds it. Run as a process: ``python -m benchmarks.reference_encode
SONGS PLAN OUT``; it prints its seconds, without imports and loading, as JSON.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torchaudio.transforms import Resample

from manifests.songs import Song, read_songs
from manifests.splits import read_splits
from mgeldm import audio
from mgeldm.codec import load_codec
from mgeldm.codec.autoencoder import AutoencoderCodec
from mgeldm.embedder import load_embedder
from mgeldm.resampling import KAISER_BEST
from pipelines.song_signals import FULL_SCALE

SHIPPED = Path(audio.__file__).parent / "codec" / "oobleck-16k-mono"


def signals(song: Song, sources: dict[str, tuple[frozenset[str], frozenset[str]]]) -> dict[str, frozenset[str]]:
    """File name -> stems of every signal of a song, given submix and source of each text."""
    named = {"mix": frozenset(stem.stem_id for stem in song.usable_stems)}
    for number, sides in enumerate(sources.values()):
        named |= {f"{number}-{name}": stems for name, stems in zip(("submix", "source"), sides, strict=True)}
    return named


def planned_sources(plan: Path) -> dict[str, dict[str, tuple[frozenset[str], frozenset[str]]]]:
    """song id -> text -> submix and source stems, over all windows of a plan."""
    found: dict[str, dict[str, tuple[frozenset[str], frozenset[str]]]] = {}
    for window in read_splits(plan).windows:
        for split in window.splits:
            sides = frozenset(split.submix), frozenset(split.source)
            found.setdefault(window.song_id, {})[split.source_text] = sides
    return found


def folder_of(song: Song, out: Path) -> Path:
    """Where the files of a song go."""
    return out / song.song_id.replace("/", "_")


@torch.inference_mode()
def run(songs: Path, plan: Path, out: Path) -> float:
    """Encode every song of the plan. Returns seconds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = load_codec().config
    codec = AutoencoderCodec(config, load_file(SHIPPED / "model.safetensors")).eval().to(device)
    embedder = load_embedder().to(device)
    planned = planned_sources(plan)
    by_id = {song.song_id: song for song in read_songs(songs)}
    begin = time.perf_counter()
    for song_id, sources in planned.items():
        song = by_id[song_id]
        folder = folder_of(song, out)
        folder.mkdir(parents=True)
        mix = _sum(song, signals(song, sources)["mix"], codec.spec.sample_rate)
        peak = float(mix.abs().max())
        gain = 1.0 if peak <= FULL_SCALE else 1 / peak
        for name, stems in signals(song, sources).items():
            wave = (gain * _sum(song, stems, codec.spec.sample_rate)).to(device)
            whole = torch.nn.functional.pad(wave, (0, -wave.shape[-1] % codec.spec.hop))
            np.save(folder / f"{name}.latents.npy", codec.encode(whole[None])[0].cpu().numpy())
            length, rate = embedder.spec.window, embedder.spec.sample_rate
            longer = torch.nn.functional.pad(wave, (0, length))
            heard = [embedder.embed_audio(longer[:, at : at + length]) for at in range(0, wave.shape[-1], rate)]
            np.save(folder / f"{name}.embeddings.npy", torch.cat(heard).cpu().numpy())
    return time.perf_counter() - begin


def _sum(song: Song, stems: frozenset[str], rate: int) -> torch.Tensor:
    total = torch.zeros(1, 0)
    for stem in song.stems:
        if stem.stem_id in stems:
            wave = torch.from_numpy(audio.read(Path(song.root) / stem.path, stem.stream)).mean(0, keepdim=True)
            wave = _resampled(wave, stem.sample_rate or rate, rate)
            longest = max(total.shape[-1], wave.shape[-1])
            total = torch.nn.functional.pad(total, (0, longest - total.shape[-1]))
            total = total + torch.nn.functional.pad(wave, (0, longest - wave.shape[-1]))
    return total


def _resampled(wave: torch.Tensor, rate: int, target: int) -> torch.Tensor:
    """By the filter that encode uses on this device, made anew, so that the latents can be compared."""
    if torch.cuda.is_available():
        return Resample(rate, target, **KAISER_BEST)(wave)
    return torch.from_numpy(audio.resample(wave.numpy(), rate, target))


if __name__ == "__main__":
    print(json.dumps({"seconds": run(*(Path(argument) for argument in sys.argv[1:]))}))
