"""The kill drill: `mgeldm encode` is struck at random times, in many ways, and goes on.

Data sets in a folder (local runs and runs on Ray take turns) and in a bucket grow through many strikes until
they are whole. Then every byte is compared with an undisturbed run, and another one begins.
"""

import ctypes
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec

from manifests.atomic import TEMPORARY_PREFIX
from manifests.shards import SHARDS_FOLDER
from manifests.units import read_sidecars
from pipelines.verify import verify
from tests.support.remote import Traffic, s3_server

WEIGHTS = {
    "driver": 16,
    "full disk": 7,
    "unwritable": 7,
    "ray driver": 4,
    "ray actor": 4,
    "s3 driver": 5,
    "s3 errors": 4,
    "s3 refused": 3,
}
"""Kinds of strikes, and how often each comes in a long drill."""

REPOSITORY = Path(__file__).parents[2]
SONGS = {"train": 20, "validation": 2, "test": 2}
BUCKET = "drill"
PATIENCE_S = 120.0
"""A driver that takes longer hangs."""
OUTAGE_S = 1.5
# A run is forked from a process that has them, so that strikes do not meet imports.
_PRELOADED = [
    "jsonargparse",
    "mgeldm.cli",
    "numba",
    "pandas",
    "pipelines.encode",
    "ray",
    "s3fs",
    "stable_audio_tools.models.autoencoders",
    "tests.support.models",
]

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Strike:
    """What is done to a run, and when."""

    kind: str
    share: float
    """Of the time that the rest of the work should take."""


@dataclass(slots=True)
class Outcome:
    """What became of a drill."""

    survived: dict[str, int] = field(default_factory=dict)
    """Strikes by kind."""
    finished: int = 0
    """Data sets that were brought to their end."""
    problems: list[str] = field(default_factory=list)


def schedule(seed: int, count: int) -> list[Strike]:
    """``count`` strikes: each kind once as far as there is room, then by weight, in random order."""
    rng = random.Random(seed)
    kinds = [*WEIGHTS, *rng.choices([*WEIGHTS], [*WEIGHTS.values()], k=max(0, count - len(WEIGHTS)))]
    rng.shuffle(kinds)
    return [Strike(kind, rng.random()) for kind in kinds[:count]]


def drill(folder: Path, strikes: Sequence[Strike], say: Say = print, songs: Mapping[str, int] = SONGS) -> Outcome:
    """Strike one run after the other below ``folder``; each line that is said is one strike.

    Each of ``songs`` (subset -> number) is a unit.
    """
    with _scene(folder, songs) as scene:
        _Drill(scene, strikes, say).run()
        return scene.outcome


# One run.


class Run:
    """A process of `mgeldm encode` with a process group of its own."""

    def __init__(self, arguments: Sequence[str], folder: Path, number: int) -> None:
        self.log, self._begun = folder / f"logs/{number}.log", folder / f"logs/{number}.begun"
        # Ray's sockets need a short path, and its logs are no leftovers of ours.
        environment = {"TMPDIR": str(folder / "tmp"), "RAY_TMPDIR": str(_ray_folder(folder))}
        environment |= {name: value for name, value in os.environ.items() if name.startswith(("FSSPEC_", "AWS_"))}
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        self._process = context.Process(target=_drive, args=([*arguments], environment, self.log, self._begun))
        self._process.start()
        assert self._process.pid
        self.pid: int = self._process.pid
        wait_for(self._begun.exists)

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return not self._process.is_alive()

    def kill(self) -> None:
        """SIGKILL to the process and its group."""
        if not self.ended:
            os.killpg(self.pid, signal.SIGKILL)

    def result(self) -> int | None:
        """The exit status, negative for a signal; None for a run that hangs, which is killed."""
        self._process.join(PATIENCE_S)
        hangs = not self.ended
        self.kill()
        self._process.join()
        return None if hangs else self._process.exitcode


def _drive(arguments: list[str], environment: dict[str, str], log: Path, begun: Path) -> None:
    from fsspec.config import conf, set_conf_env

    from mgeldm.cli import main

    os.setsid()
    os.environ.update(environment)
    os.environ["PYTHONPATH"] = str(REPOSITORY)
    os.environ["OMP_NUM_THREADS"] = "1"
    tempfile.tempdir = None
    set_conf_env(conf)
    _obey_modes()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    begun.touch()
    sys.exit(main(arguments))


