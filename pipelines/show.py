"""show: one sample of a data set as sound and as a picture."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from manifests.atomic import atomic_path
from manifests.errors import ShardError
from manifests.shards import Array, Sample, ShardReader
from mgeldm import audio
from mgeldm.codec import Codec, load_codec
from mgeldm.measure import decibels
from pipelines.report_plots import DYNAMIC_RANGE_DB, analyse, shorten

PICTURE = "tracks.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownTrack:
    """A track of the sample, decoded."""

    file: str
    role: str
    """"mix", "submix 0", "source 0", ..."""
    text: str
    rms_dbfs: float | None
    """Level of the decoded sound; None for digital silence."""
    encoded_dbfs: float | None
    """Level of what was encoded, as the sample says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What was written; names are below the folder."""

    key: str
    song_id: str
    gain: float
    """Factor that the song was encoded with, so that its mix fits into [-1, 1]; the WAV files keep it."""
    tracks: tuple[ShownTrack, ...]
    picture: str


@torch.inference_mode()
def show(data: Path | str, key: str, out: Path, *, codec: str = "default") -> Shown:
    """Decode the sample ``key`` of ``data`` into WAV files, and draw latents and mel spectrogram of each track.

    Raises:
        ShardError: there is no such sample, it is damaged, or the codec is not the one it was encoded with.
        CheckpointError: the codec cannot be loaded.
        ManifestError, StoreError: as `ShardReader`.
    """
    reader = ShardReader(data)
    if key not in reader:
        near = difflib.get_close_matches(key, list(reader), n=3, cutoff=0.5)
        hint = f"near: {', '.join(near)}" if near else f"the first is {next(iter(reader), 'none')}"
        raise ShardError(f"{data}: no sample {key!r} among {len(reader)}; {hint}")
    decoder = load_codec(codec)
    if decoder.identity != reader.card.codec["identity"]:
        said = reader.card.codec["identity"][:16]
        raise ShardError(f"--codec {codec} is {decoder.identity[:16]}, the data set was encoded with {said}; give that")
    sample = reader[key]
    roles, texts = _labels(sample)
    waves = [_decode(decoder, latents) for latents in sample.latents]
    tracks = []
    for role, text, wave, encoded in zip(roles, texts, waves, sample.meta["rms_dbfs"], strict=True):
        file = f"{role.replace(' ', '-')}.wav"
        audio.save(out / file, wave, decoder.spec.sample_rate)
        level = decibels(float(np.sqrt(np.square(wave, dtype=np.float64).mean())))
        tracks.append(ShownTrack(file=file, role=role, text=text, rms_dbfs=level, encoded_dbfs=encoded))
    _draw(out / PICTURE, sample, tracks, waves, decoder.spec.sample_rate)
    return Shown(
        key=key, song_id=sample.meta["song_id"], gain=sample.meta["gain"], tracks=tuple(tracks), picture=PICTURE
    )


def _labels(sample: Sample) -> tuple[list[str], list[str]]:
    """Role and text of each row of the sample."""
    roles, texts = ["mix"], [sample.meta["song_id"]]
    for number, split in enumerate(sample.meta["splits"]):
        roles += [f"submix {number}", f"source {number}"]
        texts += [split["submix_text"], split["source_text"]]
    return roles, texts


def _decode(codec: Codec, latents: Array) -> audio.Wave:
    """``[C, L]`` -> ``[channels, L * hop]``."""
    wave: audio.Wave = codec.decode(torch.from_numpy(latents.astype(np.float32))[None])[0].numpy()
    return wave


def _draw(path: Path, sample: Sample, tracks: Sequence[ShownTrack], waves: Sequence[audio.Wave], rate: int) -> None:
    """A row of latents and mel spectrogram for each track, on scales that all rows share."""
    sounds = [analyse(wave, rate, rate / 2) for wave in waves]
    top = max(float(np.nanmax(sound.decibels)) for sound in sounds)
    limit = float(np.abs(sample.latents.astype(np.float32)).max()) or 1.0
    seconds = float(sample.meta["duration_s"])
    channels = sample.latents.shape[1]
    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}):
        figure = Figure(figsize=(11, 0.6 + 1.7 * len(tracks)), layout="constrained")
        axes = figure.subplots(len(tracks), 2, squeeze=False, sharex=True)
        for (left, right), track, latents, sound in zip(axes, tracks, sample.latents, sounds, strict=True):
            values = latents.astype(np.float32)
            shown = left.imshow(
                values, aspect="auto", origin="lower", cmap="RdBu_r", vmin=-limit, vmax=limit,
                extent=(0, seconds, 0, channels), interpolation="nearest",
            )  # fmt: skip
            left.set_title(f"{track.role}: {shorten(track.text, 60)}", loc="left")
            left.set_ylabel("channel")
            heard = right.imshow(
                sound.decibels, aspect="auto", origin="lower", cmap="magma", vmin=top - DYNAMIC_RANGE_DB, vmax=top,
                extent=(0, seconds, 0, sound.decibels.shape[0]), interpolation="nearest",
            )  # fmt: skip
            level = "silent" if track.rms_dbfs is None else f"{track.rms_dbfs:.1f} dBFS"
            right.set_title(level, loc="right")
            right.set_ylabel("mel band")
        for axis in axes[-1]:
            axis.set_xlabel("s")
        figure.colorbar(shown, ax=axes[:, 0], label="latent", shrink=0.6)
        figure.colorbar(heard, ax=axes[:, 1], label="dB", shrink=0.6)
        figure.suptitle(sample.key)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
