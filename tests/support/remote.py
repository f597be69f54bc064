"""Roots that are no folders: a file system in memory, faults on demand, and an S3 server on this machine."""

import io
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

from manifests.songs import Song, Stem


def without_state(song: Song) -> Song:
    """A song without what differs between two copies of its files: root, size and time."""

    def bare(stem: Stem) -> Stem:
        return replace(stem, size=None, mtime_ns=None)

    mixture = song.mixture_audio and bare(song.mixture_audio)
    return replace(song, root="", stems=tuple(map(bare, song.stems)), mixture_audio=mixture)


def upload(folder: Path, url: str) -> str:
    """Copy every file below ``folder`` to ``url``, which is returned."""
    system, base = fsspec.core.url_to_fs(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            system.pipe_file(f"{base}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return url


class Faulty(MemoryFileSystem):
    """Memory, but what holds a key of ``faults`` in its path raises these errors first, one an access.

    ``faults`` are raised when an object is opened, ``read_faults`` when it is read.
    """

    protocol = "faulty"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    faults: ClassVar[dict[str, list[Exception]]] = {}
    read_faults: ClassVar[dict[str, list[Exception]]] = {}
    opened: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("faulty://", "memory://", 1))

    def _open(self, path: str, *args: Any, **options: Any) -> Any:
        Faulty.opened.append(path)
        _fail(Faulty.faults, path)
        return _FaultyFile(path, super()._open(path, *args, **options).getvalue())

    def cat_file(self, path: str, *args: Any, **options: Any) -> bytes:
        _fail(Faulty.faults, path)
        return super().cat_file(path, *args, **options)


class _FaultyFile(io.BytesIO):
    def __init__(self, path: str, content: bytes) -> None:
        super().__init__(content)
        self.path = path

    def read(self, size: int | None = -1) -> bytes:
        _fail(Faulty.read_faults, self.path)
        return super().read(size)


def _fail(faults: dict[str, list[Exception]], path: str) -> None:
    for part, errors in faults.items():
        if part in path and errors:
            raise errors.pop(0)


@contextmanager
def faulty() -> Iterator[type[Faulty]]:
    """Register ``faulty://``, empty and without faults."""
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    for what in (Faulty.store, Faulty.faults, Faulty.read_faults, Faulty.opened):
        what.clear()
    yield Faulty


class Traffic:
    """A WSGI application around another one that keeps account of what is fetched."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.lock = threading.Lock()
        self.requests: list[tuple[str, str, int]] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        def started(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            size = int(dict((key.lower(), value) for key, value in headers).get("content-length", 0))
            with self.lock:
                self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"], size))
            return start_response(status, headers, *rest)

        return self.app(environ, started)

    def fetched(self, suffixes: tuple[str, ...]) -> int:
        """Bytes of objects with these suffixes that were sent."""
        return sum(size for method, path, size in self.requests if method == "GET" and path.endswith(suffixes))


@contextmanager
def s3_server(bucket: str) -> Iterator[Traffic]:
    """An S3 server with one empty bucket; the environment of fsspec and of child processes points to it."""
    from fsspec.config import conf, set_conf_env
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    class Quiet(MotoRequestHandler):
        def log(self, *words: Any) -> None:
            pass

    traffic = Traffic(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, traffic, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    options = {
        "FSSPEC_S3_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
        "FSSPEC_S3_KEY": "key",
        "FSSPEC_S3_SECRET": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in options}
    os.environ |= options
    set_conf_env(conf)
    try:
        fsspec.filesystem("s3").mkdir(bucket)
        yield traffic
    finally:
        _restore(before)
        conf.pop("s3", None)
        server.shutdown()
        thread.join()
        server.server_close()


def _restore(environment: Mapping[str, str | None]) -> None:
    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
