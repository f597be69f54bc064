"""The tasks through the command line on files: good ones are answered, broken ones recorded, nothing is lost."""

import json
from pathlib import Path

import numpy as np
import pytest

from mgeldm import audio
from mgeldm.checkpoint import CheckpointConfig, save_checkpoint
from mgeldm.cli import main
from mgeldm.codec import load_codec
from mgeldm.embedder import load_embedder
from mgeldm.model import JointConfig, JointTransformer

RATE = 16_000


@pytest.fixture(scope="module")
def options(tiny_models: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    codec, embedder = (str(path) for path in tiny_models)
    spec, words = load_codec(codec), load_embedder(embedder)
    model = JointConfig(width_per_track=32, depth=1, heads=3, timestep_features=8, latent_channels=8, embedding_dim=16)
    folder = tmp_path_factory.mktemp("model") / "checkpoint"
    config = CheckpointConfig(
        model=model,
        codec={"identity": spec.identity},
        embedder={"identity": words.identity},
        prompt_template="the sound of {}",
        crop_frames=16,
        latent_mean=(0.0,) * 8,
        latent_std=(1.0,) * 8,
        silence_latent=(0.0,) * 8,
    )
    save_checkpoint(folder, config, JointTransformer(model, seed=0).state_dict())
    return ["--model", str(folder), "--codec", codec, "--embedder", embedder, "--device", "cpu", "--steps", "2"]


@pytest.fixture
def songs(tmp_path: Path) -> list[Path]:
    """Two songs of one name and other rates, and three files that are no audio."""
    rng = np.random.default_rng(1)
    paths = []
    for name, rate, channels in (("one/mix.wav", 44_100, 2), ("two/mix.wav", 22_050, 1)):
        audio.save(tmp_path / name, rng.normal(0, 0.1, (channels, rate)).astype(np.float32), rate)
        paths.append(tmp_path / name)
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "zero.wav").touch()
    return [*paths, tmp_path / "text.wav", tmp_path / "zero.wav", tmp_path / "gone.wav"]


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, list[dict[str, str]]]]:
    status = main([*arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_extract_answers_good_files_and_records_broken_ones(
    options: list[str], songs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = ["extract", *map(str, songs), "--prompt", "drums", "--prompt", "bass", "--out", str(out)]
    status, results = run([*asked, *options], capsys)
    assert status == 1
    assert [failure["code"] for failure in results["failures"]] == ["unreadable", "empty", "missing"]
    assert [result["prompt"] for result in results["results"]] == ["drums", "bass"] * 2
    assert json.loads((out / "results.json").read_text()) == results
    files = [out / str(file) for result in results["results"] for file in dict(result["outputs"]).values()]
    assert len(set(files)) == len(files) == 8
    for file in files:
        wave = audio.read(file)
        assert wave.shape == (1, RATE)
        assert np.isfinite(wave).all()
    again = tmp_path / "again"
    assert main(["extract", str(songs[0]), "--prompt", "bass", "--out", str(again), *options]) == 0
    first = next(file for file in files if file.name == "one-mix-extract-bass-source.wav")
    same = audio.read(again / "mix-extract-bass-source.wav")
    np.testing.assert_array_equal(audio.read(first), same, "one seed gives one result, alone or among others")


def test_impute_adds_one_prompt_after_the_other(
    options: list[str], songs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    asked = ["impute", str(songs[1]), "--prompt", "drums", "--prompt", "bass", "--out", str(out)]
    status, _ = run([*asked, *options], capsys)
    assert status == 0
    given = audio.read(out / "mix-submix.wav")
    drums, bass = (audio.read(out / f"mix-impute-{name}-source.wav") for name in ("drums", "bass"))
    np.testing.assert_allclose(audio.read(out / "mix-impute-drums-mix.wav"), given + drums, atol=1e-6)
    np.testing.assert_allclose(audio.read(out / "mix-impute-bass-mix.wav"), given + drums + bass, atol=1e-6)
    assert np.abs(drums).max() > 0


def test_a_second_part_of_one_instrument_is_another_and_neither_file_is_lost(
    options: list[str], songs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    prompts = ["--prompt", "drums", "--prompt", "Drums", "--prompt", "drums"]
    status, found = run(["impute", str(songs[1]), *prompts, "--out", str(out), *options], capsys)
    assert status == 0
    files = [result["outputs"]["source"] for result in found["results"]]
    assert files == ["mix-impute-drums-source.wav", "mix-impute-drums-2-source.wav", "mix-impute-drums-3-source.wav"]
    first, _, third = (audio.read(out / file) for file in files)
    assert not np.allclose(first, third)


def test_generate_has_the_length_that_was_asked(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    waves = []
    for seed in ("0", "1"):
        out = tmp_path / seed
        asked = ["generate", "--prompt", "drums and bass", "--seconds", "1.5", "--seed", seed, "--out", str(out)]
        assert run([*asked, *options], capsys)[0] == 0
        waves.append(audio.read(out / f"generate-drums-and-bass-seed{seed}.wav"))
    assert waves[0].shape == waves[1].shape == (1, 24_000)
    assert not np.array_equal(*waves)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (["--prompt", ""], "is empty"),
        (["--prompt", "xyzzy"], "none of the words of the prompt 'xyzzy' is known"),
        (["--prompt", "drums", "--seconds", "0"], "more than 0"),
        (["--prompt", "drums", "--device", "cuda"], "no CUDA device"),
        (["--prompt", "drums", "--codec", "nowhere"], "nowhere"),
    ],
)
def test_wrong_wishes_are_one_line(
    options: list[str], changed: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--out", str(tmp_path / "out"), *options, *changed]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert expected in lines[-1]
    assert lines[-1].startswith("mgeldm generate: ")


def test_a_model_of_another_codec_is_refused(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = options[: options.index("--codec")]
    assert main(["generate", "--prompt", "drums", "--out", str(tmp_path), *model]) == 2
    assert "trained with codec" in capsys.readouterr().err
