"""Tracks on their way out of the model: latents in, waves at whoever wants them, in constant memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch

from manifests.errors import ConfigError
from mgeldm import audio
from mgeldm.codec import Codec
from mgeldm.codec.long import decoding
from mgeldm.refine import refining
from mgeldm.signals import Form

OutputForm: TypeAlias = Literal["codec", "input"]
Refinement: TypeAlias = Literal["none", "wiener"]

Write: TypeAlias = Callable[[audio.Wave], None]
"""Takes the next block ``[channels, n]`` of a track."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputConfig:
    """What comes out of the tasks."""

    output_rate: OutputForm = "codec"
    """Sample rate: the codec's, or that of the input (resampled; nothing comes back above the codec's band)."""
    output_channels: OutputForm = "codec"
    """Channels: the codec's, or those of the input (their mean, repeated)."""
    refine: Refinement = "none"
    """Extraction: what the model says, or the shares of the mix's spectrogram that follow from it."""
    consistent: bool = False
    """Extraction: whether source and submix are made to add up to the mix."""
    batch: int = 4
    """Prompts and files that are sampled at a time."""

    def __post_init__(self) -> None:
        if not isinstance(self.batch, Integral) or not isinstance(self.consistent, bool):
            raise ConfigError(
                f"batch {self.batch!r} must be a whole number, consistent {self.consistent!r} True or False"
            )
        if self.batch < 1:
            raise ConfigError(f"batch {self.batch}: at least 1 is sampled at a time")
        for name, kinds in (("output_rate", OutputForm), ("output_channels", OutputForm), ("refine", Refinement)):
            if getattr(self, name) not in get_args(kinds):
                raise ConfigError(f"{name} {getattr(self, name)!r} is none of {', '.join(get_args(kinds))}")

    def form(self, codec: Form, origin: Form) -> Form:
        """The form of the output, of sound of the form ``codec`` that was made of ``origin``."""
        rate, frames = (codec.rate, codec.frames) if self.output_rate == "codec" else (origin.rate, origin.frames)
        channels = codec.channels if self.output_channels == "codec" else origin.channels
        return Form(rate=rate, channels=channels, frames=frames)


class Track:
    """Brings a track from the codec's form to another, block by block: resampled, its channels, its length."""

    def __init__(self, write: Write, codec: Form, wanted: Form) -> None:
        self._write, self._codec, self._wanted = write, codec, wanted
        self._resampler = audio.Resampler(codec.rate, wanted.rate, codec.channels)
        self._taken = self._written = 0

    def push(self, block: audio.Wave) -> None:
        """The next block; what is longer than the form says is dropped."""
        block = block[:, : self._codec.frames - self._taken]
        self._taken += block.shape[1]
        self._emit(self._resampler.push(block))

    def finish(self) -> None:
        """The end."""
        self._emit(self._resampler.finish())
        self._emit(np.zeros((self._codec.channels, self._wanted.frames - self._written), np.float32))

    def _emit(self, block: audio.Wave) -> None:
        block = block[:, : self._wanted.frames - self._written]
        if block.shape[1]:
            self._written += block.shape[1]
            self._write(audio.to_channels(block, self._wanted.channels))


class Answer:
    """What the model says to one prompt: latents of the kept tracks in, a wave of each out."""

    def __init__(
        self,
        codec: Codec,
        tracks: Mapping[str, Track],
        gain: float,
        mix: Callable[[int, int], torch.Tensor],
        config: OutputConfig,
    ) -> None:
        """Prepare for one stream.

        Args:
            codec: What made the latents.
            tracks: Where the waves go.
            gain: Factor that was on the input, to be undone.
            mix: The input with that gain, ``(begin, end) -> [channels, end - begin]``, for refinement.
            config: Refinement.
        """
        self._tracks, self._gain, self._mix = tracks, np.float32(gain), mix
        self._decoding = {name: decoding(codec) for name in tracks}
        self._refining = refining(config.refine, config.consistent)
        self.position = 0
        """Samples of the mix that were used."""

    def push(self, latents: Mapping[str, torch.Tensor]) -> None:
        """The next frames of each kept track, in the codec's scale: ``[C, n]``."""
        for waves in zip(*(self._decoding[name].push(latents[name]) for name in self._tracks), strict=True):
            self._decoded(waves)

    def finish(self) -> None:
        """The end of the latents."""
        for waves in zip(*(self._decoding[name].finish() for name in self._tracks), strict=True):
            self._decoded(waves)
        if self._refining:
            for pair in self._refining.finish():
                self._out(pair)
        for track in self._tracks.values():
            track.finish()

    def _decoded(self, waves: tuple[torch.Tensor, ...]) -> None:
        begin, self.position = self.position, self.position + waves[0].shape[-1]
        if self._refining is None:
            self._out(torch.stack(waves))
            return
        mix = self._mix(begin, self.position).to(waves[0])
        by_name = dict(zip(self._tracks, waves, strict=True))
        for pair in self._refining.push(torch.stack([mix, by_name["source"], by_name["submix"]])):
            self._out(pair)

    def _out(self, waves: torch.Tensor) -> None:
        names = ("source", "submix") if self._refining else tuple(self._tracks)
        for name, wave in zip(names, waves.float().cpu().numpy(), strict=True):
            self._tracks[name].push(wave / self._gain)
