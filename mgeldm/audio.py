"""Reading, resampling and writing audio.

soundfile reads WAV, FLAC, MP3, Ogg and Opus; PyAV reads containers (``.m4a``, ``.mp4``, ``.stem.mp4``). All samples
are float32 ``[channels, frames]``, full scale 1.0. Every failure is an `AudioError` whose ``code`` is a problem code.
What lies elsewhere than in a file of this machine (a `Blob`) is read through a file object, as far as it is needed.
"""

import io
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import av
import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from manifests.atomic import atomic_path
from manifests.errors import AudioError
from manifests.regular import open_regular
from manifests.remote import Blob

AudioFile: TypeAlias = Path | str | Blob
Wave = npt.NDArray[np.float32]

# Each with its demuxer: one chosen by content could be a playlist, which opens other files.
CONTAINERS = {suffix: "mov" for suffix in (".m4a", ".mp4", ".m4b", ".mov")} | {".mka": "matroska", ".webm": "matroska"}
BLOCK_SAMPLES = 1 << 19
RATES = range(4_000, 768_001)
MAX_HOURS = 24
"""No song is longer; a file that says so, be it full of holes, would keep a scan busy for days."""

_UNKNOWN_FRAMES = 1 << 62
_UNKNOWN_BYTES = 0x7FFFF000
# libsndfile's log of a chunk of samples that the file is too short for; of the whole file, of that chunk, and of the
# place where chunks should go on but do not.
_SHORT_CHUNK = re.compile(r"^\s*(?:data|SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
_WHOLE = re.compile(r"^(?:RIFF|FORM) : (\d+)", re.MULTILINE)
_CHUNK = re.compile(r"^\s*(?:data|SSND) : (\d+)$", re.MULTILINE)
_NO_CHUNK = re.compile(r"Unknown chunk marker \(\w+\) at position (\d+)")
# What may stand behind the last frame of FLAC without being sound: tags, and what the decoder has read ahead.
_FLAC_TAIL = 64 << 10
_OGG_PAGE = 1 << 16
_WAV_BYTES = (1 << 32) - (1 << 16)


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What a file's header says."""

    sample_rate: int
    channels: int
    frames: int | None
    """Samples per channel, or None when only decoding can tell (compressed containers)."""


def probe(path: AudioFile, stream: int | None = None) -> AudioInfo:
    """Read the header of an audio file. Raises AudioError (``missing``, ``empty``, ``unreadable``)."""
    path = _existing(path)
    with _as_audio_error(path):
        if _suffix(path) in CONTAINERS:
            with _container(path) as container:
                context = _audio_stream(container, path, stream).codec_context
                return AudioInfo(_checked_rate(path, context.sample_rate), context.channels, None)
        with _sound(path) as (sound, _):
            return AudioInfo(_checked_rate(path, sound.samplerate), sound.channels, _promised_frames(path, sound))


def blocks(path: AudioFile, stream: int | None = None, start: int = 0, frames: int | None = None) -> Iterator[Wave]:
    """Decode ``frames`` samples from ``start`` (to the end by default), in blocks of at most `BLOCK_SAMPLES`.

    Raises AudioError: ``missing``, ``empty``, ``unreadable``, or ``truncated`` when the file ends before its header
    says. Blocks that were decoded before a truncation have been yielded by then.
    """
    for block in interleaved(path, stream, start, frames):
        yield np.ascontiguousarray(block.T)


def interleaved(
    path: AudioFile, stream: int | None = None, start: int = 0, frames: int | None = None
) -> Iterator[Wave]:
    """Like `blocks`, but each block is ``[frames, channels]``, as files hold it; that saves time."""
    path = _existing(path)
    with _as_audio_error(path):
        if _suffix(path) in CONTAINERS:
            for block in _batched(_container_parts(path, stream, start, frames)):
                yield np.ascontiguousarray(block.T)
        else:
            yield from _sound_blocks(path, start, frames)


def one_channel(block: Wave, channel: int, path: AudioFile) -> Wave:
    """Channel ``channel`` of ``[frames, channels]`` as ``[frames, 1]``. Raises AudioError when there is no such."""
    if channel >= block.shape[1]:
        raise AudioError(f"{path}: has {block.shape[1]} channels, channel {channel} was asked for (counting from 0)")
    return np.ascontiguousarray(block[:, channel : channel + 1])


def read(path: AudioFile, stream: int | None = None, start: int = 0, frames: int | None = None) -> Wave:
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


class Resampler:
    """`resample` for a stream: the same samples, whatever blocks they come in."""

    def __init__(self, rate: int, target: int, channels: int) -> None:
        self._rate, self._target, self._channels = rate, target, channels
        self._stream = None if rate == target else soxr.ResampleStream(rate, target, channels, dtype="float32")
        self._taken = self._given = 0

    def push(self, block: Wave) -> Wave:
        """Take in ``[channels, n]``; returns what is ready."""
        self._taken += block.shape[1]
        return block if self._stream is None else self._out(self._stream.resample_chunk(block.T))

    def finish(self) -> Wave:
        """The rest, so that there are as many frames in all as `resampled_frames` says."""
        if self._stream is None:
            return np.zeros((self._channels, 0), np.float32)
        missing = resampled_frames(self._taken, self._rate, self._target) - self._given
        nothing = np.zeros((0, self._channels), np.float32)
        return fit(self._out(self._stream.resample_chunk(nothing, last=True)), missing)

    def _out(self, made: Wave) -> Wave:
        self._given += made.shape[0]
        return np.ascontiguousarray(made.T)


def resample_blocks(blocks: Iterable[Wave], rate: int, target: int) -> Iterator[Wave]:
    """`resample` of a stream of blocks ``[channels, n]``, in constant memory; the same samples."""
    resampler = None
    for block in blocks:
        resampler = resampler or Resampler(rate, target, block.shape[0])
        if (made := resampler.push(block)).shape[1]:
            yield made
    if resampler and (rest := resampler.finish()).shape[1]:
        yield rest


def resampled_frames(frames: int, rate: int, target: int) -> int:
    """Length of ``frames`` samples of ``rate`` at ``target``, rounded up."""
    return -(-frames * target // rate)


def fit(wave: Wave, frames: int) -> Wave:
    """Cut or zero-pad ``[..., n]`` at the end to ``[..., frames]``."""
    if wave.shape[-1] >= frames:
        return wave[..., :frames]
    return np.pad(wave, [(0, 0)] * (wave.ndim - 1) + [(0, frames - wave.shape[-1])])


def to_channels(wave: Wave, channels: int) -> Wave:
    """Bring ``[n, frames]`` to ``[channels, frames]``: unless n is that already, the mean of all, repeated."""
    if wave.shape[0] == channels:
        return wave
    return np.repeat(wave.mean(axis=0, keepdims=True, dtype=np.float32), channels, axis=0)


def load(path: AudioFile, rate: int, channels: int = 1, stream: int | None = None) -> Wave:
    """Decode a whole file at ``rate`` and ``channels`` as ``[channels, frames]``. Raises AudioError."""
    info = probe(path, stream)
    return resample(to_channels(read(path, stream), channels), info.sample_rate, rate)


class Writer:
    """Writes ``[channels, n]`` block by block; see `writing`."""

    def __init__(self, sound: soundfile.SoundFile) -> None:
        self._sound = sound

    def write(self, wave: Wave) -> None:
        """Append a block."""
        # One call with a long Vorbis file can crash libsndfile.
        size = _block_frames(wave.shape[0])
        for begin in range(0, wave.shape[1], size):
            self._sound.write(wave[:, begin : begin + size].T)


@contextmanager
def writing(path: Path | str, rate: int, channels: int, frames: int = 0) -> Iterator[Writer]:
    """Write a file as its samples come; it is there, whole, once the context is left, and not after an error.

    The suffix chooses the format (.wav as 32-bit float, .flac 24 bit, which cuts what is above full scale). A WAV that
    its ``frames`` make longer than its 32-bit header can say is written as RF64.
    """
    suffix = Path(path).suffix.lower()
    subtype = {".wav": "FLOAT", ".flac": "PCM_24"}.get(suffix)
    kind = "RF64" if suffix == ".wav" and 4 * frames * channels > _WAV_BYTES else None
    with atomic_path(path) as temporary:
        with soundfile.SoundFile(temporary, "w", rate, channels, subtype, format=kind) as sound:
            yield Writer(sound)
        _without_time(temporary)


def _without_time(path: Path) -> None:
    """Take out the time that libsndfile puts into the PEAK chunk of a float WAV: equal sound is to be equal bytes."""
    with open(path, "r+b") as file:
        head = file.read(512)
        if head[8:12] == b"WAVE" and (place := head.find(b"PEAK")) > 0:
            file.seek(place + 12)  # after the name, the length and the version
            file.write(bytes(4))


def save(path: Path | str, wave: Wave, rate: int) -> None:
    """Write ``[channels, frames]`` atomically, in the formats of `writing`."""
    with writing(path, rate, *wave.shape) as writer:
        writer.write(wave)


@contextmanager
def _as_audio_error(path: Path | Blob) -> Iterator[None]:
    """Whatever a decoding library raises, foreseen or not, becomes an AudioError."""
    try:
        yield
    except AudioError:
        raise
    except Exception as error:
        # That memory is short is no fault of the file; but FFmpeg also says so when a header asks for too much.
        if isinstance(error, MemoryError) and not isinstance(error, av.FFmpegError):
            raise
        code = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        raise AudioError(
            f"{path}: not decodable as {Path(str(path)).suffix or 'audio'} ({_reason(error)})", code
        ) from error


def _reason(error: Exception) -> str:
    text = error.error_string if isinstance(error, soundfile.LibsndfileError) else str(error)
    return " ".join(text.split()) or type(error).__name__


@contextmanager
def _opened(path: Path | Blob) -> Iterator[Any]:
    """A file to read and seek in. Of a blob, a read that failed is the error that counts."""
    if isinstance(path, Path):
        with open_regular(path) as local:
            yield local
        return
    try:
        raw = path.open()
    except OSError as error:
        raise _fetch_error(path, error) from None
    with raw:
        file = _Remembering(raw)
        if not file.seek(0, io.SEEK_END):
            raise AudioError(f"{path}: the file has 0 bytes; copy or download it again", "empty")
        file.seek(0)
        try:
            yield file
        except Exception:
            if file.failure:
                raise _fetch_error(path, file.failure) from None
            raise
        if file.failure:
            raise _fetch_error(path, file.failure)


def _fetch_error(blob: Blob, error: OSError) -> AudioError:
    if isinstance(error, FileNotFoundError):
        return AudioError(f"{blob}: no such file ({_reason(error)})", "missing")
    return AudioError(f"{blob}: cannot be read ({_reason(error)})")


def _suffix(path: Path | Blob) -> str:
    try:
        return path.suffix.lower()
    except OSError as error:
        raise _fetch_error(path, error) from None  # type: ignore[arg-type]


class _Remembering(io.RawIOBase):
    """A file object for decoders that cannot pass an exception on: a read that failed looks like the end."""

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__()
        self._raw = raw
        self.failure: OSError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def readinto(self, buffer: Any) -> int:
        try:
            return 0 if self.failure else self._raw.readinto(buffer)  # type: ignore[attr-defined]
        except OSError as error:
            self.failure = error
            return 0


def _existing(path: AudioFile) -> Path | Blob:
    if not isinstance(path, Path | str):
        return path
    path = Path(path)
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise AudioError(f"{path}: no such file; look at the path", "missing") from None
    except (OSError, ValueError) as error:
        raise AudioError(f"{path}: cannot be opened ({_reason(error)})") from None
    if not stat.S_ISREG(status.st_mode):
        raise AudioError(f"{path}: not a file")
    if status.st_size == 0:
        raise AudioError(f"{path}: the file has 0 bytes; copy or download it again", "empty")
    return path


def _check_length(path: Path | Blob, frames: float, rate: int) -> None:
    if frames > MAX_HOURS * 3600 * rate:
        raise AudioError(f"{path}: lasts {frames / rate / 3600:.0f} hours by its header, {MAX_HOURS} can be used")


def _checked_rate(path: Path | Blob, rate: int) -> int:
    if rate not in RATES:
        raise AudioError(f"{path}: a sample rate of {rate} Hz; {RATES.start} to {RATES.stop - 1} Hz can be used")
    return rate


def _block_frames(channels: int) -> int:
    return max(1, BLOCK_SAMPLES // channels)


@contextmanager
def _sound(path: Path | Blob) -> Iterator[tuple[soundfile.SoundFile, BinaryIO]]:
    """libsndfile's view of a file, and the file itself."""
    # Given a name, libsndfile would look for a resource fork beside the file, which may be a link to anywhere.
    with _opened(path) as file:
        given = file.fileno() if isinstance(path, Path) else file
        with soundfile.SoundFile(given, closefd=False) as sound:
            yield sound, file


def _promised_frames(path: Path | Blob, sound: soundfile.SoundFile) -> int:
    """Frames that the header says; libsndfile itself takes what a cut WAV or AIFF still holds for its length."""
    if sound.frames >= _UNKNOWN_FRAMES:
        raise AudioError(f"{path}: the header does not say how long the file is; write it anew, not through a pipe")
    _check_length(path, sound.frames, sound.samplerate)
    chunk = _SHORT_CHUNK.search(sound.extra_info)
    said, held = (int(chunk[1]), int(chunk[2])) if chunk else (0, 0)
    if 0 == held < said < _UNKNOWN_BYTES:
        raise AudioError(f"{path}: ends where its samples should begin", "truncated")
    # Writers that cannot seek back leave the largest number there is as the size.
    return int(sound.frames) * said // held if 0 < held < said < _UNKNOWN_BYTES else int(sound.frames)


def _sound_blocks(path: Path | Blob, start: int, frames: int | None) -> Iterator[Wave]:
    with _sound(path) as (sound, file):
        promised = _promised_frames(path, sound)
        expected = max(0, promised - start) if frames is None else min(frames, max(0, promised - start))
        size, done = _block_frames(sound.channels), 0
        try:
            if start:
                sound.seek(min(start, sound.frames))
            while done < expected:
                block = sound.read(min(size, expected - done), dtype="float32", always_2d=True)
                if not len(block):
                    break
                done += len(block)
                yield block
        except soundfile.SoundFileError as error:
            raise AudioError(f"{path}: decoding stopped after frame {start + done} ({error})", "truncated") from None
        if done < expected:
            raise AudioError(f"{path}: ends at frame {start + done}, its header says {promised}", "truncated")
        if frames is None:
            _check_end(path, sound, file)


def _check_end(path: Path | Blob, sound: soundfile.SoundFile, file: BinaryIO) -> None:
    """Raise AudioError when the file, read to the end that its header says, goes on, or lacks the end it should have.

    libsndfile takes the header's word for it.
    """
    place = os.lseek(file.fileno(), 0, os.SEEK_CUR) if isinstance(path, Path) else file.tell()
    size = file.seek(0, os.SEEK_END)
    if sound.format == "FLAC" and (rest := size - place) > _FLAC_TAIL:
        raise AudioError(f"{path}: {rest} bytes follow the {sound.frames} frames that its header says", "longer")
    if sound.format == "OGG" and not _ogg_ends(file, size):
        raise AudioError(f"{path}: ends at frame {sound.frames} without a last page", "truncated")
    log = sound.extra_info
    whole, chunk, stop = _WHOLE.search(log), _CHUNK.search(log), _NO_CHUNK.search(log)
    if whole and chunk and stop:
        rest = min(int(whole[1]) + 8, size) - int(stop[1])
        # Less than a tenth of a second is no sound that is missed.
        if rest * sound.frames * 10 > int(chunk[1]) * sound.samplerate:
            raise AudioError(f"{path}: {rest} bytes follow the {sound.frames} frames that its header says", "longer")


def _ogg_ends(file: BinaryIO, size: int) -> bool:
    """Whether the last page of an Ogg file is whole and says that it is the last."""
    file.seek(max(0, size - 2 * _OGG_PAGE))
    tail = file.read()
    begin = tail.rfind(b"OggS\0")
    # Pages are not that long: the end is hidden by something else.
    if begin < 0:
        return True
    page = tail[begin:]
    lengths = page[27 : 27 + page[26]] if len(page) > 26 else b""
    return len(page) >= 27 + len(lengths) + sum(lengths) and bool(page[5] & 4)


@contextmanager
def _container(path: Path | Blob) -> Iterator[av.container.InputContainer]:
    with (
        _opened(path) as file,
        av.open(file, format=CONTAINERS[_suffix(path)], buffer_size=1 << 18) as opened,
    ):
        yield opened


def _audio_stream(
    container: av.container.InputContainer, path: Path | Blob, stream: int | None
) -> av.audio.AudioStream:
    streams = container.streams.audio
    if (stream or 0) >= len(streams):
        raise AudioError(f"{path}: has {len(streams)} audio streams, stream {stream or 0} was asked for")
    return streams[stream or 0]


def _container_parts(path: Path | Blob, stream: int | None, start: int, frames: int | None) -> Iterator[Wave]:
    with _container(path) as container:
        audio = _audio_stream(container, path, stream)
        rate, channels = audio.codec_context.sample_rate, audio.codec_context.channels
        resampler = av.AudioResampler(format="fltp")
        position, end = 0, None if frames is None else start + frames
        _check_length(path, (audio.duration or 0) * audio.time_base * rate, rate)
        first = audio.start_time or 0
        # A seek lands early; one second more lets the decoder settle before the first sample that is used. Time stamps
        # coarser than a sample (Matroska) cannot say where it landed.
        seeking = start > rate and audio.time_base * rate <= 1
        if seeking:
            container.seek(first + int((start / rate - 1.0) / audio.time_base), stream=audio, backward=True)
        try:
            for frame in container.decode(audio):
                if seeking:
                    position = round((frame.pts - first) * audio.time_base * rate)
                    seeking = False
                    if position > start:
                        raise AudioError(f"{path}: seeking to frame {start} ended at {position}")
                if (frame.sample_rate, frame.layout.nb_channels) != (rate, channels):
                    raise AudioError(f"{path}: changes its sample rate or channels at frame {position}")
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
        # Edit lists and padding of the codec move the end by a little.
        promised = round((audio.duration or 0) * audio.time_base * rate)
        if position + rate // 10 < promised:
            raise AudioError(f"{path}: ends at frame {position}, its header says {promised}", "truncated")


def _batched(parts: Iterable[Wave]) -> Iterator[Wave]:
    """Join short parts to blocks: what is done for each block costs more than what is done for each sample."""
    waiting: list[Wave] = []
    samples = 0
    failure: AudioError | None = None
    try:
        for part in parts:
            waiting.append(part)
            samples += part.size
            if samples >= BLOCK_SAMPLES // 2:
                yield np.concatenate(waiting, axis=1)
                waiting, samples = [], 0
    except AudioError as error:
        failure = error
    if waiting:
        yield np.concatenate(waiting, axis=1)
    if failure:
        raise failure
