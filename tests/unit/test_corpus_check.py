"""``corpus show`` and ``corpus check``: what a layout takes of a folder, what is left, and why."""

import json
import os
from pathlib import Path

import pytest

from manifests.corpora import check as checks
from manifests.corpora import corpus_names
from manifests.corpora.check import LabelCount, Leftover, check, describe, describe_all, summary
from mgeldm.cli import main
from tests.support.corpora import write_layout
from tests.support.listings import refused, touch
from tests.support.trees import make_tree


def reasons(found: checks.CorpusCheck) -> dict[str, str]:
    """Why, by the example."""
    return {leftover.example: leftover.why for leftover in found.leftover}


@pytest.fixture
def mine(tmp_path: Path) -> tuple[str, Path]:
    """A layout and a folder in which much does not match."""
    layout = write_layout(
        tmp_path / "mine.yaml", song="{subset}/{artist} - {title}", stems=["{label}.wav"], mixture="mix.wav",
        ignore=["*.txt", "docs"], subsets={"dev": "validation"},
    )  # fmt: skip
    root = touch(
        tmp_path / "root",
        "train/A - B/drums.wav", "train/A - B/Zither_2.wav", "train/A - B/mix.wav", "train/A - B/notes.txt",
        "train/C - D/drums.wav", "train/C - D/bass.WAV", "train/C - D/.DS_Store", "train/C - D/alt/bass.wav",
        "dev/E - F/BGVOX ECHO.wav", "old/G - H/drums.wav", "train/no dash/drums.wav", "train/readme.md",
        "docs/a - b/c.wav", "top.wav",
    )  # fmt: skip
    return str(layout), root


def test_check_counts_what_matched(mine: tuple[str, Path]) -> None:
    found = check(*mine)
    assert (found.corpus, found.error, found.complete) == ("folders", None, True)
    assert found.subsets == {"train": 3, "validation": 1}
    assert (found.mixtures, found.without_stems) == (1, 0)
    assert found.labels[0] == LabelCount(label="drums", instrument="drums", family="drums", stems=3)
    assert {each.label: each.instrument for each in found.labels} == {
        "drums": "drums",
        "Zither_2": "zither",
        "BGVOX ECHO": "backing vocals",
    }
    assert found.unmapped == {"Zither_2": 1}
    (problem,) = found.problems
    assert (problem.code, problem.count) == ("unknown_subset", 1)
    assert problem.example.startswith("old/G - H: 'old' is none of train, validation, test")


def test_check_says_why_what_is_left_was_left(mine: tuple[str, Path]) -> None:
    song = "{subset}/{artist} - {title}"
    found = check(*mine)
    assert reasons(found) == {
        "train/A - B/notes.txt": "ignored, as the layout says",
        "docs/a - b/c.wav": "ignored, as the layout says",
        "train/C - D/bass.WAV": "ends otherwise than the stem patterns, .wav",
        "train/C - D/.DS_Store": "hidden",
        "train/C - D/alt/bass.wav": "deeper in the song than any stem pattern",
        "train/no dash/drums.wav": f"does not match '{{artist}} - {{title}}' of the song pattern {song!r}",
        "train/readme.md": f"does not match '{{artist}} - {{title}}' of the song pattern {song!r}",
        "top.wav": f"not in a folder as deep as the song pattern {song!r}",
    }
    assert found.failed, "a subset that is not known"
    text = summary(found)
    assert "songs     4: train 3, validation 1" in text
    assert "mixtures  1 of 4 songs have one" in text
    assert "1  Zither_2    NOT IN THE VOCABULARY" in text
    assert "1  .WAV  ends otherwise than the stem patterns, .wav; such as train/C - D/bass.WAV" in text


def test_what_a_person_mends_is_taken_the_next_time(mine: tuple[str, Path]) -> None:
    layout, root = mine
    write_layout(
        Path(layout), song="{subset}/{title}", stems=["{label}.wav", "{label}.WAV", "alt/{label}.wav"],
        subsets={"dev": "validation", "old": "test"}, labels={"Zither_2": "psaltery"}, ignore=["docs", "*.txt"],
    )  # fmt: skip
    found = check(layout, root)
    assert found.subsets == {"train": 3, "validation": 1, "test": 1}, "docs are no song"
    assert not found.problems
    assert not found.failed
    assert {"BGVOX ECHO", "mix"} == {each.label for each in found.labels} - {"drums", "Zither_2", "bass"}
    assert found.unmapped == {}


def test_nothing_matched_still_shows_what_lies_there(tmp_path: Path) -> None:
    layout = str(write_layout(tmp_path / "x.yaml", song="songs/{song}"))
    root = touch(tmp_path / "root", "a/drums.wav", "a/bass.wav", "b/readme.md")
    found = check(layout, root)
    assert found.error == f"{root}: no folder matches 'songs/{{song}}', as layout folders expected"
    why = "does not match 'songs' of the song pattern 'songs/{song}'"
    assert found.leftover == (
        Leftover(why=why, suffix=".wav", files=2, example="a/bass.wav"),
        Leftover(why=why, suffix=".md", files=1, example="b/readme.md"),
    )
    assert "nothing matched" in summary(found)
    assert found.failed


