"""The joint model with its codec and embedder, ready to generate, impute, extract and accompany."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch

from manifests.errors import AudioError, PromptError
from manifests.shards import TRACKS
from mgeldm import audio
from mgeldm.checkpoint import CheckpointConfig, check_identity, load_checkpoint, part_of
from mgeldm.codec import Codec, load_codec
from mgeldm.codec.long import decode_long, encode_long, silence_latent
from mgeldm.devices import choose_device
from mgeldm.embedder import Embedder, load_embedder
from mgeldm.model import JointTransformer
from mgeldm.sampling import Progress, SamplingConfig, noise_for, sample
from mgeldm.tasks import ACCOMPANY, EXTRACT, GENERATE, IMPUTE, Task, track_index

OVERLAP = 0.25
"""Share of the crop that the next chunk of long audio shares with the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What is asked of the model, in its own terms."""

    task: Task
    prompt: str
    words: torch.Tensor
    """Embedding ``[D]`` of the prompt."""
    latents: torch.Tensor | None
    """Normalised latents ``[C, frames]`` of the given track."""
    mono: torch.Tensor | None
    """The given track, mixed down: ``[T]``."""
    frames: int
    sampling: SamplingConfig
    repeat: int
    """How often the same was asked for before."""


class MGELDM:
    """A joint model with the codec and the embedder it was trained with.

    Waves are float32 ``[channels, T]`` at ``rate``; outputs have the input's length.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        network: JointTransformer,
        codec: Codec,
        embedder: Embedder,
        device: torch.device,
    ) -> None:
        self.config = config
        self.model = network
        self.codec = codec
        self.embedder = embedder
        self.device = device
        self._mean = torch.tensor(config.latent_mean, device=device)[:, None]
        self._std = torch.tensor(config.latent_std, device=device)[:, None]
        self._silence = torch.tensor(config.silence_latent, device=device)[:, None]

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, *, codec: str = "default", embedder: str = "default", device: str = "auto"
    ) -> Self:
        """Load a checkpoint folder.

        Raises:
            CheckpointError: it is no whole checkpoint, or was trained with another codec or embedder.
        """
        config, network = load_checkpoint(Path(folder))
        target = choose_device(device)
        codec, embedder = part_of(Path(folder), "codec", codec), part_of(Path(folder), "embedder", embedder)
        found_codec, found_embedder = load_codec(codec), load_embedder(embedder)
        check_identity(config, "codec", found_codec, codec)
        check_identity(config, "embedder", found_embedder, embedder)
        if config.silence_latent is None:
            config = replace(config, silence_latent=tuple(silence_latent(found_codec).tolist()))
        return cls(config, network.to(target), found_codec.to(target), found_embedder.to(target), target)

    @property
    def rate(self) -> int:
        """Sample rate of input and output waves."""
        return self.codec.spec.sample_rate

    def extract(
        self, mix: audio.Wave, prompt: str, sampling: SamplingConfig | None = None, progress: Progress | None = None
    ) -> dict[str, audio.Wave]:
        """The named source of a mix, and what remains: ``{"source": ..., "submix": ...}``.

        Raises:
            AudioError: the mix is not finite, is empty, or has not the codec's channels.
            PromptError: the prompt is empty or says nothing to the embedder.
        """
        return self._run(EXTRACT, mix, prompt, sampling, progress)

    def impute(
        self,
        submix: audio.Wave,
        prompts: Sequence[str],
        sampling: SamplingConfig | None = None,
        progress: Progress | None = None,
        *,
        earlier: Sequence[str] = (),
    ) -> list[audio.Wave]:
        """Sources that fit a submix, one per prompt; each is added to the submix before the next is made.

        ``earlier`` are prompts whose sources are in the submix by earlier calls: one that comes again asks for a second
        part, which begins from other noise.

        Raises:
            AudioError: as in `extract`.
            PromptError: there is no prompt, or one of them is empty or says nothing; nothing was sampled then.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise PromptError("no prompt; name what to play, such as --prompt drums")
        for prompt in prompts:
            self.embed_prompt(prompt)
        sources: list[audio.Wave] = []
        for number, prompt in enumerate(prompts):

            def told(done: int, total: int, number: int = number) -> None:
                if progress:
                    progress(number * total + done, len(prompts) * total)

            repeat = [*earlier, *prompts[:number]].count(prompt)
            source = self._run(IMPUTE, submix, prompt, sampling, told, repeat)["source"]
            sources.append(source)
            submix = submix + source
        return sources

    def accompany(
        self, source: audio.Wave, prompt: str, sampling: SamplingConfig | None = None, progress: Progress | None = None
    ) -> audio.Wave:
        """A submix that goes with a source. Raises AudioError and PromptError as `extract` does."""
        return self._run(ACCOMPANY, source, prompt, sampling, progress)["submix"]

    def generate(
        self, prompt: str, seconds: float, sampling: SamplingConfig | None = None, progress: Progress | None = None
    ) -> audio.Wave:
        """A mix of ``seconds``. Raises AudioError for a length that is none, and PromptError as `extract` does."""
        if not 0 < seconds < 86_400:
            raise AudioError(f"cannot generate {seconds} seconds; ask for more than 0 and less than a day")
        length = max(1, round(seconds * self.rate))
        return self._run(GENERATE, length, prompt, sampling, progress)["mix"]

    def embed_prompt(self, prompt: str) -> torch.Tensor:
        """Embedding ``[D]`` of words, in the template the model was trained with. Raises PromptError."""
        if not prompt.strip():
            raise PromptError("the prompt is empty; name what to play, such as --prompt drums")
        self.embedder.embed_text([prompt])  # an unknown prompt must not pass by the words of the template
        return self.embedder.embed_text([self.config.prompt_template.replace("{}", prompt)])[0]

    @torch.inference_mode()
    def _run(
        self,
        task: Task,
        given: audio.Wave | int,
        prompt: str,
        sampling: SamplingConfig | None,
        progress: Progress | None,
        repeat: int = 0,
    ) -> dict[str, audio.Wave]:
        """The kept tracks of a task. ``given`` is the wave of its given track, or where there is none the length."""
        words = self.embed_prompt(prompt)
        if isinstance(given, int):
            length, gain, latents, mono = given, 1.0, None, None
        else:
            _check(given, self.codec.spec.channels)
            length, gain = given.shape[1], _gain(given)
            wave = torch.tensor(given * np.float32(gain), dtype=torch.float32, device=self.device)
            latents, mono = self._normalise(encode_long(self.codec, wave)), wave.mean(dim=0)
        request = _Request(
            task=task,
            prompt=prompt,
            words=words,
            latents=latents,
            mono=mono,
            frames=-(-length // self.codec.spec.hop),
            sampling=sampling or SamplingConfig(),
            repeat=repeat,
        )
        tracks = self._denoise(request, progress)
        return {name: self._decode(tracks[track_index(name)], length) / np.float32(gain) for name in task.kept}

    def _normalise(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents - self._mean) / self._std

    def _decode(self, latents: torch.Tensor, length: int) -> audio.Wave:
        """Normalised latents ``[C, L]`` to a wave ``[channels, length]``."""
        wave = decode_long(self.codec, latents * self._std + self._mean)[:, :length]
        return wave.float().cpu().numpy()

    def _denoise(self, request: _Request, progress: Progress | None) -> torch.Tensor:
        """All tracks ``[K, C, frames]``, normalised: crop by crop, earlier output held where crops overlap."""
        task, sampling, crop = request.task, request.sampling, self.config.crop_frames
        channels = self.config.model.latent_channels
        # Frames past the end are silent where the input is given, so that the model does not hear a cut.
        frames = max(request.frames, crop)
        out = self._normalise(self._silence).expand(len(TRACKS), channels, frames).clone()
        mask = torch.zeros(len(TRACKS), dtype=torch.bool, device=self.device)
        if task.given is not None and request.latents is not None:
            mask[track_index(task.given)] = True
            out[track_index(task.given), :, : request.frames] = request.latents
        starts = crop_starts(frames, crop, max(1, round(crop * OVERLAP)))
        for number, start in enumerate(starts):
            # The prompt has a part in the name: sources that are imputed one after another begin from other noise.
            name = f"{task.name}/{request.prompt}/{number}" + (f"/{request.repeat}" if request.repeat else "")
            noise = noise_for(sampling.seed, [name], tracks=len(TRACKS), channels=channels, frames=crop)

            def told(done: int, total: int, number: int = number) -> None:
                if progress:
                    progress(number * total + done, len(starts) * total)

            out[:, :, start : start + crop] = sample(
                self.model,
                out[None, :, :, start : start + crop],
                mask,
                self._conditions(request, start)[None],
                noise.to(self.device),
                sampling,
                objective=self.config.objective,
                held_frames=starts[number - 1] + crop - start if number else 0,
                progress=told,
            )[0]
        return out[:, :, : request.frames]

    def _conditions(self, request: _Request, start: int) -> torch.Tensor:
        """Embeddings ``[K, D]`` for the crop at frame ``start``: words, and sound where it is given."""
        embeddings = torch.zeros(len(TRACKS), self.config.model.embedding_dim, device=self.device)
        embeddings[track_index(request.task.prompted)] = request.words
        if request.task.given is not None and request.mono is not None:
            embeddings[track_index(request.task.given)] = self._embed_audio(request.mono, start)
        return embeddings

    def _embed_audio(self, mono: torch.Tensor, start: int) -> torch.Tensor:
        """Embedding ``[D]`` of the given track around the middle of the crop that begins at frame ``start``."""
        spec, embedder = self.codec.spec, self.embedder.spec
        middle = (start + self.config.crop_frames / 2) * spec.hop
        length = round(embedder.window_s * spec.sample_rate)
        begin = max(0, min(round(middle - length / 2), mono.shape[0] - length))
        part = audio.fit(mono[begin : begin + length].cpu().numpy()[None], length)
        part = audio.fit(audio.resample(part, spec.sample_rate, embedder.sample_rate), embedder.window)
        return self.embedder.embed_audio(torch.from_numpy(part).to(self.device))[0]


def crop_starts(frames: int, crop: int, overlap: int) -> list[int]:
    """First frames of crops that cover ``frames``, each sharing at least ``overlap`` with the one before."""
    starts = list(range(0, max(1, frames - crop + 1), crop - overlap))
    return starts if starts[-1] + crop >= frames else [*starts, frames - crop]


def _check(wave: audio.Wave, channels: int) -> None:
    if wave.ndim != 2 or wave.shape[0] != channels or not np.issubdtype(wave.dtype, np.floating):
        raise AudioError(f"audio must be floating-point [{channels}, T], got {wave.dtype} {list(wave.shape)}")
    if not wave.shape[1]:
        raise AudioError("the audio has 0 samples", "empty")
    if not np.isfinite(wave).all():
        raise AudioError("the audio holds NaN or infinite samples; repair the file first", "not_finite")


def _gain(wave: audio.Wave) -> float:
    """Factor that brings a wave into the codec's range; 1 for one that is in it."""
    return 1.0 / max(1.0, float(np.abs(wave).max()))
