from collections import Counter
from pathlib import Path

import pytest

from manifests.corpora import SongListing, get_corpus
from tests.support.listings import codes, listed, slakh_song, touch

SIZES = {"train": (1, 1501), "validation": (1501, 1876), "test": (1876, 2101)}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original with no stems."""
    root = tmp_path_factory.mktemp("slakh")
    for subset, (first, end) in SIZES.items():
        for number in range(first, end):
            (root / subset / f"Track{number:05d}").mkdir(parents=True)
    return root


def subsets(songs: dict[str, SongListing], code: str | None = None) -> Counter[str]:
    """How many songs are in each subset, and how many of them have the problem ``code``."""
    chosen = [song for song in songs.values() if code is None or code in [problem.code for problem in song.problems]]
    return Counter(song.subset for song in chosen)


def test_the_redux_omits_390_of_the_2100_tracks(original: Path) -> None:
    songs = listed("slakh2100-redux", original)
    assert subsets(songs) == {"train": 1500, "validation": 375, "test": 225}
    assert subsets(songs, "excluded") == {"train": 211, "validation": 105, "test": 74}
    assert subsets(listed("slakh2100", original), "excluded") == {}


def test_the_second_split_moves_328_tracks_and_keeps_the_sizes(original: Path) -> None:
    songs = listed("slakh2100-splits-v2", original)
    assert subsets(songs) == {"train": 1500, "validation": 375, "test": 225}
    assert subsets(songs, "excluded") == {}
    moves = Counter((song.split("/")[0], listing.subset) for song, listing in songs.items())
    assert {move: count for move, count in moves.items() if move[0] != move[1]} == {
        ("train", "validation"): 94,
        ("train", "test"): 57,
        ("validation", "train"): 94,
        ("validation", "test"): 13,
        ("test", "train"): 57,
        ("test", "validation"): 13,
    }


def test_moved_folders_keep_the_subset_of_the_second_split(original: Path, tmp_path: Path) -> None:
    songs = listed("slakh2100-splits-v2", original)
    moved = next(song for song, listing in songs.items() if song.split("/")[0] != listing.subset)
    slakh_song(tmp_path, f"{songs[moved].subset}/{moved.split('/')[1]}")
    (song,) = listed("slakh2100-splits-v2", tmp_path).values()
    assert song.subset == songs[moved].subset


def test_omitted_folders_are_excluded_in_every_split(tmp_path: Path) -> None:
    slakh_song(tmp_path, "omitted/Track00001")
    for name in ("slakh2100", "slakh2100-redux", "slakh2100-splits-v2"):
        assert get_corpus(name).name == name
        assert codes(listed(name, tmp_path)["omitted/Track00001"]) == [("excluded", None)]


def test_known_defects_of_stems_are_told(tmp_path: Path) -> None:
    for song in ("train/Track00357", "train/Track00358", "train/Track00496", "train/Trackless"):
        slakh_song(tmp_path, song)
    assert codes(listed("slakh2100", tmp_path)["train/Track00357"]) == [], "the stem is not there"
    touch(tmp_path / "train/Track00357", "stems/S03.flac")
    songs = listed("slakh2100", tmp_path)
    assert songs["train/Track00357"].extra["defects"] == {"S03": "white noise"}
    assert [(p.code, p.stem_id, p.detail) for p in songs["train/Track00357"].problems][-1] == (
        "known_defect",
        "S03",
        "white noise",
    )
    assert codes(songs["train/Track00496"]) == [("known_flaw", "S01")]
    assert ["defects" in songs[f"train/Track{end}"].extra for end in ("00358", "less")] == [False, False]
