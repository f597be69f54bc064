"""The command line: answers at once, refuses in one line, exits as documented."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from manifests.errors import ConfigError
from mgeldm.cli import COMMANDS, main
from tests.support.large import write_large
from training.launch import weighted


def test_overview_names_every_command_and_imports_neither_torch_nor_ray() -> None:
    code = (
        "import sys; from mgeldm.cli import main; status = main(['--help']);"
        "heavy = {'torch', 'ray', 'pyarrow', 'numpy'} & set(sys.modules);"
        "sys.exit(status or (f'imported {heavy}' if heavy else 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in COMMANDS:
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("name", [name for name in COMMANDS])
def test_every_command_shows_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    shown = "".join(capsys.readouterr().out.partition("Example:")[2].split())  # argparse breaks lines anywhere
    assert shown.startswith(f"mgeldm{name}")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ""),
        (["nonsense"], "no command 'nonsense'"),
        (["scan", "nosuch", "/nowhere", "--out", "x.parquet"], "nosuch: no such corpus"),
        (["scan", "slakh2100", "--out", "x.parquet"], "pairs of CORPUS and ROOT"),
        (["scan", "slakh2100", "/nowhere", "--out", "x.parquet"], "/nowhere"),
        (["split", "nowhere.parquet", "--out", "x.parquet"], "nowhere.parquet: no such file"),
        (["encode", "nowhere.parquet", "--songs", "s.parquet", "--out", "x"], "nowhere.parquet: no such file"),
        (["train", "nosuch", "--data", "x", "--out", "y"], "nosuch: no such recipe"),
        (["train", "tiny", "--data", "nowhere", "--out", "y"], "nowhere/dataset.json: missing"),
        (["extract", "a.wav", "--prompt", "drums", "--model", "nowhere", "--out", "y"], "nowhere/config.json: missing"),
        (["report", "nowhere", "--out", "x.html"], "nowhere"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("mgeldm")]
    if expected:
        assert out == ""
        assert len(lines) == 1
        assert expected in lines[0]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["split", "songs.parquet", "--out", "x", "--windows", "3"], "--windows"),
        (["split", "songs.parquet", "--out", "x", "--strategy", "bogus"], "strategy"),
        (["scan", "slakh2100", "x", "--out", "x", "--activity.on_dbfs", "-70"], "on_dbfs -70"),
        (["train", "tiny", "--data", "x", "--out", "x", "--steps", "abc"], "steps"),
        (["train", "tiny", "--data", "x", "--out", "x", "--patterns.tau_min", "2"], "tau_min is 2"),
        (["train", "--data", "x", "--out", "x", "nonsense"], "nonsense: no such recipe"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"mgeldm {arguments[0]}: ")
    assert words in line


def test_a_recipe_is_read_wherever_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("steps:\n")
    for arguments in (["--data", "x", "--out", "x", str(recipe)], [str(recipe), "--data", "x", "--out", "x"]):
        assert main(["train", *arguments, "--dry-run"]) == 2
        assert "mine.yaml: steps has no value" in capsys.readouterr().err


def test_unwritable_output_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    song = tmp_path / "corpus" / "train" / "Track00001"
    song.mkdir(parents=True)
    status = main(
        [
            "scan",
            "slakh2100",
            str(tmp_path / "corpus"),
            "--out",
            str(tmp_path / "file" / "x.parquet"),
            "--runner",
            "local",
        ]
    )
    assert status == 2
    assert "Traceback" not in capfd.readouterr().err


def test_dry_run_and_json_of_scan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stems = tmp_path / "corpus" / "train" / "Track00001" / "stems"
    stems.mkdir(parents=True)
    (stems / "S00.wav").write_bytes(b"x" * 100)
    assert (
        main(["scan", "slakh2100", str(tmp_path / "corpus"), "--out", str(tmp_path / "s"), "--dry-run", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert found["songs"] == 1
    assert not (tmp_path / "s").exists()


def test_weights_of_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    assert weighted("data") == (Path("data"), None)
    assert weighted("data=0.3") == (Path("data"), 0.3)
    assert weighted("a=b") == (Path("a=b"), None), "a folder of that name wins"
    with pytest.raises(ConfigError, match="not a number"):
        weighted("data=much")


def test_songs_stats_filter_and_lint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    songs, small, page = (tmp_path / name for name in ("songs.parquet", "small.parquet", "page.html"))
    write_large(songs, 20, stems=3)

    def run(*arguments: str) -> tuple[int, str]:
        status = main(["songs", *arguments])
        return status, capsys.readouterr().out

    status, out = run("stats", str(songs))
    assert (status, out.split()[:2]) == (0, ["songs", "20"])
    status, out = run("stats", str(songs), "--json", "--page", str(page))
    assert (status, json.loads(out)["stems"]) == (0, 60)
    assert "<h3>Stems per instrument</h3>" in page.read_text()
    status, out = run("filter", str(songs), "--where", "corpus == 'jamendo'", "--out", str(small), "--json")
    assert (status, json.loads(out)["songs"], json.loads(out)["of"]) == (0, 5, 20)
    assert run("lint", str(small)) == (0, "nothing wrong\n")
    status, out = run("lint", str(small), "--audio")
    assert (status, out.splitlines()[-1]) == (1, "20 findings")
    assert out.splitlines()[0] == "file_missing jamendo/0000000: /data/jamendo/0000000/stems/S00.flac"
    status, out = run("lint", str(small), "--audio", "--json")
    assert (status, len(json.loads(out)["findings"])) == (1, 20)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["stats", "{songs}", "--where", "true"], "--where belongs to `mgeldm songs filter`"),
        (["lint", "{songs}", "--page", "x.html"], "--page belongs to `mgeldm songs stats`"),
        (["filter", "{songs}", "--where", "true"], "filter needs --where EXPRESSION and --out FILE"),
        (["filter", "{songs}", "--where", "corpsu = 'x'", "--out", "{songs}2"], '"corpsu"'),
        (["stats", "nowhere.parquet"], "nowhere.parquet: no such file"),
        (["lint", "nowhere.parquet"], "nowhere.parquet: no such file"),
        (["stats", "{songs}", "--page", "x.txt"], "x.txt: a report is one HTML page"),
    ],
)
def test_wrong_use_of_songs_is_one_line(
    arguments: list[str], expected: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    songs = tmp_path / "songs.parquet"
    write_large(songs, 2, stems=2)
    assert main(["songs", *(word.replace("{songs}", str(songs)) for word in arguments)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert expected in err
    assert err.count("\n") == 1
