"""Training of the codec: schedule, crops, exact resume, the card at the end."""

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from manifests.errors import AudioError, CheckpointError, ConfigError, ManifestError
from manifests.songs import Song, Stem, read_songs, write_songs
from mgeldm.codec import AutoencoderCodec
from mgeldm.codec.autoencoder import oobleck_config
from mgeldm.metrics import si_sdr
from tests.support.songs import measured_song
from tests.support.sounds import sound, write_sound
from training import codec as module
from training.codec import CodecTrainConfig, learning_rate_factor, train_codec
from training.codec_card import EvaluationConfig
from training.codec_init import _unit_gain, initialise
from training.waveforms import CropConfig, Crops, read_stem

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 16_000
CONFIG = CodecTrainConfig(
    channels=1,
    steps=4,
    batch=2,
    warmup=2,
    ema=0.5,
    save_every=2,
    threads=1,
    crops=CropConfig(seconds=0.26),
    evaluation=EvaluationConfig(crops=1, seconds=0.5),
)


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> list[Song]:
    root = tmp_path_factory.mktemp("songs")
    made = []
    for number, subset in enumerate(["train", "train", "test"]):
        folder = root / str(number)
        for name, rate in (("bass", 44_100), ("drums", RATE), ("piano", RATE)):
            write_sound(folder / f"{name}.wav", sound(number, name, seconds=1.5, rate=rate, level=0.3), rate)
        song = measured_song(folder, {name: f"{name}.wav" for name in ("bass", "drums", "piano")})
        made.append(replace(song, song_id=f"toy/{number}", corpus="toy", subset=subset))
    return made


