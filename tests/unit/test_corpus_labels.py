import pytest

from manifests.labels import UNMAPPED, lookup, vocabulary
from tests.support.raw_labels import (
    GENERAL_MIDI,
    MEDLEYDB,
    MEDLEYDB_TAXONOMY,
    MIXING_SECRETS,
    MOISESDB,
    SAYING_NOTHING,
)

FREE_TEXT = {
    "08_LeadVoxDouble1": "vocals",
    "22_BackingVox3": "backing vocals",
    "GangVocals2": "backing vocals",
    "ElecGtr6": "electric guitar",
    "12_Gtr5DI": "guitar",
    "AcousticGtrLoud": "acoustic guitar",
    "BassDI": "bass",
    "SubBass": "synth bass",
    "BassSynth2": "synth bass",
    "SnareUp": "snare drum",
    "TomHi": "toms",
    "KickTrigger": "kick drum",
    "Hat": "hi-hat",
    "GLITCH HH": "hi-hat",
    "BUILD PRC": "percussion",
    "MINILOGUE": "synthesizer",
    "ReverseCymbal": "cymbals",
    "DrumsReverb": "drums",
    "HammondLeslie": "organ",
    "CelloHarmHi": "cello",
    "Bassoon_Close": "bassoon",
    "Bass Clarinet (close)": "clarinet",
    "Bass Trombone": "trombone",
    "Harpsichord 2": "harpsichord",
    "Spot_HighStrings": "strings",
    "StringPad": "synth pad",
    "BellPiano": "piano",
    "SamplePercussion": "percussion",
    "EthnoFlute": "flute",
    "Violin_1": "violin",
    "doublebass": "double bass",
    "mridangam-left": "percussion",
}
CAPTURES = {
    "Main System": "mixture",
    "01_MainPair1": "mixture",
    "Pair_OverheadORTF": "mixture",
    "02_Pair_FrontMS": "mixture",
    "06_Room": "room",
    "RoomMicStereo": "room",
    "Ambience": "room",
    "AmbMono": "room",
    "Click track": "click track",
}


@pytest.mark.parametrize("table", [MEDLEYDB, MOISESDB, GENERAL_MIDI], ids=["MedleyDB", "MoisesDB", "General MIDI"])
def test_labels_of_corpora_find_their_instruments(table: dict[str, list[str]]) -> None:
    found = {instrument: [lookup(label).instrument for label in labels] for instrument, labels in table.items()}
    assert found == {instrument: [instrument] * len(labels) for instrument, labels in table.items()}
    assert {*table} <= {*vocabulary().families}


def test_the_tables_are_whole() -> None:
    assert sum(map(len, MEDLEYDB.values())) == 84
    assert sum(map(len, MOISESDB.values())) == 45
    assert sum(map(len, GENERAL_MIDI.values())) == 129


def test_none_but_captures_and_the_click_are_aggregates() -> None:
    labels = [label for table in (MEDLEYDB, MOISESDB, GENERAL_MIDI) for labels in table.values() for label in labels]
    assert [label for label in labels if lookup(label).aggregate] == ["Main System", "click track"]


@pytest.mark.parametrize("label", MEDLEYDB_TAXONOMY + MIXING_SECRETS)
def test_no_other_label_of_these_corpora_is_unmapped(label: str) -> None:
    assert lookup(label).family != UNMAPPED


@pytest.mark.parametrize("label", SAYING_NOTHING)
def test_a_label_that_says_nothing_is_reported(label: str) -> None:
    assert lookup(label).family == UNMAPPED


@pytest.mark.parametrize(("label", "instrument"), FREE_TEXT.items())
def test_free_text_is_read_by_rules(label: str, instrument: str) -> None:
    assert lookup(label).instrument == instrument
    assert not lookup(label).aggregate


@pytest.mark.parametrize(("label", "instrument"), CAPTURES.items())
def test_captures_of_the_whole_are_marked_as_what_they_are(label: str, instrument: str) -> None:
    found = lookup(label)
    assert (found.instrument, found.aggregate) == (instrument, True)


@pytest.mark.parametrize("label", ["Piano Room", "TambourineAmb", "drum room", "Violin ORTF"])
def test_a_microphone_in_the_room_of_one_instrument_is_that_instrument(label: str) -> None:
    assert not lookup(label).aggregate