def _obey_modes() -> None:
    """Let root be bound by the modes of files and folders like anybody."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if os.geteuid() == 0 and libc.capget(header, data) == 0:
        data[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        libc.capset(header, data)


# Where data sets grow.


class Place(ABC):
    """A data set that is written, and how it is kept from being written."""

    def __init__(self, out: str) -> None:
        self.out = out

    def sealed(self) -> dict[str, object]:
        """Name of each sealed shard, and what would change if it were written again."""
        names = {Path(name).stem for name in self.names() if name.endswith(".tar") and TEMPORARY_PREFIX not in name}
        return {name: self.stamp(name) for name, sidecar in read_sidecars(self.out, sorted(names)).items() if sidecar}

    @abstractmethod
    def names(self) -> list[str]:
        """Every file, whatever it is."""

    @abstractmethod
    def stamp(self, shard: str) -> object: ...

    @abstractmethod
    def content(self) -> dict[str, bytes]:
        """Every file, whatever it is."""

    @abstractmethod
    def clear(self) -> None:
        """Remove the data set."""


class Folder(Place):
    """A data set in a folder, on a small disk of its own where this process may mount one."""

    def __init__(self, disk: Path) -> None:
        super().__init__(str(disk / "data"))
        self._disk, self._data = disk, disk / "data"
        self.mounted = os.path.ismount(disk)

    def names(self) -> list[str]:
        return sorted(path.relative_to(self._data).as_posix() for path in self._data.rglob("*") if path.is_file())

    def stamp(self, shard: str) -> object:
        found = [(self._data / SHARDS_FOLDER / f"{shard}{suffix}").stat() for suffix in (".tar", ".json")]
        return [(status.st_ino, status.st_mtime_ns) for status in found]

    def content(self) -> dict[str, bytes]:
        return {name: (self._data / name).read_bytes() for name in self.names()}

    def clear(self) -> None:
        shutil.rmtree(self._data, ignore_errors=True)

    @contextmanager
    def full(self, run: Run) -> Iterator[None]:
        """No block is left; without a disk of its own, the run may not write files of more than a few."""
        if not self.mounted:
            resource.prlimit(run.pid, resource.RLIMIT_FSIZE, (8192, 8192))
            yield
            return
        filler = self._disk / "filler"
        with open(filler, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        try:
            yield
        finally:
            filler.unlink()

    @contextmanager
    def unwritable(self) -> Iterator[None]:
        """Nothing may be made, renamed or removed."""
        folders = [folder for folder in (self._data, self._data / SHARDS_FOLDER) if folder.exists()]
        for folder in folders:
            folder.chmod(0o555)
        try:
            yield
        finally:
            for folder in folders:
                folder.chmod(0o755)


class Bucket(Place):
    """A data set in a bucket whose server fails on demand."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__(f"s3://{BUCKET}/data")
        self._traffic, self.faults = traffic, Faults(traffic.app)
        traffic.app = self.faults
        self._system = fsspec.filesystem("s3")

    def names(self) -> list[str]:
        self._system.invalidate_cache()
        found = self._system.find(f"{BUCKET}/")
        return [path.removeprefix(f"{BUCKET}/data/") for path in found]

    def stamp(self, shard: str) -> object:
        # How often it was written or removed so far, be it in vain.
        paths = [f"/{BUCKET}/data/{SHARDS_FOLDER}/{shard}{suffix}" for suffix in (".tar", ".json")]
        changes = [path for method, path, _ in self._traffic.requests if method in ("PUT", "POST", "DELETE")]
        return [changes.count(path) for path in paths]

    def content(self) -> dict[str, bytes]:
        return {name: self._system.cat_file(f"{BUCKET}/data/{name}") for name in self.names()}

    def clear(self) -> None:
        for name in self.names():
            self._system.rm_file(f"{BUCKET}/data/{name}")


