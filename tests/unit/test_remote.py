from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile

from manifests import remote
from manifests.errors import AudioError, CorpusError
from manifests.remote import RemoteFile, entries, is_below, is_remote, patiently, stamp
from mgeldm import audio
from tests.support.remote import Faulty, faulty
from tests.support.sounds import sound, write_sound

ROOT = "faulty://corpus"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RETRY_DELAYS_S", (0.0, 0.0))


@pytest.fixture
def system() -> Iterator[type[Faulty]]:
    with faulty() as made:
        yield made


def put(relative: str, content: bytes) -> RemoteFile:
    fsspec.filesystem("faulty").store.clear()
    Faulty.pipe_file(fsspec.filesystem("faulty"), f"/corpus/{relative}", content)
    return RemoteFile(ROOT, relative)


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("s3://bucket/a", True),
        ("hf://datasets/a/b", True),
        ("memory://x", True),
        ("/data/s3", False),
        ("s3:/bucket", False),
        ("file:///data", False),
        ("LOCAL:///data", False),
        ("data/http://x", False),
    ],
)
def test_a_url_is_remote_unless_it_names_a_local_folder(root: str, expected: bool) -> None:
    assert is_remote(root) is expected


@pytest.mark.parametrize("scheme", ["s3", "s3a"])
@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        ({}, {"max_pool_connections": remote.CONNECTIONS}),
        ({"signature_version": "s3v4"}, {"max_pool_connections": remote.CONNECTIONS, "signature_version": "s3v4"}),
        ({"max_pool_connections": 5}, {"max_pool_connections": 5}),
    ],
)
def test_s3_has_connections_enough_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, scheme: str, configured: dict[str, Any], expected: dict[str, Any]
) -> None:
    monkeypatch.setitem(fsspec.config.conf, scheme, {"config_kwargs": configured})
    system, base = remote.filesystem(f"{scheme}://bucket/data/")
    assert (system.config_kwargs, base) == (expected, "bucket/data")
    assert "config_kwargs" not in remote.filesystem("memory://bucket")[0].storage_options


@pytest.mark.parametrize("key", ["a", "a b/c#1?x=2.wav", "a/..b/c.", "%41/é"])
def test_plain_keys_are_below_the_root(key: str) -> None:
    assert is_below(key)


@pytest.mark.parametrize("key", ["", "/a", "a//b", "a/", "..", "a/../b", "./a", "%2e%2e/a", "a/%2E%2e", "a\x00b"])
def test_other_keys_are_not(key: str) -> None:
    assert not is_below(key)


def test_an_object_is_read_like_a_file(system: type[Faulty]) -> None:
    content = bytes(range(256)) * 10
    with put("a/b.bin", content).open() as file:
        assert file.read(3) == content[:3]
        assert file.seek(-4, 2) == len(content) - 4
        assert file.read() == content[-4:]
        assert file.read(1) == b""
        assert file.seek(100) == file.tell() == 100
        assert file.read(1000) == content[100:1100]


def test_passing_errors_are_tried_again_and_lasting_ones_told(system: type[Faulty]) -> None:
    file = put("a.bin", b"content")
    system.faults["a.bin"] = [ConnectionError("reset"), TimeoutError("slow")]
    system.read_faults["a.bin"] = [ConnectionError("reset"), RuntimeError("not an OSError")]
    with file.open() as handle:
        assert handle.read() == b"content"
    assert not any((*system.faults.values(), *system.read_faults.values()))
    system.read_faults["a.bin"] = [RuntimeError("broken\nanswer")] * 3
    with file.open() as handle, pytest.raises(OSError, match=r"^broken answer$"):
        handle.read()


@pytest.mark.parametrize("error", [FileNotFoundError("gone"), PermissionError("forbidden"), ValueError("never")])
def test_what_cannot_pass_is_not_tried_again(error: Exception) -> None:
    attempts = []

    def action() -> None:
        attempts.append(1)
        raise error

    with pytest.raises(type(error)):
        patiently("x", action)
    assert len(attempts) == 1


def test_an_object_that_shrank_ends_in_an_error_and_not_in_a_loop(system: type[Faulty]) -> None:
    with put("a.bin", b"0123456789").open() as handle:
        handle.seek(5)
        handle._file.truncate(5)  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="nothing came from byte 5"):
            handle.read(5)


