"""How well a codec gives back songs it was not trained on, and the model card that says so."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from manifests.atomic import write_bytes
from manifests.errors import ConfigError
from manifests.songs import Song
from mgeldm import audio
from mgeldm.codec import AutoencoderCodec, Codec
from mgeldm.metrics import log_mel_l1, si_sdr
from training.randomness import Purpose, generator
from training.waveforms import CropConfig, Crops, Kind

CARD_FILE = "README.md"
UNHEARD = ("validation", "test")
KINDS: tuple[Kind, ...] = ("mix", "stem")
SPECTRUM_WINDOW = 2048
"""Samples of the Hann windows of the mean spectrum, which overlap by half."""

Estimate = Literal["codec", "noise", "silence"]
Spectrum = npt.NDArray[np.float64]

_CARD = """# Codec: {rate} Hz, {channels} channel(s), {latent_channels} x {fps:g} a second

An Oobleck VAE (stable-audio-tools) of {millions:.1f} M parameters: convolutions with Snake activations, strides
{strides}, first layer {width} wide. {hop} samples become a frame of {latent_channels} numbers, {ratio:g} times fewer.
`config.json` is a configuration of stable-audio-tools; `model.safetensors` holds averaged weights in fp16.

Identity: `{identity}`

## Trained on

{data}

Random crops of single stems, of submixes and of mixes. {training}

    {command}

## Figures

Crops of songs of the validation and test subsets, of which none was trained on or chosen by: decode(encode(crop)),
beside noise with the mean spectrum of the training songs at the level of each crop, and silence. Log-mel L1 (natural
logarithm, 16 kHz, 80 mel bins, floor 1e-5): lower is better. SI-SDR in dB: higher is better, silence has none. Means
over crops.

| songs | crops | what | log-mel L1 | SI-SDR |
| --- | --- | --- | --- | --- |
{rows}

## Limits

- Made for music of the kinds above; speech and other sounds were not tried.
- Nothing above {nyquist:g} Hz comes through, and no stereo.
- It was trained without a discriminator: fine detail of noisy sounds (cymbals, breath, consonants) comes out blurred.
- The latents are the VAE's mean. They are neither centred nor scaled; the card of a data set holds their moments.

## Licence

