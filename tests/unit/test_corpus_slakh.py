from pathlib import Path

import pytest
import yaml

from tests.support.listings import codes, listed, slakh_song, touch


def test_slakh_takes_labels_from_metadata_and_existence_from_the_disk(tmp_path: Path) -> None:
    song = slakh_song(tmp_path, "train/Track00001", ("Drums", "Bass", "Piano"))
    (song / "stems/S01.flac").unlink()
    touch(song / "stems", "S07.wav", "S07.flac", "._S02.flac", "S05.mid", ".DS_Store")
    listing = listed("slakh2100", tmp_path)["train/Track00001"]
    assert [(stem.stem_id, stem.label, stem.path.rsplit("/", 1)[1]) for stem in listing.stems] == [
        ("S00", "Drums", "S00.flac"),
        ("S02", "Piano", "S02.flac"),
        ("S07", "other", "S07.flac"),
    ]
    assert codes(listing) == [("no_audio", None), ("unlabelled", "S07")]
    assert "S01 (Bass 1)" in listing.problems[0].detail
    assert listing.mixture == "train/Track00001/mix.flac"
    assert listing.extra["uuid"] == "track00001"
    assert listing.extra["programs"] == {"S00": "Drums 1", "S01": "Bass 1", "S02": "Piano 1"}
    assert listing.extra["leftover"] == [".DS_Store", "._S02.flac", "S05.mid", "S07.wav"]


def test_slakh_subsets_are_folders_and_omitted_songs_are_not_used(tmp_path: Path) -> None:
    for song in ("train/Track00001", "validation/Track00002", "test/Track00003", "omitted/Track00004", "Track00005"):
        slakh_song(tmp_path, song)
    songs = listed("slakh2100", tmp_path)
    assert {song: listing.subset for song, listing in songs.items()} == {
        "train/Track00001": "train",
        "validation/Track00002": "validation",
        "test/Track00003": "test",
        "omitted/Track00004": "train",
        "Track00005": "train",
    }
    assert [song for song, listing in songs.items() if codes(listing)] == ["omitted/Track00004"]
    assert codes(songs["omitted/Track00004"]) == [("excluded", None)]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (None, "No such file"),
        ("", "a mapping was expected, not NoneType"),
        ("[1, 2]", "a mapping was expected, not list"),
        ("stems: {S00: [", "not readable as YAML"),
        ("UUID: 2020-99-99\nstems: {}", "not readable as YAML"),
        ("a" * 5 + ": " + "[" * 5000, "not readable as YAML"),
        ("UUID: x", "'stems' is not a mapping but NoneType"),
        ("stems:", "'stems' is not a mapping but NoneType"),
        ("stems: [S00, S01]", "'stems' is not a mapping but list"),
        (b"\xff\xfe\x00", "not readable as YAML"),
    ],
)
def test_slakh_metadata_that_cannot_be_used_is_a_problem_of_the_song(
    tmp_path: Path, text: str | bytes | None, word: str
) -> None:
    slakh_song(tmp_path, "train/Track00001")
    path = slakh_song(tmp_path, "train/Track00002") / "metadata.yaml"
    path.unlink()
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    songs = listed("slakh2100", tmp_path)
    assert codes(songs["train/Track00001"]) == []
    assert codes(songs["train/Track00002"]) == [("metadata", None)]
    assert word in songs["train/Track00002"].problems[0].detail
    assert "\n" not in songs["train/Track00002"].problems[0].detail
    assert [stem.label for stem in songs["train/Track00002"].stems] == ["other", "other"]


def test_slakh_entries_of_wrong_types_are_unlabelled(tmp_path: Path) -> None:
    song = slakh_song(tmp_path, "train/Track00001", ("a",) * 5)
    entries = {"S00": None, "S01": "Drums", "S02": {"inst_class": ["Drums"]}, "S03": {"inst_class": "Bass"}, 7: {}}
    (song / "metadata.yaml").write_text(yaml.safe_dump({"UUID": 5, "stems": entries}))
    listing = listed("slakh2100", tmp_path)["train/Track00001"]
    assert [stem.label for stem in listing.stems] == ["other", "other", "other", "Bass", "other"]
    assert codes(listing) == [
        ("no_audio", None),
        ("unlabelled", "S00"),
        ("unlabelled", "S01"),
        ("unlabelled", "S02"),
        ("unlabelled", "S04"),
    ]
    assert listing.extra["uuid"] is None


def test_slakh_metadata_outside_the_root_is_not_read(tmp_path: Path) -> None:
    song = slakh_song(tmp_path / "root", "train/Track00001")
    (song / "metadata.yaml").rename(tmp_path / "metadata.yaml")
    (song / "metadata.yaml").symlink_to(tmp_path / "metadata.yaml")
    assert codes(listed("slakh2100", tmp_path / "root")["train/Track00001"]) == [("metadata", None)]
