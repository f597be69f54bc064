"""Recipes: every shipped one, overrides, and what is refused."""

from pathlib import Path

import pytest

from manifests.errors import ConfigError
from mgeldm.diffusion.timesteps import TimestepPatterns
from training.config import RECIPES, TrainConfig, load_recipe, recipe_path
from training.stream import StreamConfig

SHIPPED = sorted(RECIPES.glob("*.yaml"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("steps: 30\nlearning_rate: 1e-4\nstream:\n  batch: 3\npatterns:\n  all: 0\n")
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_parse_and_say_what_for(path: Path) -> None:
    config = load_recipe(path)
    own = {"t1": "paper", "t2": "paper", "t3": "paper", "t4": "paper", "mixtures": "base", "stems": "base"}
    assert config.preset == own.get(path.stem, path.stem)
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 40


def test_all_recipes_are_shipped() -> None:
    assert {path.stem for path in SHIPPED} >= {"tiny", "small", "base", "t1", "t2", "t3", "t4", "mixtures", "stems"}


def test_the_demos_recipe() -> None:
    config = load_recipe(recipe_path("tiny"))
    assert (config.preset, config.stream.batch, config.stream.crop_frames) == ("tiny", 16, 40)


def test_values_and_defaults(recipe: Path) -> None:
    expected = TrainConfig(steps=30, learning_rate=1e-4, stream=StreamConfig(batch=3), patterns=TimestepPatterns(all=0))
    assert load_recipe(recipe) == expected


def test_overrides_replace_values(recipe: Path) -> None:
    config = load_recipe(recipe, ["stream.batch=8", "betas=[0.8, 0.9]", "preset=small", "learning_rate=1e-5", "seed=0"])
    assert config.stream == StreamConfig(batch=8)
    assert (config.betas, config.preset, config.learning_rate, config.steps) == ((0.8, 0.9), "small", 1e-5, 30)


def test_later_overrides_win(recipe: Path) -> None:
    assert load_recipe(recipe, ["steps=1", "steps=2"]).steps == 2


def test_an_empty_recipe_is_the_default(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert load_recipe(path) == TrainConfig()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stepz: 3", "no 'stepz'; did you mean 'steps'? it has preset, model"),
        ("step: 3", "no 'step'"),
        ("stream: {batc: 2}", "no 'stream.batc'"),
        ("stream: 3", "no 'stream'; did you mean 'stream.seed'? it has"),
        ("stream: {class_path: os.system}", "no 'stream.class_path'"),
        ("stream: {batch: {a: 1}}", "no 'stream.batch.a'"),
        ("steps:", "steps has no value"),
        ("steps: many", '"steps"'),
        ("steps: 2.5", '"steps"'),
        ("learning_rate: fast", '"learning_rate"'),
        ("steps: 0", "steps 0 must be at least 1"),
        ("preset: huge", "preset 'huge' is none of tiny, small"),
        ("ema: 1.0", "decay of 1.0"),
        ("learning_rate: 0", "learning_rate 0.0 must be a number above 0"),
        ("seed: -1", "seed -1"),
        ("spike: .nan", "spike nan"),
        ("weight_decay: .inf", "weight_decay inf"),
        ("stream: {cache_gb: .inf}", "cache_gb inf must be numbers above 0"),
        ("stream: {batch: 0}", "batch 0"),
        ("patterns: {all: -1}", "give finite weights"),
        ("- steps", "a recipe is a mapping"),
        ("steps: [", "not readable as YAML"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    message = refused(path)
    assert words in message
    assert str(path) in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steps", "write KEY=VALUE"),
        ("=3", "write KEY=VALUE"),
        ("stream.batc=3", "no 'stream.batc'"),
        ("stream.batch=x", '"stream.batch"'),
        ("steps=", "steps has no value"),
        ("steps=[", "not readable"),
    ],
)
def test_overrides_that_are_refused(recipe: Path, override: str, words: str) -> None:
    assert words in refused(recipe, override)


def test_recipes_are_found_by_path_and_name(recipe: Path, tmp_path: Path) -> None:
    assert recipe_path(str(recipe)) == recipe
    assert recipe_path("tiny") == recipe_path("tiny.yaml") == RECIPES / "tiny.yaml"
    with pytest.raises(ConfigError, match=r"nothing: no such recipe; give a YAML file, or one of .*tiny"):
        recipe_path("nothing")
    with pytest.raises(ConfigError, match="no such recipe"):
        recipe_path(str(tmp_path))


def test_the_network_takes_the_shape_of_the_data() -> None:
    model = TrainConfig(preset="small").network(latent_channels=8, embedding_dim=16)
    assert (model.latent_channels, model.embedding_dim, model.width_per_track, model.depth) == (8, 16, 128, 12)
