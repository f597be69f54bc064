"""Training of the embedder: scenes, loss, exact resume, retrieval."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
import torch

from manifests.errors import CheckpointError, ConfigError, ManifestError, PromptError
from manifests.songs import Song, read_songs, write_songs
from mgeldm.embedder import DualEncoder, EmbedderSpec
from pipelines.runner import RunnerConfig
from pipelines.scan import scan
from training import embedder as module
from training.embedder import (
    EmbedderTrainConfig,
    contrastive_loss,
    fits,
    known_words,
    learning_rate_factor,
    train_embedder,
)
from training.retrieval import RetrievalConfig, retrieval, window_starts
from training.scenes import Example, SceneConfig, Scenes, active_share, names_of, sounding

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 16_000
SPEC = EmbedderSpec(sample_rate=RATE, window_s=5.12, dim=128)
LAYOUT = """
name: toy
license: CC0-1.0
song: "{subset}/{song}"
stems: ["{label}.wav"]
"""


def tone(frequency: float, seconds: float) -> npt.NDArray[np.float64]:
    return 0.2 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * RATE)) / RATE)


def write_song(folder: Path, seed: int, seconds: float = 11.0, more: dict[str, object] | None = None) -> None:
    """Low sine "bass", noise bursts "drums", high sine "flute" that sounds in the first 5 s only."""
    rng = np.random.default_rng(seed)
    bursts = 0.2 * rng.standard_normal(round(seconds * RATE)) * (np.arange(round(seconds * RATE)) % 4000 < 2000)
    flute = tone(1500 + 100 * seed, seconds)
    flute[5 * RATE :] = 0
    folder.mkdir(parents=True)
    for name, wave in {"bass": tone(60 + 5 * seed, seconds), "drums": bursts, "flute": flute, **(more or {})}.items():
        soundfile.write(folder / f"{name}.wav", wave, RATE)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    for index, subset in enumerate(["train", "train", "test"]):
        write_song(root / subset / f"song{index}", index)
    layout = root / "toy.yaml"
    layout.write_text(LAYOUT)
    scan([(str(layout), root)], root / "songs.parquet", runner=RunnerConfig(runner="local"))
    return root / "songs.parquet"


@pytest.fixture(scope="module")
def songs(manifest: Path) -> list[Song]:
    return read_songs(manifest)


class Oracle:
    """Tells the toy's sounds apart by their spectrum; ``shift`` makes it name another one on purpose."""

    identity = "oracle"
    spec = EmbedderSpec(sample_rate=RATE, window_s=5.12, dim=3)
    names = ("bass", "drums", "flute")

    def __init__(self, shift: int = 0) -> None:
        self.shift = shift

    def embed_audio(self, wave: torch.Tensor) -> torch.Tensor:
        power = torch.fft.rfft(wave).abs().square()
        low, high = power[:, : 5 * 200].sum(1), power[:, 5 * 1000 : 5 * 2000].sum(1)
        share = torch.stack([low, high], 1) / power.sum(1, keepdim=True)
        index = torch.where(share[:, 0] > 0.9, 0, torch.where(share[:, 1] > 0.9, 2, 1))
        return torch.eye(3)[(index + self.shift) % 3]

    def embed_text(self, texts: list[str]) -> torch.Tensor:
        return torch.eye(3)[[self.names.index(text) for text in texts]]


