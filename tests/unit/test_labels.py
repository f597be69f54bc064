import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.labels import UNMAPPED, lookup, normalise, phrase, vocabulary

SLAKH = {
    "Bass": "bass",
    "Brass": "brass",
    "Chromatic Percussion": "chromatic percussion",
    "Drums": "drums",
    "Ethnic": "ethnic",
    "Guitar": "guitar",
    "Organ": "organ",
    "Percussive": "percussion",
    "Piano": "piano",
    "Pipe": "pipe",
    "Reed": "reed",
    "Sound Effects": "sound effects",
    "Strings (continued)": "strings",
    "Strings": "strings",
    "Synth Effects": "sound effects",
    "Synth Lead": "synth lead",
    "Synth Pad": "synth pad",
}
OTHERS = {
    "vocals": "vocals",
    "other_plucked": "pluck",
    "other_keys": "keyboard",
    "bowed_strings": "strings",
    "wind": "wind",
    "fx/processed sound": "sound effects",
    "clean electric guitar": "electric guitar",
    "drum set": "drums",
    "male singer": "vocals",
    "LeadVoxDouble2": "vocals",
    "08_LeadVoxDouble1": "vocals",
    "Kick1": "kick drum",
    "BGVOX HARMONY": "backing vocals",
    "Female Vocal Harmony": "backing vocals",
    "BackingVox3": "backing vocals",
    "Guitar Harmony": "guitar",
    "backing piano": "piano",
    "PAD + BASS": "bass",
    "Harmonica": "harmonica",
    "Bassoon": "bassoon",
    "OH L": "cymbals",
    "Piano OH": "piano",
}


@pytest.mark.parametrize(("label", "instrument"), [*SLAKH.items(), *OTHERS.items()])
def test_labels_of_real_corpora_are_known(label: str, instrument: str) -> None:
    found = lookup(label)
    assert found.instrument == instrument
    assert found.family != UNMAPPED
    assert not found.aggregate


@pytest.mark.parametrize("label", ["other", "Others", "MIX", "Main System", "misc"])
def test_names_that_say_nothing_are_aggregates(label: str) -> None:
    assert lookup(label).aggregate


@pytest.mark.parametrize(
    ("label", "instrument"),
    [
        ("other", "other"),
        ("mixed", "other"),
        ("Mixed", "other"),
        ("Main System", "mixture"),
        ("main mics", "mixture"),
        ("audio_ORTF_L", "mixture"),
        ("HallMics", "room"),
        ("StereoReverb_STM", "room"),
        ("STM", "room"),
    ],
)
def test_aggregates_are_in_the_vocabulary(label: str, instrument: str) -> None:
    found = lookup(label)
    assert (found.instrument, found.family) == (instrument, "mixed")
    assert found.aggregate


def test_an_unknown_label_keeps_its_words() -> None:
    assert (lookup("Zither_04").instrument, lookup("Zither_04").family) == ("zither", UNMAPPED)
    assert lookup("ギター").instrument == "ギター"
    assert not lookup("Zither").aggregate
    assert (lookup("?!").instrument, lookup("?!").aggregate) == ("unknown", True)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("LeadVoxDouble2", "lead vox double"),
        ("  Strings (continued) ", "strings continued"),
        ("Synth-Pad_1 2", "synth pad"),
        ("808", "808"),
        ("PAD + BASS", "pad bass"),
        ("ﬁddle", "fiddle"),
        ("BGVOX", "bgvox"),
    ],
)
def test_labels_are_brought_to_one_form(label: str, words: str) -> None:
    assert normalise(label) == words


@given(st.text(st.characters(exclude_categories=()), max_size=30))
def test_any_text_is_mapped_to_one_line_of_words(label: str) -> None:
    found = lookup(label)
    assert re.fullmatch(r"\S+( \S+)*", found.instrument)
    assert found.family == UNMAPPED or found.instrument in vocabulary().families


def test_the_table_is_consistent() -> None:
    words = vocabulary()
    assert set(words.aliases.values()) == set(words.families)
    assert words.aggregates <= set(words.families)
    for instrument, family in words.families.items():
        assert (lookup(instrument).instrument, lookup(instrument).family) == (instrument, family)
        assert normalise(instrument) == re.sub(r"\W", " ", instrument)


def test_a_set_of_instruments_becomes_a_phrase_that_does_not_depend_on_order() -> None:
    assert phrase(["drums"]) == "drums"
    assert phrase(["piano", "bass"]) == "bass and piano"
    assert phrase(["piano", "drums", "bass", "drums"]) == "bass, drums and piano"
    with pytest.raises(ValueError, match="no instruments"):
        phrase([])
