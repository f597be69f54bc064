import json
import os
import re
from pathlib import Path

import pytest

from manifests.atomic import (
    TEMPORARY_PREFIX,
    abandoned,
    atomic_folder,
    atomic_path,
    canonical_json,
    check_writable,
    content_hash,
    write_bytes,
    write_json,
)
from manifests.errors import ConfigError


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_file_appears_whole_and_makes_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "a.bin"
    write_bytes(path, b"whole")
    assert path.read_bytes() == b"whole"
    assert names(path.parent) == ["a.bin"]


def test_the_temporary_file_is_beside_the_final_one_and_keeps_its_suffix(tmp_path: Path) -> None:
    final = tmp_path / "a.tar.gz"
    with atomic_path(final) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.endswith("-a.tar.gz")
        assert temporary.name.startswith(".")
        temporary.write_bytes(b"x")
        assert not final.exists()


def test_a_temporary_is_abandoned_when_its_very_process_is_gone(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "7-a.tar") as temporary:
        temporary.write_bytes(b"x")
        name = temporary.name
    # What began at another time has this process's number by chance.
    assert abandoned(name) is None
    assert (
        abandoned(name.replace(f"{TEMPORARY_PREFIX}{os.getpid()}-", f"{TEMPORARY_PREFIX}{os.getpid()}-1")) == "7-a.tar"
    )
    child = os.fork()
    if child == 0:
        os._exit(0)
    try:
        # It has ended, but its number lives on until it is waited for.
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        os.kill(child, 0)
        assert abandoned(f"{TEMPORARY_PREFIX}{child}-a.tar") == "a.tar"
    finally:
        os.waitpid(child, 0)


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_writer_that_wrote_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == []


def test_the_file_is_synced_before_and_its_folder_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def spied_fsync(descriptor: int) -> None:
        events.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def spied_replace(source: Path, target: Path) -> None:
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spied_fsync)
    monkeypatch.setattr(os, "replace", spied_replace)
    write_bytes(tmp_path / "a.bin", b"x")
    assert [event.split("-")[0] for event in events] == ["sync .tmp", "rename", f"sync {tmp_path.name}".split("-")[0]]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "new" / "folder") as folder:
        (folder / "inside").mkdir()
        (folder / "inside" / "file").write_text("whole")
        assert not (tmp_path / "new" / "folder").exists()
    assert (tmp_path / "new" / "folder" / "inside" / "file").read_text() == "whole"

    def half() -> None:
        with atomic_folder(tmp_path / "other") as folder:
            (folder / "file").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["folder"]


def test_a_folder_takes_the_place_of_an_empty_one_only(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "file").write_text("new")
    assert (tmp_path / "empty" / "file").read_text() == "new"
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "empty") as folder:
        (folder / "file").write_text("newer")
    assert (tmp_path / "empty" / "file").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "link"]


def test_json_is_readable_sorted_and_keeps_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, 2.5], "a": "Gitárre"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text == '{\n  "a": "Gitárre",\n  "b": [\n    1,\n    2.5\n  ]\n}\n'
    assert json.loads(text) == {"a": "Gitárre", "b": [1, 2.5]}


def test_a_hash_does_not_depend_on_the_order_of_keys_but_on_every_value() -> None:
    assert canonical_json({"b": 1, "a": [True, None]}) == '{"a":[true,null],"b":1}'
    assert content_hash({"b": 1, "a": 2}) == content_hash({"a": 2, "b": 1})
    values: list[object] = [{"a": 0}, {"a": 1}, {"a": "1"}, {"a": 0, "b": 0}, [], {}]
    assert len({content_hash(value) for value in values}) == len(values)
    assert content_hash({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert content_hash({}, 8) == "44136fa3"


def test_a_folder_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=f"^{re.escape(str(folder))}: cannot be written"):
            check_writable(folder)
    check_writable(tmp_path / "new" / "deep")
    assert list((tmp_path / "new" / "deep").iterdir()) == []
