"""Sound of any length through the model, crop by crop, in constant memory; several sounds and prompts at a time.

What is asked of one sound is a *lane*: a generator that reads as far as its next crop reaches, asks for that crop to be
sampled, and passes on what came back. Crops of one lane follow one another where each goes on from the end of the last
one: half of what they share is held fixed, and over the other half, of which the last one knew less of what comes, it
passes into the next. Without an overlap crops, like those of different lanes, do not depend on each other, and are
sampled together.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from manifests.shards import TRACKS
from mgeldm import audio
from mgeldm.checkpoint import CheckpointConfig
from mgeldm.codec import Codec
from mgeldm.codec.long import encoding
from mgeldm.embedder import Embedder
from mgeldm.outputs import Answer, OutputConfig, Track
from mgeldm.sampling import OVERLAP, SamplingConfig, VelocityModel, noise_for, sample
from mgeldm.signals import Rolling, Signal
from mgeldm.tasks import Task, track_index


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """A crop to be sampled for one prompt or several, or some crops that need not wait for each other: B examples.

    Letters as in `mgeldm.sampling`.
    """

    known: Tensor
    """Normalised latents ``[B, K, C, L]`` of the given track and of held frames."""
    mask: Tensor
    """Which tracks are given: bool ``[K]``."""
    embeddings: Tensor
    """``[B, K, D]``."""
    noise: Tensor
    """``[B, K, C, L]``."""
    held: int
    """First frames that stay as they are."""


Lane: TypeAlias = Generator[Crop, Tensor, None]
"""Gives crops, is sent their latents ``[B, K, C, L]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One prompt of a lane."""

    prompt: str
    words: Tensor
    """Its embedding ``[D]``."""
    tracks: dict[str, Track]
    """Where the kept tracks go."""
    repeat: int = 0
    """How often the same was asked for before, of the same sound."""


class Engine:
    """The parts of a joint model, at work."""

    def __init__(
        self, config: CheckpointConfig, network: VelocityModel, codec: Codec, embedder: Embedder, device: torch.device
    ) -> None:
        self.config, self.network, self.codec, self.embedder, self.device = config, network, codec, embedder, device
        self._mean = torch.tensor(config.latent_mean, device=device)[:, None]
        self._std = torch.tensor(config.latent_std, device=device)[:, None]
        self._silence = (torch.tensor(config.silence_latent, device=device)[:, None] - self._mean) / self._std

    def starts(self, length: int, overlap: float = OVERLAP) -> list[int]:
        """First frames of the crops that sound of ``length`` samples needs, with a share of the crop in common."""
        crop = self.config.crop_frames
        return crop_starts(max(self._frames(length), crop), crop, shared_frames(crop, overlap))

    def lane(
        self,
        task: Task,
        given: Signal | None,
        length: int,
        wishes: Sequence[Wish],
        sampling: SamplingConfig,
        output: OutputConfig,
    ) -> Lane:
        """The crops of one sound of ``length`` samples, whose kept tracks go to the tracks of each wish.

        Frames past the end are silent where a track is given, so that the model does not hear a cut.

        Raises:
            AudioError: the sound can no longer be read.
        """
        crop, frames = self.config.crop_frames, self._frames(length)
        heard = _Given(self, given) if given else None
        gain = given.gain if given else 1.0
        answers = [Answer(self.codec, w.tracks, gain, heard.samples if heard else _nothing, output) for w in wishes]
        starts = self.starts(length, sampling.overlap)
        fade = shared_frames(crop, sampling.overlap) // 2
        together = 1 if sampling.overlap else max(1, output.batch // len(wishes))
        last: Tensor | None = None
        passed_on = 0
        for first in range(0, len(starts), together):
            numbers = range(first, min(first + together, len(starts)))
            mask, embeddings, known = self._conditions(task, heard, frames, wishes, [starts[n] for n in numbers])
            held, before = 0, None
            if last is not None and sampling.overlap:
                before = last[..., starts[first] - starts[first - 1] :]
                held = before.shape[-1] - fade
                known[..., :held] = torch.where(mask[:, None, None], known[..., :held], before[..., :held])
            noise = torch.cat([self._noise(sampling.seed, task, wishes, number) for number in numbers])
            out = yield Crop(known=known, mask=mask, embeddings=embeddings, noise=noise, held=held)
            for number, said in zip(numbers, out.split(len(wishes)), strict=True):
                last = said if before is None else faded(before, said, fade)
                # Where crops share frames without an overlap, what the earlier one said counts.
                end = frames if number + 1 == len(starts) else starts[number] + crop - fade
                new = last[..., passed_on - starts[number] : end - starts[number]] * self._std + self._mean
                for answer, latents in zip(answers, new, strict=True):
                    answer.push({name: latents[track_index(name)] for name in task.kept})
                passed_on = end
            if heard:
                heard.forget(min(answer.position for answer in answers), starts[numbers[-1]])
        for answer in answers:
            answer.finish()

    def _conditions(
        self, task: Task, heard: "_Given | None", frames: int, wishes: Sequence[Wish], starts: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mask ``[K]``, embeddings ``[B, K, D]`` and latents ``[B, K, C, L]``: for each start, each wish."""
        crop, examples = self.config.crop_frames, len(starts) * len(wishes)
        mask = torch.zeros(len(TRACKS), dtype=torch.bool, device=self.device)
        embeddings = torch.zeros(examples, len(TRACKS), self.config.model.embedding_dim, device=self.device)
        words = torch.stack([wish.words for wish in wishes]).to(embeddings)
        embeddings[:, track_index(task.prompted)] = words.repeat(len(starts), 1)
        known = self._silence.expand(examples, len(TRACKS), -1, crop).clone()
        if task.given is not None and heard:
            track = track_index(task.given)
            mask[track] = True
            for start, sounds, parts in zip(
                starts, embeddings.split(len(wishes)), known.split(len(wishes)), strict=True
            ):
                stop = min(start + crop, frames)
                parts[:, track, :, : stop - start] = heard.latents(start, stop)
                sounds[:, track] = heard.embedding(start)
        return mask, embeddings, known

    @torch.inference_mode()
    def drive(
        self,
        lanes: Iterable[Lane],
        sampling: SamplingConfig,
        batch: int = 1,
        advanced: Callable[[int], None] | None = None,
    ) -> None:
        """Take all lanes to their ends, about ``batch`` examples at a time.

        ``advanced`` is told how many evaluations were made, each for one example.
        """
        waiting: Iterator[Lane] = iter(lanes)
        running: list[tuple[Lane, Crop]] = []
        active: list[tuple[Lane, Crop]] = []
        try:
            while True:
                while sum(crop.noise.shape[0] for _, crop in active) < batch:
                    lane = next(waiting, None)
                    if lane is None:
                        break
                    if (first := next(lane, None)) is not None:
                        active.append((lane, first))
                if not active:
                    return
                sampled = self._sample([crop for _, crop in active], sampling, batch, advanced)
                running, active = active, []
                for (lane, _), out in zip(running, sampled, strict=True):
                    try:
                        active.append((lane, lane.send(out)))
                    except StopIteration:
                        continue
        finally:
            for lane, _ in [*running, *active]:
                lane.close()

    def normalise(self, latents: Tensor) -> Tensor:
        """Latents ``[..., C, L]`` of the codec in the network's scale."""
        return (latents - self._mean) / self._std

    def _sample(
        self, crops: Sequence[Crop], sampling: SamplingConfig, batch: int, advanced: Callable[[int], None] | None
    ) -> Sequence[Tensor]:
        known, embeddings, noise = (
            torch.cat([getattr(crop, name) for crop in crops]) for name in ("known", "embeddings", "noise")
        )
        sizes = [crop.noise.shape[0] for crop in crops]
        frames = torch.arange(self.config.crop_frames, device=self.device)
        held = torch.cat([(frames < crop.held).expand(size, -1) for crop, size in zip(crops, sizes, strict=True)])
        mask = torch.cat([crop.mask.expand(size, -1) for crop, size in zip(crops, sizes, strict=True)])

        def part(examples: Tensor) -> Tensor:
            return sample(
                self.network,
                known[examples],
                mask[examples],
                embeddings[examples],
                noise[examples],
                sampling,
                objective=self.config.objective,
                held_frames=held[examples],
                progress=lambda *_: advanced(len(examples)) if advanced else None,
            )

        parts = [part(examples) for examples in torch.arange(len(noise)).split(batch)]
        return torch.cat(parts).split(sizes)

    def _noise(self, seed: int, task: Task, wishes: Sequence[Wish], number: int) -> Tensor:
        # The prompt has a part in the name: sources that are imputed one after another begin from other noise.
        names = [f"{task.name}/{w.prompt}/{number}" + (f"/{w.repeat}" if w.repeat else "") for w in wishes]
        channels, frames = self.config.model.latent_channels, self.config.crop_frames
        return noise_for(seed, names, tracks=len(TRACKS), channels=channels, frames=frames).to(self.device)

    def _frames(self, length: int) -> int:
        return -(-length // self.codec.spec.hop)


class _Given:
    """The given track as the model hears it: samples, latents and embeddings of a stretch that moves on."""

    def __init__(self, engine: Engine, signal: Signal) -> None:
        self._engine, self._length = engine, signal.form.frames
        gain = signal.gain
        self._wave = Rolling(torch.from_numpy(block) * gain for block in signal.blocks())
        self._latents = Rolling(self._encoded())

    def samples(self, begin: int, end: int) -> Tensor:
        """``[channels, end - begin]``, zeros after the end."""
        return self._wave.cut(begin, end)

    def latents(self, begin: int, end: int) -> Tensor:
        """Normalised latents ``[C, end - begin]``."""
        return self._latents.cut(begin, end)

    def embedding(self, start: int) -> Tensor:
        """Embedding ``[D]`` of the sound around the middle of the crop that begins at frame ``start``."""
        rate, embedder = self._engine.codec.spec.sample_rate, self._engine.embedder.spec
        length = round(embedder.window_s * rate)
        begin = self._window(start)
        part = self.samples(begin, begin + length).mean(dim=0, keepdim=True).numpy()
        part = audio.fit(audio.resample(part, rate, embedder.sample_rate), embedder.window)
        return self._engine.embedder.embed_audio(torch.from_numpy(part).to(self._engine.device))[0]

    def forget(self, position: int, start: int) -> None:
        """Give up what lies before sample ``position`` and before what the crop at frame ``start`` heard."""
        self._latents.forget(start)
        self._wave.forget(min(position, self._window(start)))

    def _window(self, start: int) -> int:
        """First sample of the embedder's window for the crop at frame ``start``."""
        rate, hop = self._engine.codec.spec.sample_rate, self._engine.codec.spec.hop
        middle = (start + self._engine.config.crop_frames / 2) * hop
        length = round(self._engine.embedder.spec.window_s * rate)
        return max(0, min(round(middle - length / 2), self._length - length))

    def _encoded(self) -> Iterator[Tensor]:
        encode, step = encoding(self._engine.codec), audio.BLOCK_SAMPLES
        for begin in range(0, self._length, step):
            wave = self._wave.cut(begin, min(begin + step, self._length)).to(self._engine.device)
            yield from map(self._engine.normalise, encode.push(wave))
        yield from map(self._engine.normalise, encode.finish())


def shared_frames(crop: int, overlap: float) -> int:
    """Frames that each crop has in common with the one before: at least one of them, where there is an overlap."""
    return min(max(1, round(crop * overlap)), crop - 1) if overlap else 0


def faded(before: Tensor, said: Tensor, fade: int) -> Tensor:
    """What a crop said ``[..., L]``; at the last ``fade`` of the first frames, which are ``before`` ``[..., n]`` too,
    that passes into it in equal steps."""
    share = torch.arange(1, fade + 1, device=said.device, dtype=said.dtype) / (fade + 1)
    end = before.shape[-1]
    middle = torch.lerp(before[..., end - fade :], said[..., end - fade : end], share)
    return torch.cat([said[..., : end - fade], middle, said[..., end:]], dim=-1)


def crop_starts(frames: int, crop: int, overlap: int) -> list[int]:
    """First frames of crops that cover ``frames``, each sharing at least ``overlap`` with the one before."""
    starts = list(range(0, max(1, frames - crop + 1), crop - overlap))
    return starts if starts[-1] + crop >= frames else [*starts, frames - crop]


def _nothing(begin: int, end: int) -> Tensor:
    raise ValueError("there is no mix to refine with")
