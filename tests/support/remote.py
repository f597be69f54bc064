"""Roots that are no folders: a file system in memory, faults on demand, and an S3 server on this machine."""

import io
import os
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from botocore.exceptions import ClientError
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


class Flaky(MemoryFileSystem):
    """Memory that is down at random: for some operations in a row each raises, an OSError or what a client raises."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    rng: ClassVar[random.Random] = random.Random(0)
    rate: ClassVar[float] = 0.0
    """Chance that an operation begins an outage."""
    longest: ClassVar[int] = 12
    down: ClassVar[int] = 0
    done: ClassVar[list[tuple[str, str]]] = []
    """What was done, in order: ("put" or "remove", path)."""

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://", 1))

    def _turn(self) -> None:
        if not Flaky.down and Flaky.rng.random() < Flaky.rate:
            Flaky.down = Flaky.rng.randint(1, Flaky.longest)
        if Flaky.down:
            Flaky.down -= 1
            answer = {"Error": {"Code": "SlowDown", "Message": "Please reduce your request rate."}}
            raise Flaky.rng.choice([OSError("connection reset"), ClientError(answer, "PutObject")])

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        self._turn()
        super().pipe_file(path, value, mode, **options)
        Flaky.done.append(("put", path))
        # The answer may be lost where the deed is done.
        self._turn()

    def rm_file(self, path: str) -> None:
        self._turn()
        super().rm_file(path)
        Flaky.done.append(("remove", path))

    def cat_file(self, path: str, *args: Any, **options: Any) -> bytes:
        self._turn()
        return super().cat_file(path, *args, **options)

    def info(self, path: str, **options: Any) -> Any:
        self._turn()
        return super().info(path, **options)

    def ls(self, path: str, *args: Any, **options: Any) -> Any:
        self._turn()
        return super().ls(path, *args, **options)


@contextmanager
def flaky(seed: int, rate: float) -> Iterator[type[Flaky]]:
    """Register ``flaky://``, empty."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    for what in (Flaky.store, Flaky.done):
        what.clear()
    Flaky.rng, Flaky.rate, Flaky.down = random.Random(seed), rate, 0
    yield Flaky


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
