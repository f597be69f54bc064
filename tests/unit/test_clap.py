"""CLAP: its spectrogram against transformers' own, its folder, its identity, its words; nothing goes over a socket."""

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch
from safetensors.torch import load_file, save_file

from manifests.errors import CheckpointError, PromptError
from mgeldm.embedder import ClapEmbedder, Embedder, EmbedderSpec, load_embedder
from mgeldm.embedder.clap_mel import ClapMel, ClapMelConfig
from tests.support.clap import tiny_config, tiny_extractor, tiny_model, write_clap

RATE, WINDOW = 48_000, 480_000
EXAMPLES = Path(__file__).parents[2] / "examples"

Signal = Callable[[], np.ndarray]


@pytest.fixture(autouse=True)
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    opened: list[object] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        opened.append(arguments)
        raise OSError("no sockets here")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    yield
    # A library might have caught the error and gone on.
    assert opened == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clap(tmp_path_factory.mktemp("clap") / "tiny")


@pytest.fixture(scope="module")
def clap(folder: Path) -> ClapEmbedder:
    return ClapEmbedder.load(folder)


def noise(batch: int = 1, level: float = 0.1, seed: int = 0) -> np.ndarray:
    return (level * np.random.default_rng(seed).standard_normal((batch, WINDOW))).astype(np.float32)


def recording(name: str, start: float) -> np.ndarray:
    """Ten seconds of an example, mixed down and at CLAP's rate."""
    wave, rate = soundfile.read(EXAMPLES / name, dtype="float32", always_2d=True)
    mono = wave.mean(axis=1)[round(start * rate) :]
    found = soxr.resample(mono, rate, RATE)[:WINDOW]
    assert np.abs(found).max() > 0.01
    return np.pad(found, (0, WINDOW - len(found)))


def clicks() -> np.ndarray:
    wave = np.zeros(WINDOW, np.float32)
    wave[[0, 1, 777, 240_000, WINDOW - 1]] = [1, -1, 0.5, 1, -1]
    return wave


def full_scale() -> np.ndarray:
    time = np.arange(WINDOW) / RATE
    return np.sign(np.sin(2 * np.pi * 997 * time)).astype(np.float32)


def loud_and_quiet() -> np.ndarray:
    """A sine at full scale whose window's side lobes fall far below it: what single precision gets wrong."""
    return np.sin(2 * np.pi * 100 * np.arange(WINDOW) / RATE).astype(np.float32)


SIGNALS: dict[str, Signal] = {
    "mix": lambda: recording("minislakh/test/Track00006/mix.flac", 3.0),
    "bass": lambda: recording("minislakh/train/Track00001/stems/S02.flac", 0.0),
    "drums": lambda: recording("everything-is-free/potassium/KICK HATS.flac", 8.0),
    "noise": lambda: noise()[0],
    "noise near the floor": lambda: noise(level=1e-6)[0],
    "silence": lambda: np.zeros(WINDOW, np.float32),
    "clicks": clicks,
    "full scale": full_scale,
    "loud and quiet": loud_and_quiet,
    "direct current": lambda: np.full(WINDOW, 0.5, np.float32),
}


