"""Songs that are files: sources in channels or streams, and corpora of mixtures only."""

import os
from pathlib import Path

import pytest

from manifests.corpora import get_corpus
from manifests.songs import count_problems
from pipelines.runner import RunnerConfig
from pipelines.scan import list_units, scan
from tests.support.corpora import write_layout
from tests.support.listings import codes, listed, refused, touch
from tests.support.sounding import SOUNDING, write_sounding
from tests.support.trees import make_tree

CHANNELS = {"song": "{song}.wav", "stems": None, "channels": {0: "piano", 1: "weird"}, "labels": {"weird": "cello"}}


def test_ikala_has_the_voice_on_the_right(tmp_path: Path) -> None:
    songs = listed("ikala", make_tree("ikala", tmp_path))
    assert sorted(songs) == ["Wavfile/10161_chorus", "Wavfile/21025_verse"]
    song = songs["Wavfile/10161_chorus"]
    assert [(stem.stem_id, stem.channel, stem.stream, stem.path) for stem in song.stems] == [
        ("accompaniment", 0, None, "Wavfile/10161_chorus.wav"),
        ("vocals", 1, None, "Wavfile/10161_chorus.wav"),
    ]
    assert (song.mixture, song.mixture_stream, song.residual_db) == ("Wavfile/10161_chorus.wav", None, -60)
    assert song.works == ("ikala:10161",)


def test_mir1k_leaves_out_the_whole_songs_and_tells_which_clips_are_of_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    songs = listed("mir1k", make_tree("mir1k", tmp_path))
    assert {song: listing.works for song, listing in songs.items()} == {
        "Wavfile/abjones_1_01": ("mir1k:abjones1",),
        "Wavfile/abjones_1_02": ("mir1k:abjones1",),
        "Wavfile/leon_8_11": ("mir1k:leon8",),
    }
    assert not caplog.records


def test_guitarset_strings_are_guitars_and_promise_no_sum(tmp_path: Path) -> None:
    root = make_tree("guitarset", tmp_path)
    touch(root, "audio_hex-pickup_debleeded/no mixture_hex_cln.wav")
    songs = listed("guitarset", root)
    song = songs["audio_hex-pickup_debleeded/00_BN1-129-Eb_comp"]
    assert {stem.instrument for stem in song.stems} == {"acoustic guitar"}
    assert song.mixture == "audio_mono-pickup_mix/00_BN1-129-Eb_comp_mix.wav"
    assert song.residual_db is None
    assert songs["audio_hex-pickup_debleeded/no mixture"].mixture is None


def test_mtg_jamendo_takes_its_subsets_from_the_lists(tmp_path: Path) -> None:
    root = touch(make_tree("mtg-jamendo", tmp_path), "audio/77/77.mp3", "audio/14/214.low.mp3")
    songs = listed("mtg-jamendo", root)
    assert {song: listing.subset for song, listing in songs.items()} == {
        "00/1009600": "test",
        "14/214": "train",
        "48/948": "validation",
        "77/77": "train",
    }
    assert codes(songs["77/77"]) == [("mixture_only", None), ("unknown_subset", None)]
    assert codes(songs["14/214"]) == [("mixture_only", None)]
    assert songs["14/214"].mixture == "audio/14/214.low.mp3", "the first of two qualities"
    assert not songs["14/214"].stems


def test_mtg_jamendo_without_lists_is_all_train(tmp_path: Path) -> None:
    songs = listed("mtg-jamendo", touch(tmp_path, "14/214.low.mp3", "00/1009600.low.mp3"))
    assert {song: (listing.subset, codes(listing)) for song, listing in songs.items()} == {
        "00/1009600": ("train", [("mixture_only", None)]),
        "14/214": ("train", [("mixture_only", None)]),
    }


