"""One battery over every corpus that the registry knows, each on a tree in its true layout."""

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifests.atomic import canonical_json
from manifests.corpora import SongListing, corpus_names, get_corpus
from manifests.errors import CorpusError
from manifests.labels import UNMAPPED, lookup
from manifests.songs import SUBSETS, inside, read_songs, write_songs
from pipelines.scan import list_units
from tests.support.listings import codes, listed
from tests.support.trees import TREES, make_tree

# A song's subset follows from which others are there.
DRAWN_SPLITS = {"moisesdb"}
HOSTILE = [os.fsencode(name) for name in ('it\'s "x"\n', "a\\b", "*?[a]", "-rf", "{label}", "%s", " ", "\u30ae", "~")]
HOSTILE += [b"caf\xe9", b"\xff\xfe", b"\x1b[31m", b"._x", b".hidden", b"con.", b"x" * 200]

every_corpus = pytest.mark.parametrize("name", corpus_names())


def stems_of(songs: dict[str, SongListing]) -> dict[str, list[tuple[str, str, int | None, int | None, str]]]:
    return {
        song: [(stem.stem_id, stem.path, stem.stream, stem.channel, stem.label) for stem in listing.stems]
        for song, listing in songs.items()
    }


def folders_of(root: Path) -> list[Path]:
    return sorted([root, *(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())])


def check_places(root: Path, songs: dict[str, SongListing]) -> None:
    for listing in songs.values():
        mixture = [listing.mixture] if listing.mixture else []
        for path in [stem.path for stem in listing.stems] + mixture:
            assert not path.startswith("/")
            assert inside(root, path) is not None


def test_every_corpus_has_a_tree() -> None:
    assert sorted(TREES) == corpus_names()


@every_corpus
def test_the_contract(name: str, tmp_path: Path) -> None:
    root = make_tree(name, tmp_path)
    corpus = get_corpus(name)
    listings = list(corpus.songs(root))
    assert (corpus.name, bool(corpus.license), bool(corpus.citation)) == (name, True, True)
    assert "\n" not in corpus.license + corpus.citation
    assert len({listing.song for listing in listings}) == len(listings) >= 2
    for listing in listings:
        assert listing.song.strip("/ ") == listing.song != ""
        assert listing.license
        assert listing.subset in SUBSETS
        only_a_mixture = codes(listing) == [("mixture_only", None)]
        assert len(listing.stems) >= 2 or (only_a_mixture and listing.mixture and not listing.stems)
        assert len({stem.stem_id for stem in listing.stems}) == len(listing.stems)
        places = {(stem.path, stem.stream, stem.channel) for stem in listing.stems}
        assert len(places) == len(listing.stems)
        assert (listing.mixture, listing.mixture_stream, None) not in places
        for path in [stem.path for stem in listing.stems] + ([listing.mixture] if listing.mixture else []):
            assert (root / path).is_file()
        canonical_json(listing.extra)
    check_places(root, {listing.song: listing for listing in listings})


@every_corpus
def test_every_label_is_in_the_vocabulary(name: str, tmp_path: Path) -> None:
    for listing in listed(name, make_tree(name, tmp_path)).values():
        for stem in listing.stems:
            assert lookup(stem.instrument or stem.label).family != UNMAPPED, stem
            # A corpus that names an instrument names a canonical one or an alias of it.
            assert stem.instrument is None or lookup(stem.instrument).instrument


@every_corpus
def test_nothing_of_a_sound_tree_is_left_over_or_wrong(name: str, tmp_path: Path) -> None:
    for song, listing in listed(name, make_tree(name, tmp_path)).items():
        assert "leftover" not in listing.extra
        assert [problem.code for problem in listing.problems] in (
            *([], ["excluded"], ["mixture_only"]),
            *(["known_defect"], ["known_flaw"]),
        ), song


@every_corpus
def test_listing_twice_in_any_order_and_from_anywhere_is_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree(name, tmp_path / "root")
    expected = list(get_corpus(name).songs(root))
    assert list(get_corpus(name).songs(root)) == expected
    hostile = tmp_path / os.fsdecode(b"it's {song}\n*caf\xe9")
    (tmp_path / "link").symlink_to(root)
    for place in (shutil.copytree(root, hostile), tmp_path / "link"):
        assert list(get_corpus(name).songs(place)) == expected
    monkeypatch.chdir(tmp_path)
    assert list(get_corpus(name).songs(Path("root"))) == expected
    listdir, shuffled = os.listdir, random.Random(0)
    monkeypatch.setattr(os, "listdir", lambda folder=".": shuffled.sample(names := listdir(folder), len(names)))
    for _ in range(3):
        assert list(get_corpus(name).songs(root)) == expected


