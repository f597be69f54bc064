import os
from pathlib import Path

import numpy as np
import pytest

from manifests.corpora.musdb18 import in_medleydb, musdb18hq
from mgeldm.audio import read
from tests.support.listings import listed, refused, touch
from tests.support.sounds import write_streams
from tests.support.trees import make_tree

STREAMS = ("mixture", "drums", "bass", "other", "vocals")


def test_musdb18_stems_are_streams_1_to_4_and_the_mixture_is_the_first(tmp_path: Path) -> None:
    rate = 44_100
    tones = [np.sin(2 * np.pi * 500 * (k + 1) * np.arange(rate // 2) / rate)[None] for k in range(len(STREAMS))]
    path = write_streams(
        tmp_path / "A - B.mp4", [0.5 * np.repeat(tone, 2, 0).astype(np.float32) for tone in tones], rate
    )
    (tmp_path / "root/train").mkdir(parents=True)
    path.rename(tmp_path / "root/train/A - B.stem.mp4")
    song = listed("musdb18", tmp_path / "root")["train/A - B"]

    def pitch(place: str | None, stream: int | None) -> float:
        spectrum = np.abs(np.fft.rfft(read(tmp_path / "root" / str(place), stream)[0]))
        return round(float(spectrum.argmax()) * rate / (2 * len(spectrum)) / 500, 1)

    assert pitch(song.mixture, None) == pitch(song.mixture, song.mixture_stream) == 1
    found = {stem.label: pitch(stem.path, stem.stream) for stem in song.stems}
    assert found == {"drums": 2, "bass": 3, "other": 4, "vocals": 5}


def test_musdb18_songs_are_called_as_those_of_the_hq_version(tmp_path: Path) -> None:
    songs = listed("musdb18", make_tree("musdb18", tmp_path))
    assert {song: listing.subset for song, listing in songs.items()} == {
        "test/PR - Oh No": "test",
        "train/A - B": "train",
        "train/Young Griffo - Pennies": "validation",
    }
    for song in songs:
        touch(tmp_path / "hq" / song, *(f"{name}.wav" for name in STREAMS))
    hq = listed("musdb18hq", tmp_path / "hq")
    assert {song: listing.subset for song, listing in hq.items()} == {s: listing.subset for s, listing in songs.items()}
    assert hq["test/PR - Oh No"].extra == {"notes": songs["test/PR - Oh No"].extra["notes"]}
    assert "left channel" in songs["test/PR - Oh No"].extra["notes"]
    assert songs["train/A - B"].extra == {}


def test_musdb18_takes_any_name_and_tells_what_is_no_song(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = os.fsdecode(b'it\'s "x"\n - caf\xe9.stem')
    touch(tmp_path, f"train/{name}.stem.mp4", "train/._A - B.stem.mp4", "train/.DS_Store", "train/notes.txt")
    (tmp_path / "train/loop.stem.mp4").symlink_to(tmp_path / "train/loop.stem.mp4")
    songs = listed("musdb18", tmp_path)
    assert set(songs) == {f"train/{name}", "train/loop"}
    assert songs[f"train/{name}"].stems[0].path == f"train/{name}.stem.mp4"
    assert "1 files do not match '{subset}/{song}.stem.mp4', such as 'train/notes.txt'" in caplog.text


def test_musdb18_refuses_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(folder: Path) -> list[str]:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "listdir", deny)
    refused(lambda: listed("musdb18", tmp_path), str(tmp_path), "Permission denied")


def test_the_46_songs_of_medleydb_are_known(tmp_path: Path) -> None:
    twins = in_medleydb()
    assert len(twins) == len(set(twins.values())) == 46
    assert twins["AClassicEducation_NightOwl"] == "A Classic Education - NightOwl"
    validation = {name for name, subset in musdb18hq().subsets.items() if subset == "validation"} & {*twins.values()}
    expected = ["Alexander Ross - Goodbye Bolero", "Clara Berry And Wooldog - Waltz For My Victims"]
    assert sorted(validation) == [*expected, "Meaxic - Take A Step"]
    touch(tmp_path, "train/Meaxic - Take A Step.stem.mp4")
    assert listed("musdb18", tmp_path)["train/Meaxic - Take A Step"].extra["medleydb"] == "Meaxic_TakeAStep"
