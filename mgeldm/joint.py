"""The joint model with its codec and embedder, ready to generate, impute, extract and accompany."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch

from manifests.errors import AudioError, PromptError
from mgeldm import audio
from mgeldm.chain import Chain
from mgeldm.checkpoint import CheckpointConfig, check_identity, check_tracks, load_checkpoint, part_of
from mgeldm.codec import Codec, load_codec
from mgeldm.codec.long import silence_latent
from mgeldm.devices import choose_device
from mgeldm.embedder import Embedder, load_embedder
from mgeldm.engine import Engine, Lane, Wish
from mgeldm.hub import model_folder, model_identity, push, save
from mgeldm.model import JointTransformer
from mgeldm.outputs import OutputConfig, OutputForm, Refinement, Track
from mgeldm.precision import Precision, prepared
from mgeldm.sampling import Progress, SamplingConfig
from mgeldm.signals import AudioLike, Form, Signal, open_signal
from mgeldm.tasks import ACCOMPANY, EXTRACT, GENERATE, Task

MAX_SECONDS = 86_400


class MGELDM:
    """A joint model with the codec and the embedder it was trained with.

    Sound goes in as an array or tensor of floats, ``[T]`` or ``[channels, T]``, at ``rate`` or at the rate that the
    call names; or as the path of an audio file. It comes out in kind, as long and as loud as it went in: ``[T]`` or
    ``[channels, T]`` float32, a tensor for a tensor and on its device, an array otherwise; at ``rate`` and with the
    codec's channels unless the call says "input".
    """

    def __init__(
        self,
        config: CheckpointConfig,
        network: JointTransformer,
        codec: Codec,
        embedder: Embedder,
        device: torch.device,
        parts: Mapping[str, str] | None = None,
        *,
        precision: Precision = "float32",
        compile: bool = False,
    ) -> None:
        """Put a model together; ``parts`` are the names that "codec" and "embedder" were loaded by."""
        if config.silence_latent is None:  # converted without its codec
            config = replace(config, silence_latent=tuple(silence_latent(codec).tolist()))
        self.config = config
        self.model = network
        self.codec = codec
        self.embedder = embedder
        self.device = device
        self.parts = dict(parts or {})
        self.precision, self.compiled = precision, compile
        self.engine = Engine(config, prepared(network, device, precision, compile), codec, embedder, device)

    @classmethod
    def from_pretrained(
        cls,
        name: Path | str = "default",
        *,
        codec: Path | str = "default",
        embedder: Path | str = "default",
        device: str = "auto",
        precision: Precision = "float32",
        compile: bool = False,
    ) -> Self:
        """Load a checkpoint.

        Args:
            name: Checkpoint folder, or the id OWNER/NAME of one on the Hugging Face hub; "default" is the small one
                that is shipped.
            codec: Name of the codec; "default" is that in the folder's ``codec``, else the one shipped.
            embedder: Likewise.
            device: auto, cpu, cuda or cuda:N.
            precision: float32, or bfloat16 for the network; codec and embedder stay float32.
            compile: Whether the network is compiled, at its first use: minutes that long work pays back.

        Raises:
            CheckpointError: it is no whole checkpoint, was trained with another codec or embedder, or has other tracks
                than mix, submix and source.
            ConfigError: there is no such device or precision.
        """
        target = choose_device(device)
        folder = model_folder(name)
        config, network = load_checkpoint(folder)
        check_tracks(folder, config)
        parts = {"codec": part_of(folder, "codec", str(codec)), "embedder": part_of(folder, "embedder", str(embedder))}
        found_codec, found_embedder = load_codec(parts["codec"]), load_embedder(parts["embedder"])
        check_identity(config, "codec", found_codec, parts["codec"])
        check_identity(config, "embedder", found_embedder, parts["embedder"])
        return cls(
            config,
            network.to(target),
            found_codec.to(target),
            found_embedder.to(target),
            target,
            parts,
            precision=precision,
            compile=compile,
        )

    def save_pretrained(self, folder: Path | str, *, with_codec: bool = False, with_embedder: bool = False) -> None:
        """Write a checkpoint folder, with copies of codec and embedder in it if asked for.

        Raises CheckpointError where it is not known what they were loaded from.
        """
        save(self, Path(folder), with_codec, with_embedder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        license: str,
        metrics: Mapping[str, float] | None = None,
        with_codec: bool = False,
        with_embedder: bool = False,
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """Upload the checkpoint with a model card to the Hugging Face hub; returns its address there.

        Args:
            repo_id: OWNER/NAME; made if it is not there.
            license: Under which the weights are given, such as "cc-by-4.0".
            metrics: Figures for the card, by name.
            with_codec: Whether a copy of the codec goes along; mind its licence.
            with_embedder: Likewise.
            private: Whether a new repository is private; the account's setting by default.
            token: Of the hub; by default that of `hf auth login`.

        Raises:
            CheckpointError: the hub refuses or cannot be reached.
        """
        copies = {"codec": with_codec, "embedder": with_embedder}
        return push(self, repo_id, license, dict(metrics or {}), copies, private, token)

    @property
    def rate(self) -> int:
        """Sample rate of the codec."""
        return self.codec.spec.sample_rate

    @property
    def identity(self) -> str:
        """Hex hash over the weights, the configuration, the codec and the embedder."""
        return model_identity(self)

    @overload
    def extract(
        self,
        mix: AudioLike,
        prompt: str,
        sampling: SamplingConfig | None = None,
        progress: Progress | None = None,
        *,
        rate: int | None = None,
        refine: Refinement = "none",
        consistent: bool = False,
        output_rate: OutputForm = "codec",
        output_channels: OutputForm = "codec",
        batch: int = 4,
    ) -> dict[str, Any]: ...

    @overload
    def extract(
        self,
        mix: AudioLike,
        prompt: list[str] | tuple[str, ...],
        sampling: SamplingConfig | None = None,
        progress: Progress | None = None,
        *,
        rate: int | None = None,
        refine: Refinement = "none",
        consistent: bool = False,
        output_rate: OutputForm = "codec",
        output_channels: OutputForm = "codec",
        batch: int = 4,
    ) -> list[dict[str, Any]]: ...

    def extract(
        self,
        mix: AudioLike,
        prompt: str | Sequence[str],
        sampling: SamplingConfig | None = None,
        progress: Progress | None = None,
        *,
        rate: int | None = None,
        refine: Refinement = "none",
        consistent: bool = False,
        output_rate: OutputForm = "codec",
        output_channels: OutputForm = "codec",
        batch: int = 4,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """The named source of a mix, and what remains: ``{"source": ..., "submix": ...}``, or a list of these.

        Args:
            mix: What it is taken from.
            prompt: What to take; each of a list is taken out of the same mix.
            sampling: How to sample.
            progress: Told (evaluations done, in all).
            rate: Sample rate of an array or tensor, if not the codec's.
            refine: "wiener": source and submix as shares of the mix's spectrogram.
            consistent: Whether source and submix are made to add up to the mix.
            output_rate: "codec", or "input".
            output_channels: "codec", or "input".
            batch: Prompts that are sampled at a time, and chunks of the sound where they do not depend on each other.

        Raises:
            AudioError: the mix is not finite, is empty, is no audio, or cannot be read.
            PromptError: a prompt is empty or says nothing to the embedder; nothing was sampled then.
        """
        output = OutputConfig(
            output_rate=output_rate,
            output_channels=output_channels,
            refine=refine,
            consistent=consistent,
            batch=batch,
        )
        prompts = _listed(prompt)
        words = self._all_words(prompts)
        signal = self.open(mix, rate)
        found = self._answers(EXTRACT, signal, signal.form, words, sampling, output, progress)
        kind = _kind(mix)
        answers = {
            text: {name: kind(wave) for name, wave in tracks.items()} for text, tracks in zip(words, found, strict=True)
        }
        return answers[prompt] if isinstance(prompt, str) else [answers[text] for text in prompts]

    def impute(
        self,
        submix: AudioLike,
        prompts: str | Sequence[str],
        sampling: SamplingConfig | None = None,
        progress: Progress | None = None,
        *,
        earlier: Sequence[str] = (),
        rate: int | None = None,
        output_rate: OutputForm = "codec",
        output_channels: OutputForm = "codec",
        batch: int = 4,
    ) -> list[Any]:
        """Sources that fit a submix, one per prompt; each is added to the submix before the next is made.

        ``earlier`` are prompts whose sources are in the submix by earlier calls: one that comes again asks for a second
        part, which begins from other noise. The other arguments are those of `extract`.

        Raises:
            AudioError: as in `extract`.
            PromptError: there is no prompt, or one of them is empty or says nothing; nothing was sampled then.
        """
        output = OutputConfig(output_rate=output_rate, output_channels=output_channels, batch=batch)
        prompts = _listed(prompts)
        words = self._all_words(prompts)
        signal = self.open(submix, rate)
        sampling, wanted = sampling or SamplingConfig(), output.form(signal.form, signal.origin)
        parts: list[list[audio.Wave]] = [[] for _ in prompts]
        embeddings = [words[prompt] for prompt in prompts]
        with closing(Chain(self.engine, signal, prompts, embeddings, sampling, earlier=earlier, batch=batch)) as chain:

            def each() -> Lane:
                for number, blocks in enumerate(parts):
                    yield from chain.lane(number, Track(blocks.append, signal.form, wanted))

            self._drive(each(), signal.form, len(prompts), sampling, output, progress)
        return [_kind(submix)(np.concatenate(blocks, axis=1)) for blocks in parts]

    def accompany(
        self,
        source: AudioLike,
        prompt: str,
        sampling: SamplingConfig | None = None,
        progress: Progress | None = None,
        *,
        rate: int | None = None,
        output_rate: OutputForm = "codec",
        output_channels: OutputForm = "codec",
        batch: int = 4,
    ) -> Any:
        """A submix that goes with a source. Arguments and errors are those of `extract`."""
        output = OutputConfig(output_rate=output_rate, output_channels=output_channels, batch=batch)
        words = self._all_words([prompt])
        signal = self.open(source, rate)
        found = self._answers(ACCOMPANY, signal, signal.form, words, sampling, output, progress)
        return _kind(source)(found[0]["submix"])

    def generate(
        self, prompt: str, seconds: float, sampling: SamplingConfig | None = None, progress: Progress | None = None
    ) -> audio.Wave:
        """A mix of ``seconds``. Raises AudioError for a length that is none, and PromptError as `extract` does."""
        form, words = self.form_of(seconds), self._all_words([prompt])
        return self._answers(GENERATE, None, form, words, sampling, OutputConfig(), progress)[0]["mix"]

    def embed_prompt(self, prompt: str) -> torch.Tensor:
        """Embedding ``[D]`` of words, in the template the model was trained with. Raises PromptError."""
        if not isinstance(prompt, str):
            raise PromptError(f"a prompt is a text such as 'drums', not {prompt!r:.60}")
        if not prompt.strip():
            raise PromptError("the prompt is empty; name what to play, such as --prompt drums")
        self.embedder.embed_text([prompt])  # an unknown prompt must not pass by the words of the template
        return self.embedder.embed_text([self.config.prompt_template.replace("{}", prompt)])[0]

    def open(self, given: AudioLike, rate: int | None = None) -> Signal:
        """Sound as the codec wants it. Raises AudioError."""
        return open_signal(given, self.rate, self.codec.spec.channels, rate)

    def form_of(self, seconds: float) -> Form:
        """The form of sound of a length in seconds. Raises AudioError for a length that is none."""
        if not isinstance(seconds, Real) or not 0 < seconds < MAX_SECONDS:
            raise AudioError(f"cannot generate {seconds!r} seconds; ask for more than 0 and less than a day")
        frames = max(1, round(seconds * self.rate))
        return Form(rate=self.rate, channels=self.codec.spec.channels, frames=frames)

    def _all_words(self, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Embeddings of prompts. Raises PromptError where there is none, or one of them is none."""
        if not prompts:
            raise PromptError("no prompt; name what to play, such as --prompt drums")
        return {prompt: self.embed_prompt(prompt) for prompt in prompts}

    def _answers(
        self,
        task: Task,
        signal: Signal | None,
        form: Form,
        prompts: Mapping[str, torch.Tensor],
        sampling: SamplingConfig | None,
        output: OutputConfig,
        progress: Progress | None,
    ) -> list[dict[str, audio.Wave]]:
        """The kept tracks of a task for each prompt."""
        sampling = sampling or SamplingConfig()
        wanted = output.form(form, signal.origin) if signal else form
        blocks: list[dict[str, list[audio.Wave]]] = [{name: [] for name in task.kept} for _ in prompts]
        wishes = [
            Wish(
                prompt=prompt,
                words=words,
                tracks={name: Track(parts.append, form, wanted) for name, parts in kept.items()},
            )
            for (prompt, words), kept in zip(prompts.items(), blocks, strict=True)
        ]
        lane = self.engine.lane(task, signal, form.frames, wishes, sampling, output)
        self._drive(lane, form, len(wishes), sampling, output, progress)
        return [{name: np.concatenate(parts, axis=1) for name, parts in kept.items()} for kept in blocks]

    def _drive(
        self,
        lane: Lane,
        form: Form,
        wishes: int,
        sampling: SamplingConfig,
        output: OutputConfig,
        progress: Progress | None,
    ) -> None:
        """Take the lane of some wishes to its end, and tell how far it is."""
        done, total = 0, len(self.engine.starts(form.frames, sampling.overlap)) * sampling.evaluations * wishes

        def advanced(evaluations: int) -> None:
            nonlocal done
            done += evaluations
            if progress:
                progress(done, total)

        self.engine.drive([lane], sampling, output.batch, advanced)


def _listed(prompts: str | Sequence[str]) -> list[str]:
    """One prompt or several as a list. Raises PromptError for what is neither."""
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence):
        raise PromptError(f"a prompt is a text such as 'drums', or a list of such, not {prompts!r:.60}")
    return list(prompts)


def _kind(given: AudioLike) -> Callable[[audio.Wave], Any]:
    """Brings a wave ``[channels, T]`` into the kind of what was given."""
    if isinstance(given, Path | str):
        return lambda wave: wave
    flat = given.ndim == 1

    def brought(wave: audio.Wave) -> Any:
        wave = audio.to_channels(wave, 1)[0] if flat else wave
        return torch.from_numpy(wave).to(given.device) if isinstance(given, torch.Tensor) else wave

    return brought
