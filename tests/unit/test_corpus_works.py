"""One song in several corpora: one work in all of them."""

from pathlib import Path

import pytest

from manifests.corpora.works import work
from pipelines.scan import list_units
from tests.support.listings import listed, slakh_song, touch
from tests.support.trees import medleydb_song

STEMS = ("vocals.wav", "drums.wav", "bass.wav", "other.wav")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("AvaLuna - Waterduct", "Ava Luna - Waterduct"),
        ("055 - Angels In Amplifiers - I'm Alright", "Angels in Amplifiers - Im Alright"),
        ("Clara Berry And Wooldog - Stella", "Clara Berry & Wooldog - Stella"),
        ("Enda Reilly - Cur An Long Ag Seol", "Enda Reilly - Cúr An Long Ag Seol"),
        ("Jokers, Jacks & Kings - Sea Of Leaves", "Jokers Jacks & Kings - Sea Of Leaves"),
    ],
)
def test_spellings_of_one_name_are_one_work(one: str, other: str) -> None:
    assert work("musdb18", one) == work("musdb18", other)


def test_other_names_are_other_works() -> None:
    names = ["A - B", "A - C", "001 - A - D", "100 Onces - E", "Music Delta - Country1", "Music Delta - Country2"]
    names += ["ギター", "ピアノ", "?!", "..."]
    assert len({work("x", name) for name in names}) == len(names)
    assert work("x", "A - B") != work("y", "A - B")


def test_musdb18_its_hq_version_dsd100_and_medleydb_share_works(tmp_path: Path) -> None:
    song = "Clara Berry And Wooldog - Stella"
    touch(tmp_path / "musdb18", f"train/{song}.stem.mp4")
    touch(tmp_path / "musdb18hq" / "train" / song, *STEMS)
    touch(tmp_path / "dsd100/Sources/Dev" / f"057 - {song}", *STEMS)
    medleydb_song(tmp_path / "medleydb/Audio/ClaraBerryAndWooldog_Stella", ("piano", "violin"))
    medleydb_song(tmp_path / "medleydb/Audio/A_B", ("piano", "violin"))
    works = {}
    for name in ("musdb18", "musdb18hq", "dsd100", "medleydb"):
        works |= {f"{name}/{key}": listing.works for key, listing in listed(name, tmp_path / name).items()}
    expected = ("musdb18:claraberryandwooldogstella",)
    assert works == {
        f"musdb18/train/{song}": expected,
        f"musdb18hq/train/{song}": expected,
        f"dsd100/Sources/Dev/057 - {song}": expected,
        "medleydb/ClaraBerryAndWooldog_Stella": expected,
        "medleydb/A_B": (),
    }
    songs = list_units([(name, tmp_path / name) for name in ("dsd100", "medleydb")])
    assert [song.extra.get("works") for song in songs] == [[*expected], None, [*expected]]


def test_tracks_of_one_midi_file_are_one_work(tmp_path: Path) -> None:
    for track in ("train/Track00001", "test/Track01876", "train/Track00002"):
        slakh_song(tmp_path, track)
    for track, uuid in (("train/Track00001", "1a81"), ("test/Track01876", "1a81"), ("train/Track00002", "[]")):
        path = tmp_path / track / "metadata.yaml"
        lines = [line for line in path.read_text().splitlines() if not line.startswith("UUID")]
        path.write_text("\n".join([*lines, f"UUID: {uuid}"]))
    assert {song: listing.works for song, listing in listed("slakh2100", tmp_path).items()} == {
        "train/Track00001": ("lakh:1a81",),
        "test/Track01876": ("lakh:1a81",),
        "train/Track00002": (),
    }


def test_promised_sums(tmp_path: Path) -> None:
    slakh_song(tmp_path / "slakh2100", "Track00001")
    touch(tmp_path / "musdb18hq/train/A - B", *STEMS, "mixture.wav")
    touch(tmp_path / "musdb18", "train/A - B.stem.mp4")
    medleydb_song(tmp_path / "medleydb/A_B", ("piano", "violin"))
    promised = {
        name: next(iter(listed(name, tmp_path / name).values())).residual_db
        for name in ("slakh2100", "musdb18hq", "musdb18", "medleydb")
    }
    assert promised == {"slakh2100": -40, "musdb18hq": -30, "musdb18": -10, "medleydb": None}