def test_stamps_follow_time_and_version() -> None:
    moment = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    base = int(moment.timestamp())
    first, second = (stamp({"LastModified": moment, "ETag": tag}) for tag in ('"aaa"', '"bbb"'))
    assert first != second
    assert first // 10**9 == second // 10**9 == base
    assert stamp({"mtime": base + 0.5}) == base * 10**9 + 500_000_000
    assert stamp({"updated": moment.isoformat(), "etag": '"aaa"'}) == first
    assert stamp({"etag": "aaa"}) == stamp({"etag": "aaa", "name": "x"}) != stamp({"etag": "aab"})
    assert stamp({"size": 3}) == stamp({"size": 3}) != stamp({"size": 4})
    assert 0 <= stamp({"etag": "aaa"}) < 2**63


def test_entries_are_the_objects_below_the_root(system: type[Faulty]) -> None:
    put("b/c.wav", b"12")
    for key in ("a.wav", "b/../../d.wav"):
        fsspec.filesystem("faulty").pipe_file(f"/corpus/{key}", b"1")
    fsspec.filesystem("faulty").pipe_file("/corpus2/a.wav", b"1")
    assert [(key, info["size"]) for key, info in entries(ROOT)] == [("a.wav", 1), ("b/../../d.wav", 1), ("b/c.wav", 2)]


@pytest.mark.parametrize("url", ["nosuchprotocol://x", "nosuchprotocol://x::memory://y"])
def test_a_url_that_nothing_reaches_is_an_error_of_one_line(url: str) -> None:
    with pytest.raises(CorpusError, match=r"nosuchprotocol.*cannot be reached"):
        list(entries(url))


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mka"])
def test_audio_of_every_format_is_the_same_from_afar(system: type[Faulty], tmp_path: Any, suffix: str) -> None:
    rate = 48_000
    path = write_sound(tmp_path / f"a{suffix}", sound("far", rate=rate, seconds=2), rate) if suffix != ".mka" else None
    if path is None:
        from tests.support.sounds import write_streams

        path = write_streams(tmp_path / "a.mka", [sound("far", rate=rate, seconds=2)], rate)
    far = put(f"x/a{suffix}", path.read_bytes())
    assert audio.probe(far) == audio.probe(path)
    np.testing.assert_array_equal(audio.read(far), audio.read(path))
    np.testing.assert_array_equal(audio.read(far, None, 50_000, 10_000), audio.read(path, None, 50_000, 10_000))


def test_audio_errors_have_codes_and_name_the_url(system: type[Faulty], tmp_path: Any) -> None:
    path = write_sound(tmp_path / "a.wav", sound("errors", seconds=5, rate=44_100), 44_100)
    whole = path.read_bytes()

    def failed(file: Any, action: Any = audio.read) -> tuple[str, str]:
        with pytest.raises(AudioError) as caught:
            action(file)
        assert "\n" not in str(caught.value)
        assert str(file) in str(caught.value)
        return caught.value.code, str(caught.value)

    far = put("a.wav", whole)
    assert str(far) == "faulty://corpus/a.wav"
    assert failed(RemoteFile(ROOT, "b.wav"))[0] == "missing"
    assert failed(RemoteFile(ROOT, "b.m4a"))[0] == "missing"
    system.faults["a.wav"] = [PermissionError("forbidden")]
    assert failed(far, audio.probe) == ("unreadable", f"{far}: cannot be read (forbidden)")
    system.faults["a.wav"] = [ConnectionError("refused")] * 3
    assert failed(far, audio.probe) == ("unreadable", f"{far}: cannot be read (refused)")
    # A connection that is lost in the middle must not pass for a file that ends there.
    system.read_faults["a.wav"] = []
    blocks = audio.blocks(far, None, 0, None)
    system.read_faults["a.wav"] += [ConnectionError("lost")] * 3
    assert failed(far, lambda _: list(blocks)) == ("unreadable", f"{far}: cannot be read (lost)")
    assert failed(put("a.wav", b""))[0] == "empty"
    assert failed(put("a.wav", b"no audio"))[0] == "unreadable"
    assert failed(put("a.m4a", b"no audio"))[0] == "unreadable"
    assert failed(put("a.wav", whole[: len(whole) // 2]))[0] == "truncated"


def test_a_container_that_loses_its_connection_is_unreadable(system: type[Faulty], tmp_path: Any) -> None:
    path = write_sound(tmp_path / "a.m4a", sound("lost", seconds=5, rate=44_100), 44_100)
    far = put("a.m4a", path.read_bytes())
    system.read_faults["a.m4a"] = [ConnectionError("lost")] * 3
    with pytest.raises(AudioError, match="lost") as caught:
        audio.probe(far)
    assert caught.value.code == "unreadable"


def test_soundfile_reads_no_format_from_the_name(system: type[Faulty], tmp_path: Any) -> None:
    path = write_sound(tmp_path / "a.flac", sound("raw", seconds=1), 16_000)
    assert soundfile.info(path).format == "FLAC"
    assert audio.probe(put("a.raw", path.read_bytes())) == audio.probe(path)
