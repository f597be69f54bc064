"""Sounds and audio files."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import soundfile

from mgeldm.audio import Wave


def sound(*name: object, seconds: float = 3.0, rate: int = 16_000, channels: int = 1, level: float = 0.2) -> Wave:
    """A tone with overtones and a little noise ``[channels, frames]``, drawn from ``name``; the tone rests at times."""
    rng = np.random.default_rng(zlib.crc32(repr(name).encode()))
    time = np.arange(round(seconds * rate)) / rate
    pitch = 60 * 2 ** rng.uniform(0, 4)
    tone = sum(np.sin(2 * np.pi * pitch * k * time + rng.uniform(0, 6)) / k for k in range(1, 5))
    gate = np.sin(2 * np.pi * time / rng.uniform(0.8, 1.6) + rng.uniform(0, 6)) > -0.5
    pans = rng.uniform(0.5, 1.0, (channels, 1))
    return (level * pans * (0.4 * tone * gate + 0.01 * rng.standard_normal((channels, len(time))))).astype(np.float32)


def write_sound(path: Path, wave: Wave, rate: int, subtype: str | None = None) -> Path:
    """Write ``[channels, frames]`` in the format that the suffix says, .m4a as AAC."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".m4a":
        return write_streams(path, [wave], rate)
    kind = {".opus": ("OGG", "OPUS")}.get(path.suffix, (None, subtype))
    soundfile.write(path, wave.T, rate, format=kind[0], subtype=kind[1])
    return path


def write_streams(path: Path, waves: Sequence[Wave], rate: int, codec: str = "aac") -> Path:
    """Write one audio stream for each of ``waves`` into a container (.m4a, .mp4, .mka)."""
    # Noise substitution would draw other noise after a seek.
    codec_options = {"aac_pns": "0"} if codec == "aac" else {}
    options = {"movflags": "+faststart"} if path.suffix in (".m4a", ".mp4") else {}
    with av.open(str(path), "w", options=options) as container:
        layouts = [{1: "mono", 2: "stereo"}[wave.shape[0]] for wave in waves]
        streams = [container.add_stream(codec, rate=rate, layout=layout, options=codec_options) for layout in layouts]
        for stream, wave, layout in zip(streams, waves, layouts, strict=True):
            for begin in range(0, wave.shape[1], 1024):
                block = np.ascontiguousarray(wave[:, begin : begin + 1024])
                frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
                frame.sample_rate, frame.pts = rate, begin
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path
