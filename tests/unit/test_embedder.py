"""The default embedder: unit vectors, words, folder, identity."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import mgeldm.embedder as embedder_package
from manifests.errors import CheckpointError, PromptError
from manifests.labels import vocabulary
from mgeldm.embedder import DualConfig, DualEncoder, Embedder, EmbedderSpec, load_embedder
from mgeldm.embedder.dual import tokens

CONFIG = DualConfig(
    words=("bass", "drum", "drums", "kick", "piano"),
    instruments=("bass", "drums", "piano"),
    window_s=1.28,
    dim=16,
    widths=(4, 8, 8, 8),
    text_width=8,
)
WINDOW = 20_480


def build(seed: int = 0, config: DualConfig = CONFIG) -> DualEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = DualEncoder(config)
    encoder.eval().requires_grad_(False)
    return encoder


def noise(batch: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(batch, WINDOW, generator=torch.Generator().manual_seed(seed))


def test_spec() -> None:
    encoder: Embedder = build()
    assert encoder.spec == EmbedderSpec(sample_rate=16_000, window_s=1.28, dim=16)
    assert encoder.spec.window == WINDOW


def test_embeddings_have_unit_length_and_differ() -> None:
    encoder = build()
    audio = encoder.embed_audio(noise(3))
    text = encoder.embed_text(["bass", "drums", "a kick drum"])
    for vectors in (audio, text):
        assert vectors.shape == (3, 16)
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(3))
        assert (vectors[0] - vectors[1]).abs().max() > 1e-3
    assert encoder.embed_text([]).shape == (0, 16)


def test_silence_is_a_finite_unit_vector() -> None:
    vector = build().embed_audio(torch.zeros(1, WINDOW))
    assert vector.isfinite().all()
    torch.testing.assert_close(vector.norm(dim=1), torch.ones(1))


def test_gain_changes_nothing() -> None:
    encoder, wave = build(), noise(2)
    torch.testing.assert_close(encoder.embed_audio(wave * 0.01), encoder.embed_audio(wave), atol=1e-4, rtol=0)


def test_a_window_does_not_depend_on_the_batch() -> None:
    encoder, wave = build(), noise(3)
    torch.testing.assert_close(encoder.embed_audio(wave)[1:2], encoder.embed_audio(wave[1:2]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(2, WINDOW - 1), (2, WINDOW + 1), (1, 1, WINDOW), (WINDOW,)])
def test_another_length_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"\[B, {WINDOW}\]"):
        build().embed_audio(torch.zeros(shape))


def test_words_are_letters_and_digits_of_any_script() -> None:
    assert tokens("Hi-Hat_2, 808 \u30ae\u30bf\u30fc; \uff24\uff32\uff35\uff2d") == [
        "hi",
        "hat",
        "2",
        "808",
        "\u30ae\u30bf\u30fc",
        "drum",
    ]


def test_only_known_words_count_and_their_order_does_not() -> None:
    encoder = build()
    plain, sentence, turned, other = encoder.embed_text(
        ["bass and drums", "Just the BASS, with   drums!", "drums + bass", "bass drums drums"]
    )
    assert torch.equal(plain, sentence)
    assert torch.equal(plain, turned)
    assert not torch.equal(plain, other)


@pytest.mark.parametrize(("prompt", "message"), [("the zither", "'the zither'"), ("", "empty"), ("  ", "empty")])
def test_a_prompt_that_says_nothing_is_refused(prompt: str, message: str) -> None:
    with pytest.raises(PromptError, match=message) as caught:
        build().embed_text(["bass", prompt])
    assert "bass, drums, piano" in str(caught.value)


def test_save_and_load(tmp_path: Path) -> None:
    encoder = build()
    encoder.save(tmp_path)
    loaded = DualEncoder.load(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert loaded.config == CONFIG
    assert loaded.identity == encoder.identity
    assert not loaded.training
    # Half precision moves unit vectors by about 1e-3.
    torch.testing.assert_close(loaded.embed_audio(noise(2)), encoder.embed_audio(noise(2)), atol=5e-3, rtol=0)
    torch.testing.assert_close(loaded.embed_text(["bass"]), encoder.embed_text(["bass"]), atol=5e-3, rtol=0)
    assert torch.equal(loaded.embed_audio(noise(2)), DualEncoder.load(tmp_path).embed_audio(noise(2)))


def test_saving_again_gives_the_same_bytes(tmp_path: Path) -> None:
    build().save(tmp_path / "a")
    DualEncoder.load(tmp_path / "a").save(tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_identity_follows_weights_and_configuration() -> None:
    encoder = build()
    before = encoder.identity
    assert before == build().identity
    assert build(seed=1).identity != before
    with torch.no_grad():
        encoder.audio.head.bias[0] += 0.5
    assert encoder.identity != before
    renamed = DualConfig(**{**vars_of(CONFIG), "words": ("bass", "drum", "drums", "kick", "viola")})
    assert build(config=renamed).identity != before


def vars_of(config: DualConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def edit_config(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"half"), "not a readable"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a readable"),
        (edit_config(lambda config: config.update(model_type="bert")), "model_type is 'bert'"),
        (edit_config(lambda config: config.update(colour="blue")), "colour"),
        (edit_config(lambda config: config.pop("words")), "words"),
        (edit_config(lambda config: config.update(dim=32)), "do not fit"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    build().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load_embedder(str(tmp_path))


class TestShipped:
    def test_shape_and_size(self) -> None:
        encoder = load_embedder()
        assert encoder.identity == load_embedder("default").identity
        assert encoder.spec == EmbedderSpec(sample_rate=16_000, window_s=5.12, dim=128)
        folder = Path(str(embedder_package.__file__)).parent / "labels-16k"
        assert sum(path.stat().st_size for path in folder.iterdir()) < 8_000_000
        assert encoder.identity in (folder / "README.md").read_text(encoding="utf-8")

    def test_it_takes_every_instrument_it_heard_and_every_family(self) -> None:
        names = sorted({*load_embedder().config.instruments, *vocabulary().families.values()})
        assert load_embedder().embed_text(names).shape == (len(names), 128)

    def test_a_sentence_around_a_name_says_little(self) -> None:
        encoder = load_embedder()
        names = list(encoder.config.instruments)
        similarity = encoder.embed_text(names) @ encoder.embed_text([f"the sound of {name}" for name in names]).T
        assert similarity.argmax(1).tolist() == list(range(len(names)))
        assert similarity.diagonal().min() > 0.85

    @pytest.mark.parametrize("prompt", ["the sound of zither", "the sound of ", "music only"])
    def test_a_sentence_without_a_name_is_refused(self, prompt: str) -> None:
        with pytest.raises(PromptError, match="none of the words"):
            load_embedder().embed_text([prompt])

    def test_synonyms_lie_together(self) -> None:
        canonical = ["drums", "bass", "vocals"]
        same = load_embedder().embed_text(["drum kit", "bass guitar", "lead vox"])
        similarity = load_embedder().embed_text(canonical) @ same.T
        assert similarity.argmax(1).tolist() == [0, 1, 2]
        assert similarity.diagonal().min() > 0.7

    def test_it_hears_a_low_tone_as_bass(self) -> None:
        encoder = load_embedder()
        time = torch.arange(encoder.spec.window) / encoder.spec.sample_rate
        tone = sum(torch.sin(2 * torch.pi * 55 * k * time) / k**2 for k in range(1, 5))
        plucked = (0.2 * tone * torch.exp(-3 * (time % 0.5)))[None]
        similarity = encoder.embed_audio(plucked) @ encoder.embed_text(["bass", "drums", "vocals", "strings"]).T
        assert similarity.argmax().item() == 0
