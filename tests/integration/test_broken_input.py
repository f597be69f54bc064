"""Every kind of broken input of `tests.support.broken` through the scan."""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from manifests.errors import MGELDMError
from manifests.problems import Effect, effect
from manifests.songs import Song, read_songs
from pipelines.runner import RunnerConfig
from pipelines.scan import scan
from tests.support import breaking as by
from tests.support.breaking import Place
from tests.support.broken import CHANGING, DENIED, REFUSALS, SONGS, Kind, Refusal, make_kinds, song_name
from tests.support.scans import LOCAL
from tests.support.watching import on_opening, opened

SECONDS = 40.0
MEGABYTES = 700


def by_id(manifest: Path) -> dict[str, Song]:
    return {song.song_id: song for song in read_songs(manifest)}


def song_of(songs: dict[str, Song], kind: Kind) -> Song:
    corpus = "folders" if kind.corpus == "folders" else kind.corpus
    return songs[f"{corpus}/{song_name(kind)}"]


def check(kind: Kind, song: Song) -> None:
    """The song has the problems that the table says, and no other but for notes."""
    named = {code for code, _ in kind.expected}
    found = [(p.code, p.stem_id) for p in song.problems if effect(p.code) is not Effect.NOTE or p.code in named]
    assert sorted(found, key=str) == sorted(kind.expected, key=str), song.problems
    assert len(song.usable_stems) == kind.usable
    for problem in song.problems:
        assert problem.detail
        assert "\n" not in problem.detail
        assert len(problem.detail) < 1000
    bad = {problem.stem_id for problem in song.problems}
    whole = any(effect(problem.code) is Effect.SONG and problem.stem_id is None for problem in song.problems)
    assert all(stem.frames or stem.stem_id in bad or whole for stem in song.stems)


@dataclass(frozen=True)
class Scanned:
    """One scan of the whole table."""

    sources: list[tuple[str, Path]]
    manifest: Path
    songs: dict[str, Song]
    seconds: float
    opened: list[str]


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Scanned:
    place = tmp_path_factory.mktemp("broken")
    sources = make_kinds(SONGS, place)
    manifest = place / "songs.parquet"
    begin = time.monotonic()
    with opened(place / "outside") as names:
        scan([(name, root) for name, root in sources], manifest, runner=LOCAL)
    return Scanned(sources, manifest, by_id(manifest), time.monotonic() - begin, names)


def test_at_least_sixty_kinds_end_in_a_problem_or_a_refusal() -> None:
    every = [*SONGS, *DENIED, *CHANGING]
    names = [kind.name for kind in every] + [refusal.name for refusal in REFUSALS]
    assert len(set(names)) == len(names)
    bad = sum(bool(kind.expected) for kind in every)
    print(f"{bad} kinds of broken input are a problem, {len(REFUSALS)} are refused, {len(every) - bad} are sound")
    assert bad >= 60
    assert len(REFUSALS) >= 20


@pytest.mark.parametrize("kind", SONGS, ids=lambda kind: kind.name)
def test_each_kind_is_recorded_and_the_rest_stays_usable(kind: Kind, scanned: Scanned) -> None:
    check(kind, song_of(scanned.songs, kind))


def test_no_song_vanishes_and_none_is_made_up(scanned: Scanned) -> None:
    assert scanned.songs.keys() == {f"{kind.corpus}/{song_name(kind)}" for kind in SONGS}


def test_nothing_outside_the_root_is_opened(scanned: Scanned) -> None:
    assert scanned.opened == []
    with opened(scanned.manifest.parent / "outside") as names:
        (scanned.manifest.parent / "outside/secret.wav").read_bytes()
        os.listdir(scanned.manifest.parent / "outside")
    assert {"secret.wav", ""} <= {*names}
    assert not Path("executed").exists()


