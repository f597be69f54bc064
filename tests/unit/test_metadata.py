"""Reading metadata that somebody else wrote."""

import os
from datetime import date
from pathlib import Path

import pytest

from manifests.corpora.base import METADATA_BYTES, read_mapping, read_metadata
from manifests.regular import open_regular
from tests.support.breaking import bomb, merge_bomb


def read(tmp_path: Path, content: str | bytes, name: str = "a.yaml") -> dict[object, object]:
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return read_mapping(tmp_path / name)


def test_sound_metadata_are_read_as_they_are(tmp_path: Path) -> None:
    text = "a: &x {k: 1, l: yes}\nb: *x\nc: {<<: *x, k: 2}\nd: 2001-02-03\n1: [*x, *x]\n"
    assert read(tmp_path, text) == {
        "a": (x := {"k": 1, "l": True}),
        "b": x,
        "c": {"k": 2, "l": True},
        "d": date(2001, 2, 3),
        1: [x, x],
    }
    assert read(tmp_path, b"\xef\xbb\xbfa: \xc3\xa9\n") == {"a": "\u00e9"}
    assert read(tmp_path, b'\xef\xbb\xbf{"a": {"b": [1.5]}, "b": null}', "a.json") == {"a": {"b": [1.5]}, "b": None}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bomb(), "with its aliases written out, more than 1000000 values"),
        (merge_bomb(), "with its aliases written out, more than 1000000 values"),
        ("a: &a [*a]\n", "an alias stands in what it is an alias of"),
        ("a: 1\nb: {c: 1, d: 2, c: 3}\n", "the key 'c' stands twice in one mapping"),
        ("a: !!python/name:os.system\n", "could not determine a constructor"),
        ('a: !!int ""\n', "not readable as YAML: "),
        ("", "a mapping was expected, not NoneType"),
        ("[" * 100_000, "nested more than 100 deep"),
        ("a: " + "[" * 100 + "]" * 100, "nested more than 100 deep"),
        ("- " * 100_000, "nested more than 100 deep"),
        ("? " * 100_000, "nested more than 100 deep"),
        ("a: " + "x" * METADATA_BYTES["YAML"], "larger than the 2 MiB that YAML may have"),
    ],
)
def test_yaml_of_no_use_is_refused_in_a_line(content: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_json_of_no_use_is_refused_in_a_line(tmp_path: Path) -> None:
    for content, words in (
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' stands twice"),
        ("[" * 100_000, "maximum recursion depth exceeded"),
        ("[1]", "a mapping was expected, not list"),
        ("{", "not readable as JSON: Expecting property name"),
    ):
        with pytest.raises(ValueError, match=words):
            read(tmp_path, content, "a.json")


def test_only_regular_files_inside_the_root_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "root").mkdir()
    for name, words in (("pipe", "not a file"), ("root", "not a file"), ("none", "No such file")):
        with pytest.raises(ValueError, match=words):
            read_mapping(tmp_path / name)
    for name in ("pipe", "root", "/dev/null"):
        with pytest.raises(OSError, match="not a file"):
            open_regular(tmp_path / name)
    (tmp_path / "a.yaml").write_text("a: 1\n")
    (tmp_path / "root/a.yaml").symlink_to(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match="a link that leaves the root"):
        read_metadata(tmp_path / "root", "a.yaml")
    with open_regular(tmp_path / "root/a.yaml") as file:
        assert file.read() == b"a: 1\n"
