import os
import random
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml

from manifests.corpora import Corpus, corpus_names, get_corpus, registry
from manifests.songs import SUBSETS, inside
from tests.support.corpora import write_layout
from tests.support.listings import codes, listed, refused, slakh_song, touch

EXAMPLES = Path(__file__).parents[2] / "examples"


def make_slakh(root: Path) -> str:
    slakh_song(root, "train/Track00001")
    slakh_song(root, "test/Track00002", ("Guitar", "Piano", "Bass"))
    return "slakh2100"


def make_babyslakh(root: Path) -> str:
    slakh_song(root, "Track00001")
    return "slakh2100"


def make_musdb(root: Path) -> str:
    for song in ("train/A - B", "train/Young Griffo - Pennies", "test/C - D"):
        touch(root / song, *(f"{stem}.wav" for stem in ("mixture", "vocals", "drums", "bass", "other")))
    return "musdb18hq"


def make_folders(root: Path) -> str:
    touch(root, "b/drums.wav", "b/VOX & 'lead'\n.flac", "a/drums.wav", "a/bass.wav", "a/notes.txt")
    return str(write_layout(root.with_name("layout.yaml")))


def make_examples_slakh(root: Path) -> str:
    root.symlink_to(EXAMPLES / "minislakh")
    return "slakh2100"


def make_examples_folders(root: Path) -> str:
    root.symlink_to(EXAMPLES / "everything-is-free")
    return str(EXAMPLES / "everything-is-free.yaml")


CORPORA = [make_slakh, make_babyslakh, make_musdb, make_folders, make_examples_slakh, make_examples_folders]


@pytest.mark.parametrize("make", CORPORA)
def test_contract_of_every_corpus(make: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "root"
    name = make(root)
    corpus: Corpus = get_corpus(name)
    listings = list(corpus.songs(root))
    assert corpus.name
    assert corpus.license
    assert corpus.citation or name.endswith("layout.yaml")
    assert len({listing.song for listing in listings}) == len(listings) > 0
    for listing in listings:
        assert listing.subset in SUBSETS
        assert listing.license
        assert len({stem.stem_id for stem in listing.stems}) == len(listing.stems) >= 2
        assert listing.mixture is None or listing.mixture not in {stem.path for stem in listing.stems}
        for path in [stem.path for stem in listing.stems] + ([listing.mixture] if listing.mixture else []):
            place = inside(root, path)
            assert place is not None
            assert place.is_file()
    shuffled = random.Random(0)
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: shuffled.sample(names := listdir(folder), len(names)))
    assert list(get_corpus(name).songs(root)) == listings


@pytest.mark.parametrize("make", CORPORA)
def test_ids_do_not_depend_on_which_songs_are_there(make: Callable[[Path], str], tmp_path: Path) -> None:
    root = tmp_path / "root"
    name = make(root)
    before = {song: [stem.stem_id for stem in listing.stems] for song, listing in listed(name, root).items()}
    if root.is_symlink():
        root = root.resolve()
        copy = tmp_path / "copy"
        songs = [song for song in before if song != min(before)]
        for song in songs:
            shutil.copytree(root / song, copy / song)
        assert set(listed(name, copy)) == set(songs)
        return
    first = min(before)
    (root / first).rename(tmp_path / "away")
    if len(before) > 1:
        after = {song: [stem.stem_id for stem in listing.stems] for song, listing in listed(name, root).items()}
        assert after == {song: stems for song, stems in before.items() if song != first}
    else:
        refused(lambda: listed(name, root), str(root))


@pytest.mark.parametrize("name", corpus_names())
def test_a_folder_that_is_no_corpus_and_an_empty_one_are_refused(name: str, tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "readme.txt", "photos/a.jpg", "train/x/notes.txt")
    (tmp_path / "empty").mkdir()
    for folder in (root, tmp_path / "empty", tmp_path / "none", root / "readme.txt"):
        refused(partial(listed, name, folder), str(folder))


def test_every_shipped_layout_is_called_as_its_file() -> None:
    assert {"slakh2100", "musdb18hq"} <= set(corpus_names())
    for name in corpus_names():
        assert get_corpus(name).name == name


def test_unknown_corpora_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    refused(lambda: get_corpus("nonsense"), "nonsense: no such corpus", "musdb18hq, slakh2100")
    refused(lambda: get_corpus("../layouts/musdb18hq"), "no such corpus")
    refused(lambda: get_corpus(str(tmp_path / "none.yaml")), "none.yaml", "No such file")