@every_corpus
def test_a_song_is_the_same_without_the_others(name: str, tmp_path: Path) -> None:
    root = make_tree(name, tmp_path)
    before = listed(name, root)
    first = min(before)
    for path in {*(stem.path for stem in before[first].stems), before[first].mixture}:
        if path:
            (root / path).unlink()
    for folder in reversed(folders_of(root)):
        if folder.name == first.rsplit("/", 1)[-1]:
            shutil.rmtree(folder)
    after = listed(name, root)
    assert after.keys() == before.keys() - {first}
    if name not in DRAWN_SPLITS:
        assert after == {song: listing for song, listing in before.items() if song != first}
    assert stems_of(after) == stems_of({song: before[song] for song in after})


@every_corpus
def test_hostile_names_everywhere_change_no_song(name: str, tmp_path: Path) -> None:
    root = make_tree(name, tmp_path / "root")
    before = listed(name, root)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret.wav").touch()
    for folder in folders_of(root):
        for hostile in map(os.fsdecode, HOSTILE):
            (folder / hostile).touch()
            (folder / f"{hostile}.txt").touch()
            (folder / f"d{hostile}").mkdir()
        (folder / "loop").symlink_to(folder)
        (folder / "circle").symlink_to(folder / "circle")
        (folder / "broken").symlink_to(tmp_path / "nothing")
        (folder / "outside").symlink_to(tmp_path / "outside")
        os.mkfifo(folder / "fifo")
    after = listed(name, root)
    assert {song: stems for song, stems in stems_of(after).items() if song in before} == stems_of(before)
    for song, listing in before.items():
        assert (after[song].subset, after[song].mixture) == (listing.subset, listing.mixture)
    check_places(root, {song: after[song] for song in before})
    list_units([(name, root)])


@every_corpus
def test_hostile_audio_everywhere_reaches_the_manifest(name: str, tmp_path: Path) -> None:
    root = make_tree(name, tmp_path / "root")
    before = listed(name, root)
    for folder in folders_of(root):
        for hostile in map(os.fsdecode, HOSTILE):
            for suffix in (".wav", ".flac", ".stem.mp4", ".WAV"):
                (folder / f"{hostile}{suffix}").touch()
    after = listed(name, root)
    for song, stems in stems_of(before).items():
        assert {*stems} <= {*stems_of(after)[song]}
    check_places(root, after)
    songs = list_units([(name, root)])
    write_songs(tmp_path / "songs.parquet", songs)
    assert {song.song_id for song in read_songs(tmp_path / "songs.parquet")} >= {f"{name}/{song}" for song in before}


@every_corpus
def test_any_unreadable_folder_is_a_problem_or_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_tree(name, tmp_path)
    expected = listed(name, root)
    listdir = os.listdir
    denied: Path

    def deny(folder: Path) -> list[str]:
        if Path(folder) == denied:
            raise PermissionError(13, "Permission denied", str(folder))
        return listdir(folder)

    folders = folders_of(root)
    monkeypatch.setattr(os, "listdir", deny)
    for folder in folders:
        denied = folder
        try:
            songs = listed(name, root)
        except CorpusError as error:
            assert "Permission denied" in str(error)  # noqa: PT017
            continue
        changed = [song for song in expected if songs.get(song) != expected[song]]
        assert all(songs[song].problems for song in changed if songs[song].stems != expected[song].stems)


@every_corpus
@settings(max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_tree_around_the_songs_is_survived(name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = make_tree(name, Path(place) / "root")
        before = stems_of(listed(name, root))
        names = st.binary(min_size=1, max_size=20).map(lambda raw: raw.translate(None, b"/\0")).filter(len)
        suffixes = st.sampled_from(["", ".wav", ".mid", ".yaml", ".json", "_STEMS", ".stem.mp4", "_track000001"])
        folders = folders_of(root)
        for _ in range(data.draw(st.integers(1, 8))):
            folder = data.draw(st.sampled_from(folders))
            path = folder / (os.fsdecode(data.draw(names)) + data.draw(suffixes))
            if os.path.lexists(path):
                continue
            match data.draw(st.sampled_from(["file", "folder", "loop", "link"])):
                case "file":
                    path.write_bytes(data.draw(st.binary(max_size=30)))
                case "folder":
                    path.mkdir()
                    folders.append(path)
                case "loop":
                    path.symlink_to(path)
                case "link":
                    path.symlink_to(folder)
        after = listed(name, root)
        assert all({*stems} <= {*stems_of(after)[song]} for song, stems in before.items())
        for listing in after.values():
            assert all(not stem.path.startswith(("/", "../")) for stem in listing.stems)
        list_units([(name, root)])