class TestMel:
    @pytest.mark.parametrize("fusion", [False, True])
    def test_it_is_the_extractors(self, fusion: bool) -> None:
        extractor = tiny_extractor(fusion=fusion)
        waves = np.stack([signal() for signal in SIGNALS.values()])
        found = ClapMel(ClapMelConfig.of(extractor))(torch.from_numpy(waves))
        assert found.shape == (len(SIGNALS), 1001, 64)
        assert found.dtype == torch.float32
        for name, wave, mel in zip(SIGNALS, waves, found, strict=True):
            expected = extractor(wave, sampling_rate=RATE, return_tensors="np")["input_features"][0]
            assert expected.shape == ((4, 1001, 64) if fusion else (1, 1001, 64))
            for row in expected:
                assert np.abs(mel.numpy() - row).max() < 1e-4, name

    def test_single_precision_would_not_do(self) -> None:
        """The reason for double precision: side lobes far below a loud tone."""
        mel = ClapMel(ClapMelConfig.of(tiny_extractor()))
        wave = torch.from_numpy(loud_and_quiet())[None]
        spectrum = torch.stft(wave, mel.fft, mel.hop, window=mel.window.float(), return_complex=True)
        power = (mel.filters.float() @ spectrum.abs().square()).transpose(1, 2)
        assert (10 * power.clamp(min=1e-10).log10() - mel(wave)).abs().max() > 1e-2

    def test_silence_is_the_floor(self) -> None:
        mel = ClapMel(ClapMelConfig.of(tiny_extractor()))(torch.zeros(1, WINDOW))
        assert mel.unique().tolist() == [-100.0]

    def test_settings_are_those_of_the_folder(self) -> None:
        settings = {"sampling_rate": 16_000, "max_length_s": 2, "hop_length": 200, "fft_window_size": 512}
        extractor = tiny_extractor(**settings, feature_size=32, frequency_min=20, frequency_max=7_000)
        wave = noise()[0, :32_000]
        expected = extractor(wave, sampling_rate=16_000, return_tensors="np")["input_features"][0, 0]
        found = ClapMel(ClapMelConfig.of(extractor))(torch.from_numpy(wave)[None])[0]
        assert found.shape == (161, 32)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)

    def test_a_large_batch_is_its_windows(self) -> None:
        mel, waves = ClapMel(ClapMelConfig.of(tiny_extractor())), torch.from_numpy(noise(18))
        found = mel(waves)
        torch.testing.assert_close(found[17], mel(waves[17:])[0], atol=1e-5, rtol=0)

    def test_autocast_leaves_it_alone(self) -> None:
        mel, wave = ClapMel(ClapMelConfig.of(tiny_extractor())), torch.from_numpy(noise())
        with torch.autocast("cpu", torch.bfloat16):
            found = mel(wave)
        assert torch.equal(found, mel(wave))


