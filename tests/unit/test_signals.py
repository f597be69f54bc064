"""Sound of any kind on its way in, and tracks of any form on their way out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import AudioError, ConfigError
from mgeldm import audio
from mgeldm.outputs import OutputConfig, Track
from mgeldm.signals import Adder, Form, Rolling, Spool, open_signal


def noise(channels: int, frames: int, seed: int = 0) -> audio.Wave:
    return np.random.default_rng(seed).uniform(-0.4, 0.4, (channels, frames)).astype(np.float32)


class TestOpen:
    @pytest.mark.parametrize(("own", "rate"), [(44_100, 16_000), (8_000, 16_000), (16_000, 16_000)])
    def test_array_tensor_and_file_are_the_same_sound(
        self, own: int, rate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(audio, "BLOCK_SAMPLES", 5000)
        wave = noise(2, 30_001)
        audio.save(tmp_path / "x.wav", wave, own)
        expected = audio.resample(wave.mean(axis=0, keepdims=True), own, rate)
        for found in (
            open_signal(wave, rate, 1, own),
            open_signal(wave.astype(np.float64), rate, 1, own),
            open_signal(torch.from_numpy(wave), rate, 1, own),
            open_signal(tmp_path / "x.wav", rate, 1),
            open_signal(str(tmp_path / "x.wav"), rate, 1),
        ):
            assert found.form == Form(rate=rate, channels=1, frames=expected.shape[1])
            assert found.origin == Form(rate=own, channels=2, frames=30_001)
            for _ in range(2):
                np.testing.assert_allclose(found.whole(), expected, atol=1e-6)
            assert found.peak == pytest.approx(np.abs(expected).max(), abs=1e-6)
            assert max(block.shape[1] for block in found.blocks()) < 20_000

    def test_flat_is_one_channel_and_repeated_where_more_are_wanted(self) -> None:
        wave = noise(1, 100)
        np.testing.assert_array_equal(open_signal(wave[0], 8_000, 2).whole(), np.repeat(wave, 2, axis=0))

    def test_the_gain_brings_peaks_to_full_scale_and_leaves_others(self) -> None:
        wave = noise(1, 100)
        assert open_signal(wave, 8_000, 1).gain == 1.0
        assert open_signal(10 * wave, 8_000, 1).gain == pytest.approx(0.1 / np.abs(wave).max())

    @pytest.mark.parametrize(
        ("given_wave", "words"),
        [
            (np.zeros((1, 0), np.float32), "0 samples"),
            (np.zeros(0, np.float32), "0 samples"),
            (np.array([0.0, np.nan]), "NaN or infinite"),
            (np.zeros((2, 2, 2)), r"\[T\] or \[channels, T\]"),
            (np.zeros((48_000, 2)), "transpose"),
            (np.zeros(5, np.int16), "-1 .. 1"),
        ],
    )
    def test_what_is_no_sound_is_refused_in_one_line(self, given_wave: np.ndarray, words: str) -> None:
        with pytest.raises(AudioError, match=words) as caught:
            open_signal(given_wave, 8_000, 1)
        assert "\n" not in str(caught.value)

    def test_a_file_with_nan_or_without_samples_is_refused(self, tmp_path: Path) -> None:
        wave = noise(1, 2000)
        wave[0, 1500] = np.nan
        audio.save(tmp_path / "nan.wav", wave, 8_000)
        with pytest.raises(AudioError, match=r"nan\.wav holds NaN") as caught:
            open_signal(tmp_path / "nan.wav", 8_000, 1)
        assert caught.value.code == "not_finite"
        audio.save(tmp_path / "none.wav", wave[:, :0], 8_000)
        with pytest.raises(AudioError, match=r"none\.wav has 0 samples") as caught:
            open_signal(tmp_path / "none.wav", 8_000, 1)
        assert caught.value.code == "empty"

    def test_rates(self, tmp_path: Path) -> None:
        with pytest.raises(AudioError, match="a sample rate of 3 Hz"):
            open_signal(noise(1, 9), 16_000, 1, 3)
        with pytest.raises(AudioError, match="says its sample rate itself"):
            open_signal(tmp_path / "x.wav", 16_000, 1, 16_000)


class TestStreams:
    @settings(deadline=None)
    @given(
        frames=st.integers(0, 3000),
        cut=st.integers(1, 900),
        rates=st.sampled_from([(44_100, 16_000), (16_000, 44_100), (8_000, 8_000), (11_025, 48_000)]),
    )
    def test_resampled_blocks_are_the_resampled_whole(self, frames: int, cut: int, rates: tuple[int, int]) -> None:
        wave = noise(2, frames)
        blocks = [wave[:, begin : begin + cut] for begin in range(0, frames, cut)]
        made = list(audio.resample_blocks(blocks, *rates))
        found = np.concatenate([np.zeros((2, 0), np.float32), *made], axis=1)
        np.testing.assert_array_equal(found, audio.resample(wave, *rates))

    def test_a_sum(self) -> None:
        first, second = noise(2, 5000, 1), noise(2, 5000, 2)
        adder = Adder(open_signal(first, 8_000, 2))
        parts = [adder.push(second[:, begin : begin + 900]) for begin in range(0, 5000, 900)]
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), first + second)

    @pytest.mark.parametrize("channels", [1, 2])
    def test_what_is_spooled_comes_back_to_the_last_bit(
        self, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(audio, "BLOCK_SAMPLES", 1000)
        wave, form = noise(channels, 5000), Form(rate=8_000, channels=channels, frames=5000)
        with open(tmp_path / "spool", "w+b") as file:
            spool = Spool(file, form, form)
            for begin in range(0, 5000, 700):
                spool.write(wave[:, begin : begin + 700])
            found = spool.signal()
            first = iter(found.blocks())
            next(first)
            # Two read it at a time.
            np.testing.assert_array_equal(found.whole(), wave)
            np.testing.assert_array_equal(next(first), wave[:, 1000 // channels : 2 * (1000 // channels)])
            assert found.peak == np.abs(wave).max()
            spool.close()
            assert file.closed

    def test_rolling_keeps_what_is_asked_for(self) -> None:
        rolling = Rolling(iter(torch.arange(100).split(7)))
        assert rolling.cut(10, 30).tolist() == list(range(10, 30))
        rolling.forget(25)
        assert rolling.cut(25, 31).tolist() == list(range(25, 31))
        assert rolling.cut(95, 103).tolist() == [95, 96, 97, 98, 99, 0, 0, 0]
        with pytest.raises(ValueError, match="24 is forgotten"):
            rolling.cut(24, 26)

    @pytest.mark.parametrize("suffix", ["wav", "flac"])
    def test_a_file_is_there_when_it_is_whole(self, suffix: str, tmp_path: Path) -> None:
        path, wave = tmp_path / f"x.{suffix}", noise(2, 4000)
        with audio.writing(path, 8_000, 2) as writer:
            for begin in range(0, 4000, 900):
                writer.write(wave[:, begin : begin + 900])
            assert not path.exists()
        np.testing.assert_allclose(audio.read(path), wave, atol=2**-23)
        with pytest.raises(RuntimeError), audio.writing(path, 8_000, 2) as writer:  # noqa: PT012
            writer.write(wave[:, :5])
            raise RuntimeError
        assert audio.read(path).shape == (2, 4000), "the old file stays"
        assert [p.name for p in tmp_path.iterdir()] == [path.name]

    def test_wav_beyond_its_header_is_rf64(self, tmp_path: Path) -> None:
        with audio.writing(tmp_path / "x.wav", 8_000, 2, frames=1 << 30) as writer:
            writer.write(noise(2, 100))
        assert (tmp_path / "x.wav").read_bytes()[:4] == b"RF64"
        np.testing.assert_array_equal(audio.read(tmp_path / "x.wav"), noise(2, 100))


class TestTrack:
    CODEC = Form(rate=16_000, channels=1, frames=8000)

    def track(self, wanted: Form, wave: audio.Wave) -> audio.Wave:
        parts: list[audio.Wave] = []
        track = Track(parts.append, self.CODEC, wanted)
        for begin in range(0, wave.shape[1], 1000):
            track.push(wave[:, begin : begin + 1000])
        track.finish()
        return np.concatenate(parts, axis=1)

    def test_cut_to_its_length(self) -> None:
        wave = noise(1, 9500)
        np.testing.assert_array_equal(self.track(self.CODEC, wave), wave[:, :8000])

    def test_resampled_and_repeated(self) -> None:
        wave = noise(1, 9500)
        wanted = Form(rate=44_100, channels=2, frames=22_049)
        found = self.track(wanted, wave)
        expected = audio.resample(wave[:, :8000], 16_000, 44_100)[:, :22_049]
        np.testing.assert_allclose(found, np.repeat(expected, 2, axis=0), atol=1e-6)

    def test_forms(self) -> None:
        origin = Form(rate=44_100, channels=2, frames=22_050)
        assert OutputConfig().form(self.CODEC, origin) == self.CODEC
        assert OutputConfig(output_rate="input", output_channels="input").form(self.CODEC, origin) == origin
        mixed = OutputConfig(output_channels="input").form(self.CODEC, origin)
        assert mixed == Form(rate=16_000, channels=2, frames=8000)

    @pytest.mark.parametrize("wrong", [{"batch": 0}, {"refine": "mask"}, {"output_rate": "44100"}])
    def test_wrong_options(self, wrong: dict[str, object]) -> None:
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            OutputConfig(**wrong)  # type: ignore[arg-type]
