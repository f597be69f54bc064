"""A small dual encoder: log-mel convolutions for audio, a bag of words for text, and its folder on disk."""

import math
import re
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import save as to_bytes
from torch import nn
from torch.nn import functional as F
from torchaudio.functional import melscale_fbanks

from manifests.atomic import write_bytes, write_json
from manifests.errors import CheckpointError, PromptError
from mgeldm.codec.autoencoder import identity
from mgeldm.embedder.base import EmbedderSpec
from mgeldm.model_folder import FolderKind, one_line
from mgeldm.state_dict import misfits

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MODEL_TYPE = "dual"
_FOLDER = FolderKind(
    "an embedder",
    f"{CONFIG_FILE} and {WEIGHTS_FILE}, or what save_pretrained of ClapModel and ClapProcessor write",
    "train it (`mgeldm train-embedder`), copy or download it again",
)

LEVEL_FLOOR = 3e-5
"""Least mean mel power a window is scaled up from: white noise at about -80 dBFS."""
MEL_FLOOR = 1e-6
"""Added to mel power relative to the window's mean, so that log-mel ends 60 dB below it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DualConfig:
    """Shape and words of a `DualEncoder`; `config.json` mirrors it."""

    words: tuple[str, ...]
    """Every word the text tower knows, lower case, sorted."""
    instruments: tuple[str, ...] = ()
    """Instruments that it was trained on."""
    sample_rate: int = 16_000
    window_s: float = 5.12
    dim: int = 128
    mels: int = 64
    fft: int = 1024
    """Samples of the Hann window of the spectrogram."""
    hop: int = 320
    """Samples between spectrogram frames."""
    widths: tuple[int, ...] = (32, 64, 128, 256)
    """Channels of the convolution stages, each of which halves time and frequency."""
    text_width: int = 256
    """Length of a word vector."""

    def __post_init__(self) -> None:
        """Refuse sizes that make no encoder, with ValueError."""
        for name in ("sample_rate", "window_s", "dim", "mels", "fft", "hop", "text_width"):
            kind, value = (int | float if name == "window_s" else int), getattr(self, name)
            if not isinstance(value, kind) or not 0 < value < math.inf:
                raise ValueError(f"{name} is {value!r}: it must be a number above 0")


def tokens(text: str) -> list[str]:
    """Words of a text: runs of letters and digits of any script, in lower case."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).lower())


GLUE = frozenset(
    tokens("a and isolated music of only part playing plays recording solo song sound sounds stem the track with")
)
"""Words of sentences around a name, which say nothing by themselves: "the sound of" is no prompt."""


class LogMel(nn.Module):
    """Log-mel spectrogram relative to the window's mean power, so that gain changes nothing."""

    window: torch.Tensor
    filters: torch.Tensor

    def __init__(self, config: DualConfig) -> None:
        super().__init__()
        self.fft, self.hop = config.fft, config.hop
        filters = melscale_fbanks(
            config.fft // 2 + 1, 0.0, config.sample_rate / 2, config.mels, config.sample_rate, mel_scale="slaney"
        )
        self.register_buffer("window", torch.hann_window(config.fft), persistent=False)
        self.register_buffer("filters", filters.T.contiguous(), persistent=False)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        """``[B, T] -> [B, mels, T / hop + 1]``, about -2 (60 dB below the mean, or silence) to 3."""
        spectrum = torch.stft(wave, self.fft, self.hop, window=self.window, return_complex=True)
        mel = self.filters @ (spectrum.real.square() + spectrum.imag.square())
        level = mel.mean(dim=(1, 2), keepdim=True).clamp(min=LEVEL_FLOOR)
        return (10 * torch.log10(mel / level + MEL_FLOOR) + 30) / 15


class ConvStage(nn.Module):
    """Strided convolution, then one with a skip, each with batch norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
        self.same = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, inputs, F, T] -> [B, outputs, F / 2, T / 2]``, rounded up."""
        x = self.down(x)
        return x + self.same(x)


