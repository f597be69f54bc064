"""The second battery: what a corpus lists is decoded, and each stem is the one that its label says."""

from pathlib import Path

import numpy as np
import pytest

from manifests.corpora import corpus_names
from manifests.labels import lookup
from mgeldm.audio import Wave, probe, read
from tests.support.listings import listed
from tests.support.sounding import SOUNDING, Place, heard, pitches, write_sounding
from tests.support.trees import make_tree


def decoded(root: Path, place: Place) -> Wave:
    """One channel `[frames]`: the one that was asked for, or else the mean of all."""
    wave = read(root / place.path, place.stream)
    return wave.mean(axis=0) if place.channel is None else wave[place.channel]


def test_every_corpus_sounds() -> None:
    assert sorted(SOUNDING) == corpus_names()


@pytest.mark.parametrize("name", corpus_names())
def test_every_stem_sounds_as_its_label_says(name: str, tmp_path: Path) -> None:
    song, root = SOUNDING[name], make_tree(name, tmp_path)
    write_sounding(root, song)
    listing = listed(name, root)[song.song]
    expected = sorted((instrument, [pitch]) for (instrument, _), pitch in zip(song.stems, pitches(song), strict=False))
    found = []
    for stem in listing.stems:
        place = Place(stem.path, stem.stream, stem.channel)
        info = probe(root / stem.path, stem.stream)
        assert info.sample_rate == song.rate
        tones = heard(decoded(root, place), info.sample_rate, pitches(song))
        found.append((lookup(stem.instrument or stem.label).instrument, tones))
    assert sorted(found) == expected


@pytest.mark.parametrize("name", corpus_names())
def test_the_mixture_is_the_one_of_the_song_and_holds_every_stem(name: str, tmp_path: Path) -> None:
    song, root = SOUNDING[name], make_tree(name, tmp_path)
    write_sounding(root, song)
    listing = listed(name, root)[song.song]
    if song.mixture is None:
        assert listing.mixture is None
        return
    assert listing.mixture == song.mixture.path
    wave = decoded(root, Place(listing.mixture, listing.mixture_stream))
    assert heard(wave, song.rate, pitches(song)) == pitches(song)
    if listing.residual_db is not None:
        stems = [decoded(root, Place(stem.path, stem.stream, stem.channel)) for stem in listing.stems]
        total = np.sum(stems, axis=0)
        gain = float(wave @ total / (total @ total))
        residual = 10 * np.log10(np.mean((wave - gain * total) ** 2) / np.mean(wave**2) + 1e-30)
        assert residual < listing.residual_db, "the corpus says that the stems sum to the mixture"


def test_strings_of_guitarset_are_channels_from_the_lowest_up(tmp_path: Path) -> None:
    song, root = SOUNDING["guitarset"], make_tree("guitarset", tmp_path)
    write_sounding(root, song)
    stems = listed("guitarset", root)[song.song].stems
    assert [(stem.label, stem.channel) for stem in stems] == [
        (f"string {number} ({pitch})", number - 1)
        for number, pitch in enumerate(("E2", "A2", "D3", "G3", "B3", "E4"), 1)
    ]
    found = [heard(decoded(root, Place(stem.path, None, stem.channel)), song.rate, pitches(song)) for stem in stems]
    assert found == [[pitch] for pitch in pitches(song)]