def test_a_third_party_adds_a_corpus_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "theirs"

        def load(self) -> type:
            return type("Theirs", (), {"name": "theirs"})

    def points(group: str, name: str | None = None) -> list[Point]:
        assert group == "mgeldm.corpora"
        return [Point()] if name in (None, "theirs") else []

    monkeypatch.setattr(registry, "entry_points", points)
    assert "theirs" in corpus_names()
    assert get_corpus("theirs").name == "theirs"


def test_musdb_has_14_validation_songs(tmp_path: Path) -> None:
    songs = listed(make_musdb(tmp_path / "root"), tmp_path / "root")
    assert {song: listing.subset for song, listing in songs.items()} == {
        "train/A - B": "train",
        "train/Young Griffo - Pennies": "validation",
        "test/C - D": "test",
    }
    assert [stem.label for stem in songs["test/C - D"].stems] == ["bass", "drums", "other", "vocals"]
    assert songs["test/C - D"].mixture == "test/C - D/mixture.wav"
    names = yaml.safe_load((Path(registry.__file__).with_name("layouts") / "musdb18hq.yaml").read_text())["subsets"]
    assert len(names) == 14
    assert set(names.values()) == {"validation"}


def test_a_layout_reads_fields_labels_and_leftovers(tmp_path: Path) -> None:
    layout = write_layout(
        tmp_path / "x.yaml",
        song="{subset}/{artist} - {song}",
        stems=["{label}.wav", "src/{take}_{label}.wav"],
        mixture="mix/full.wav",
        ignore=["*.txt"],
        subset="validation",
        subsets={"dev": "validation", "train/C - D": "test"},
        labels={"weird": "cello"},
    )
    root = touch(
        tmp_path / "root",
        *(f"{song}/{name}" for song in ("dev/A - B", "train/C - D", "train/E - F", "old/G - H") for name in ("k.wav",)),
        "dev/A - B/src/1_weird.wav",
        "dev/A - B/src/deep/1_weird.wav",
        "dev/A - B/mix/full.wav",
        "dev/A - B/mix/else.wav",
        "dev/A - B/.k.wav",
        "dev/A - B/notes.txt",
        "dev/A - B/.git/config",
        "dev/nothing like it/k.wav",
        "dev/.hidden - x/k.wav",
    )
    songs = listed(str(layout), root)
    assert {song: listing.subset for song, listing in songs.items()} == {
        "dev/A - B": "validation",
        "old/G - H": "validation",
        "train/C - D": "test",
        "train/E - F": "train",
    }
    assert [song for song, listing in songs.items() if listing.problems] == ["old/G - H"]
    assert codes(songs["old/G - H"]) == [("unknown_subset", None)]
    song = songs["dev/A - B"]
    assert [(stem.stem_id, stem.label, stem.instrument) for stem in song.stems] == [
        ("k.wav", "k", None),
        ("src/1_weird.wav", "weird", "cello"),
    ]
    assert song.mixture == "dev/A - B/mix/full.wav"
    assert song.extra == {"leftover": [".git", ".k.wav", "mix/else.wav", "src/deep"]}


def test_folders_that_match_nothing_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layout = write_layout(tmp_path / "x.yaml", song="{artist} - {song}")
    listed(str(layout), touch(tmp_path / "root", "a - b/k.wav", "c/k.wav", "d/k.wav"))
    assert "2 folders do not match '{artist} - {song}', such as 'c'" in caplog.text


def test_names_may_hold_anything(tmp_path: Path) -> None:
    song, stem = 'it\'s a "song"\n, really {x} *', os.fsdecode(b"caf\xe9 'x' \\ [a]")
    root = touch(tmp_path / "root", f"{song}/{stem}.wav", f"{song}/b.wav")
    listing = listed(str(write_layout(tmp_path / "x.yaml")), root)[song]
    assert [stem.label for stem in listing.stems] == ["b", stem]
    assert listing.stems[1].path == f"{song}/{stem}.wav"