class AudioTower(nn.Module):
    """Log-mel, convolution stages, mean and maximum over time, one projection."""

    def __init__(self, config: DualConfig) -> None:
        super().__init__()
        self.mel = LogMel(config)
        # Most of the map is here, so the first stage has no second convolution.
        first = config.widths[0]
        stages: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(1, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        ]
        stages += [ConvStage(a, b) for a, b in zip(config.widths, config.widths[1:], strict=False)]
        self.stages = nn.Sequential(*stages)
        rows = -(-config.mels // 2 ** len(config.widths))
        self.head = nn.Linear(2 * rows * config.widths[-1], config.dim)

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        """``[B, T] -> [B, D]``."""
        x = self.stages(self.mel(wave)[:, None])
        return self.head(torch.cat([x.mean(dim=3), x.amax(dim=3)], dim=1).flatten(1))


class TextTower(nn.Module):
    """Mean of word vectors, then two layers; the order of words says nothing."""

    def __init__(self, config: DualConfig) -> None:
        super().__init__()
        self.words = nn.Linear(len(config.words), config.text_width, bias=False)
        nn.init.normal_(self.words.weight)
        self.layers = nn.Sequential(
            nn.Linear(config.text_width, config.text_width), nn.GELU(), nn.Linear(config.text_width, config.dim)
        )

    def forward(self, counts: torch.Tensor) -> torch.Tensor:
        """Word counts ``[B, words] -> [B, D]``."""
        return self.layers(self.words(counts / counts.sum(1, keepdim=True)))


class DualEncoder(nn.Module):
    """The default embedder. Knows the words of instruments; other words of a prompt are passed over."""

    def __init__(self, config: DualConfig, state: dict[str, torch.Tensor] | None = None) -> None:
        """Build with ``state`` as weights, or freshly initialised from torch's generator.

        Raises:
            CheckpointError: the weights do not fit the configuration.
        """
        super().__init__()
        self.config = config
        self.spec = EmbedderSpec(sample_rate=config.sample_rate, window_s=config.window_s, dim=config.dim)
        self.audio = AudioTower(config)
        self.text = TextTower(config)
        self._index = {word: index for index, word in enumerate(config.words)}
        if state is not None:
            if faults := misfits(self.state_dict(), state):
                raise CheckpointError(f"embedder weights do not fit their configuration: {faults}")
            self.load_state_dict(state)

    @property
    def identity(self) -> str:
        """Hex hash over the configuration and the weights as they are stored (fp16)."""
        return identity(self._config_dict(), self._stored_state())

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an embedder folder, ready for inference. Raises CheckpointError."""
        raw = _FOLDER.json(folder / CONFIG_FILE)
        if not isinstance(raw, dict) or raw.get("model_type") != MODEL_TYPE:
            kind = raw.get("model_type") if isinstance(raw, dict) else None
            raise CheckpointError(
                f"{folder / CONFIG_FILE}: model_type is {kind!r}; an embedder is {MODEL_TYPE!r} (ours) or 'clap' "
                "(transformers.ClapModel)"
            )
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in raw.items() if key != "model_type"
        }
        try:
            config = DualConfig(**values)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from None
        state = _FOLDER.tensors(folder / WEIGHTS_FILE)
        # The layers draw first weights that are thrown away; the caller's generator stays where it was.
        with torch.random.fork_rng(devices=[]):
            try:
                encoder = cls(config, state)
            except CheckpointError as error:
                raise CheckpointError(f"{folder}: {error}; {_FOLDER.again}") from None
            except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
                raise CheckpointError(
                    f"{folder / CONFIG_FILE}: not the configuration of an embedder ({one_line(error)}); {_FOLDER.again}"
                ) from None
        encoder.eval().requires_grad_(False)
        return encoder

    def save(self, folder: Path) -> None:
        """Write the embedder folder, each file atomically; weights in fp16."""
        write_bytes(folder / WEIGHTS_FILE, to_bytes(self._stored_state()))
        write_json(folder / CONFIG_FILE, self._config_dict())

    def embed_audio(self, wave: torch.Tensor) -> torch.Tensor:
        """Mono ``[B, T]`` float32, T exactly the window -> ``[B, D]`` of unit length, silence included.

        Raises:
            ValueError: another shape.
        """
        if wave.ndim != 2 or wave.shape[1] != self.spec.window:
            raise ValueError(
                f"embedder input is [B, {self.spec.window}] ({self.spec.window_s} s at {self.spec.sample_rate} Hz), "
                f"got {tuple(wave.shape)}; cut or pad it to one window"
            )
        return F.normalize(self.audio(wave), dim=-1)

    def embed_text(self, texts: list[str]) -> torch.Tensor:
        """``B`` prompts -> ``[B, D]`` of unit length.

        Raises:
            PromptError: a prompt is empty or none of its words is known.
        """
        weight = self.text.words.weight
        counts = torch.zeros(len(texts), len(self.config.words))
        for row, text in enumerate(texts):
            spoken = tokens(text)
            known = [word for word in spoken if word in self._index]
            # Glue counts only where it is the whole prompt, as an instrument may be called "solo".
            if not known or (GLUE.issuperset(known) and known != spoken):
                raise PromptError(self._refusal(text))
            for word in known:
                counts[row, self._index[word]] += 1
        return F.normalize(self.text(counts.to(weight)), dim=-1)

    def _refusal(self, text: str) -> str:
        shown = self.config.instruments or self.config.words
        listing = ", ".join(shown[:40]) + (", ..." if len(shown) > 40 else "")
        what = f"none of the words of the prompt {text!r} is known" if text.strip() else f"the prompt {text!r} is empty"
        return f"{what}; name instruments, such as: {listing}"

    def _config_dict(self) -> dict[str, Any]:
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.config).items()}
        return {"model_type": MODEL_TYPE, **values}

    def _stored_state(self) -> dict[str, torch.Tensor]:
        """Weights on the CPU, floating-point ones in fp16."""
        return {
            key: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
            for key, value in self.state_dict().items()
        }
