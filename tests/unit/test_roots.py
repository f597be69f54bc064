import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests import remote, roots
from manifests.cells import Cell
from manifests.corpora import SongListing, corpus_names
from manifests.errors import CorpusError
from manifests.remote import RemoteFile, parse_root
from manifests.roots import container, locate, open_root, origin, state
from pipelines.scan import list_units
from tests.support.listings import touch
from tests.support.remote import faulty, upload, without_state
from tests.support.trees import TREES, make_tree


@pytest.fixture
def memory() -> Any:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def names_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_root_is_a_folder_or_a_url() -> None:
    assert parse_root("s3://bucket/a/") == "s3://bucket/a"
    assert parse_root("/data/a") == Path("/data/a")
    assert parse_root("file:///data/a") == Path("/data/a")
    assert parse_root("data") == Path("data")


def test_paths_are_located_below_their_root_only(tmp_path: Path) -> None:
    touch(tmp_path, "a/b.wav", "x.parquet", "y.parquet#1/z.wav")
    (tmp_path / "out").symlink_to("/")
    assert locate(tmp_path, "a/b.wav") == tmp_path / "a/b.wav"
    assert locate(str(tmp_path), "a/../b.wav") is None
    assert locate(tmp_path, "out/etc/passwd") is None
    assert locate(tmp_path, "x.parquet#12/a/b") == Cell(tmp_path / "x.parquet", 12, "a/b")
    assert locate(tmp_path, "y.parquet#1/z.wav") == tmp_path / "y.parquet#1/z.wav"
    assert locate(tmp_path, "../x.parquet#12/a") is None
    assert locate(tmp_path, "out/x.arrow#12/a") is None
    assert locate(tmp_path, "x.parquet#-1/a") == tmp_path / "x.parquet#-1/a"
    assert locate("s3://b/p", "a/b.wav") == RemoteFile("s3://b/p", "a/b.wav")
    assert locate("s3://b/p", "a.parquet#3/mix") == Cell(RemoteFile("s3://b/p", "a.parquet"), 3, "mix")
    for hostile in ("../a", "/a", "a//b", "", "a/%2e%2e/b", "../a.parquet#3/mix"):
        assert locate("s3://b/p", hostile) is None


def test_state_is_that_of_the_file_or_the_table(tmp_path: Path, memory: Any) -> None:
    (tmp_path / "x.parquet").write_bytes(b"123")
    os.utime(tmp_path / "x.parquet", ns=(5, 7))
    assert state(tmp_path, "x.parquet") == state(tmp_path, "x.parquet#3/a") == (3, 7)
    assert container("x.parquet#3/a") == container("x.parquet") == "x.parquet"
    assert state(tmp_path, "y") is None
    assert state(tmp_path, "../y") is None
    memory.pipe_file("/c/x.wav", b"1234")
    size, stamp = state("memory://c", "x.wav") or (0, 0)
    assert size == 4
    assert stamp == remote.stamp(memory.info("/c/x.wav")) > 1_700_000_000 * 10**9
    assert state("memory://c", "y.wav") is None


def test_a_remote_root_is_listed_by_a_skeleton(memory: Any, caplog: pytest.LogCaptureFixture) -> None:
    keys = {"a/b.wav": b"audio", "a/m.yaml": b"k: v", "README.MD": b"# x", "empty.json": b"", "a/[*]?.txt": b"star"}
    for key, content in keys.items():
        memory.pipe_file(f"/deep/corpus/{key}", content)
    memory.pipe_file("/deep/corpus2/c.wav", b"other")
    with open_root("memory://deep/corpus/") as place:
        assert place.root == "memory://deep/corpus"
        assert place.folder.name == "corpus"
        assert names_below(place.folder) == sorted(keys)
        for key, content in keys.items():
            assert (place.folder / key).read_bytes() == (b"" if key.endswith(".wav") else content)
        assert {key: size for key, (size, _) in place.states.items()} == {key: len(keys[key]) for key in keys}
        assert origin(place.folder) == "memory://deep/corpus"
        assert place.named(f"{place.folder}/a: x") == "memory://deep/corpus/a: x"
        folder = place.folder
    assert not folder.exists()
    assert not folder.parent.exists()
    assert origin(folder) == str(folder)
    assert not caplog.records


HOSTILE = ("../evil.wav", "a/../../evil.yaml", "/evil.wav", "a//b.wav", "./c.wav", "x" * 300 + ".wav", "a/\ud800.wav")