class Faults:
    """A WSGI application around a store's that refuses everything, or fails before or after the deed."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.mode = ""
        self.count = 0
        self.rng = random.Random(0)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if not self.mode:
            return self.app(environ, start_response)
        self.count += 1
        if self.mode == "refuse":
            return self._answer(start_response, "403 Forbidden", b"AccessDenied")
        if self.rng.random() < 0.5:
            b"".join(self.app(environ, lambda *_: None))
        status, code = self.rng.choice(
            [("503 Slow Down", b"SlowDown"), ("500 Internal Server Error", b"InternalError")]
        )
        return self._answer(start_response, status, code)

    def _answer(self, start_response: Any, status: str, code: bytes) -> list[bytes]:
        body = b"<?xml version='1.0'?><Error><Code>" + code + b"</Code><Message>drill</Message></Error>"
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]


# The scene: a corpus, its plan, and what an undisturbed run makes of it.


@dataclass(slots=True)
class Scene:
    """What every run of a drill shares."""

    folder: Path
    command: list[str]
    local: Folder
    remote: Bucket
    whole: dict[str, bytes]
    """Every file of an undisturbed run."""
    units: int
    start_s: float
    """How long that run took until it wrote, ..."""
    work_s: float
    """... and from then on."""
    outcome: Outcome = field(default_factory=Outcome)


@contextmanager
def _scene(folder: Path, songs: Mapping[str, int]) -> Iterator[Scene]:
    from pipelines.runner import RunnerConfig
    from pipelines.scan import scan
    from pipelines.split import SplitConfig, split
    from tests.support.corpora import write_slakh
    from tests.support.models import write_codec, write_embedder

    for name in ("tmp", "logs", "disk"):
        (folder / name).mkdir(parents=True)
    _ray_folder(folder).mkdir(mode=0o700)
    corpus = write_slakh(folder / "slakh", songs, instruments=("Drums", "Bass", "Piano"))
    manifest, splits = folder / "songs.parquet", folder / "splits.parquet"
    scan([("slakh2100", corpus)], manifest, runner=RunnerConfig(runner="local"))
    split(manifest, splits, config=SplitConfig(window_s=1.024, hop_s=0.4, min_song_s=1.0, splits_per_window=2))
    models = ["--codec", str(write_codec(folder / "codec")), "--embedder", str(write_embedder(folder / "embedder"))]
    sizes = ["--embed_hop_s", "0.2", "--windows_per_shard", "4", "--device", "cpu"]
    command = ["encode", str(splits), "--songs", str(manifest), *models, *sizes]
    whole = Folder(folder / "whole")
    run = Run([*command, "--runner", "local", "--out", whole.out], folder, 0)
    begin = time.monotonic()
    wait_for(lambda: run.ended or bool(whole.sealed()))
    start_s = time.monotonic() - begin
    if run.result():
        raise RuntimeError(f"the undisturbed run failed: {run.log.read_text()}")
    work_s = time.monotonic() - begin - start_s
    content = whole.content()
    with _disk(folder / "disk", 4 * sum(map(len, content.values())) + (1 << 20)), s3_server(BUCKET) as traffic:
        try:
            local, units = Folder(folder / "disk"), len(whole.sealed())
            yield Scene(folder, command, local, Bucket(traffic), content, units, start_s, work_s)
        finally:
            shutil.rmtree(_ray_folder(folder), ignore_errors=True)


def _ray_folder(folder: Path) -> Path:
    return Path(tempfile.gettempdir()) / f"drill-{zlib.crc32(os.fsencode(folder)):x}"


@contextmanager
def _disk(folder: Path, size: int) -> Iterator[None]:
    """A disk of ``size`` bytes at ``folder``, if this process may mount one."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "drill", str(folder)]
    mounted = shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


# The drill.


