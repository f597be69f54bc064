"""Scanning in this process."""

from pathlib import Path

from manifests.songs import Song, read_songs
from pipelines.runner import RunnerConfig
from pipelines.scan import scan

LOCAL = RunnerConfig(runner="local")
RATE = 16_000


def scanned(name: str | Path, root: Path | str, out: Path | None = None) -> dict[str, Song]:
    """Scan one corpus here; its songs by their own ids."""
    out = out or Path(root).parent / "songs.parquet"
    scan([(str(name), root)], out, runner=LOCAL)
    return {song.song_id.split("/", 1)[1]: song for song in read_songs(out)}


def codes(song: Song) -> list[tuple[str, str | None]]:
    """Code and stem of each problem."""
    return [(problem.code, problem.stem_id) for problem in song.problems]