def test_hostile_keys_write_nothing_outside(
    memory: Any, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    good = ("song/a.wav", "song/\udcff.wav", "both/x.wav")
    for key in (*good, *HOSTILE, "both"):
        # Not by `pipe_file`, which tidies some of them.
        memory.store[f"/c/{key}"] = memory.store.get("/c/song/a.wav") or _object(memory)
    with open_root("memory://c") as place, caplog.at_level(logging.WARNING):
        assert names_below(place.folder) == sorted(good)
        assert set(place.states) == set(good)
        assert [path.name for path in tmp_path.iterdir()] == [place.folder.parent.name]
    (record,) = caplog.records
    assert f"{len(HOSTILE) + 1} keys are left out" in record.message
    assert not any(tmp_path.iterdir())


def _object(memory: Any) -> Any:
    memory.pipe_file("/seed", b"1")
    return memory.store.pop("/seed")


@given(
    st.sets(
        st.lists(st.sampled_from(["", ".", "..", "a", "b.yaml", "~", "\\", "c\n"]), min_size=1, max_size=4).map(
            "/".join
        ),
        min_size=1,
    )
)
def test_no_set_of_keys_leaves_the_skeleton(tmp_path_factory: pytest.TempPathFactory, keys: set[str]) -> None:
    system = fsspec.filesystem("memory")
    system.store.clear()
    seed = _object(system)
    system.store.update({f"/c/{key}": seed for key in keys})
    folder = tmp_path_factory.mktemp("skeleton")
    states = roots._skeleton("memory://c", folder)
    assert set(states) == set(names_below(folder))
    assert {path.name for path in folder.parent.iterdir() if path.name in ("a", "b.yaml", "c\n")} == set()
    system.store.clear()


def test_metadata_that_cannot_be_had_is_warned_of(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "RETRY_DELAYS_S", (0.0,))
    monkeypatch.setattr(roots, "METADATA_BYTES", 3)
    with faulty() as system:
        files = fsspec.filesystem("faulty")
        for key, content in (("a.yaml", b"1"), ("b.yaml", b"22"), ("c.yaml", b"4444"), ("d.yaml", b"333")):
            files.pipe_file(f"/c/{key}", content)
        system.faults |= {"a.yaml": [ConnectionError("once")], "b.yaml": [PermissionError("forbidden")] * 9}
        with open_root("faulty://c") as place:
            contents = {path.name: path.read_bytes() for path in place.folder.iterdir()}
    assert contents == {"a.yaml": b"1", "b.yaml": b"", "c.yaml": b"", "d.yaml": b"333"}
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        "faulty://c/c.yaml: has 4 bytes, too many for metadata; it is not read",
        "faulty://c/b.yaml: cannot be read (forbidden)",
    ]


@pytest.mark.parametrize("root", ["memory://nothing/here", "nosuchprotocol://x"])
def test_a_root_without_anything_is_refused(root: str) -> None:
    with pytest.raises(CorpusError, match=root), open_root(root):
        pass


@pytest.mark.parametrize("name", sorted(TREES))
def test_every_corpus_lists_the_same_from_afar(name: str, tmp_path: Path, memory: Any) -> None:
    root = make_tree(name, tmp_path / "corpus")
    url = upload(root, "memory://some/where/corpus")
    far = list_units([(name, url)])
    assert [without_state(song) for song in far] == [without_state(song) for song in list_units([(name, root)])]
    assert {song.root for song in far} == {url}
    stems = [stem for song in far for stem in song.stems]
    assert all(stem.size is not None and stem.mtime_ns for stem in stems)


def test_all_corpora_with_trees_are_there() -> None:
    assert set(TREES) <= set(corpus_names())


def test_what_a_corpus_says_of_its_folder_names_the_url(memory: Any) -> None:
    memory.pipe_file("/c/a.wav", b"1")
    with pytest.raises(CorpusError) as caught:
        list_units([("slakh2100", "memory://c")])
    assert str(caught.value).startswith("memory://c: no Slakh2100 here")


def test_problems_do_not_name_the_skeleton(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from manifests.songs import Problem

    class Chatty:
        name, license, citation = "chatty", "", ""

        def songs(self, root: Path) -> Any:
            problem = Problem(code="metadata", detail=f"{root}/x.json is odd")
            yield SongListing(song=json.dumps(sorted(os.listdir(root))), subset="train", stems=(), problems=(problem,))

    memory.pipe_file("/c/a.wav", b"1")
    monkeypatch.setattr("pipelines.scan.get_corpus", lambda name: Chatty())
    (song,) = list_units([("chatty", "memory://c")])
    assert song.problems[0].detail == "memory://c/x.json is odd"
    assert song.song_id == 'chatty/["a.wav"]'
    assert replace(song, root="") == without_state(song)