@pytest.mark.parametrize("text", [b"TRACK_ID\nonly one column\n", b"\xff\xfe", "link", "pipe"])
def test_mtg_jamendo_refuses_a_list_that_is_none(text: bytes | str, tmp_path: Path) -> None:
    root = make_tree("mtg-jamendo", tmp_path / "root")
    path = root / "data/splits/split-0/autotagging-test.tsv"
    path.unlink()
    if text == "pipe":
        os.mkfifo(path)
    elif text == "link":
        (tmp_path / "outside.tsv").write_text("x\ta\tb\t00/1.mp3\n")
        path.symlink_to(tmp_path / "outside.tsv")
    elif isinstance(text, bytes):
        path.write_bytes(text)
    refused(lambda: listed("mtg-jamendo", root), str(path), "not the list of a split")


def test_a_song_with_a_mixture_only_is_a_row_and_no_failure(tmp_path: Path) -> None:
    root = make_tree("mtg-jamendo", tmp_path / "root")
    for path in root.rglob("*.mp3"):
        path.unlink()
    write_sounding(root, SOUNDING["mtg-jamendo"])
    out = tmp_path / "songs.parquet"
    first = scan([("mtg-jamendo", root)], out, runner=RunnerConfig(runner="local"))
    assert first.problems == {"mixture_only": 1}
    again = scan([("mtg-jamendo", root)], out, runner=RunnerConfig(runner="local"))
    assert (again.measured, again.reused) == (0, 1)


def test_a_layout_with_channels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layout = str(write_layout(tmp_path / "x.yaml", **CHANNELS, mixture="{song}.wav", ignore=["*.txt"]))
    root = touch(tmp_path / "root", "a.wav", "b.c.wav", ".hidden.wav", "notes.txt", "c.flac", "d.wav/e.wav")
    songs = listed(layout, root)
    assert sorted(songs) == ["a", "b.c", "d"], "d.wav is a folder, which the scan says"
    assert [(stem.stem_id, stem.path, stem.channel, stem.instrument) for stem in songs["b.c"].stems] == [
        ("piano", "b.c.wav", 0, None),
        ("weird", "b.c.wav", 1, "cello"),
    ]
    assert songs["a"].mixture == "a.wav"
    assert "1 files do not match '{song}.wav', such as 'c.flac'" in caplog.text
    (song, *_) = list_units([(layout, root)])
    assert [(stem.channel, stem.instrument) for stem in song.stems] == [(0, "piano"), (1, "cello")]


def test_a_layout_with_streams_and_names_of_works(tmp_path: Path) -> None:
    layout = str(
        write_layout(
            tmp_path / "x.yaml",
            song="{subset}/{song}.stem.mp4",
            stems=None,
            streams={2: "bass", 1: "drums"},
            mixture="{song}.stem.mp4",
            mixture_stream=0,
            works={"ours": "{song}", "place": "{subset} {song}"},
            residual_db=-12,
        )
    )
    song = listed(layout, touch(tmp_path / "root", "test/A & B.stem.mp4"))["test/A & B"]
    assert [(stem.label, stem.stream, stem.channel) for stem in song.stems] == [("drums", 1, None), ("bass", 2, None)]
    assert (song.mixture, song.mixture_stream, song.residual_db) == ("test/A & B.stem.mp4", 0, -12.0)
    assert song.works == ("ours:aandb", "place:testaandb")
    assert list_units([(layout, tmp_path / "root")])[0].extra["works"] == ["ours:aandb", "place:testaandb"]


def test_a_broken_link_is_a_song_and_a_mixture_that_the_scan_finds_missing(tmp_path: Path) -> None:
    layout = str(write_layout(tmp_path / "x.yaml", song="{song}.mp3", stems=[], mixture="{song}.mp3"))
    (tmp_path / "root").mkdir()
    (tmp_path / "root/a.mp3").symlink_to(tmp_path / "nothing.mp3")
    assert listed(layout, tmp_path / "root")["a"].mixture == "a.mp3"
    out = tmp_path / "songs.parquet"
    found = scan([(layout, tmp_path / "root")], out, runner=RunnerConfig(runner="local"))
    assert found.problems == {"mixture_only": 1, "mixture_unreadable": 1}