class _Drill:
    def __init__(self, scene: Scene, strikes: Sequence[Strike], say: Say) -> None:
        self.scene, self.strikes, self.say = scene, strikes, say
        self.outcome = scene.outcome
        self._runs = 0
        self._orphans: set[int] = set()

    def run(self) -> None:
        for number, strike in enumerate(self.strikes, 1):
            # A run that ends before its strike finishes a data set; the strike is for the next one.
            while not self._strike(number, strike):
                pass
            self.outcome.survived[strike.kind] = self.outcome.survived.get(strike.kind, 0) + 1
        for place in (self.scene.local, self.scene.remote):
            if place.names():
                status = self._begin(place, "local").result()
                self._finished(place, status)
        if left := sorted(path for path in (self.scene.folder / "tmp").rglob("*")):
            self._problem(f"temporary files are left: {left}")
        if not wait_for(lambda: not any(map(_runs, self._orphans))):
            self._problem("processes of killed runs live on")

    def _problem(self, text: str) -> None:
        self.outcome.problems.append(text)
        self.say(f"PROBLEM {text}")

    def _begin(self, place: Place, runner: str) -> Run:
        self._runs += 1
        width = ["--workers", "2"] if runner == "ray" else []
        arguments = [*self.scene.command, "--runner", runner, *width, "--out", place.out]
        return Run(arguments, self.scene.folder, self._runs)

    def _strike(self, number: int, strike: Strike) -> bool:
        scene, on_ray = self.scene, strike.kind.startswith("ray")
        place: Place = scene.remote if strike.kind.startswith("s3") else scene.local
        before = place.sealed()
        delay = strike.share * (scene.work_s * (1 - len(before) / scene.units) + (0 if on_ray else scene.start_s))
        run = self._begin(place, "ray" if on_ray else "local")
        if on_ray:
            # Ray takes its time before there is work that could be disturbed.
            there = set(place.names())
            wait_for(lambda: run.ended or any(name.startswith(SHARDS_FOLDER) for name in {*place.names()} - there))
        wait_for(lambda: run.ended, delay)
        landed, status = self._do(strike.kind, run, place)
        after = place.sealed()
        if changed := sorted(name for name, stamp in before.items() if after.get(name) != stamp):
            self._problem(f"{strike.kind}: {len(changed)} sealed shards were lost or made again, such as {changed[0]}")
        if "Traceback" in (log := run.log.read_text()):
            self._problem(f"{strike.kind}: {log}")
        if landed:
            self.say(
                f"{number}/{len(self.strikes)} {strike.kind} after {delay:.2f} s: exit {status}, "
                f"sealed {len(before)} -> {len(after)} of {scene.units}"
            )
        if not landed or status == 0:
            self._finished(place, status)
        return landed

    def _do(self, kind: str, run: Run, place: Place) -> tuple[bool, int | None]:
        """Whether the strike met a run that had not ended, and how that ended."""
        match kind, place:
            case "full disk", Folder():
                with place.full(run):
                    status = run.result()
                return status == 2, status
            case "unwritable", Folder():
                with place.unwritable():
                    status = run.result()
                return status == 2, status
            case "ray actor", _:
                actors = [pid for pid in descendants(run.pid) if b"ray::_Actor" in _words(pid)]
                if actors:
                    os.kill(actors[0], signal.SIGKILL)
                return bool(actors), run.result()
            case (("s3 errors" | "s3 refused"), Bucket()):
                place.faults.count, place.faults.mode = 0, kind.removeprefix("s3 ")[:6]
                wait_for(lambda: run.ended, OUTAGE_S if kind == "s3 errors" else PATIENCE_S)
                place.faults.mode = ""
                status = run.result()
                return place.faults.count > 0 and status in (0, 2), status
        self._orphans |= descendants(run.pid)
        run.kill()
        status = run.result()
        return status == -signal.SIGKILL, status

    def _finished(self, place: Place, status: int | None) -> None:
        """Compare a data set that was brought to its end, and make room for another."""
        if status == 0 and any(map(_runs, self._orphans)):
            # Ray's workers outlive their driver by seconds; what those write goes with the next run.
            wait_for(lambda: not any(map(_runs, self._orphans)))
            status = self._begin(place, "local").result()
        content = place.content()
        whole = self.scene.whole
        if status != 0:
            self._problem(f"{place.out}: a run ended with {status}: {self._log()}")
        elif content != whole:
            differing = sorted(name for name in {*content, *whole} if content.get(name) != whole.get(name))
            self._problem(f"{place.out}: not what an undisturbed run makes: {differing}")
        else:
            report = verify(place.out)
            if report.problems or report.notes:
                self._problem(f"{place.out}: {report}")
        self.outcome.finished += 1
        place.clear()

    def _log(self) -> str:
        return (self.scene.folder / f"logs/{self._runs}.log").read_text()


def wait_for(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
    """Wait until ``condition`` holds, for so long at most; whether it does."""
    end = time.monotonic() + seconds
    while not (holds := condition()) and time.monotonic() < end:
        time.sleep(0.005)
    return holds


def descendants(pid: int) -> set[int]:
    """The processes below a process, as Linux tells."""
    children: dict[int, list[int]] = {}
    for found in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(found.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(found.parent.name))
    below, waiting = set[int](), [pid]
    while waiting:
        fresh = children.get(waiting.pop(), [])
        below.update(fresh)
        waiting += fresh
    return below


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _runs(pid: int) -> bool:
    """Whether there is such a process; one that has ended has no words, though nobody may have asked for it."""
    return bool(_words(pid))