class TestEmbeddings:
    def test_spec(self, clap: ClapEmbedder) -> None:
        embedder: Embedder = clap
        assert embedder.spec == EmbedderSpec(sample_rate=48_000, window_s=10.0, dim=16)
        assert embedder.spec.window == WINDOW
        assert not clap.training
        assert not any(parameter.requires_grad for parameter in clap.parameters())

    def test_audio_is_what_transformers_gives(self, clap: ClapEmbedder) -> None:
        waves = np.stack([noise()[0], SIGNALS["mix"](), clicks()])
        found = clap.embed_audio(torch.from_numpy(waves))
        inputs = tiny_extractor()(list(waves), sampling_rate=RATE, return_tensors="pt")
        expected = tiny_model().get_audio_features(**inputs).pooler_output
        torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
        assert (found @ found.T - torch.eye(3)).abs().max() < 0.9999

    def test_a_fusion_model_hears_one_spectrogram(self, tmp_path: Path) -> None:
        """As for audio that fits; the extractor would call one clip of each batch longer, by lot."""
        model = tiny_model(tiny_config(fusion=True))
        clap = ClapEmbedder.load(write_clap(tmp_path / "fused", model=model, fusion=True))
        waves = np.stack([noise()[0], clicks()])
        inputs = tiny_extractor(fusion=True)(list(waves), sampling_rate=RATE, return_tensors="pt")
        assert inputs["is_longer"].sum() == 1
        features = inputs["input_features"]
        plain = model.get_audio_features(input_features=features, is_longer=torch.zeros(2, 1, dtype=torch.bool))
        found = clap.embed_audio(torch.from_numpy(waves))
        torch.testing.assert_close(found, plain.pooler_output.detach(), atol=1e-5, rtol=0)
        longer = model.get_audio_features(**inputs).pooler_output
        assert (longer - found).abs().max() > 1e-3

    def test_text_is_what_transformers_gives(self, clap: ClapEmbedder) -> None:
        texts = ["drums", "bass guitar and drums"]
        inputs = clap.tokenizer(texts, padding=True, return_tensors="pt")
        assert inputs["attention_mask"].sum(1).tolist()[0] < inputs["attention_mask"].shape[1]
        expected = tiny_model().get_text_features(**inputs).pooler_output.detach()
        torch.testing.assert_close(clap.embed_text(texts), expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(clap.embed_text(texts[:1])[0], expected[0], atol=1e-6, rtol=0)
        assert (expected[0] - expected[1]).abs().max() > 1e-3
        assert clap.embed_text([]).shape == (0, 16)

    def test_long_and_foreign_texts(self, clap: ClapEmbedder) -> None:
        vectors = clap.embed_text(["drums " * 500, "drums " * 600, "\u30ae\u30bf\u30fc"])
        assert torch.equal(vectors[0], vectors[1])
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))

    @pytest.mark.parametrize("prompt", ["", "  \n"])
    def test_an_empty_prompt_is_refused(self, clap: ClapEmbedder, prompt: str) -> None:
        with pytest.raises(PromptError, match="prompt is empty"):
            clap.embed_text(["drums", prompt])

    @pytest.mark.parametrize("shape", [(2, WINDOW - 1), (2, WINDOW + 1), (1, 1, WINDOW), (WINDOW,)])
    def test_another_length_is_refused(self, clap: ClapEmbedder, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=rf"\[B, {WINDOW}\]"):
            clap.embed_audio(torch.zeros(shape))

    def test_bf16(self, clap: ClapEmbedder) -> None:
        wave = torch.from_numpy(np.stack([noise()[0], SIGNALS["mix"]()]))
        with torch.autocast("cpu", torch.bfloat16):
            audio, text = clap.embed_audio(wave), clap.embed_text(["drums"])
        for found, exact in ((audio, clap.embed_audio(wave)), (text, clap.embed_text(["drums"]))):
            assert found.dtype == torch.float32
            torch.testing.assert_close(found.norm(dim=1), torch.ones(len(found)))
            assert 1 - 5e-3 < (found * exact).sum(1).min() < 1 - 1e-9 or torch.equal(found, exact)

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_cuda(self, folder: Path, clap: ClapEmbedder) -> None:
        other = ClapEmbedder.load(folder).to("cuda")
        wave = torch.from_numpy(np.stack([signal() for signal in SIGNALS.values()]))
        assert (other.mel(wave.cuda()).cpu() - clap.mel(wave)).abs().max() < 1e-4
        torch.testing.assert_close(other.embed_audio(wave.cuda()).cpu(), clap.embed_audio(wave), atol=1e-3, rtol=0)
        torch.testing.assert_close(other.embed_text(["drums"]).cpu(), clap.embed_text(["drums"]), atol=1e-3, rtol=0)


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


