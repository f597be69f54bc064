"""The figures of a manifest, against a manifest that is small enough to count by hand."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from manifests.errors import ManifestError
from manifests.song_stats import Group, Loudness, Part, song_stats, table
from manifests.songs import Problem, Song, count_problems, write_songs
from tests.support.large import large_songs
from tests.support.songs import made_song, made_stem


def on(count: int, of: int = 300) -> list[bool]:
    return [frame < count for frame in range(of)]


SONGS = [
    made_song(
        "c/1",
        [
            made_stem("drums", on(150), lufs=-20.4, bandwidth_hz=7_900.0),
            made_stem("kick", on(300), lufs=-10.5, bandwidth_hz=8_000.0),
            made_stem("bass", on(0), channels=2),
        ],
        [Problem(code="silent", stem_id="bass"), Problem(code="unequal_length")],
    ),
    replace(
        made_song("c/2", [made_stem("drums", on(100, 100), lufs=-30.0), made_stem("zither\nof doom")], subset="test"),
        license="",
    ),
    Song(song_id="d/1", corpus="d", root="/", subset="train", problems=(Problem(code="no_stems"),)),
    made_song("d/2", [made_stem("piano", sample_rate=None, channels=None, frames=None, activity=b"")]),
]


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    write_songs(tmp_path / "songs.parquet", SONGS)
    return tmp_path / "songs.parquet"


def test_figures_by_hand(manifest: Path) -> None:
    stats = song_stats(manifest)
    assert (stats.songs, stats.usable, stats.stems, stats.songs_with_problems) == (4, 3, 6, 2)
    assert stats.hours == pytest.approx((30 + 30) / 3600)
    assert stats.stem_hours == pytest.approx((3 * 30 + 10 + 30) / 3600)
    assert stats.active == pytest.approx((150 + 300 + 0 + 100 + 300) / (4 * 300 + 100))
    assert stats.groups == (
        Group(corpus="c", subset="test", songs=1, usable=1, stems=2, hours=30 / 3600),
        Group(corpus="c", subset="train", songs=1, usable=1, stems=3, hours=30 / 3600),
        Group(corpus="d", subset="train", songs=2, usable=1, stems=1, hours=0.0),
    )
    assert [(part.name, part.family, part.stems, part.songs) for part in stats.instruments] == [
        ("drums", "drums", 2, 2),
        ("bass", "bass", 1, 1),
        ("kick drum", "drums", 1, 1),
        ("piano", "keys", 1, 1),
        ("zither of doom", "unmapped", 1, 1),
    ]
    assert stats.families[0] == Part(
        name="drums",
        family="drums",
        stems=3,
        songs=2,
        hours=pytest.approx(70 / 3600),
        active=pytest.approx(550 / 700),
        lufs=-20.4,
    )
    assert {part.name: (part.active, part.lufs) for part in stats.families[1:]} == {
        "bass": (0.0, None),
        "keys": (None, None),
        "unmapped": (1.0, None),
    }
    assert stats.loudness == Loudness(
        stems=3,
        least=-30.0,
        low=pytest.approx(-29.04),
        median=-20.4,
        high=pytest.approx(-11.49),
        most=-10.5,
        histogram={-30: 1, -21: 1, -11: 1},
    )
    assert stats.sample_rates == {16_000: 5}
    assert stats.channels == {1: 4, 2: 1}
    assert stats.bandwidth_khz == {8: 2}
    assert list(stats.problems.items()) == [("no_stems", 1), ("silent", 1), ("unequal_length", 1)]
    assert stats.licenses == {
        "": {"songs": 2, "hours": pytest.approx(30 / 3600)},
        "CC0-1.0": {"songs": 2, "hours": pytest.approx(30 / 3600)},
    }
    assert stats.unmapped == {"zither\nof doom": 1}


def test_figures_agree_with_the_records(tmp_path: Path) -> None:
    songs = list(large_songs(60, stems=5))
    songs[3] = replace(songs[3], problems=(Problem(code="metadata"), Problem(code="missing", stem_id="S01")))
    songs[4] = replace(songs[4], problems=tuple(Problem(code="truncated", stem_id=f"S0{k}") for k in range(5)))
    write_songs(tmp_path / "songs.parquet", songs)
    stats = song_stats(tmp_path / "songs.parquet")
    stems = [stem for song in songs for stem in song.stems]
    assert stats.usable == sum(bool(song.usable_stems) for song in songs) == 58
    assert stats.hours == pytest.approx(sum(song.duration_s for song in songs) / 3600)
    active = np.concatenate([stem.active() for stem in stems])
    assert stats.active == pytest.approx(active.mean())
    assert stats.problems == count_problems(songs)
    assert sum(part.stems for part in stats.instruments) == sum(part.stems for part in stats.families) == len(stems)
    assert stats.loudness is not None
    levels = [stem.lufs for stem in stems]
    assert (stats.loudness.low, stats.loudness.median) == pytest.approx(tuple(np.quantile(levels, [0.05, 0.5])))  # type: ignore[arg-type]
    assert sum(stats.loudness.histogram.values()) == len(stems)


def test_an_empty_manifest_has_figures_too(tmp_path: Path) -> None:
    write_songs(tmp_path / "songs.parquet", [])
    stats = song_stats(tmp_path / "songs.parquet")
    assert (stats.songs, stats.stems, stats.hours, stats.active, stats.loudness) == (0, 0, 0, None, None)
    assert "songs" in table(stats)


def test_what_is_no_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"songs.parquet: no such file"):
        song_stats(tmp_path / "songs.parquet")


def test_the_table_is_aligned_and_holds_every_figure(manifest: Path) -> None:
    text = table(song_stats(manifest))
    blocks = {block.splitlines()[0].split("  ")[0]: block.splitlines() for block in text.split("\n\n")}
    assert list(blocks) == [
        "songs", "corpus", "family", "instrument", "LUFS of stems", "sample rate (Hz)", "channels", "bandwidth (kHz)",
        "problem", "unmapped label", "licence",
    ]  # fmt: skip
    assert blocks["corpus"] == [
        "corpus  subset  songs  usable  stems  hours",
        "c       test        1       1      2   0.01",
        "c       train       1       1      3   0.01",
        "d       train       2       1      1   0.00",
    ]
    assert blocks["LUFS of stems"][1].split() == ["3", "-30.0", "-29.0", "-20.4", "-11.5", "-10.5"]
    assert blocks["unmapped label"][1].split("  ")[0] == "zither of doom"
    assert blocks["licence"][1].startswith("none given")
    assert "piano               1      1   0.00       -      -" in blocks["instrument"]


def test_figures_are_plain_json(manifest: Path) -> None:
    import json

    found = json.loads(json.dumps(asdict(song_stats(manifest))))
    assert found["groups"][2] == {"corpus": "d", "subset": "train", "songs": 2, "usable": 1, "stems": 1, "hours": 0.0}
