"""Reading, resampling and writing audio.

soundfile reads WAV, FLAC, MP3, Ogg and Opus; PyAV reads containers (``.m4a``, ``.mp4``, ``.stem.mp4``). All samples
are float32 ``[channels, frames]``, full scale 1.0. Every failure is an `AudioError` whose ``code`` is a problem code.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from manifests.atomic import atomic_path
from manifests.errors import AudioError

Wave = npt.NDArray[np.float32]

CONTAINER_SUFFIXES = frozenset({".m4a", ".mp4", ".m4b", ".mov", ".mka", ".webm"})
BLOCK_FRAMES = 1 << 18


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a file's header says."""

    sample_rate: int
    channels: int
    frames: int | None
    """Samples per channel, or None when only decoding can tell (compressed containers)."""


def probe(path: Path | str, stream: int | None = None) -> AudioInfo:
    """Read the header of an audio file. Raises AudioError (``missing``, ``empty``, ``unreadable``)."""
    path = _existing(path)
    if path.suffix.lower() in CONTAINER_SUFFIXES:
        with _container(path) as container:
            context = _audio_stream(container, path, stream).codec_context
            return AudioInfo(context.sample_rate, context.channels, None)
    with _sound(path) as sound:
        return AudioInfo(sound.samplerate, sound.channels, sound.frames)


def blocks(path: Path | str, stream: int | None = None, start: int = 0, frames: int | None = None) -> Iterator[Wave]:
    """Decode ``frames`` samples from ``start`` (to the end by default), in blocks of bounded size.

    Raises AudioError: ``missing``, ``empty``, ``unreadable``, or ``truncated`` when the file ends before its header
    says. Blocks that were decoded before a truncation have been yielded by then.
    """
    path = _existing(path)
    if path.suffix.lower() in CONTAINER_SUFFIXES:
        yield from _container_blocks(path, stream, start, frames)
    else:
        yield from _sound_blocks(path, start, frames)


def read(path: Path | str, stream: int | None = None, start: int = 0, frames: int | None = None) -> Wave:
    """Decode a stretch as ``[channels, n]``; shorter than ``frames`` only at the end of the file. Raises AudioError."""
    parts = list(blocks(path, stream, start, frames))
    return np.concatenate(parts, axis=1) if parts else np.zeros((probe(path, stream).channels, 0), np.float32)


def resample(wave: Wave, rate: int, target: int) -> Wave:
    """Resample ``[channels, frames]`` to ``ceil(frames * target / rate)`` frames (soxr, high quality)."""
    if rate == target:
        return wave
    frames = resampled_frames(wave.shape[1], rate, target)
    out = soxr.resample(np.ascontiguousarray(wave.T), rate, target).T.astype(np.float32, copy=False)
    return fit(np.ascontiguousarray(out), frames)