def test_it_takes_little_time_and_memory(scanned: Scanned) -> None:
    assert scanned.seconds < SECONDS
    # Another process, since memory that was used once stays this one's peak.
    words = [word for source in scanned.sources for word in map(str, source)]
    out = scanned.manifest.with_name("again.parquet")
    code = (
        "import sys; from pathlib import Path; from pipelines.scan import scan, RunnerConfig; w = sys.argv[2:];"
        "scan([(c, Path(r)) for c, r in zip(w[::2], w[1::2])], Path(sys.argv[1]), runner=RunnerConfig(runner='local'));"
        "print(Path('/proc/self/status').read_text())"
    )
    command = [sys.executable, "-c", code, str(out), *words]
    done = subprocess.run(command, check=True, timeout=3 * SECONDS, stdout=subprocess.PIPE, text=True)
    # Not ru_maxrss: what this process holds when it starts another counts there as the other's.
    peak = re.search(r"^VmHWM:\s+(\d+) kB$", done.stdout, re.MULTILINE)
    assert peak
    assert int(peak[1]) / 1024 < MEGABYTES
    assert out.read_bytes() == scanned.manifest.read_bytes()


@pytest.mark.ray
def test_the_table_is_the_same_on_ray(scanned: Scanned, on_ray: RunnerConfig) -> None:
    out = scanned.manifest.with_name("ray.parquet")
    with opened(scanned.manifest.parent / "outside") as names:
        scan(scanned.sources, out, runner=on_ray)
    assert names == []
    assert out.read_bytes() == scanned.manifest.read_bytes()


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Song], dict[str, Song]]:
    """The songs of a scan during which files change, and those of a scan of the same once they are mended."""
    place = tmp_path_factory.mktemp("changing")
    sources = make_kinds([replace(kind, make=by.file_of_sound) for kind in CHANGING], place)
    paths = {kind.name: place / kind.corpus / song_name(kind) / kind.target for kind in CHANGING}
    actions = {
        paths[kind.name]: partial(kind.make, paths[kind.name], Place(paths[kind.name].parent, place / "outside"))
        for kind in CHANGING
    }
    with on_opening(actions) as waiting:
        scan(sources, place / "songs.parquet", runner=LOCAL)
        assert not waiting
    first = by_id(place / "songs.parquet")
    for path in paths.values():
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        by.file_of_sound(path, Place(path.parent, place / "outside"))
    scan(sources, place / "songs.parquet", runner=LOCAL)
    return first, by_id(place / "songs.parquet")


@pytest.mark.parametrize("kind", CHANGING, ids=lambda kind: kind.name)
def test_what_changes_while_it_is_read_is_recorded_and_read_again(
    kind: Kind, changed: tuple[dict[str, Song], dict[str, Song]]
) -> None:
    first, then = changed
    check(kind, song_of(first, kind))
    assert len(song_of(then, kind).usable_stems) == 3


@pytest.fixture(scope="module")
def denied() -> Iterator[dict[str, Song]]:
    """Songs of a scan by a user who may not read all of it."""
    # A folder that others may enter: those of pytest are closed to them.
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        sources = make_kinds(DENIED, Path(folder))
        out = by.made_folder(Path(folder, "out"))
        out.chmod(0o777)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65_534)
        try:
            scan(sources, out / "songs.parquet", runner=LOCAL)
        finally:
            os.seteuid(user)
        yield by_id(out / "songs.parquet")
        for path in Path(folder).rglob("*"):
            path.chmod(0o755)


@pytest.mark.parametrize("kind", DENIED, ids=lambda kind: kind.name)
def test_what_may_not_be_read_is_recorded(kind: Kind, denied: dict[str, Song]) -> None:
    check(kind, song_of(denied, kind))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_wrong_use_is_refused_in_one_line(refusal: Refusal, root: Path, tmp_path: Path, readers: list[str]) -> None:
    corpus, place = refusal.make(by.made_folder(tmp_path / "use"), root)
    with pytest.raises(MGELDMError, match=re.escape(refusal.words)) as caught:
        scan([(str(corpus), place)], tmp_path / "songs.parquet", runner=LOCAL)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert readers == []
    assert not (tmp_path / "songs.parquet").exists()