class Guesser(Oracle):
    """Gives random vectors."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def embed_audio(self, wave: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.randn(len(wave), 3, generator=self.generator), dim=1)


class Refuser(Oracle):
    """Knows no drums."""

    def embed_text(self, texts: list[str]) -> torch.Tensor:
        if "drums" in texts:
            raise PromptError("drums")
        return super().embed_text(texts)


class TestRetrieval:
    names = Oracle.names

    def test_perfect(self, songs: list[Song]) -> None:
        figures = retrieval(Oracle(), songs, self.names)
        assert list(figures) == ["all", "toy"]
        # Two windows a song: three stems in the first, the flute silent in the second.
        assert figures["toy"]["text_to_stem"] == {"accuracy": 1.0, "chance": pytest.approx(2 / 5), "trials": 15}
        assert figures["toy"]["stem_to_text"] == {"accuracy": 1.0, "chance": pytest.approx(1 / 3), "trials": 15}
        assert figures["all"] == figures["toy"]

    def test_always_wrong(self, songs: list[Song]) -> None:
        figures = retrieval(Oracle(shift=1), songs, self.names, config=RetrievalConfig(windows=1))
        assert figures["all"]["text_to_stem"]["accuracy"] == 0.0
        assert figures["all"]["stem_to_text"]["accuracy"] == 0.0
        assert figures["all"]["stem_to_text"]["trials"] == 9

    def test_a_random_one_is_near_chance(self, songs: list[Song]) -> None:
        runs = [retrieval(Guesser(seed), songs, self.names)["all"] for seed in range(20)]
        for task in ("text_to_stem", "stem_to_text"):
            accuracy = np.mean([run[task]["accuracy"] for run in runs])
            assert accuracy == pytest.approx(runs[0][task]["chance"], abs=0.1)

    def test_stems_of_one_instrument_share_the_answer(self, tmp_path: Path) -> None:
        write_song(tmp_path / "train" / "a", 0, more={"drum set": tone(0, 11) + 0.1})
        (tmp_path / "toy.yaml").write_text(LAYOUT)
        scan([(str(tmp_path / "toy.yaml"), tmp_path)], tmp_path / "s.parquet", runner=RunnerConfig(runner="local"))
        one = RetrievalConfig(windows=1)
        figures = retrieval(Oracle(), read_songs(tmp_path / "s.parquet"), self.names, config=one)["all"]
        # bass 1/4, drums 2/4 twice, flute 1/4; the second drums stem sounds like a bass and may be picked for it.
        assert figures["text_to_stem"]["chance"] == pytest.approx(1.5 / 4)
        assert figures["text_to_stem"]["accuracy"] == 1.0
        assert figures["stem_to_text"]["accuracy"] == 3 / 4

    def test_a_refused_text_is_a_miss(self, songs: list[Song]) -> None:
        figures = retrieval(Refuser(), songs, self.names)["all"]
        assert figures["text_to_stem"]["accuracy"] == pytest.approx(9 / 15)
        assert figures["stem_to_text"]["accuracy"] == pytest.approx(9 / 15)

    def test_stems_outside_the_candidates_are_no_trial(self, songs: list[Song]) -> None:
        figures = retrieval(Oracle(), songs, ["bass"])["all"]["stem_to_text"]
        assert figures == {"accuracy": 1.0, "chance": 1.0, "trials": 6}

    def test_window_starts(self) -> None:
        assert window_starts(10.24, 5.12, 8) == [0.0, 5.12]
        assert window_starts(51.2, 5.12, 3) == [0.0, pytest.approx(4 * 5.12), pytest.approx(9 * 5.12)]
        assert window_starts(5.0, 5.12, 8) == []


class TestScenes:
    def test_pure_function_of_seed_and_number(self, songs: list[Song]) -> None:
        first = Scenes(songs, SPEC, SceneConfig(), 0)
        again = Scenes(songs[::-1], SPEC, SceneConfig(), 0)
        for number in (3, 0, 3):
            for a, b in zip(first(number), again(number), strict=True):
                assert np.array_equal(a.wave, b.wave)
                assert (a.instruments, a.text, a.by_family) == (b.instruments, b.text, b.by_family)
        assert not np.array_equal(first(0)[0].wave, first(1)[0].wave)
        assert not np.array_equal(first(0)[0].wave, Scenes(songs, SPEC, SceneConfig(), 1)(0)[0].wave)

    def test_labels_are_what_sounds(self, songs: list[Song]) -> None:
        scenes = Scenes(songs, SPEC, SceneConfig(pitch=0.0), 0)
        seen = set()
        for example in (example for number in range(12) for example in scenes(number)):
            assert example.wave.shape == (SPEC.window,)
            assert example.wave.dtype == np.float32
            band = np.abs(np.fft.rfft(example.wave))[5 * 1200 : 5 * 2000]
            whistles = band.max() > 30 * np.median(band) and band.max() > 100
            assert whistles == ("flute" in example.instruments)
            seen.add(example.instruments)
        assert {"bass", "drums", "flute"} < seen
        assert any(" and " in name for name in seen)

    def test_a_silent_stem_does_not_sound(self, songs: list[Song]) -> None:
        flute = next(stem for stem in songs[0].usable_stems if stem.instrument == "flute")
        assert active_share(flute, 0.0, 5.0) == 1.0
        assert active_share(flute, 4.0, 5.0) == pytest.approx(0.2)
        assert active_share(flute, 100.0, 5.0) == 0.0
        assert [stem.instrument for stem in sounding(songs[0], 5.5, 5.12, 0.2)] == ["bass", "drums"]

    def test_texts_name_instruments_or_families(self, songs: list[Song]) -> None:
        scenes = Scenes(songs, SPEC, SceneConfig(alias=0.5, family=0.5), 0)
        examples = [example for number in range(20) for example in scenes(number)]
        names = names_of(["bass", "drums", "flute"])
        for example in (example for example in examples if example.instruments == "flute"):
            known = ["winds"] if example.by_family else names["flute"]
            assert example.text in known
        assert {example.by_family for example in examples} == {True, False}
        assert any(example.text in names["flute"][1:] for example in examples)

    def test_no_song(self) -> None:
        with pytest.raises(ManifestError, match="usable"):
            Scenes([], SPEC, SceneConfig(), 0)


class TestLoss:
    def test_values(self) -> None:
        same, scale = torch.eye(2), torch.tensor(3.0)
        expected = math.log(1 + math.exp(-3))
        assert contrastive_loss(same, same, torch.eye(2) > 0, scale).item() == pytest.approx(expected)
        # With every text a positive of every sound the best there is is even: log 2.
        even = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
        assert contrastive_loss(even, even, torch.ones(2, 2) > 0, scale).item() == pytest.approx(math.log(2))

    def test_fits(self) -> None:
        wave = np.zeros(1, np.float32)
        violin = Example(wave, "violin", "strings", "fiddle", False)
        cello = Example(wave, "cello", "strings", "strings", True)
        flute = Example(wave, "flute", "winds", "flute", False)
        expected = [[True, True, False], [False, True, False], [False, False, True]]
        assert fits([violin, cello, flute]).tolist() == expected

    def test_learning_rate(self) -> None:
        config = EmbedderTrainConfig(steps=110, warmup=10)
        factors = [learning_rate_factor(step, config) for step in (0, 9, 10, 60, 110)]
        assert factors == pytest.approx([0.1, 1.0, 1.0, 0.5, 0.0])

    def test_words(self, songs: list[Song]) -> None:
        words = known_words([])
        assert {"drums", "fiddle", "winds", "hammond"} <= set(words)
        assert list(words) == sorted(words)
        assert known_words(songs) == words

    def test_glue_is_no_word(self, songs: list[Song]) -> None:
        assert not {"sound", "the", "music"} & set(known_words(songs))
        assert {"effects", "box"} <= set(known_words(songs))
        stem = replace(songs[0].stems[0], instrument="solo part")
        assert {"solo", "part"} <= set(known_words([replace(songs[0], stems=(stem,))]))


SMALL = EmbedderTrainConfig(steps=4, batch=2, warmup=1, save_every=2, readers=2, seed=5)


def files(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("config.json", "model.safetensors", "README.md")}


class TestTraining:
    @pytest.fixture(scope="class")
    def straight(self, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("straight")
        train_embedder(manifest, out, config=SMALL)
        return out

    def test_resume_equals_a_straight_run(
        self, manifest: Path, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, calls = module.contrastive_loss, iter(range(10))

        def dies_in_step_four(*arguments: torch.Tensor) -> torch.Tensor:
            if next(calls) == 3:
                raise KeyboardInterrupt
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(module, "contrastive_loss", dies_in_step_four)
            patch.setattr(module, "METRICS_EVERY", 1)
            with pytest.raises(KeyboardInterrupt):
                train_embedder(manifest, tmp_path, config=SMALL)
        assert not (tmp_path / "model.safetensors").exists()
        assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 2
        monkeypatch.setattr(module, "METRICS_EVERY", 1)
        train_embedder(manifest, tmp_path, config=SMALL)
        assert files(tmp_path) == files(straight)
        a, b = (torch.load(out / "state.pt", weights_only=True) for out in (tmp_path, straight))
        assert all(torch.equal(a["encoder"][key], b["encoder"][key]) for key in b["encoder"])
        assert torch.equal(a["log_scale"], b["log_scale"])
        steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert steps == [1, 2, 3, 4]

    def test_reading_threads_change_nothing(self, manifest: Path, straight: Path, tmp_path: Path) -> None:
        readers = EmbedderTrainConfig(steps=4, batch=2, warmup=1, save_every=2, readers=1, seed=5)
        train_embedder(manifest, tmp_path, config=readers)
        assert (tmp_path / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()

    def test_a_finished_run_is_not_trained_again(
        self, manifest: Path, straight: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = files(straight)
        monkeypatch.delattr(module, "contrastive_loss")
        train_embedder(manifest, straight, config=SMALL)
        assert files(straight) == before

    def test_another_run_in_the_folder_is_refused(self, manifest: Path, straight: Path) -> None:
        other = EmbedderTrainConfig(steps=4, batch=2, warmup=1, save_every=2, seed=6)
        with pytest.raises(CheckpointError, match="another configuration"):
            train_embedder(manifest, straight, config=other)

    def test_test_songs_are_not_trained_on(self, songs: list[Song], tmp_path: Path) -> None:
        write_songs(tmp_path / "songs.parquet", [song for song in songs if song.subset == "test"])
        with pytest.raises(ManifestError, match="usable"):
            train_embedder(tmp_path / "songs.parquet", tmp_path / "out", config=SMALL)

    def test_it_learns(self, manifest: Path, tmp_path: Path) -> None:
        scenes = SceneConfig(pitch=0.5)
        config = EmbedderTrainConfig(steps=16, batch=3, warmup=3, learning_rate=2e-3, scenes=scenes)
        figures = train_embedder(manifest, tmp_path, config=config)
        assert figures["toy"]["text_to_stem"]["trials"] == 5
        assert figures["toy"]["text_to_stem"]["accuracy"] == 1.0
        assert figures["toy"]["stem_to_text"]["accuracy"] >= 0.8
        encoder = DualEncoder.load(tmp_path)
        assert encoder.config.instruments == ("bass", "drums", "flute")
        card = (tmp_path / "README.md").read_text()
        assert encoder.identity in card
        assert "--steps 16 --batch 3 --learning_rate 0.002 --warmup 3 --scenes.pitch 0.5" in card
        assert "| toy | text to stem | 1.000 | 0.400 | 5 |" in card

    @pytest.mark.parametrize("change", [{"steps": 0}, {"batch": 0}, {"temperature": 0.0}])
    def test_wrong_configuration(self, change: dict[str, int]) -> None:
        with pytest.raises(ConfigError, match=next(iter(change))):
            EmbedderTrainConfig(**change)
