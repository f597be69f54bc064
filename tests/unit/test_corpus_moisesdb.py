import os
from pathlib import Path

import pytest

from manifests.corpora import get_corpus
from manifests.songs import inside
from tests.support.listings import codes, listed, touch
from tests.support.trees import make_tree, moisesdb_song

UUID = "00000001-aaaa"
SKLEARN_TEST = [
    6,
    9,
    15,
    19,
    24,
    30,
    45,
    86,
    93,
    104,
    109,
    113,
    114,
    125,
    127,
    143,
    152,
    168,
    172,
    185,
    206,
    230,
    233,
    235,
]


def test_moisesdb_tracks_are_stems_called_by_their_type(tmp_path: Path) -> None:
    song = listed("moisesdb", make_tree("moisesdb", tmp_path))[UUID]
    assert [(stem.stem_id, stem.label) for stem in song.stems] == [
        ("bass/bass-0", "contrabass/double bass (bass of instrings)"),
        ("drums/drums-0", "hi-hat"),
        ("drums/drums-1", "kick drum"),
        ("other_keys/other_keys-0", "organ, electric organ"),
        ("vocals/vocals-0", "lead male singer"),
        ("vocals/vocals-1", "background vocals"),
    ]
    assert song.stems[1].path == f"moisesdb_v0.1/{UUID}/drums/drums-0.wav"
    assert song.mixture is None
    assert song.problems == ()
    assert song.extra == {"artist": "An Artist", "song": "A Song", "genre": "pop"}


@pytest.mark.parametrize("folder", ["", "moisesdb_v0.1", "moisesdb/moisesdb_v0.1"])
def test_moisesdb_songs_are_found_one_to_three_folders_down(tmp_path: Path, folder: str) -> None:
    touch(moisesdb_song(tmp_path / folder / UUID, [("bass", "a", "tuba (bass of brass)")]), "bass/a.wav")
    song = listed("moisesdb", tmp_path)[UUID]
    assert [stem.path for stem in song.stems] == [f"{folder}/{UUID}/bass/a.wav".lstrip("/")]


def test_moisesdb_split_is_that_of_mge_ldm(tmp_path: Path) -> None:
    for number in range(240):
        # Two providers, so that the order of paths is not that of uuids.
        (tmp_path / f"provider{number % 2}" / f"{number:03d}").mkdir(parents=True)
        (tmp_path / f"provider{number % 2}" / f"{number:03d}" / "data.json").write_text("{}")
    listings = list(get_corpus("moisesdb").songs(tmp_path))
    assert [listing.song for listing in listings] == [f"{number:03d}" for number in range(240)]
    # scikit-learn's train_test_split(range(240), test_size=0.1, random_state=42)[1], sorted.
    assert [int(listing.song) for listing in listings if listing.subset == "test"] == SKLEARN_TEST
    assert {listing.subset for listing in listings} == {"train", "test"}


def test_moisesdb_existence_on_disk_counts(tmp_path: Path) -> None:
    song = moisesdb_song(tmp_path / UUID, [("bass", "a", "bass guitar"), ("drums", "b", "toms"), ("bass", "a", "x")])
    touch(song, "bass/a.wav", "bass/c.wav", "guitar/d.wav", "notes.txt")
    listing = listed("moisesdb", tmp_path)[UUID]
    assert [(stem.stem_id, stem.label) for stem in listing.stems] == [("bass/a", "bass guitar")]
    assert codes(listing) == [("listed_twice", None), ("no_audio", None)]
    assert listing.problems[0].detail == f"{UUID}/data.json: bass/a"
    assert listing.problems[1].detail == "drums/b has metadata only"
    assert listing.extra["leftover"] == ["bass/c.wav", "guitar/d.wav", "notes.txt"]


def test_moisesdb_bleed_and_missing_types(tmp_path: Path) -> None:
    tracks = [{"id": "a", "extension": "flac", "has_bleed": True}, {"id": "b", "extension": "flac", "trackType": None}]
    song = moisesdb_song(tmp_path / UUID, [], artist=7, stems=[{"stemName": "wind", "tracks": tracks}])
    touch(song, "wind/a.flac", "wind/b.flac")
    listing = listed("moisesdb", tmp_path)[UUID]
    assert [(stem.stem_id, stem.label) for stem in listing.stems] == [("wind/a", "wind"), ("wind/b", "wind")]
    assert listing.extra == {"song": "A Song", "genre": "pop", "has_bleed": ["wind/a"]}
    assert codes(listing) == [("bleed", "wind/a")]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        "[" * 100_000,
        '{"stems": null}',
        '{"stems": ["a"]}',
        '{"stems": [{"stemName": "a"}]}',
        '{"stems": [{"stemName": "a", "tracks": [{"id": "b"}]}]}',
        '{"stems": [{"stemName": "a", "tracks": [[]]}]}',
        "{}",
        "\ufeff{}",
    ],
)
def test_moisesdb_metadata_that_cannot_be_used_are_the_songs_problem(tmp_path: Path, text: str) -> None:
    touch(tmp_path / UUID, "bass/a.wav")
    (tmp_path / UUID / "data.json").write_text(text)
    listing = listed("moisesdb", tmp_path)[UUID]
    assert codes(listing) == [("metadata", None)]
    assert listing.extra == {"leftover": ["bass/a.wav"]}


def test_moisesdb_metadata_behind_a_link_out_of_the_root_are_not_read(tmp_path: Path) -> None:
    moisesdb_song(tmp_path / "outside", [])
    (tmp_path / "root" / UUID).mkdir(parents=True)
    (tmp_path / "root" / UUID / "data.json").symlink_to(tmp_path / "outside/data.json")
    listing = listed("moisesdb", tmp_path / "root")[UUID]
    assert codes(listing) == [("metadata", None)]
    assert "leaves the root" in listing.problems[0].detail


def test_moisesdb_ids_that_leave_the_root_are_left_to_the_scan(tmp_path: Path) -> None:
    root = tmp_path / "root"
    hostile = ["../../../secret", "/etc/secret", "nul\x00", "half \ud800", 'it\'s "x"\n']
    song = moisesdb_song(root / UUID, [("bass", track, "bass guitar") for track in hostile])
    touch(song, 'bass/it\'s "x"\n.wav')
    listing = listed("moisesdb", root)[UUID]
    listed_ids = {stem.stem_id: inside(root, stem.path) for stem in listing.stems}
    assert listed_ids == {
        "bass/../../../secret": None,
        "bass/nul\x00": None,
        'bass/it\'s "x"\n': root / UUID / 'bass/it\'s "x"\n.wav',
    }
    assert codes(listing) == [("no_audio", None)] * 2
    assert os.listdir(tmp_path) == ["root"]


def test_moisesdb_takes_the_first_of_two_songs_of_one_uuid(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for provider in ("b", "a"):
        touch(moisesdb_song(tmp_path / provider / UUID, [("bass", provider, "bass guitar")]), f"bass/{provider}.wav")
    (tmp_path / "a0").symlink_to(tmp_path / "a")
    (tmp_path / "c").symlink_to(tmp_path)
    (song,) = get_corpus("moisesdb").songs(tmp_path)
    assert song.stems[0].path == f"a/{UUID}/bass/a.wav"
    assert f"there are two songs called '{UUID}', the first is taken" in caplog.text
