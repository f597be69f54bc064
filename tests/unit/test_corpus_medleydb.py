from pathlib import Path

import pytest

from manifests.songs import inside
from tests.support.listings import codes, listed, slakh_song, touch
from tests.support.trees import make_tree, medleydb_song

# Three to the power of 40 names, if anything wrote them out.
BOMB = "a0: &a0 [x, x, x]\n" + "".join(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}, *a{k - 1}]\n" for k in range(1, 40))


def test_medleydb_reads_metadata_beside_the_audio_or_in_one_folder(tmp_path: Path) -> None:
    songs = listed("medleydb", make_tree("medleydb", tmp_path))
    assert list(songs) == ["A_B", "C_D", "Meaxic_TakeAStep"]
    song = songs["C_D"]
    assert song.mixture == "V2/C_D/C_D_MIX.wav"
    assert [(stem.stem_id, stem.path, stem.label) for stem in song.stems] == [
        ("S01", "V2/C_D/C_D_STEMS/C_D_STEM_01.wav", "piano"),
        ("S02", "V2/C_D/C_D_STEMS/C_D_STEM_02.wav", "double bass"),
    ]
    assert [codes(song) for song in songs.values()] == [[]] * 3
    expected = {"artist": "An Artist", "title": "A Title", "genre": "Rock"}
    assert song.extra == expected | {"has_bleed": False, "instrumental": True, "excerpt": False}


def test_a_main_system_is_a_capture_and_no_stem(tmp_path: Path) -> None:
    song = listed("medleydb", make_tree("medleydb", tmp_path))["A_B"]
    assert [stem.label for stem in song.stems] == ["violin", "fx/processed sound", "male singer"]
    assert song.extra["captures"] == {"S01": "A_B_STEM_01.wav"}
    assert "leftover" not in song.extra


def test_medleydb_songs_of_musdb18_are_in_its_subset(tmp_path: Path) -> None:
    names = ("Meaxic_TakeAStep", "Meaxic_YouListen", "X_Y")
    for name in names:
        medleydb_song(tmp_path / name, ("piano", "flute"))
    songs = listed("medleydb", tmp_path)
    assert [songs[name].subset for name in names] == ["validation", "train", "train"]
    assert [songs[name].extra.get("musdb18") for name in names] == ["Meaxic - Take A Step", "Meaxic - You Listen", None]


def test_medleydb_flags_are_words_or_what_yaml_makes_of_them(tmp_path: Path) -> None:
    medleydb_song(tmp_path / "A_B", ("piano",), has_bleed=True, instrumental="yes", excerpt=False, artist=["x"])
    listing = listed("medleydb", tmp_path)["A_B"]
    extra = listing.extra
    assert codes(listing) == [("bleed", None)]
    assert (extra["has_bleed"], extra["instrumental"], extra["excerpt"]) == (True, True, False)
    assert "artist" not in extra


def test_medleydb_existence_on_disk_counts(tmp_path: Path) -> None:
    song = medleydb_song(tmp_path / "A_B", ("piano", "flute", ["a", "b"]))
    (song / "A_B_STEMS/A_B_STEM_01.wav").unlink()
    (song / "A_B_MIX.wav").unlink()
    touch(song, "A_B_STEMS/A_B_STEM_09.wav")
    listing = listed("medleydb", tmp_path)["A_B"]
    assert [(stem.stem_id, stem.label) for stem in listing.stems] == [("S02", "flute"), ("S03", "other")]
    assert codes(listing) == [("no_audio", None), ("unlabelled", "S03")]
    assert listing.problems[0].detail == "S01 (A_B_STEM_01.wav, piano) has metadata only"
    assert listing.mixture is None
    assert listing.extra["leftover"] == ["A_B_STEM_09.wav"]