The weights are under Apache-2.0, like the program. The recordings above keep theirs.
"""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What a codec is measured on."""

    crops: int = 32
    """Crops of each kind (mix, single stem) and corpus."""
    seconds: float = 5.12
    """Length of a crop."""
    seed: int = 0
    """Seed of the crops and the noise."""

    def __post_init__(self) -> None:
        if self.crops < 1 or self.seconds < 0.5:
            raise ConfigError(f"evaluation needs crops ({self.crops}) from 1 and seconds ({self.seconds}) from 0.5")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Means over the crops of one corpus and kind, for one estimate of them."""

    corpus: str
    kind: Kind
    estimate: Estimate
    log_mel_l1: float
    si_sdr: float | None
    """In dB; None for silence, where it is undefined."""
    crops: int
    """Crops behind the means; silent ones are passed over."""


@torch.inference_mode()
def evaluate_codec(codec: Codec, songs: Sequence[Song], config: EvaluationConfig | None = None) -> list[Figure]:
    """Measure a codec on fixed crops of the validation and test songs, by corpus and kind, beside noise and silence.

    The noise has the mean magnitude of crops of the train songs at each frequency, random phases, and the level of the
    crop that it stands for. No figure where there is no validation or test song with two usable stems.

    Raises:
        ManifestError: no train song has two usable stems.
        AudioError: a song cannot be decoded.
    """
    config, rate = config or EvaluationConfig(), codec.spec.sample_rate
    unheard = [song for song in songs if song.subset in UNHEARD and len(song.usable_stems) > 1]
    if not unheard:
        return []
    heard = [song for song in songs if song.subset == "train"]
    spectrum = mean_spectrum([wave for kind in KINDS for wave in _crops(heard, rate, config, kind)])
    figures = []
    for corpus in sorted({song.corpus for song in unheard}):
        for kind in KINDS:
            crops = _crops([song for song in unheard if song.corpus == corpus], rate, config, kind)
            figures += _measure(codec, [crop for crop in crops if crop.any()], spectrum, config.seed, corpus, kind)
    return figures


def mean_spectrum(waves: Sequence[audio.Wave]) -> Spectrum:
    """Mean magnitude at each frequency, ``[1025]`` from 0 to half the rate, of waves ``[1, T]``, T at least 2048."""
    views = [
        np.lib.stride_tricks.sliding_window_view(wave[0], SPECTRUM_WINDOW)[:: SPECTRUM_WINDOW // 2] for wave in waves
    ]
    return np.abs(np.fft.rfft(np.concatenate(views) * np.hanning(SPECTRUM_WINDOW))).mean(axis=0)


def shaped_noise(spectrum: Spectrum, like: audio.Wave, rng: np.random.Generator) -> audio.Wave:
    """Noise of the shape and RMS level of ``like [1, T]``, with the magnitudes of ``spectrum`` and random phases."""
    bins = like.shape[1] // 2 + 1
    magnitude = np.interp(np.linspace(0, 1, bins), np.linspace(0, 1, spectrum.size), spectrum)
    noise = np.fft.irfft(magnitude * np.exp(2j * np.pi * rng.random(bins)), like.shape[1])
    level = np.sqrt(np.square(like, dtype=np.float64).mean() / np.square(noise).mean())
    return (noise * level).astype(np.float32)[None]


def write_card(
    folder: Path,
    codec: AutoencoderCodec,
    figures: Sequence[Figure],
    songs: Sequence[Song],
    *,
    command: str,
    training: str,
) -> None:
    """Write ``README.md`` beside the weights: what the codec is, the ``songs`` it heard, its figures, its limits.

    ``command`` makes it again; ``training`` says in a sentence how long it was trained.
    """
    spec, encoder = codec.spec, codec.config["model"]["encoder"]["config"]
    card = _CARD.format(
        rate=spec.sample_rate,
        channels=spec.channels,
        latent_channels=spec.latent_channels,
        fps=spec.frames_per_second,
        hop=spec.hop,
        ratio=spec.hop * spec.channels / spec.latent_channels,
        nyquist=spec.sample_rate / 2,
        millions=sum(parameter.numel() for parameter in codec.parameters()) / 1e6,
        strides=" x ".join(str(stride) for stride in encoder["strides"]),
        width=encoder["channels"],
        identity=codec.identity,
        data="\n".join(_heard(songs)),
        training=training,
        command=command,
        rows="\n".join(_row(figure) for figure in figures) or "| none | 0 | | | |",
    )
    write_bytes(folder / CARD_FILE, card.encode())


def _crops(songs: Sequence[Song], rate: int, config: EvaluationConfig, kind: Kind) -> Iterator[audio.Wave]:
    """Waves ``[1, T]`` at the level of the recordings, but for those whose sum would leave full scale."""
    draw = Crops(songs, rate, CropConfig(seconds=config.seconds, kinds=(kind,), gain_db=(0.0, 0.0)), config.seed)
    return (draw(number).wave for number in range(config.crops))


def _measure(
    codec: Codec, crops: Sequence[audio.Wave], spectrum: Spectrum, seed: int, corpus: str, kind: Kind
) -> list[Figure]:
    spec = codec.spec
    distances: dict[Estimate, list[float]] = {"codec": [], "noise": [], "silence": []}
    ratios: dict[Estimate, list[float]] = {"codec": [], "noise": []}
    for number, crop in enumerate(crops):
        crop = crop[:, : crop.shape[1] // spec.hop * spec.hop]
        wave = torch.from_numpy(crop)
        decoded = codec.decode(codec.encode(wave.expand(spec.channels, -1)[None]))[0].mean(dim=0, keepdim=True)
        noise = torch.from_numpy(shaped_noise(spectrum, crop, generator(seed, Purpose.NOISE, number)))
        estimates: dict[Estimate, torch.Tensor] = {"codec": decoded, "noise": noise, "silence": torch.zeros_like(wave)}
        for name, estimate in estimates.items():
            distances[name].append(log_mel_l1(estimate, wave, spec.sample_rate).item())
            if name in ratios:
                ratios[name].append(si_sdr(estimate, wave).item())
    return [
        Figure(
            corpus=corpus,
            kind=kind,
            estimate=name,
            log_mel_l1=float(np.mean(values)),
            si_sdr=float(np.mean(ratios[name])) if name in ratios else None,
            crops=len(values),
        )
        for name, values in distances.items()
        if values
    ]


def _heard(songs: Sequence[Song]) -> Iterator[str]:
    for corpus in sorted({song.corpus for song in songs}):
        chosen = [song for song in songs if song.corpus == corpus]
        licences = ", ".join(sorted({song.license or "licence unknown" for song in chosen}))
        yield f"- {corpus}: {len(chosen)} songs, {sum(song.duration_s for song in chosen) / 3600:.2f} h, {licences}"


def _row(figure: Figure) -> str:
    ratio = "-" if figure.si_sdr is None else f"{figure.si_sdr:.1f}"
    songs = f"{figure.corpus}, {'mixes' if figure.kind == 'mix' else 'single stems'}"
    return f"| {songs} | {figure.crops} | {figure.estimate} | {figure.log_mel_l1:.3f} | {ratio} |"
