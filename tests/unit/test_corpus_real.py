"""Corpora against what their authors publish: real excerpts and metadata, where that folder of fixtures is there.

It stands beside the checkout, ``../shared/data/layouts``, or where the variable MGELDM_LAYOUTS says.
"""

import json
import os
import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from manifests.corpora import SongListing
from manifests.corpora.check import check
from manifests.corpora.medleydb import _entries, _published
from manifests.corpora.musdb18 import musdb18hq
from manifests.corpora.works import work
from manifests.labels import UNMAPPED, lookup
from mgeldm.audio import Wave, read
from tests.support.corpora import write_layout
from tests.support.listings import listed, touch

LAYOUTS = Path(os.environ.get("MGELDM_LAYOUTS", Path(__file__).parents[3] / "shared/data/layouts"))

pytestmark = pytest.mark.skipif(not LAYOUTS.is_dir(), reason=f"{LAYOUTS} is not there")


def residual_db(root: Path, listing: SongListing) -> float:
    """Energy of the mixture less the sum of the stems at the best gain, over that of the mixture."""
    mixture = read(root / str(listing.mixture), listing.mixture_stream)
    waves = [read(root / stem.path, stem.stream) for stem in listing.stems]
    total: Wave = np.sum([wave[:, : mixture.shape[1]] for wave in waves], axis=0)
    gain = float((mixture * total).sum() / (total * total).sum())
    return float(10 * np.log10(np.mean((mixture - gain * total) ** 2) / np.mean(mixture**2) + 1e-30))


def test_babyslakh_has_every_stem_that_its_metadata_denies() -> None:
    root = LAYOUTS / "slakh/babyslakh_16k"
    song = listed("slakh2100", root)["Track00001"]
    assert [stem.stem_id for stem in song.stems] == [f"S{index:02d}" for index in (0, 1, 2, 3, 4, 5, 7, 8, 9, 10)]
    assert song.works == ("lakh:1a81ae092884234f3264e2f45927f00a",)
    assert residual_db(root, song) < -100 < float(song.residual_db or 0)


def test_the_redux_is_listed_like_babyslakh() -> None:
    baby = listed("slakh2100", LAYOUTS / "slakh/babyslakh_16k")["Track00001"]
    redux = listed("slakh2100", LAYOUTS / "slakh/slakh2100_flac_redux")["train/Track00001"]
    assert redux.works == baby.works
    assert {stem.stem_id: stem.label for stem in baby.stems}.items() <= {
        s.stem_id: s.label for s in redux.stems
    }.items()
    assert (redux.subset, redux.mixture) == ("train", "train/Track00001/mix.flac")


def test_splits_of_slakh_are_those_that_its_authors_publish(tmp_path: Path) -> None:
    official = LAYOUTS / "slakh/_official/splits"
    redux, moves, duplicates = (
        json.loads((official / f"{name}.json").read_text()) for name in ("redux", "splits_v2", "duplicates")
    )
    for track in moves:
        number = int(track[5:])
        subset = "train" if number <= 1500 else "validation" if number <= 1875 else "test"
        touch(tmp_path, f"{subset}/{track}/mix.flac")
        (tmp_path / subset / track / "metadata.yaml").write_text(
            f"UUID: {duplicates[track]['midi_md5']}\nstems: {{}}\n"
        )
    songs = {song.rsplit("/", 1)[-1]: listing for song, listing in listed("slakh2100-splits-v2", tmp_path).items()}
    assert len(songs) == 2100
    folders = {"train": "train", "validation": "validation", "test": "test"}
    for track, move in moves.items():
        if move["action"]:
            assert songs[track].subset == folders[move["destination_split"]], track
    assert Counter(listing.subset for listing in songs.values()) == {"train": 1500, "validation": 375, "test": 225}
    subsets_of: dict[str, set[str]] = {}
    for listing in songs.values():
        subsets_of.setdefault(listing.works[0], set()).add(listing.subset)
    assert len(subsets_of) == 1710
    assert all(len(subsets) == 1 for subsets in subsets_of.values()), "no MIDI file is in two subsets"
    omitted = {song.rsplit("/", 1)[-1] for song, listing in listed("slakh2100-redux", tmp_path).items() if
               any(problem.code == "excluded" for problem in listing.problems)}  # fmt: skip
    assert omitted == {track for track, entry in redux.items() if entry["action"] == "omit"}
    first = listed("slakh2100", tmp_path)
    shared = {listing.works for listing in first.values() if listing.subset == "train"} & {
        listing.works for listing in first.values() if listing.subset == "test"
    }
    assert shared, "the original leaks, and works tell it"


def test_musdb18_streams_of_a_real_file() -> None:
    songs = listed("musdb18", LAYOUTS / "musdb18")
    assert sorted(songs) == ["test/The Easton Ellises - Falcon 69", "train/Music Delta - 80s Rock"]
    measured = {song: residual_db(LAYOUTS / "musdb18", listing) for song, listing in songs.items()}
    assert measured["train/Music Delta - 80s Rock"] == pytest.approx(-31.6, abs=0.5)
    assert measured["test/The Easton Ellises - Falcon 69"] == pytest.approx(-15.4, abs=0.5)
    assert all(value < float(songs[song].residual_db or 0) for song, value in measured.items())


