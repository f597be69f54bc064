"""Sound that goes into the model: an array, a tensor or a file of any rate and channels, read block by block."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from manifests.errors import AudioError
from mgeldm import audio

AudioLike: TypeAlias = npt.NDArray[Any] | torch.Tensor | Path | str
"""``[T]`` or ``[channels, T]`` of floats, or the path of an audio file."""

MAX_CHANNELS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How sound is laid out."""

    rate: int
    channels: int
    frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """Sound at one rate and number of channels, that can be read from the start as often as is wanted."""

    blocks: Callable[[], Iterator[audio.Wave]]
    """Blocks ``[channels, n]``, ``form.frames`` in all."""
    form: Form
    peak: float
    """Largest absolute sample."""
    origin: Form
    """What it was made of."""

    @property
    def gain(self) -> float:
        """Factor that brings it into a codec's range; 1 where it is in it."""
        return 1.0 / max(1.0, self.peak)

    def whole(self) -> audio.Wave:
        """All of it, ``[channels, T]``."""
        return np.concatenate(list(self.blocks()), axis=1)


def open_signal(given: AudioLike, rate: int, channels: int, own_rate: int | None = None) -> Signal:
    """Sound at ``rate`` and ``channels``, measured in one pass.

    Channels are kept where their number is right, and otherwise are all the mean of the given ones.

    Args:
        given: Array, tensor or path.
        rate: Sample rate to read it at.
        channels: Channels to read it with.
        own_rate: Sample rate of an array, if it is another.

    Raises:
        AudioError: it is not finite, has 0 samples or no such shape, or the file cannot be read to its end.
    """
    if isinstance(given, Path | str):
        if own_rate is not None:
            raise AudioError(f"{given}: a file says its sample rate itself; give rate= with arrays only")
        path = Path(given)
        return _measured(str(given), lambda: audio.blocks(path), audio.probe(path).sample_rate, rate, channels)
    wave = as_wave(given)
    own_rate = rate if own_rate is None else own_rate
    if own_rate != rate and own_rate not in audio.RATES:
        raise AudioError(
            f"a sample rate of {own_rate!r} Hz; a whole number from {audio.RATES.start} to {audio.RATES.stop - 1} "
            "can be used"
        )
    own_rate = int(own_rate)
    size = max(1, audio.BLOCK_SAMPLES // wave.shape[0])

    def blocks() -> Iterator[audio.Wave]:
        for begin in range(0, wave.shape[1], size):
            yield np.array(wave[:, begin : begin + size], np.float32)

    return _measured("the audio", blocks, own_rate, rate, channels)


def as_wave(given: npt.NDArray[Any] | torch.Tensor) -> npt.NDArray[Any]:
    """``[T]`` or ``[channels, T]`` as an array ``[channels, T]``. Raises AudioError for anything else."""
    if isinstance(given, torch.Tensor):
        floating = given.is_floating_point()
    elif isinstance(given, np.ndarray):
        floating = np.issubdtype(given.dtype, np.floating)
    else:
        raise AudioError(
            f"audio is an array or tensor of floats, [T] or [channels, T], or the path of a file, not "
            f"{type(given).__name__}"
        )
    if given.ndim not in (1, 2) or not floating:
        raise AudioError(
            f"audio must be floating-point [T] or [channels, T], got {given.dtype} {list(given.shape)}; give one sound "
            "at a time, whole numbers scaled to -1 .. 1"
        )
    wave = given.detach().cpu().float().numpy() if isinstance(given, torch.Tensor) else given
    wave = np.atleast_2d(wave)
    if not 0 < wave.shape[0] <= MAX_CHANNELS:
        raise AudioError(f"audio of {wave.shape[0]} channels; [channels, T] is expected, so transpose [T, channels]")
    return wave


class Adder:
    """Adds a track to a signal of the same form, block by block as the track comes."""

    def __init__(self, signal: Signal) -> None:
        self._blocks = Rolling(torch.from_numpy(block) for block in signal.blocks())
        self._position = 0

    def push(self, block: audio.Wave) -> audio.Wave:
        """The next block of the track, with the signal added."""
        end = self._position + block.shape[1]
        total = self._blocks.cut(self._position, end).numpy() + block
        self._blocks.forget(end)
        self._position = end
        return total


class Spool:
    """Sound that is kept exactly as it came, outside of memory if ``file`` is, and closed when it is no more needed."""

    def __init__(self, file: IO[bytes], form: Form, origin: Form) -> None:
        self._file, self._form, self._origin = file, form, origin
        self._width = 4 * form.channels
        self._frames, self._peak = 0, 0.0

    def write(self, block: audio.Wave) -> None:
        """The next block ``[channels, n]``."""
        self._file.seek(self._frames * self._width)
        self._file.write(block.astype(np.float32, copy=False).tobytes("F"))
        self._frames += block.shape[1]
        self._peak = max(self._peak, float(np.abs(block).max(initial=0.0)))

    def signal(self) -> Signal:
        """What was written; there as long as the spool is not closed."""
        return Signal(blocks=self._blocks, form=self._form, peak=self._peak, origin=self._origin)

    def close(self) -> None:
        """Give up the sound."""
        self._file.close()

    def _blocks(self) -> Iterator[audio.Wave]:
        step = max(1, audio.BLOCK_SAMPLES // self._form.channels)
        for begin in range(0, self._frames, step):
            self._file.seek(begin * self._width)
            data = self._file.read(min(step, self._frames - begin) * self._width)
            yield np.frombuffer(data, np.float32).reshape(-1, self._form.channels).T.copy()


class Rolling:
    """A stretch of a stream that moves on: read as far as is asked for, kept as long as it is not forgotten."""

    def __init__(self, blocks: Iterator[torch.Tensor]) -> None:
        self._blocks = blocks
        self._parts: list[torch.Tensor] = []
        self._low = self._high = 0

    def cut(self, begin: int, end: int) -> torch.Tensor:
        """``[..., end - begin]``, zeros after the end of the stream; none of it may be forgotten."""
        if begin < self._low:
            raise ValueError(f"{begin} is forgotten; what is kept begins at {self._low}")
        while self._high < end and (block := next(self._blocks, None)) is not None:
            self._parts.append(block)
            self._high += block.shape[-1]
        if len(self._parts) > 1:
            self._parts = [torch.cat(self._parts, dim=-1)]
        kept = self._parts[0][..., begin - self._low : end - self._low]
        return torch.nn.functional.pad(kept, (0, end - begin - kept.shape[-1]))

    def forget(self, before: int) -> None:
        """Give up everything before a place."""
        if self._parts and (gone := min(before, self._high) - self._low) > 0:
            # A copy, so that nothing forgotten stays in memory.
            self._parts = [torch.cat(self._parts, dim=-1)[..., gone:].clone()]
            self._low += gone


def _measured(name: str, raw: Callable[[], Iterator[audio.Wave]], own_rate: int, rate: int, channels: int) -> Signal:
    frames = own_channels = 0
    peak = 0.0

    def counted() -> Iterator[audio.Wave]:
        nonlocal frames, own_channels
        for block in raw():
            if not np.isfinite(block).all():
                raise AudioError(f"{name} holds NaN or infinite samples; repair it first", "not_finite")
            frames, own_channels = frames + block.shape[1], block.shape[0]
            yield block

    def converted(blocks: Iterator[audio.Wave]) -> Iterator[audio.Wave]:
        return audio.resample_blocks((audio.to_channels(block, channels) for block in blocks), own_rate, rate)

    for block in converted(counted()):
        peak = max(peak, float(np.abs(block).max(initial=0.0)))
    if not frames:
        raise AudioError(f"{name} has 0 samples; there must be sound in it", "empty")
    return Signal(
        blocks=lambda: converted(raw()),
        form=Form(rate=rate, channels=channels, frames=audio.resampled_frames(frames, own_rate, rate)),
        peak=peak,
        origin=Form(rate=own_rate, channels=own_channels, frames=frames),
    )