def test_a_link_out_of_the_root_is_a_row_and_not_gone_into(tmp_path: Path) -> None:
    outside = touch(tmp_path / "outside", "a.mp3", "b/a.mp3").resolve()
    layout = str(write_layout(tmp_path / "x.yaml", song="{folder}/{song}.mp3", stems=[], mixture="{song}.mp3"))
    root = touch(tmp_path / "root", "in/a.mp3")
    (root / "out").symlink_to(outside)
    (root / "in/b.mp3").symlink_to(outside / "a.mp3")
    (root / "in/c.mp3").symlink_to(outside / "b")
    songs = listed(layout, root)
    assert sorted(songs) == ["in/a", "in/b", "in/c", "out"]
    assert codes(songs["out"]) == [("outside_root", None)]
    assert songs["in/b"].mixture == "in/b.mp3"
    layout = str(write_layout(tmp_path / "y.yaml", song="{song}"))
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2/out").symlink_to(outside)
    touch(tmp_path / "root2", "in/a.wav", "in/b.wav")
    assert {song: codes(listing) for song, listing in listed(layout, tmp_path / "root2").items()} == {
        "in": [],
        "out": [("outside_root", None)],
    }
    (tmp_path / "root2/in").rename(tmp_path / "away")
    assert codes(listed(layout, tmp_path / "root2")["out"]) == [("outside_root", None)], "a row, though it is the only"
    (tmp_path / "root3").mkdir()
    (tmp_path / "root3/train").symlink_to(outside)
    assert codes(listed("musdb18", tmp_path / "root3")["train"]) == [("outside_root", None)]


def test_folders_with_mixtures_only(tmp_path: Path) -> None:
    layout = str(write_layout(tmp_path / "x.yaml", stems=[], mixture="mix.wav"))
    songs = listed(layout, touch(tmp_path / "root", "a/mix.wav", "a/drums.wav", "b/other.wav"))
    assert {song: (listing.mixture, codes(listing)) for song, listing in songs.items()} == {
        "a": ("a/mix.wav", [("mixture_only", None)]),
        "b": (None, [("mixture_only", None)]),
    }
    assert count_problems(list_units([(layout, tmp_path / "root")])) == {"mixture_only": 2}


def test_nothing_that_matches_is_refused(tmp_path: Path) -> None:
    layout = str(write_layout(tmp_path / "x.yaml", **CHANNELS))
    refused(lambda: listed(layout, touch(tmp_path / "root", "a.flac")), "no file matches '{song}.wav'")
    path = touch(tmp_path / "root", os.fsdecode(b"caf\xe9.wav"))
    assert list(listed(layout, path)) == [os.fsdecode(b"caf\xe9")]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stems": "{label}.wav"}, "stems and channels exclude each other"),
        ({"streams": {0: "a"}}, "channels and streams exclude each other"),
        ({"channels": None, "stems": "{label}.wav"}, "finds files, which have channels or streams"),
        ({"song": "{song}"}, "finds folders; let it end as the audio files do"),
        ({"channels": {0: "a", 1: "a"}}, "a label stands there twice"),
        ({"channels": {-1: "a"}}, "channels are counted from 0"),
        ({"channels": {"left": "a"}}, "channels: 'left' is no whole number"),
        ({"channels": {True: "a"}}, "channels: True is no whole number"),
        ({"channels": ["a", "b"]}, "channels is a mapping, not list"),
        ({"channels": {0: ["a"]}}, "channels is a text, not list"),
        ({"channels": None}, "stems missing"),
        ({"channels": {}}, "'stems: []' needs a mixture"),
        ({"residual_db": "low"}, "residual_db is a number, not 'low'"),
        ({"residual_db": True}, "residual_db is a number, not True"),
        ({"mixture_stream": 0.5}, "mixture_stream: 0.5 is no whole number"),
        ({"works": ["{song}"]}, "works is a mapping, not list"),
        ({"works": {"ours": "{title}"}}, "works: ours: the song pattern '{song}.wav' has no {title}"),
    ],
)
def test_wrong_keys_are_refused(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    path = str(write_layout(tmp_path / "x.yaml", **CHANNELS | changes))
    refused(lambda: get_corpus(path), words)