def test_medleydb_metadata_without_audio(tmp_path: Path) -> None:
    (tmp_path / "Audio/A_B").mkdir(parents=True)
    medleydb_song(tmp_path / "away/A_B", ("piano",))
    (tmp_path / "away/A_B/A_B_METADATA.yaml").rename(tmp_path / "Audio/A_B/A_B_METADATA.yaml")
    song = listed("medleydb", tmp_path / "Audio")["A_B"]
    assert (song.stems, song.mixture, codes(song)) == ((), None, [("no_audio", None)])


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "[]",
        "stems: {S01: [",
        "stems: [1]",
        "stems: {S01: {instrument: piano}}",
        "stems: {S01: piano}",
        "stems: {S01: {filename: [a], instrument: piano}}",
        "stems: !!python/object/apply:os.system [ls]",
        BOMB + "stems: {S01: {filename: *a39, instrument: piano}}",
        BOMB + "stems: *a39",
    ],
)
def test_medleydb_metadata_that_cannot_be_used_are_the_songs_problem(tmp_path: Path, text: str | None) -> None:
    song = medleydb_song(tmp_path / "A_B", ("piano", "flute"))
    touch(song, "A_B_STEMS/._A_B_STEM_01.wav", "A_B_STEMS/notes.txt")
    (song / "A_B_METADATA.yaml").unlink()
    if text is not None:
        (song / "A_B_METADATA.yaml").write_text(text)
    listing = listed("medleydb", tmp_path)["A_B"]
    assert codes(listing) == [("metadata", None)]
    assert [(stem.stem_id, stem.label) for stem in listing.stems] == [
        ("A_B_STEM_01.wav", "other"),
        ("A_B_STEM_02.wav", "other"),
    ]
    assert listing.extra == {"leftover": ["._A_B_STEM_01.wav", "notes.txt"]}
    assert len(listing.problems[0].detail) < 300


def test_values_that_are_no_texts_are_left_out(tmp_path: Path) -> None:
    song = medleydb_song(tmp_path / "A_B", ("piano",))
    text = "stems: {S01: {filename: A_B_STEM_01.wav, instrument: &a [x, y]}}\ntitle: *a\nhas_bleed: *a\n"
    (song / "A_B_METADATA.yaml").write_text(text)
    listing = listed("medleydb", tmp_path)["A_B"]
    assert codes(listing) == [("unlabelled", "S01")]
    assert listing.extra == {"has_bleed": False}
    slakh = slakh_song(tmp_path / "slakh", "train/Track00001")
    (slakh / "metadata.yaml").write_text("stems: {S07: {inst_class: &a [x, y], midi_program_name: *a}}")
    problems = listed("slakh2100", tmp_path / "slakh")["train/Track00001"].problems
    assert problems[-1].detail == "S07 (None) has metadata only"


def test_medleydb_filenames_that_leave_the_root_are_left_to_the_scan(tmp_path: Path) -> None:
    touch(tmp_path, "secret.wav")
    song = medleydb_song(tmp_path / "root/A_B", ("piano",))
    text = "stems: {S01: {filename: ../../../secret.wav, instrument: piano}}"
    (song / "A_B_METADATA.yaml").write_text(text)
    (stem,) = listed("medleydb", tmp_path / "root")["A_B"].stems
    assert inside(tmp_path / "root", stem.path) is None
    (song / "A_B_METADATA.yaml").unlink()
    (song / "A_B_METADATA.yaml").symlink_to(tmp_path / "secret.wav")
    assert "leaves the root" in listed("medleydb", tmp_path / "root")["A_B"].problems[0].detail


def test_medleydb_takes_the_first_of_two_songs_of_one_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for version in ("V2", "V1"):
        medleydb_song(tmp_path / version / "A_B", ("piano",))
    (tmp_path / "V0").symlink_to(tmp_path / "V1")
    (song,) = listed("medleydb", tmp_path).values()
    assert song.mixture == "V1/A_B/A_B_MIX.wav"
    assert "two songs called 'A_B'" in caplog.text


def test_known_defects_are_problems_of_the_stems_and_errata_are_notes(tmp_path: Path) -> None:
    for song in ("Creepoid_OldTree", "Karachacha_Volamos", "Grants_PunchDrunk", "A_B"):
        medleydb_song(tmp_path / song, ("piano", "violin"))
    medleydb_song(tmp_path / "TheSoSoGlos_Emergency", ["piano"] * 8)
    songs = listed("medleydb", tmp_path)
    assert {song: codes(listing) for song, listing in songs.items()} == {
        "A_B": [],
        "Creepoid_OldTree": [("known_flaw", None)],
        "Grants_PunchDrunk": [("known_defect", "S01")],
        "Karachacha_Volamos": [("known_defect", "S01"), ("known_defect", "S02")],
        "TheSoSoGlos_Emergency": [("known_flaw", "S08")],
    }
    assert songs["Grants_PunchDrunk"].problems[0].detail == "not what its label says"
    assert {song: listing.extra.get("defects") for song, listing in songs.items()} == {
        "A_B": None,
        "Creepoid_OldTree": {"S03": "not what its label says", "song": "in the errata of the corpus"},
        "Grants_PunchDrunk": dict.fromkeys(("S01", "S08", "S10"), "not what its label says"),
        "Karachacha_Volamos": {"song": "bleed in every stem"},
        "TheSoSoGlos_Emergency": {"S08": "a bass, whatever its label says"},
    }