class TestIdentity:
    def test_names_and_wrapping_say_nothing(self, folder: Path, clap: ClapEmbedder, tmp_path: Path) -> None:
        moved = Path(shutil.copytree(folder, tmp_path / "moved"))
        edit_json(moved / "config.json", lambda raw: raw.update(_name_or_path="x/y", transformers_version="4.1.0"))
        edit_json(moved / "config.json", lambda raw: raw["text_config"].update(hidden_dropout_prob=0.2))
        sharded = write_clap(tmp_path / "sharded", max_shard_size="20KB")
        assert len(list(sharded.glob("model-*.safetensors"))) > 1
        # As releases before transformers 5 were saved.
        old = Path(shutil.copytree(folder, tmp_path / "old"))
        (old / "processor_config.json").unlink()
        tiny_extractor().save_pretrained(old)
        pickled = Path(shutil.copytree(folder, tmp_path / "pickled"))
        torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
        (pickled / "model.safetensors").unlink()
        for same in (moved, sharded, old, pickled):
            assert load_embedder(str(same)).identity == clap.identity, same.name
        assert len(clap.identity) == 64

    def test_the_callers_generator_stays_where_it_was(self, folder: Path, tmp_path: Path) -> None:
        state = torch.random.get_rng_state()
        load_embedder(shutil.copytree(folder, tmp_path / "again").as_posix())
        assert torch.equal(torch.random.get_rng_state(), state)

    def test_weights_in_half_precision_compute_in_single(self, clap: ClapEmbedder, tmp_path: Path) -> None:
        half = load_embedder(str(write_clap(tmp_path / "half", model=tiny_model().half())))
        assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
        assert half.identity != clap.identity
        torch.testing.assert_close(half.embed_text(["drums"]), clap.embed_text(["drums"]), atol=1e-2, rtol=0)

    def test_it_follows_a_weight(self, folder: Path, clap: ClapEmbedder, tmp_path: Path) -> None:
        other = Path(shutil.copytree(folder, tmp_path / "other"))
        state = load_file(other / "model.safetensors")
        state["audio_projection.linear1.bias"][0] += 1e-3
        save_file(state, other / "model.safetensors", metadata={"format": "pt"})
        assert load_embedder(str(other)).identity != clap.identity

    @pytest.mark.parametrize(
        ("file", "change"),
        [
            ("processor_config.json", lambda raw: raw["feature_extractor"].update(hop_length=500)),
            ("processor_config.json", lambda raw: raw["feature_extractor"].update(frequency_min=0)),
            ("processor_config.json", lambda raw: raw["feature_extractor"].update(truncation="fusion")),
            ("config.json", lambda raw: raw["audio_config"].update(layer_norm_eps=1e-4)),
            ("config.json", lambda raw: raw["text_config"].update(hidden_act="relu")),
            ("tokenizer.json", lambda raw: raw["model"]["merges"].pop()),
            ("tokenizer_config.json", lambda raw: raw.update(add_prefix_space=True)),
        ],
    )
    def test_it_follows_a_setting(
        self,
        folder: Path,
        clap: ClapEmbedder,
        tmp_path: Path,
        file: str,
        change: Callable[[dict[str, Any]], object],
    ) -> None:
        other = Path(shutil.copytree(folder, tmp_path / "other"))
        edit_json(other / file, change)
        assert load_embedder(str(other)).identity != clap.identity


class TestLoading:
    def test_a_folder_is_read_again_where_it_changed(self, folder: Path, tmp_path: Path) -> None:
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        first = load_embedder(str(copy))
        assert isinstance(first, ClapEmbedder)
        write_clap(copy, model=tiny_model(seed=1))
        assert load_embedder(str(copy)).identity != first.identity

    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (lambda f: (f / "model.safetensors").unlink(), "no weights"),
            (lambda f: (f / "processor_config.json").unlink(), "no feature extractor"),
            (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer"),
            (lambda f: (f / "model.safetensors").write_bytes(b"half"), "not a readable CLAP folder"),
            (lambda f: (f / "tokenizer.json").write_text("{"), "not a readable CLAP folder"),
            (lambda f: edit_json(f / "config.json", lambda raw: raw.update(projection_dim=32)), "not a readable CLAP"),
            (lambda f: edit_json(f / "config.json", lambda raw: raw.update(model_type="bert")), "model_type is 'bert'"),
            (
                lambda f: edit_json(f / "config.json", lambda raw: raw["text_config"].update(num_hidden_layers=2)),
                "weights of the model are missing",
            ),
            (
                lambda f: edit_json(
                    f / "processor_config.json", lambda raw: raw["feature_extractor"].update(feature_size=32)
                ),
                "32 mel bins",
            ),
            (
                lambda f: edit_json(
                    f / "processor_config.json", lambda raw: raw["feature_extractor"].update(max_length_s=20)
                ),
                "2001 frames",
            ),
            (
                lambda f: edit_json(
                    f / "processor_config.json", lambda raw: raw["feature_extractor"].update(truncation="tail")
                ),
                "'tail'",
            ),
        ],
    )
    def test_a_damaged_folder_is_refused(
        self, folder: Path, tmp_path: Path, damage: Callable[[Path], object], words: str
    ) -> None:
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        damage(copy)
        with pytest.raises(CheckpointError, match=words) as caught:
            load_embedder(str(copy))
        assert "\n" not in str(caught.value)
        assert str(copy) in str(caught.value)
