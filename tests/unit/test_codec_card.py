"""What a codec is measured on, beside what, and the card."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from manifests.errors import ConfigError, ManifestError
from manifests.songs import Song
from mgeldm.audio import Wave
from mgeldm.codec import AutoencoderCodec, CodecSpec
from mgeldm.metrics import log_mel_l1, si_sdr
from tests.support.models import write_codec
from tests.support.songs import measured_song
from tests.support.sounds import sound, write_sound
from training.codec_card import EvaluationConfig, Figure, evaluate_codec, mean_spectrum, shaped_noise, write_card
from training.randomness import Purpose, generator
from training.waveforms import CropConfig, Crops

RATE = 16_000
CONFIG = EvaluationConfig(crops=3, seconds=0.6, seed=2)


class Muffled:
    """A codec that halves the wave and drops all above a tenth of its spectrum; works in frames of 160 samples."""

    identity = "muffled"

    def __init__(self, channels: int = 1) -> None:
        self.spec = CodecSpec(sample_rate=RATE, channels=channels, latent_channels=160, hop=160, context=0)

    def encode(self, wave: torch.Tensor) -> torch.Tensor:
        assert wave.shape[1] == self.spec.channels
        assert wave.shape[2] % 160 == 0
        return wave

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        spectrum = torch.fft.rfft(latents)
        spectrum[..., spectrum.shape[-1] // 10 :] = 0
        return 0.5 * torch.fft.irfft(spectrum, latents.shape[-1])


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> list[Song]:
    """Two songs to train on, a validation and a test song of one corpus, a test song of another."""
    root = tmp_path_factory.mktemp("songs")
    made = []
    for number, (corpus, subset) in enumerate(
        [("a", "train"), ("b", "train"), ("a", "validation"), ("a", "test"), ("b", "test")]
    ):
        folder = root / str(number)
        for name in ("bass", "drums", "piano"):
            write_sound(folder / f"{name}.wav", sound(number, name, seconds=2.0, level=0.4), RATE)
        song = measured_song(folder, {name: f"{name}.wav" for name in ("bass", "drums", "piano")})
        made.append(replace(song, song_id=f"{corpus}/{number}", corpus=corpus, subset=subset))
    return made


def crops(songs: Sequence[Song], kind: str, config: EvaluationConfig = CONFIG) -> list[Wave]:
    settings = CropConfig(seconds=config.seconds, kinds=(kind,), gain_db=(0.0, 0.0))  # type: ignore[arg-type]
    return [Crops(songs, RATE, settings, config.seed)(number).wave for number in range(config.crops)]


def by_name(figures: Sequence[Figure]) -> dict[tuple[str, str, str], Figure]:
    return {(figure.corpus, figure.kind, figure.estimate): figure for figure in figures}


def test_figures_by_hand(songs: list[Song]) -> None:
    codec = Muffled()
    figures = by_name(evaluate_codec(codec, songs, CONFIG))
    assert len(figures) == 2 * 2 * 3
    heard = songs[:2]
    spectrum = mean_spectrum(crops(heard, "mix") + crops(heard, "stem"))
    for corpus, unheard in (("a", songs[2:4]), ("b", songs[4:])):
        for kind in ("mix", "stem"):
            waves = [torch.from_numpy(wave) for wave in crops(unheard, kind)]
            decoded = [codec.decode(wave[None])[0] for wave in waves]
            noise = [
                torch.from_numpy(shaped_noise(spectrum, wave.numpy(), generator(2, Purpose.NOISE, number)))
                for number, wave in enumerate(waves)
            ]
            silence = [torch.zeros_like(wave) for wave in waves]
            for name, estimates in (("codec", decoded), ("noise", noise), ("silence", silence)):
                figure = figures[corpus, kind, name]
                distances = [log_mel_l1(x, wave).item() for x, wave in zip(estimates, waves, strict=True)]
                assert figure.log_mel_l1 == pytest.approx(np.mean(distances), rel=1e-5)
                assert figure.crops == 3
                if name == "silence":
                    assert figure.si_sdr is None
                else:
                    ratios = [si_sdr(x, wave).item() for x, wave in zip(estimates, waves, strict=True)]
                    assert figure.si_sdr == pytest.approx(np.mean(ratios), rel=1e-4)


def test_floors_are_worse_than_a_codec_that_hears(songs: list[Song]) -> None:
    figures = by_name(evaluate_codec(Muffled(), songs, CONFIG))
    codec, noise, silence = (figures["a", "stem", name] for name in ("codec", "noise", "silence"))
    assert codec.log_mel_l1 < silence.log_mel_l1
    assert noise.log_mel_l1 < silence.log_mel_l1
    assert codec.si_sdr is not None
    assert noise.si_sdr is not None
    assert codec.si_sdr > 3 > -15 > noise.si_sdr


def test_the_same_figures_every_time_and_none_of_train_songs(songs: list[Song]) -> None:
    first = evaluate_codec(Muffled(), songs, CONFIG)
    assert evaluate_codec(Muffled(), songs[::-1], CONFIG) == first
    assert evaluate_codec(Muffled(), songs, replace(CONFIG, seed=3)) != first
    assert evaluate_codec(Muffled(), songs[:2], CONFIG) == []
    assert {figure.corpus for figure in evaluate_codec(Muffled(), songs[:4], CONFIG)} == {"a"}


def test_without_songs_to_train_on_there_is_no_noise(songs: list[Song]) -> None:
    with pytest.raises(ManifestError, match="two usable stems"):
        evaluate_codec(Muffled(), songs[2:], CONFIG)


def test_a_codec_of_two_channels(songs: list[Song]) -> None:
    for mono, stereo in zip(*(evaluate_codec(Muffled(n), songs[:3], CONFIG) for n in (1, 2)), strict=True):
        assert stereo.log_mel_l1 == pytest.approx(mono.log_mel_l1, rel=1e-5)
        assert (stereo.si_sdr or 0.0) == pytest.approx(mono.si_sdr or 0.0, rel=1e-5)


def test_silent_crops_are_passed_over(songs: list[Song], tmp_path: Path) -> None:
    for name in ("bass", "drums"):
        write_sound(tmp_path / f"{name}.wav", np.zeros((1, 2 * RATE), np.float32), RATE)
    silent = measured_song(tmp_path, {"bass": "bass.wav", "drums": "drums.wav"})
    assert evaluate_codec(Muffled(), [*songs[:2], replace(silent, subset="test")], CONFIG) == []


def test_mean_spectrum_of_a_tone_and_noise() -> None:
    time = np.arange(40_960) / RATE
    tone = np.sin(2 * np.pi * 1000 * time).astype(np.float32)[None]
    spectrum = mean_spectrum([tone, 3 * tone])
    # Two waves of amplitude 1 and 3; a Hann window sums to half its length.
    assert spectrum.shape == (1025,)
    assert spectrum.argmax() == 128
    assert spectrum[128] == pytest.approx(2 * 2048 / 4, rel=0.01)
    white = np.random.default_rng(0).standard_normal((1, 400_000)).astype(np.float32)
    np.testing.assert_allclose(mean_spectrum([white])[5:-5], np.sqrt(np.pi / 4 * 0.375 * 2048), rtol=0.2)


def test_noise_has_the_spectrum_and_the_level() -> None:
    spectrum = np.linspace(3.0, 0.5, 1025) ** 2
    like = sound("like", seconds=20.0)
    noise = shaped_noise(spectrum, like, np.random.default_rng(0))
    assert noise.shape == like.shape
    assert noise.dtype == np.float32
    assert np.sqrt(np.square(noise).mean()) == pytest.approx(np.sqrt(np.square(like).mean()), rel=1e-4)
    measured = mean_spectrum([noise])
    np.testing.assert_allclose(measured / measured.mean(), spectrum / spectrum.mean(), rtol=0.25, atol=0.01)
    np.testing.assert_array_equal(noise, shaped_noise(spectrum, like, np.random.default_rng(0)))
    other = shaped_noise(spectrum, like, np.random.default_rng(1))
    assert abs(np.corrcoef(noise, other)[0, 1]) < 0.05


def test_card(songs: list[Song], tmp_path: Path) -> None:
    codec = AutoencoderCodec.load(write_codec(tmp_path))
    figures = [
        Figure(corpus="a", kind="mix", estimate="codec", log_mel_l1=0.61234, si_sdr=3.21, crops=30),
        Figure(corpus="b", kind="stem", estimate="silence", log_mel_l1=4.5, si_sdr=None, crops=31),
    ]
    write_card(tmp_path, codec, figures, songs[:2], command="mgeldm train-codec SONGS --out DIR", training="7 steps.")
    card = (tmp_path / "README.md").read_text()
    for words in (
        "| a, mixes | 30 | codec | 0.612 | 3.2 |",
        "| b, single stems | 31 | silence | 4.500 | - |",
        codec.identity,
        "    mgeldm train-codec SONGS --out DIR\n",
        "- a: 1 songs, 0.00 h, CC0-1.0",
        "16000 Hz, 1 channel(s), 8 x 62.5 a second",
        "256 samples become a frame of 8 numbers, 32 times fewer",
        "2 x 4 x 4 x 8",
        f"{sum(p.numel() for p in codec.parameters()) / 1e6:.1f} M parameters",
        "Apache-2.0",
        "7 steps.",
    ):
        assert words in card
    assert str(tmp_path) not in card
    assert songs[0].root not in card


def test_card_without_figures(songs: list[Song], tmp_path: Path) -> None:
    codec = AutoencoderCodec.load(write_codec(tmp_path))
    write_card(tmp_path, codec, [], songs[:2], command="c", training="t")
    assert "| none | 0 | | | |" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(("name", "value"), [("crops", 0), ("seconds", 0.1)])
def test_wrong_configuration(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        EvaluationConfig(**{name: value})  # type: ignore[arg-type]
