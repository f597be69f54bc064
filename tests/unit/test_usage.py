"""Wrong command lines: one line of ours that names option, value and what may stand there."""

from pathlib import Path
from typing import Any, Literal

import pytest

from mgeldm.cli import COMMANDS, main
from mgeldm.usage import expected

EXTRACT = ["extract", "a.wav", "--prompt", "drums", "--model", "m", "--out", "o"]
TRAIN = ["train", "tiny", "--data", "x", "--out", "x"]
LIBRARY = ("Parser key", "typing.", "<class", "Union", "usage:", "unrecognized", "argument ", "Traceback", "validate")


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a wrong command line is answered with, without the library's words."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    for words in LIBRARY:
        assert words not in line
    assert line.startswith(f"mgeldm {arguments[0]}: ")
    return line.removeprefix(f"mgeldm {arguments[0]}: ").partition(" see `mgeldm ")[0].rstrip(";")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([*EXTRACT, "--sampler", "foo"], "--sampler foo: it must be one of ddim, dpm++2m, heun"),
        ([*EXTRACT, "--sampler=foo"], "--sampler foo: it must be one of ddim, dpm++2m, heun"),
        ([*EXTRACT, "--sampler"], "--sampler needs a value, one of ddim, dpm++2m, heun"),
        ([*EXTRACT, "--steps", "abc"], "--steps abc: it must be a whole number"),
        ([*EXTRACT, "--steps", "3", "--steps", "2.5"], "--steps 2.5: it must be a whole number"),
        ([*EXTRACT, "--guidance", "much"], "--guidance much: it must be a number or a list [a number, ...]"),
        ([*EXTRACT, "--interval", "3"], "--interval 3: it must be a list [a number, a number]"),
        ([*EXTRACT, "--format", "mp3"], "--format mp3: it must be one of wav, flac"),
        ([*EXTRACT, "--resume", "maybe"], "--resume maybe: it must be true or false"),
        ([*EXTRACT, "--output-rate", "high"], "--output_rate high: it must be one of codec, input"),
        ([*EXTRACT, "--sampelr", "ddim"], "no option --sampelr; did you mean --sampler?"),
        ([*EXTRACT, "--zzz"], "no option --zzz"),
        (["generate", "x", "--prompt", "x", "--model", "m", "--out", "o"], "x: more than it takes"),
        (["generate", "--prompt", "x", "--seconds", "long"], "--seconds long: it must be a number"),
        (["extract", "a.wav", "--prompt", "drums"], "missing: --out"),
        (["extract"], "missing: AUDIO, --prompt, --out"),
        (["convert", "x.ckpt"], "missing: --out"),
        (
            ["convert", "x.ckpt", "--out", "o", "--norm", "batch"],
            "--norm batch: it must be one of group, layer or null",
        ),
        (["convert", "x.ckpt", "--out", "o", "--heads", "some"], "--heads some: it must be a whole number or null"),
        (["corpus", "draw"], "ACTION draw: it must be one of list, show, check"),
        (["songs", "stats"], "missing: MANIFEST"),
        (["scan", "a", "b", "--out", "x", "--activity.on_dbfs", "low"], "--activity.on_dbfs low: it must be a number"),
        ([*TRAIN, "--steps", "abc"], "--steps abc: it must be a whole number"),
        ([*TRAIN, "--resume", "maybe"], "--resume maybe: it must be one of auto, never"),
        ([*TRAIN, "--stpes", "3"], "no option --stpes; did you mean --steps?"),
    ],
)
def test_what_is_wrong_is_said_in_our_words(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(arguments, capsys) == line


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "shards"])
def test_every_command_knows_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal([name, "--no-such-option"], capsys).startswith("no option --no-such-option")


def test_a_configuration_file_with_a_wrong_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sampling.yaml"
    file.write_text("steps: abc\n")
    line = refusal([*EXTRACT, "--config", str(file)], capsys)
    assert "steps" in line
    assert "abc" in line


def test_words_after_two_dashes_are_no_options(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["extract", "--prompt", "drums", "--model", "nowhere", "--out", "o", "--", "--odd-name.wav"]
    assert "nowhere/config.json: missing" in refusal(words, capsys)


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Literal["a", "b"] | None, "one of a, b or null"),
        (tuple[int, ...], "a list [a whole number, ...]"),
        (list[str], "a list [text, ...]"),
        (Path | str, "a path or text"),
        (Any, ""),
        (dict[str, int], ""),
        (dict[str, int] | None, ""),
    ],
)
def test_expected(hint: Any, words: str) -> None:
    assert expected(hint) == words


def test_other_errors_of_ours_pass_through(capsys: pytest.CaptureFixture[str]) -> None:
    assert "tau_min is 2" in refusal([*TRAIN, "--patterns.tau_min", "2"], capsys)
