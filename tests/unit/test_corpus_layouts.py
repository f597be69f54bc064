from pathlib import Path

import pytest

from manifests.labels import lookup
from tests.support.corpora import write_layout
from tests.support.listings import codes, listed, refused, touch
from tests.support.trees import make_tree


def instruments(name: str, root: Path, song: str) -> list[str]:
    return [lookup(stem.instrument or stem.label).instrument for stem in listed(name, root)[song].stems]


def test_dsd100_joins_its_twin_trees(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    songs = listed("dsd100", make_tree("dsd100", tmp_path))
    assert {song: (listing.subset, listing.mixture) for song, listing in songs.items()} == {
        "Sources/Dev/055 - A - B": ("train", "Mixtures/Dev/055 - A - B/mixture.wav"),
        "Sources/Test/001 - C - D": ("test", "Mixtures/Test/001 - C - D/mixture.wav"),
    }
    assert [stem.path for stem in songs["Sources/Dev/055 - A - B"].stems] == [
        f"Sources/Dev/055 - A - B/{name}.wav" for name in ("bass", "drums", "other", "vocals")
    ]
    assert not caplog.records
    (tmp_path / "Mixtures/Dev/055 - A - B/mixture.wav").unlink()
    assert listed("dsd100", tmp_path)["Sources/Dev/055 - A - B"].mixture is None


def test_ccmixter_has_the_voice_in_source_02(tmp_path: Path) -> None:
    song = listed("ccmixter", make_tree("ccmixter", tmp_path))["A_-_B_(with_c)"]
    assert [(stem.stem_id, lookup(stem.instrument or "").instrument) for stem in song.stems] == [
        ("source-01.wav", "other"),
        ("source-02.wav", "vocals"),
    ]
    assert lookup(song.stems[0].instrument or "").aggregate
    assert song.mixture == "A_-_B_(with_c)/mix.wav"


def test_bach10_labels_are_what_follows_the_title(tmp_path: Path) -> None:
    root = make_tree("bach10", tmp_path)
    song = "03-A-b"
    touch(root / song, f"{song}.wav", f"{song}-violin.wav", f"{song}-saxphone.wav", "04-C-violin.wav", f"{song}-x.mp3")
    listing = listed("bach10", root)[song]
    assert [stem.label for stem in listing.stems] == ["saxphone", "violin"]
    assert instruments("bach10", root, song) == ["saxophone", "violin"]
    assert listing.mixture == f"{song}/{song}.wav"
    assert listing.extra == {"leftover": ["03-A-b-x.mp3", "04-C-violin.wav"]}
    assert listed("bach10", root)["01-AchGottundHerr"].extra == {}


def test_urmp_codes_and_mt3_validation_pieces(tmp_path: Path) -> None:
    root = make_tree("urmp", tmp_path)
    touch(root / "45_New_vn_vc", "AuSep_1_vn_45_New.wav", "AuSep_2_vc_45_New.wav")
    songs = listed("urmp", root)
    assert {song: listing.subset for song, listing in songs.items() if not listing.problems} == {
        "01_Jupiter_vn_vc": "validation",
        "03_Dance_fl_cl": "train",
        "13_Hark_vn_vn_va": "validation",
    }
    assert codes(songs["45_New_vn_vc"]) == [("unknown_subset", None)]
    song = songs["13_Hark_vn_vn_va"]
    assert [stem.stem_id for stem in song.stems] == [
        "AuSep_1_vn_13_Hark.wav",
        "AuSep_2_vn_13_Hark.wav",
        "AuSep_3_va_13_Hark.wav",
    ]
    assert instruments("urmp", root, "13_Hark_vn_vn_va") == ["violin", "violin", "viola"]
    assert song.mixture == "13_Hark_vn_vn_va/AuMix_13_Hark_vn_vn_va.wav"
    assert song.extra == {}


def test_urmp_names_a_subset_for_each_of_its_44_pieces(tmp_path: Path) -> None:
    for number in range(1, 45):
        touch(tmp_path / f"{number:02d}_Piece_vn_vc", f"AuSep_1_vn_{number:02d}_Piece.wav")
    subsets = [listing.subset for listing in listed("urmp", tmp_path).values() if not listing.problems]
    assert (len(subsets), subsets.count("train"), subsets.count("validation")) == (44, 35, 9)


def test_cocochorales_subsets_follow_the_numbers(tmp_path: Path) -> None:
    root = make_tree("cocochorales", tmp_path / "with folders")
    songs = listed("cocochorales", root)
    assert {song: listing.subset for song, listing in songs.items()} == {
        "brass_track001222": "train",
        "random_track192001": "validation",
        "string_track240000": "test",
    }
    song = songs["brass_track001222"]
    assert [(stem.label, stem.path) for stem in song.stems][:2] == [
        ("trumpet", "train/brass_track001222/stems_audio/0_trumpet.wav"),
        ("horn", "train/brass_track001222/stems_audio/1_horn.wav"),
    ]
    assert song.mixture == "train/brass_track001222/mix.wav"
    assert song.extra == {}
    expected = ["oboe", "english horn", "double bass", "saxophone"]
    assert instruments("cocochorales", root, "random_track192001") == expected


def test_cocochorales_without_folders_and_with_wrong_numbers(tmp_path: Path) -> None:
    numbers = ("192000", "216000", "216001", "240001", "000000", "12", "x")
    for number in numbers:
        touch(tmp_path / f"string_track{number}", "stems_audio/0_violin.wav", "stems_audio/1_cello.wav")
    songs = listed("cocochorales", tmp_path)
    assert [songs[f"string_track{number}"].subset for number in numbers[:3]] == ["train", "validation", "test"]
    wrong = [song for song, listing in songs.items() if codes(listing) == [("unknown_subset", None)]]
    assert wrong == sorted(f"string_track{number}" for number in numbers[3:])


def test_cocochorales_takes_the_first_of_two_tracks_of_one_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in ("valid", "train"):
        touch(tmp_path / folder / "string_track000001", "stems_audio/0_violin.wav", "stems_audio/1_cello.wav")
    (song,) = listed("cocochorales", tmp_path).values()
    assert song.stems[0].path.startswith("train/")
    assert "two songs called 'string_track000001'" in caplog.text


def test_notes_and_ignored_folders_of_a_layout(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    layout = write_layout(tmp_path / "x.yaml", song="{a}-{b}", notes={"a-b": "noisy", "c-d": 7}, ignore=["docs*"])
    songs = listed(str(layout), touch(tmp_path / "root", "a-b/k.wav", "c-d/k.wav", "e-f/k.wav", "docs/k.wav"))
    assert [listing.extra for listing in songs.values()] == [{"notes": "noisy"}, {"notes": "7"}, {}]
    assert [[(p.code, p.detail) for p in listing.problems if p.code == "known_flaw"] for listing in songs.values()] == [
        [("known_flaw", "noisy")],
        [("known_flaw", "7")],
        [],
    ]
    assert "do not match" not in caplog.text


def test_a_name_of_the_song_stands_for_its_value(tmp_path: Path) -> None:
    layout = write_layout(
        tmp_path / "x.yaml", song="{artist}/{song}", stems=["{song}.{label}.wav"], mixture="{artist} {song}.wav"
    )
    song = "a*/b.(c)"
    names = ("b.(c).d.wav", "b.(c).wav", "bX(c).d.wav", "e.d.wav", "a* b.(c).wav")
    listing = listed(str(layout), touch(tmp_path / "root", *(f"{song}/{name}" for name in names)))[song]
    assert [(stem.stem_id, stem.label) for stem in listing.stems] == [("b.(c).d.wav", "d")]
    assert listing.mixture == "a*/b.(c)/a* b.(c).wav"
    assert listing.extra == {"leftover": ["b.(c).wav", "bX(c).d.wav", "e.d.wav"]}


def test_a_label_in_the_song_pattern_is_not_that_of_a_stem(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "x.yaml", song="{label}", stems=["{label}.wav"])
    song = listed(str(layout), touch(tmp_path / "root", "a/b.wav", "a/a.wav"))["a"]
    assert [stem.label for stem in song.stems] == ["a", "b"]


def test_a_mixture_with_an_unknown_name_or_above_the_root_is_refused(tmp_path: Path) -> None:
    for mixture, word in (("{title}.wav", "no {title}"), ("{root}.wav", "no {root}"), ("{root}/../x.wav", "no '..'")):
        layout = str(write_layout(tmp_path / "x.yaml", mixture=mixture))
        refused(lambda layout=layout: listed(layout, tmp_path), word)  # type: ignore[misc]