def test_links_are_followed_to_songs_but_not_inside_them(tmp_path: Path) -> None:
    root = touch(tmp_path / "root", "real/k.wav", "real/sub/k.wav")
    (root / "linked").symlink_to(root / "real")
    (root / "self").symlink_to(root / "self")
    (root / "real/loop").symlink_to(root / "real")
    (root / "real/broken.wav").symlink_to(root / "nowhere.wav")
    (root / "real/circle.wav").symlink_to(root / "real/circle.wav")
    layout = write_layout(tmp_path / "x.yaml", stems=["{label}.wav", "{folder}/{label}.wav"])
    songs = listed(str(layout), root)
    assert set(songs) == {"real", "linked"}
    expected = ["broken.wav", "circle.wav", "k.wav", "sub/k.wav"]
    assert [stem.stem_id for stem in songs["real"].stems] == expected
    assert [stem.path for stem in songs["linked"].stems] == [f"linked/{name}" for name in expected]
    assert songs["real"].extra == {"leftover": ["loop"]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"colour": "blue", "zap": 1}, ["unknown key colour, zap", "known: channels, citation"]),
        ({"name": None}, ["name missing"]),
        ({"stems": []}, ["stems missing"]),
        ({"name": "a/b"}, ["a name is letters"]),
        ({"license": {"url": "x"}}, ["the id of license is a text, not NoneType"]),
        ({"song": "/data/{song}"}, ["'/data/{song}' is no path below the root"]),
        ({"song": "../{song}"}, ["'../{song}'"]),
        ({"song": "{song}/"}, ["'{song}/'"]),
        ({"song": ["{song}"]}, ["song is a text, not list"]),
        ({"stems": ["../{label}.wav"]}, ["'../{label}.wav'"]),
        ({"stems": ["a/./{label}.wav"]}, ["is no path below the root"]),
        ({"stems": "*.wav"}, ["'*.wav' has no {label}"]),
        ({"stems": ["{label}/{label}.wav"]}, ["'{label}/{label}.wav' is wrong", "label"]),
        ({"stems": ["{1x}{label}.wav"]}, ["is wrong"]),
        ({"stems": {"label": 1}}, ["stems is a text, not dict"]),
        ({"stems": [["{label}.wav"]]}, ["stems is a text, not list"]),
        ({"mixture": "../mix.wav"}, ["'../mix.wav' is no path below the root"]),
        ({"mixture": ["mix.wav"]}, ["mixture is a text, not list"]),
        ({"subset": "dev"}, ["subset 'dev' is none of train, validation, test"]),
        ({"subsets": {"a": "dev"}}, ["subset 'dev'"]),
        ({"subsets": ["a"]}, ["subsets is a mapping, not list"]),
        ({"labels": {"a": ["b"]}}, ["labels is a text, not list"]),
    ],
)
def test_a_wrong_layout_is_refused_with_the_key(tmp_path: Path, changes: dict[str, object], words: list[str]) -> None:
    path = write_layout(tmp_path / "x.yaml", **changes)
    refused(lambda: get_corpus(str(path)), *words)


def test_a_layout_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for text in ("", "- a", "a: [", "a: 2020-13-01", "just words"):
        path.write_text(text)
        refused(lambda: get_corpus(str(path)), str(path))
    path.write_bytes(b"\xff\xfe")
    refused(lambda: get_corpus(str(path)), str(path))
    refused(lambda: get_corpus(f"{tmp_path}/folder.yaml"), "folder.yaml")


def test_an_unreadable_folder_of_a_song_is_its_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = touch(tmp_path / "root", "a/k.wav", "b/k.wav", "b/c.wav")
    slakh = tmp_path / "slakh"
    slakh_song(slakh, "train/Track00001")
    layout = str(write_layout(tmp_path / "x.yaml"))
    listdir = os.listdir

    def deny(folder: Path) -> list[str]:
        if Path(folder).name in ("a", "stems"):
            raise PermissionError(13, "Permission denied", str(folder))
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", deny)
    songs = listed(layout, root)
    assert codes(songs["a"]) == [("unreadable", None)]
    assert codes(songs["b"]) == []
    song = listed("slakh2100", slakh)["train/Track00001"]
    assert codes(song) == [("unreadable", None), ("no_audio", None), ("no_audio", None)]


def test_an_unreadable_root_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slakh_song(tmp_path, "train/Track00001")
    layout = str(write_layout(tmp_path / "x.yaml", song="{subset}/{song}"))

    def deny(folder: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "listdir", deny)
    refused(lambda: listed(layout, tmp_path), str(tmp_path), "Permission denied")
    refused(lambda: listed("slakh2100", tmp_path), str(tmp_path), "Permission denied")
