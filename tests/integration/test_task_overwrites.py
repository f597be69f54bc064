"""What a command may write over: its own files and those of earlier ones, and nothing else, whatever ended them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mgeldm import MGELDM, audio
from mgeldm.cli import main
from mgeldm.files.results import Store

RATE = 16_000


def save(path: Path, seed: int = 0, rate: int = RATE) -> Path:
    audio.save(path, np.random.default_rng(seed).uniform(-0.3, 0.3, (1, rate // 2)).astype(np.float32), rate)
    return path


@pytest.fixture
def run(whole_model: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a task and gives its status and what it printed: an object, or the last line of an error."""

    def runs(*words: Any, out: Path, prompts: tuple[str, ...] = ("drums",)) -> tuple[int, Any]:
        asked = [str(word) for word in words] + [word for prompt in prompts for word in ("--prompt", prompt)]
        model = ["--model", str(whole_model), "--device", "cpu", "--steps", "1", "--json"]
        status = main([*asked, "--out", str(out), *model])
        captured = capsys.readouterr()
        return status, json.loads(captured.out) if status < 2 else captured.err.splitlines()[-1]

    return runs


def rows(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["input"], row["prompt"]): row for row in json.loads((out / "results.json").read_text())["results"]}


def snapshot(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


class TestRefusal:
    @pytest.mark.parametrize("victim", ["a-mix.wav", "a-extract-drums-submix.wav", "results.json"])
    def test_a_file_of_somebody_else(self, victim: str, run: Any, tmp_path: Path) -> None:
        song, out = save(tmp_path / "a.wav"), tmp_path / "out"
        out.mkdir()
        (out / victim).write_text('{"mine": 1}')
        before = snapshot(tmp_path)
        status, line = run("extract", song, out=out)
        assert status == 2
        assert f"{out / victim}: " in line
        assert "choose another" in line
        assert snapshot(tmp_path) == before

    def test_an_input(self, run: Any, tmp_path: Path) -> None:
        songs = tmp_path / "songs"
        first, second = save(songs / "a.wav"), save(songs / "a-mix.wav", 1)
        before = snapshot(tmp_path)
        for inputs in ([first, second], [songs]):
            status, line = run("extract", *inputs, out=songs)
            assert status == 2
            assert line.endswith(
                f"{second}: is an input, and would be written over; choose another --out, or move it away"
            )
            assert snapshot(tmp_path) == before
        assert run("extract", first, second, out=tmp_path / "out")[0] == 0

    def test_a_result_that_is_an_input_now(self, run: Any, tmp_path: Path) -> None:
        """It is ours, but it is read."""
        song, out = save(tmp_path / "a.wav"), tmp_path / "out"
        assert run("extract", song, out=out)[0] == 0
        save(song, 2)
        status, line = run("extract", song, out / "a-extract-drums-source.wav", out=out)
        assert (status, "a-extract-drums-source.wav: is an input" in line) == (2, True)

    def test_generate(self, run: Any, tmp_path: Path) -> None:
        save(tmp_path / "generate-drums-seed0.wav")
        before = snapshot(tmp_path)
        status, line = run("generate", "--seconds", 0.2, out=tmp_path)
        assert (status, "generate-drums-seed0.wav: is no result" in line) == (2, True)
        assert snapshot(tmp_path) == before

    @pytest.mark.parametrize(
        "text", ["[]", "{", '{"results": []}', '{"results": [{"task": "x"}], "leftover": []}', '{"leftover": [1]}']
    )
    def test_results_that_are_none(self, text: str, run: Any, tmp_path: Path) -> None:
        (tmp_path / "results.json").write_text(text)
        status, line = run("generate", out=tmp_path)
        assert (status, "results.json: no results of this version" in line) == (2, True)
        assert (tmp_path / "results.json").read_text() == text

    def test_a_file_where_the_folder_should_be(self, run: Any, tmp_path: Path) -> None:
        (tmp_path / "out").touch()
        status, line = run("generate", out=tmp_path / "out")
        assert (status, "out: cannot be written (" in line) == (2, True)

    def test_options_of_another_task_are_named_once(self, run: Any, tmp_path: Path) -> None:
        status, line = run("impute", save(tmp_path / "a.wav"), "--consistent", "true", out=tmp_path / "out")
        assert status == 2
        assert line == "mgeldm impute: refine and consistent belong to extract, which is given a mix"


class TestFolders:
    @pytest.mark.parametrize(("given", "out"), [(".", "."), ("songs", "."), (".", "out"), (".", "songs")])
    def test_results_are_told_from_inputs(
        self, given: str, out: str, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        save(Path("songs/a.wav")), save(Path("b.wav"), 1)
        _, first = run("extract", given, out=Path(out))
        inputs = {"songs/a.wav"} if given == "songs" else {"b.wav"} if out == "songs" else {"songs/a.wav", "b.wav"}
        assert {row["input"] for row in first["results"]} == inputs
        assert run("extract", given, out=Path(out)) == (0, first)

    def test_folders_of_results_only(self, run: Any, tmp_path: Path) -> None:
        assert run("extract", save(tmp_path / "a.wav"), out=tmp_path / "out")[0] == 0
        status, line = run("extract", tmp_path / "out", out=tmp_path / "out")
        assert (status, "no audio below this folder but results of earlier commands" in line) == (2, True)


class TestGiven:
    def test_of_another_song_of_the_same_name(self, run: Any, tmp_path: Path) -> None:
        """The row of the first would show the second's; so the second has another name."""
        first, second, out = save(tmp_path / "1" / "a.wav"), save(tmp_path / "2" / "a.wav", 1), tmp_path / "out"
        run("extract", first, out=out)
        run("extract", second, out=out, prompts=("bass",))
        assert sorted(rows(out)) == [(str(first), "drums"), (str(second), "bass")]
        for name, song in (("a-mix.wav", first), ("2-a-mix.wav", second)):
            np.testing.assert_array_equal(audio.read(out / name), audio.read(song))
        assert json.loads((out / "results.json").read_text())["leftover"] == []

    def test_of_another_form(self, run: Any, tmp_path: Path) -> None:
        song, out = save(tmp_path / "a.wav", rate=8_000), tmp_path / "out"
        run("extract", song, out=out)
        run("extract", song, "--output-rate", "input", out=out, prompts=("bass",))
        assert list(rows(out)) == [(str(song), "bass")]
        assert audio.probe(out / "a-mix.wav").sample_rate == 8_000

    def test_of_the_same_song_is_shared(self, run: Any, tmp_path: Path) -> None:
        song, out = save(tmp_path / "a.wav"), tmp_path / "out"
        run("extract", song, out=out)
        written = (out / "a-mix.wav").stat().st_mtime_ns
        run("extract", song, out=out, prompts=("bass",))
        assert sorted(prompt for _, prompt in rows(out)) == ["bass", "drums"]
        assert (out / "a-mix.wav").stat().st_mtime_ns == written


def test_a_kept_row_gives_way_where_its_name_is_given_to_another(run: Any, tmp_path: Path) -> None:
    song, out = save(tmp_path / "a.wav"), tmp_path / "out"
    _, first = run("extract", song, out=out, prompts=("drums",))
    expected = audio.read(out / first["results"][0]["outputs"]["source"])
    _, found = run("extract", song, out=out, prompts=("Drums", "drums"))
    files = [row["outputs"]["source"] for row in found["results"]]
    assert files == ["a-extract-drums-source.wav", "a-extract-drums-2-source.wav"]
    np.testing.assert_array_equal(audio.read(out / files[1]), expected)
    assert not np.array_equal(audio.read(out / files[0]), expected)
    assert first["results"][0]["key"] == found["results"][1]["key"]


def test_a_kill_leaves_nothing_that_is_not_known(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if killed: nothing after the end of a file, not even that the rows are written."""
    song, out = save(tmp_path / "a.wav"), tmp_path / "out"
    run("extract", song, out=out, prompts=("bass",))
    save(song)  # a new time of change: nothing of it is done
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patch.setattr(Store, "close", lambda _: None)
        assert run("extract", song, out=out, prompts=("bass",))[0] == 130
    assert rows(out) == {}, "its files are others now"
    assert (out / "a-extract-bass-source.wav").exists()
    status, found = run("extract", song, out=out, prompts=("bass",))
    assert (status, len(found["results"]), found["leftover"]) == (0, 1, [])


def test_what_failed_half_way_is_known(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    song, out = save(tmp_path / "a.wav"), tmp_path / "out"
    opened = MGELDM.open

    def cut(self: MGELDM, given: Any, rate: int | None = None) -> Any:
        found = opened(self, given, rate)
        song.write_bytes(song.read_bytes()[:5000])
        return found

    with monkeypatch.context() as patch:
        patch.setattr(MGELDM, "open", cut)
        status, found = run("extract", song, out=out)
    assert (status, [failure["code"] for failure in found["failures"]]) == (1, ["truncated"])
    assert not list(out.glob("*.wav"))
    save(song)
    assert run("extract", song, out=out)[0] == 0