def resampled_frames(frames: int, rate: int, target: int) -> int:
    """Length of ``frames`` samples of ``rate`` at ``target``, rounded up."""
    return -(-frames * target // rate)


def fit(wave: Wave, frames: int) -> Wave:
    """Cut or zero-pad ``[..., n]`` at the end to ``[..., frames]``."""
    if wave.shape[-1] >= frames:
        return wave[..., :frames]
    return np.pad(wave, [(0, 0)] * (wave.ndim - 1) + [(0, frames - wave.shape[-1])])


def to_channels(wave: Wave, channels: int) -> Wave:
    """Bring ``[n, frames]`` to ``channels``: down by the mean (mono), up by repetition."""
    if wave.shape[0] == channels:
        return wave
    if channels == 1:
        return wave.mean(axis=0, keepdims=True, dtype=np.float32)
    if wave.shape[0] == 1:
        return np.repeat(wave, channels, axis=0)
    raise AudioError(f"cannot bring {wave.shape[0]} channels to {channels}; choose a channel in the layout")


def load(path: Path | str, rate: int, channels: int = 1, stream: int | None = None) -> Wave:
    """Decode a whole file at ``rate`` and ``channels`` as ``[channels, frames]``. Raises AudioError."""
    info = probe(path, stream)
    return resample(to_channels(read(path, stream), channels), info.sample_rate, rate)


def save(path: Path | str, wave: Wave, rate: int) -> None:
    """Write ``[channels, frames]`` atomically; the suffix chooses the format (.wav as 32-bit float, .flac 24 bit)."""
    subtype = {".wav": "FLOAT", ".flac": "PCM_24"}.get(Path(path).suffix.lower())
    with atomic_path(path) as temporary, soundfile.SoundFile(temporary, "w", rate, wave.shape[0], subtype) as sound:
        # One call with a long Vorbis file can crash libsndfile.
        for begin in range(0, wave.shape[1], BLOCK_FRAMES):
            sound.write(wave[:, begin : begin + BLOCK_FRAMES].T)


def _existing(path: Path | str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise AudioError(f"{path}: no such file", "missing")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: the file has 0 bytes", "empty")
    return path


def _sound(path: Path) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(path)
    except (soundfile.SoundFileError, TypeError) as error:
        raise AudioError(f"{path}: not decodable as {path.suffix or 'audio'} ({error})") from None
    except OSError as error:
        raise AudioError(f"{path}: cannot be opened ({error.strerror})") from None


def _sound_blocks(path: Path, start: int, frames: int | None) -> Iterator[Wave]:
    with _sound(path) as sound:
        expected = max(0, sound.frames - start) if frames is None else min(frames, max(0, sound.frames - start))
        done = 0
        try:
            if start:
                sound.seek(min(start, sound.frames))
            while done < expected:
                block = sound.read(min(BLOCK_FRAMES, expected - done), dtype="float32", always_2d=True)
                if not len(block):
                    break
                done += len(block)
                yield np.ascontiguousarray(block.T)
        except soundfile.SoundFileError as error:
            raise AudioError(f"{path}: decoding stopped at frame {start + done} ({error})", "truncated") from None
        if done < expected:
            raise AudioError(f"{path}: ends at frame {start + done}, its header says {sound.frames}", "truncated")


def _container(path: Path) -> av.container.InputContainer:
    try:
        return av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise AudioError(f"{path}: not a readable media file ({error})") from None


def _audio_stream(container: av.container.InputContainer, path: Path, stream: int | None) -> av.audio.AudioStream:
    streams = container.streams.audio
    if (stream or 0) >= len(streams):
        raise AudioError(f"{path}: has {len(streams)} audio streams, stream {stream or 0} was asked for")
    return streams[stream or 0]


def _container_blocks(path: Path, stream: int | None, start: int, frames: int | None) -> Iterator[Wave]:
    with _container(path) as container:
        audio = _audio_stream(container, path, stream)
        rate = audio.codec_context.sample_rate
        resampler = av.AudioResampler(format="fltp")
        position, end = 0, None if frames is None else start + frames
        seeking = start > 0
        if seeking:
            # A seek lands early; one second more lets the decoder settle before the first sample that is used.
            container.seek(max(0, int((start / rate - 1.0) / audio.time_base)), stream=audio, backward=True)
        first = audio.start_time or 0
        try:
            for frame in container.decode(audio):
                if seeking:
                    position = round(float((frame.pts - first) * frame.time_base) * rate)
                    seeking = False
                for part in resampler.resample(frame):
                    block = part.to_ndarray()
                    low, high = max(0, start - position), block.shape[1]
                    if end is not None:
                        high = min(high, end - position)
                    position += block.shape[1]
                    if low < high:
                        yield np.ascontiguousarray(block[:, low:high], dtype=np.float32)
                if end is not None and position >= end:
                    return
        except av.FFmpegError as error:
            raise AudioError(f"{path}: decoding stopped at frame {position} ({error})", "truncated") from None