@pytest.fixture(scope="module")
def manifest(songs: list[Song], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("manifest") / "songs.parquet"
    write_songs(path, songs)
    return path


@pytest.fixture(scope="module")
def straight(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """An undisturbed run of four steps, and what it returned."""
    out = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LOG_EVERY", 1)
        patch.setattr(module, "RECENT", 1)
        return out, train_codec(manifest, out, config=CONFIG)


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics of each step alone, so that they do not depend on where a run went on."""
    monkeypatch.setattr(module, "LOG_EVERY", 1)
    monkeypatch.setattr(module, "RECENT", 1)


def state(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(out / "state.pt", weights_only=True)
    return loaded


def assert_same_run(a: Path, b: Path) -> None:
    for name in ("config.json", "model.safetensors", "metrics.jsonl", "README.md"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    first, second = state(a), state(b)
    assert first["step"] == second["step"]
    for part in ("network", "average"):
        for key, value in first[part].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(second[part][key])), key
    for number, moments in first["optimizer"]["state"].items():
        for key, value in moments.items():
            assert torch.equal(value, second["optimizer"]["state"][number][key])


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("steps", [10, 1000])
def test_learning_rate(steps: int) -> None:
    config = CodecTrainConfig(steps=steps, warmup=4, cooldown=0.3)
    fall = 0.3 * steps
    factors = [learning_rate_factor(step, config) for step in range(steps + 1)]
    expected = [min(1, (n + 1) / 4, (steps - n) / fall) for n in range(steps + 1)]
    np.testing.assert_allclose(factors, expected, rtol=1e-12)
    assert factors[0] == 0.25
    assert factors[-1] == 0
    assert max(factors) == 1


def test_no_warmup_and_no_cooldown() -> None:
    config = CodecTrainConfig(steps=5, warmup=0, cooldown=0.0)
    assert [learning_rate_factor(step, config) for step in range(5)] == [1.0] * 5


class TestFirstWeights:
    @staticmethod
    def fresh(channels: int) -> AutoencoderCodec:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            codec = AutoencoderCodec(oobleck_config(channels=channels))
            initialise(codec.network, codec.spec.latent_channels)
        return codec

    @pytest.mark.parametrize("channels", [2, 8])
    def test_the_latents_are_heard_from_the_first_step(self, channels: int) -> None:
        codec = self.fresh(channels)
        wave = 0.1 * torch.randn(2, 1, 20 * 2048, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            mean, scale = codec.posterior(wave)
            decoded = codec.decode(mean)
            other = codec.decode(mean.flip(2))
        assert 0.5 < mean.std().item() < 4
        assert torch.nn.functional.softplus(scale).mean().item() == pytest.approx(0.018, rel=0.1)
        # What is decoded depends on the latents, and not on biases.
        assert (decoded - other).std() > 0.5 * decoded.std()

    @pytest.mark.parametrize("channels", [2, 4, 16])
    def test_low_frequencies_come_through_with_their_phase_from_the_first_step(self, channels: int) -> None:
        codec = self.fresh(channels)
        time = torch.arange(20 * 2048) / RATE
        wave = 0.3 * torch.sin(2 * torch.pi * 20 * time + 1.0)[None, None]
        with torch.no_grad():
            decoded = codec.decode(codec.encode(wave))
        inner = slice(4 * 2048, -4 * 2048)
        assert si_sdr(decoded[..., inner], wave[..., inner]).item() > 6

    @pytest.mark.parametrize(
        "layer", [nn.Conv1d(30, 40, 7, padding=3), nn.Conv1d(30, 40, 8, 4, 2), nn.ConvTranspose1d(30, 40, 8, 4, 2)]
    )
    def test_a_layer_keeps_the_variance(self, layer: nn.Conv1d | nn.ConvTranspose1d) -> None:
        with torch.random.fork_rng(), warnings.catch_warnings(action="ignore"), torch.no_grad():
            torch.manual_seed(0)
            layer = nn.utils.weight_norm(layer)
            _unit_gain(layer)
            out = layer(torch.randn(4, 30, 400))
        assert out.std().item() == pytest.approx(1.0, rel=0.05)


class TestTraining:
    def test_two_steps_change_every_weight_that_is_heard(self, manifest: Path, tmp_path: Path) -> None:
        run = module._Run(CONFIG, [song for song in read_songs(manifest) if song.subset == "train"], tmp_path)
        before = {name: value.clone() for name, value in run.codec.network.state_dict().items()}
        batches = run.batches()
        for _ in range(2):
            losses = run.train_step(next(batches))
            assert all(np.isfinite(value) for value in losses.values())
        batches.close()
        after = run.codec.network.state_dict()
        changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
        assert changed == set(before)
        assert run.step == 2

    def test_steps_then_resume_are_bitwise_the_straight_run(
        self, manifest: Path, straight: tuple[Path, dict[str, float]], tmp_path: Path, every_step: None
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            train_step = module._Run.train_step

            def killing(self: Any, wave: torch.Tensor) -> dict[str, float]:
                if self.step == 3:
                    raise Killed
                return train_step(self, wave)

            patch.setattr(module._Run, "train_step", killing)
            with pytest.raises(Killed):
                train_codec(manifest, tmp_path, config=CONFIG)
        assert state(tmp_path)["step"] == 2
        assert not (tmp_path / "README.md").exists()
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
        train_codec(manifest, tmp_path, config=CONFIG)
        assert_same_run(tmp_path, straight[0])

    def test_killed_between_codec_and_state(
        self, manifest: Path, straight: tuple[Path, dict[str, float]], tmp_path: Path, every_step: None
    ) -> None:
        with pytest.MonkeyPatch.context() as patch:
            save_state = module.save_state

            def killing(path: Path, saved: dict[str, Any]) -> None:
                if saved["step"] == 4:
                    raise Killed
                save_state(path, saved)

            patch.setattr(module, "save_state", killing)
            with pytest.raises(Killed):
                train_codec(manifest, tmp_path, config=CONFIG)
        train_codec(manifest, tmp_path, config=CONFIG)
        assert_same_run(tmp_path, straight[0])

    def test_a_finished_run_is_not_trained_again(
        self, manifest: Path, straight: tuple[Path, dict[str, float]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = straight[0]
        before = {path: path.read_bytes() for path in out.iterdir()}
        monkeypatch.delattr(module._Run, "train_step")
        figures = train_codec(manifest, out, config=CONFIG)
        assert {path: path.read_bytes() for path in out.iterdir()} == before
        assert figures == {name: value for name, value in straight[1].items() if "/" in name}

    @pytest.mark.parametrize("change", [{"seed": 1}, {"batch": 1}, {"channels": 2}, {"kl": 1.0}])
    def test_another_configuration_is_refused(
        self, manifest: Path, straight: tuple[Path, dict[str, float]], change: dict[str, Any]
    ) -> None:
        with pytest.raises(CheckpointError, match="use a new --out"):
            train_codec(manifest, straight[0], config=replace(CONFIG, **change))

    def test_the_seed_decides_and_the_global_generator_is_left_alone(
        self, manifest: Path, straight: tuple[Path, dict[str, float]], tmp_path: Path, every_step: None
    ) -> None:
        torch.manual_seed(77)
        expected = torch.random.get_rng_state()
        train_codec(manifest, tmp_path / "other", config=replace(CONFIG, seed=1, steps=1))
        assert torch.equal(torch.random.get_rng_state(), expected)
        first, other = (
            json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["total"]
            for out in (straight[0], tmp_path / "other")
        )
        assert first != other

    def test_a_loss_that_is_not_finite_stops_before_the_weights_change(self, manifest: Path, tmp_path: Path) -> None:
        run = module._Run(CONFIG, [song for song in read_songs(manifest) if song.subset == "train"], tmp_path)
        before = {name: value.clone() for name, value in run.codec.network.state_dict().items()}
        with pytest.raises(ConfigError, match=r"^step 1: the loss is nan"):
            run.train_step(torch.full((1, 1, 4096), float("nan")))
        assert all(torch.equal(value, before[name]) for name, value in run.codec.network.state_dict().items())

    def test_test_songs_are_not_trained_on(self, songs: list[Song], tmp_path: Path) -> None:
        write_songs(tmp_path / "songs.parquet", songs[2:])
        with pytest.raises(ManifestError, match="two usable stems"):
            train_codec(tmp_path / "songs.parquet", tmp_path / "out", config=CONFIG)

    @pytest.mark.parametrize(("name", "value"), [("steps", 0), ("batch", 0), ("cooldown", 1.5)])
    def test_wrong_configuration(self, name: str, value: float) -> None:
        with pytest.raises(ConfigError, match=name):
            CodecTrainConfig(**{name: value})  # type: ignore[arg-type]


class TestResult:
    def test_the_codec_is_the_average_in_half_precision(self, straight: tuple[Path, dict[str, float]]) -> None:
        weights, average = load_file(straight[0] / "model.safetensors"), state(straight[0])["average"]
        assert weights.keys() == {key.removeprefix("value.") for key in average if key.startswith("value.")}
        for name, value in weights.items():
            assert torch.equal(value, average[f"value.{name}"].half())

    def test_metrics(self, straight: tuple[Path, dict[str, float]]) -> None:
        rows = [json.loads(line) for line in (straight[0] / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in rows] == [1, 2, 3, 4]
        weighted = rows[0]["spectral"] + CONFIG.mel * rows[0]["mel"] + CONFIG.wave * rows[0]["wave"]
        assert rows[0]["total"] == pytest.approx(weighted + CONFIG.kl * rows[0]["kl"], rel=1e-5)

    def test_figures_and_card(self, straight: tuple[Path, dict[str, float]]) -> None:
        out, figures = straight
        card = (out / "README.md").read_text()
        assert AutoencoderCodec.load(out).identity in card
        assert "- toy: 2 songs, 0.00 h, CC0-1.0" in card
        assert "4 steps of 2 crops of 0.26 s." in card
        command = next(line.strip() for line in card.splitlines() if line.startswith("    mgeldm"))
        assert command == (
            "mgeldm train-codec SONGS --out DIR --channels 1 --steps 4 --batch 2 --warmup 2 --ema 0.5 --save_every 2 "
            "--crops.seconds 0.26 --evaluation.crops 1 --evaluation.seconds 0.5"
        )
        for kind, words in (("mix", "mixes"), ("stem", "single stems")):
            distance, ratio = (figures[f"toy/{kind}/codec/{name}"] for name in ("log_mel_l1", "si_sdr"))
            assert f"| toy, {words} | 1 | codec | {distance:.3f} | {ratio:.1f} |" in card
            assert f"toy/{kind}/silence/log_mel_l1" in figures
            assert f"toy/{kind}/silence/si_sdr" not in figures
        assert "/tmp" not in card


class TestCrops:
    def test_a_crop_is_a_function_of_seed_and_number(self, songs: list[Song]) -> None:
        first, again = Crops(songs, RATE, CONFIG.crops, 0), Crops(songs[::-1], RATE, CONFIG.crops, 0)
        other = Crops(songs, RATE, CONFIG.crops, 1)
        waves = [first(number).wave for number in range(6)]
        assert all(np.array_equal(wave, again(number).wave) for number, wave in reversed(list(enumerate(waves))))
        assert not any(np.array_equal(wave, other(number).wave) for number, wave in enumerate(waves))
        assert len({wave.tobytes() for wave in waves}) == 6

    def test_kinds_sum_the_stems_they_name(self, songs: list[Song]) -> None:
        counts = {"stem": {1}, "submix": {2}, "mix": {3}}
        for kind, expected in counts.items():
            draw = Crops(songs, RATE, CropConfig(seconds=0.2, kinds=(kind,)), 0)  # type: ignore[arg-type]
            crops = [draw(number) for number in range(12)]
            assert {len(crop.instruments) for crop in crops} == expected
            assert all(crop.wave.shape == (1, 3200) and np.abs(crop.wave).max() <= 0.99 + 1e-6 for crop in crops)

    def test_a_mix_is_the_sum(self, songs: list[Song]) -> None:
        whole = replace(songs[0], duration_s=0.1)
        wave = Crops([whole], RATE, CropConfig(seconds=0.5, kinds=("mix",), gain_db=(0.0, 0.0)), 0)(0).wave
        expected = sum(read_stem(whole, stem, 0.0, 8000, RATE) for stem in whole.stems)
        np.testing.assert_allclose(wave, expected, atol=1e-6)

    @pytest.mark.parametrize(("kinds", "seconds"), [((), 1.0), (("mix",), 0.0)])
    def test_wrong_configuration(self, kinds: tuple[Any, ...], seconds: float) -> None:
        with pytest.raises(ConfigError, match="at least one kind"):
            CropConfig(kinds=kinds, seconds=seconds)


class TestReading:
    @pytest.fixture(scope="class")
    def counting(self, tmp_path_factory: pytest.TempPathFactory) -> tuple[Song, np.ndarray[Any, Any]]:
        """A song whose stem says at each sample where it is, and begins a tenth of a second into the song."""
        folder = tmp_path_factory.mktemp("counting")
        ramp = (np.arange(RATE) / RATE).astype(np.float32)
        write_sound(folder / "bass.wav", ramp[None], RATE, "FLOAT")
        song = measured_song(folder, {"bass": "bass.wav"}, offsets={"bass": 1600})
        return song, ramp

    @pytest.mark.parametrize("start_s", [0.0, 0.05, 0.1, 0.35, 1.0, 1.09, 1.1, 3.0])
    def test_a_stretch_of_the_song(self, counting: tuple[Song, np.ndarray[Any, Any]], start_s: float) -> None:
        song, ramp = counting
        line = np.zeros(6 * RATE, np.float32)
        line[1600 : 1600 + RATE] = ramp
        start = round(start_s * RATE)
        wave = read_stem(song, song.stems[0], start_s, 2000, RATE)
        np.testing.assert_array_equal(wave[0], line[start : start + 2000])

    def test_other_rates_and_channels(self, tmp_path: Path) -> None:
        stereo = sound("stereo", seconds=1.0, rate=48_000, channels=2)
        write_sound(tmp_path / "bass.wav", stereo, 48_000, "FLOAT")
        song = measured_song(tmp_path, {"bass": "bass.wav"})
        wave = read_stem(song, song.stems[0], 0.5, 4000, RATE)
        assert wave.shape == (1, 4000)
        reference = stereo.mean(axis=0)[24_000:36_000]
        assert np.sqrt(np.mean(wave**2)) == pytest.approx(np.sqrt(np.mean(reference**2)), rel=0.05)

    def test_a_stem_outside_the_corpus_or_never_measured(self, counting: tuple[Song, np.ndarray[Any, Any]]) -> None:
        song, _ = counting
        for change in ({"path": "../bass.wav"}, {"sample_rate": None}):
            stem: Stem = replace(song.stems[0], **change)  # type: ignore[arg-type]
            with pytest.raises(ManifestError, match="cannot be read"):
                read_stem(song, stem, 0.0, 10, RATE)
        with pytest.raises(AudioError, match="no such file"):
            read_stem(song, replace(song.stems[0], path="gone.wav"), 0.0, 10, RATE)