def test_songs_that_are_files_and_an_adapter_say_why_too(tmp_path: Path) -> None:
    root = make_tree("ikala", tmp_path / "ikala")
    touch(root, "Wavfile/10161.wav", "Wavfile/deep/1_chorus.wav", "10161_verse.wav", "other/x.wav")
    song = "Wavfile/{song}_{part}.wav"
    assert reasons(check("ikala", root)) == {
        "Lyrics/10161_chorus.lab": "ignored, as the layout says",
        "PitchLabel/10161_chorus.pv": "ignored, as the layout says",
        "id_mapping.txt": "ignored, as the layout says",
        "Wavfile/10161.wav": f"does not match '{{song}}_{{part}}.wav' of the song pattern {song!r}",
        "10161_verse.wav": f"does not match 'Wavfile' of the song pattern {song!r}",
    }
    root = touch(make_tree("slakh2100", tmp_path / "slakh"), "train/Track00001/demo.wav")
    found = check("slakh2100", root)
    assert reasons(found) == {
        "omitted/Track00002/metadata.yaml": "no audio",
        "train/Track00001/demo.wav": "audio that no song lists",
    }
    assert not found.failed, "what the redux leaves out is no fault"


def test_hostile_names_become_lines(tmp_path: Path) -> None:
    layout = str(write_layout(tmp_path / "x.yaml"))
    root = touch(tmp_path / "root", os.fsdecode(b"a/caf\xe9\n x.wav"), os.fsdecode(b"b\xff/c\n.d"), "b/k.wav")
    (root / "a/loop").symlink_to(root)
    found = check(layout, root)
    assert found.labels[0].label == "caf\\udce9 x"
    assert reasons(found) == {"b\\udcff/c .d": "ends otherwise than the stem patterns, .flac, .m4a, .wav"}
    summary(found).encode("utf-8")
    json.dumps(reasons(found), ensure_ascii=False).encode("utf-8")


def test_time_that_is_up_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = str(write_layout(tmp_path / "x.yaml"))
    root = touch(tmp_path / "root", *(f"{song}/k.wav" for song in "abc"), *(f"d/{number}.txt" for number in range(9)))
    clock = iter(range(10**6))
    monkeypatch.setattr(checks.time, "monotonic", lambda: float(next(clock)))
    found = check(layout, root, seconds=1.5)
    assert (found.complete, sum(found.subsets.values()), found.leftover) == (False, 2, ())
    assert "--seconds 0" in summary(found)
    found = check(layout, root, seconds=7)
    assert (found.complete, sum(found.subsets.values())) == (False, 4), "all songs"
    assert [leftover.files for leftover in found.leftover] == [4], "and some leftovers"
    found = check(layout, root, seconds=0)
    assert (found.complete, sum(found.subsets.values()), found.leftover[0].files) == (True, 4, 9)


def test_files_left_for_one_reason_are_one_line(tmp_path: Path) -> None:
    layout = str(write_layout(tmp_path / "x.yaml"))
    for song in range(500):
        touch(tmp_path / "root", *(f"s{song}/{name}" for name in ("drums.wav", "bass.wav", "x.mid", "y.txt")))
    found = check(layout, tmp_path / "root", seconds=20)
    assert found.subsets == {"train": 500}
    assert [(each.suffix, each.files) for each in found.leftover] == [(".mid", 500), (".txt", 500)]


@pytest.mark.parametrize("name", corpus_names())
def test_every_sound_tree_is_taken_whole(name: str, tmp_path: Path) -> None:
    found = check(name, make_tree(name, tmp_path))
    assert found.error is None
    assert not found.unmapped
    assert not found.failed
    assert {leftover.why for leftover in found.leftover} <= {
        "ignored, as the layout says",
        "no audio",
        "audio that no song lists",
    }


@pytest.mark.parametrize("name", corpus_names())
def test_every_description_draws_the_tree_and_tells_subsets_and_defects(name: str) -> None:
    found = describe(name)
    assert (found.name, bool(found.license), bool(found.citation)) == (name, True, True)
    for word in (" ROOT/", "Subsets: ", "Defects: "):
        assert word in found.layout, word


def test_a_layout_of_ones_own_and_a_broken_plug_in_are_described(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = write_layout(tmp_path / "x.yaml")
    assert describe(str(layout)).layout == layout.read_text().strip()
    refused(lambda: describe("nonsense"), "no such corpus")
    monkeypatch.setattr(checks, "corpus_names", lambda: ["bach10", "nonsense"])
    found = describe_all()
    assert found["bach10"].startswith("LicenseRef-Bach10; Duan")
    assert found["nonsense"].startswith("cannot be used: nonsense: no such corpus")


def test_the_commands(mine: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout, root = mine
    assert main(["corpus", "check", layout, str(root)]) == 1
    assert "unknown_subset" in capsys.readouterr().out
    assert main(["corpus", "check", layout, str(root), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["unmapped"] == {"Zither_2": 1}
    assert main(["corpus", "check", "bach10", str(make_tree("bach10", tmp_path / "bach")), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["subsets"] == {"train": 2}
    (tmp_path / "empty").mkdir()
    assert main(["corpus", "check", "bach10", str(tmp_path / "empty")]) == 1
    assert "nothing matched" in capsys.readouterr().out
    assert main(["corpus", "show", "guitarset"]) == 0
    shown = capsys.readouterr().out
    assert "CC-BY-4.0" in shown
    assert "ROOT/audio_hex-pickup_debleeded/<take>_hex_cln.wav" in shown
    assert main(["corpus", "show", "slakh2100", "--json"]) == 0
    assert "TrackNNNNN" in json.loads(capsys.readouterr().out)["layout"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list", "bach10"], "list takes nothing after it"),
        (["show"], "show takes CORPUS after it"),
        (["check", "bach10"], "check takes CORPUS and ROOT after it"),
        (["check", "nonsense", "."], "nonsense: no such corpus"),
        (["check", "bach10", "/nowhere/x"], "/nowhere/x: no such folder"),
        (["show", "nowhere.yaml"], "nowhere.yaml: No such file"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus", *arguments]) == 2
    assert words in capsys.readouterr().err
