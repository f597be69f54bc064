"""Names of files that come out: plain, of no two things the same, and told from what goes in."""

import os
from collections import Counter
from itertools import product
from pathlib import Path, PurePath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from manifests.errors import ConfigError
from mgeldm.files import find_inputs, output_names, prompt_names, slug
from mgeldm.files.naming import given_target, mix_target, target
from mgeldm.tasks import GENERATE, TASKS

PARTS = st.sampled_from(
    ["a", "b", "A", "mix", "a-b", "a mix", "x-extract-b", "x", "b-extract-x", "generate", "é", "a_b"]
)
PATHS = st.lists(st.lists(PARTS, min_size=1, max_size=3).map(lambda parts: Path("/", *parts)), unique=True, max_size=12)


def test_output_names_are_plain() -> None:
    paths = [Path("/a/one/mix.flac"), Path("/a/two/mix.flac"), Path("/b/two/mix.flac"), Path("/c/Solo (live).wav")]
    names = output_names(paths)
    assert names[paths[3]] == "solo-live"
    assert names[paths[0]] == "one-mix"
    assert names[paths[1]].startswith("two-mix-")
    assert len(set(names.values())) == 4
    assert slug("Drums & Bass!") == "drums-bass"
    assert slug("x" * 59 + " y") == "x" * 59, "cut, with no dash at the end"


def test_a_longer_name_is_not_another_s_short_one() -> None:
    names = output_names([Path("/a/mix.wav"), Path("/b/mix.wav"), Path("/c/a-mix.wav")])
    assert len(set(names.values())) == 3
    assert names[Path("/b/mix.wav")] == "b-mix"


def test_a_name_of_an_earlier_command_is_its_input_s_alone() -> None:
    taken = {"song": "/a/song.wav", "b-song": "/x/b-song.wav"}
    assert output_names([Path("/a/song.wav")], taken=taken) == {Path("/a/song.wav"): "song"}
    assert output_names([Path("/c/song.wav")], taken=taken) == {Path("/c/song.wav"): "c-song"}
    assert output_names([Path("/b/song.wav")], taken=taken)[Path("/b/song.wav")].startswith("b-song-")


@given(paths=PATHS, data=st.data())
@example(paths=[Path("/a/mix"), Path("/b/mix"), Path("/c/a-mix")], data=None)
def test_names_are_unique_and_the_same_in_any_order(paths: list[Path], data: st.DataObject | None) -> None:
    names = output_names(paths)
    assert len(set(names.values())) == len(paths)
    assert output_names(data.draw(st.permutations(paths)) if data else paths[::-1]) == names


@given(
    paths=PATHS,
    folders=st.lists(st.sampled_from(["", "a", "a/b", "x-extract-b"]), min_size=12, max_size=12),
    prompts=st.lists(st.sampled_from(["b", "c", "b 2", "b extract c", "extract c", "C"]), min_size=1, max_size=4),
)
@example(paths=[Path("/x.wav"), Path("/x-extract-b.wav")], folders=[""] * 12, prompts=["c", "b extract c"])
def test_no_two_targets_are_one_file(paths: list[Path], folders: list[str], prompts: list[str]) -> None:
    """Of all tasks at once."""
    names = output_names(paths, {path: PurePath(folder) for path, folder in zip(paths, folders, strict=False)})
    words = prompt_names(prompts)
    targets = [mix_target(word, 0, "wav") for word in words]
    for task in TASKS.values():
        if task is GENERATE:
            continue
        tracks = {*task.kept, "mix"} - {task.given}
        targets += [given_target(name, str(task.given), "wav") for name in names.values()]
        targets += [
            target(name, task.name, word, track, "wav") for name, word, track in product(names.values(), words, tracks)
        ]
    assert [file for file, count in Counter(targets).items() if count > 1] == []


class TestInputs:
    @pytest.fixture
    def songs(self, tmp_path: Path) -> Path:
        for name in ("songs/a.wav", "songs/cd/b.wav", "songs/.hidden/c.wav"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return tmp_path / "songs"

    def found(self, given: Path, out: Path, *results: str) -> list[str]:
        return [path.relative_to(given).as_posix() for path in find_inputs([given], out, results)]

    def test_a_folder_around_or_at_the_results(self, songs: Path) -> None:
        """Only what is known for results is left out, and the results' folder where it is one inside."""
        assert self.found(songs, songs.parent) == ["a.wav", "cd/b.wav"]
        assert self.found(songs, songs) == ["a.wav", "cd/b.wav"]
        assert self.found(songs, songs, "cd/b.wav") == ["a.wav"]
        assert self.found(songs, songs / "cd") == ["a.wav"]
        assert self.found(songs, songs.parent / "out") == ["a.wav", "cd/b.wav"]

    def test_a_folder_of_results_only_says_so(self, songs: Path) -> None:
        with pytest.raises(ConfigError, match=r"no audio .* but results of earlier commands \(2 files\)"):
            find_inputs([songs], songs, ["a.wav", "cd/b.wav"])

    def test_a_file_that_is_named_is_an_input_and_only_once(self, songs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(songs)
        found = find_inputs([Path("a.wav"), songs / "a.wav", Path("cd/../a.wav"), songs], songs, ["a.wav"])
        assert list(found) == [Path("a.wav"), songs / "cd" / "b.wav"]

    def test_names_that_are_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / os.fsdecode(b"caf\xe9") / "x.wav"
        try:
            path.parent.mkdir()
        except OSError:
            pytest.skip("this file system takes text only")
        path.touch()
        found = find_inputs([tmp_path], tmp_path / "out")
        for name in output_names(list(found), found).values():
            name.encode()