def test_musdb18_and_its_decoded_version_hold_the_same_stems() -> None:
    packed = listed("musdb18", LAYOUTS / "musdb18")["train/Music Delta - 80s Rock"]
    apart = listed("musdb18hq", LAYOUTS / "musdb18hq-derived")["train/Music Delta - 80s Rock"]
    assert packed.works == apart.works == ("musdb18:musicdelta80srock",)
    for stem in packed.stems:
        (twin,) = [each for each in apart.stems if each.label == stem.label]
        one = read(LAYOUTS / "musdb18" / stem.path, stem.stream)
        other = read(LAYOUTS / "musdb18hq-derived" / twin.path)
        length = min(one.shape[1], other.shape[1])
        assert np.abs(one[:, :length] - other[:, :length]).max() < 1e-3, stem.label


def test_musdb18_validation_songs_are_those_of_the_authors_loader() -> None:
    official = yaml.safe_load((LAYOUTS / "musdb18/_official/mus.yaml").read_text())
    assert sorted(musdb18hq().subsets) == sorted(official["validation_tracks"])
    rows = (LAYOUTS / "musdb18/_official/tracklist.csv").read_text().splitlines()[1:]
    names = {re.split(r",(?=[^,]*,[^,]*,[^,]*$)", row)[0].strip('"') for row in rows}
    assert len({work("musdb18", name) for name in names}) == len(names) == 150
    assert {work("musdb18", name) for name in musdb18hq().notes} <= {work("musdb18", name) for name in names}


def test_ccmixter_finds_every_song_of_its_index(tmp_path: Path) -> None:
    tracks = ElementTree.parse(LAYOUTS / "ccmixter/CCMixter.xml").getroot().findall(".//track")
    instruments = [
        (instrument.findtext("relativeFilepath", ""), instrument.findtext("instrumentName", ""))
        for track in tracks
        for instrument in track.findall(".//instrument")
    ]
    touch(tmp_path, *(path for path, _ in instruments))
    songs = listed("ccmixter", tmp_path)
    assert len(songs) == len(tracks) == 50
    found = {stem.path: stem.instrument for listing in songs.values() for stem in listing.stems}
    found |= {listing.mixture: "mix" for listing in songs.values() if listing.mixture}
    words = {"Voice": "vocals", "Instrumental": "instrumental", "Mix": "mix"}
    assert found == {path: words[name] for path, name in instruments}


def test_medleydb_takes_every_stem_of_every_released_song(tmp_path: Path) -> None:
    folder = LAYOUTS / "medleydb"
    (tmp_path / "Metadata").symlink_to(folder / "Metadata")
    songs: dict[str, dict[str, tuple[str, str | None]]] = {}
    for version in ("v1", "v2"):
        for song in (folder / f"_official/tracklist_{version}.txt").read_text().split():
            path = next(folder.glob(f"**/{song}_METADATA.yaml"))
            songs[song] = _entries(yaml.safe_load(path.read_text()))
            touch(tmp_path / "Audio" / song, f"{song}_MIX.wav", f"{song}_METADATA.yaml")
            (tmp_path / "Audio" / song / f"{song}_METADATA.yaml").write_text(path.read_text())
            touch(tmp_path / "Audio" / song / f"{song}_STEMS", *(name for name, _ in songs[song].values()))
    found = listed("medleydb", tmp_path)
    assert len(found) == 196
    problems = [problem for listing in found.values() for problem in listing.problems]
    assert {problem.code for problem in problems} == {"known_defect", "known_flaw", "bleed"}
    assert sum(problem.code == "bleed" for problem in problems) == 28 + 52
    labels = [label for entries in songs.values() for _, label in entries.values()]
    assert (len(labels), labels.count("Main System")) == (1284, 50)
    assert sum(len(listing.stems) for listing in found.values()) == 1284 - 50
    assert sum(listing.extra["has_bleed"] for listing in found.values()) == 28 + 52
    assert sum("musdb18" in listing.extra for listing in found.values()) == 46
    for song, defects in ((song, listing.extra.get("defects", {})) for song, listing in found.items()):
        assert {*defects} - {"song"} <= {*songs[song]}, song
    assert {song for defects in _published().values() for song in defects} <= {*songs}
    published = [yaml.safe_load(path.read_text()) for path in folder.glob("_mss-datasets/medleydb_overrides.yaml")]
    for song, keys in published[0]["exclude_stems"].items():
        assert all("not what" in found[song].extra["defects"][key] for key in keys), song
        unusable = {problem.stem_id for problem in found[song].problems if problem.code == "known_defect"}
        assert unusable == {*keys}, song
    assert all("bleed" in found[song].extra["defects"]["song"] for song in published[0]["exclude_tracks"])
    checked = check("medleydb", tmp_path, seconds=0)
    assert checked.unmapped == {}
    assert len(checked.labels) == 83


def test_labels_of_the_real_stems_of_a_record_are_known(tmp_path: Path) -> None:
    record = json.loads((LAYOUTS / "evr/stems.json").read_text())
    files = [stem["filename"] for stems in record.values() for stem in stems]
    for name in files:
        touch(tmp_path / "root/src" / name.split("_Stem_")[0], name)
    layout = write_layout(tmp_path / "evr.yaml", song="src/{number}.{song}", stems="{number}.{song}_Stem_{label}.m4a")
    songs = listed(str(layout), tmp_path / "root")
    assert len(songs) == len(record)
    assert sum(len(listing.stems) for listing in songs.values()) == len(files)
    assert all("leftover" not in listing.extra for listing in songs.values())
    labels = {stem.label for listing in songs.values() for stem in listing.stems}
    said_nothing = {lookup(label).instrument for label in labels if lookup(label).family == UNMAPPED}
    assert said_nothing == {
        *("arp dist", "beep", "break", "crush break", "edm build", "fill build", "fill scratch", "high stabs", "k sn"),
        *("melody break", "melody glitch", "rise", "sine", "slide", "texture", "tops", "transistion"),
    }
