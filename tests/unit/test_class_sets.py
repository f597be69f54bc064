import pytest

from manifests.class_sets import AGGREGATE, EXCLUDED, NOT_IN_CLASSES, Classes, class_filter, class_sets
from manifests.errors import ConfigError
from manifests.labels import lookup, vocabulary

# `inst_class` of Slakh2100's metadata.
SLAKH = (
    "Bass", "Brass", "Chromatic Percussion", "Drums", "Ethnic", "Guitar", "Organ", "Percussive", "Piano", "Pipe",
    "Reed", "Sound Effects", "Strings", "Strings (continued)", "Synth Effects", "Synth Lead", "Synth Pad",
)  # fmt: skip


def sources(*classes: str, exclude: tuple[str, ...] = ()) -> set[str]:
    """Slakh's labels that may be a source."""
    found = class_filter(classes, exclude, None)
    return {label for label in SLAKH if found.refusal(lookup(label).instrument) is None}


def test_the_sets_of_the_paper_take_the_labels_of_slakh_that_they_should() -> None:
    assert sources("s_a") == {"Bass", "Drums", "Guitar", "Piano"}
    assert sources("S_B") == {
        "Brass", "Chromatic Percussion", "Organ", "Pipe", "Reed", "Strings", "Strings (continued)", "Synth Lead",
        "Synth Pad",
    }  # fmt: skip
    assert sources("s_a", "s_b") == sources("s_a") | sources("s_b")


def test_mixtures_of_s_a_hold_its_stems_alone_and_those_of_others_hold_all() -> None:
    for classes, mix, organ in (
        (("s_a",), None, False),
        (("s_b",), None, True),
        (("s_a", "s_b"), None, True),
        (("s_a", "drums"), None, True),
        (("drums",), None, True),
        ((), None, True),
        (("s_a",), "all", True),
        (("drums",), "classes", False),
    ):
        found = class_filter(classes, (), mix)  # type: ignore[arg-type]
        assert found.in_mix("sound effects") is organ, (classes, mix)
        assert found.in_mix("drums")


def test_a_name_is_an_instrument_where_there_is_one_and_else_a_family() -> None:
    guitars = {name for name, family in vocabulary().families.items() if family == "guitar"}
    assert {name for name in vocabulary().families if name in named("guitar")} == {"guitar"}
    assert {name for name in vocabulary().families if name in named("family:guitar")} == guitars > {"guitar"}
    assert {name for name in vocabulary().families if name in named("Winds")} > {"flute", "trumpet"}
    assert "synth lead" in named("Synth_Lead")
    assert "hi-hat" in named("hi-hat")
    assert "zither of doom" in named("unmapped")
    assert "zither of doom" not in named("winds")


def named(name: str) -> Classes:
    found = class_filter((name,), (), None).classes
    assert found is not None
    return found


def test_why_a_stem_may_not_be_a_source() -> None:
    found = class_filter(("bass", "family:drums", "mixed"), ("percussion",), None)
    assert found.refusal("bass") is None
    assert found.refusal("snare drum") is None
    assert found.refusal("percussion") == EXCLUDED
    assert found.refusal("piano") == NOT_IN_CLASSES
    assert found.refusal("other") == AGGREGATE
    assert found.in_mix("percussion")
    assert sources(exclude=("s_a", "family:effects", "Reed")) == {
        "Brass", "Chromatic Percussion", "Ethnic", "Organ", "Percussive", "Pipe", "Strings", "Strings (continued)",
        "Synth Lead", "Synth Pad",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("gitar", "guitar, sitar"),
        ("kick", "kick drum"),
        ("s_c", "s_a"),
        ("family:guitr", "family:guitar"),
        ("zyther of doom", "zither of doom"),
        ("qqqq", "see manifests/labels.yaml"),
    ],
)
def test_an_unknown_name_is_refused_with_near_matches(name: str, near: str) -> None:
    for classes, exclude, option in (((name,), (), "classes"), ((), (name,), "exclude")):
        with pytest.raises(ConfigError, match=f"^{option}: no instrument, family or class set '{name}'.*{near}"):
            class_filter(classes, exclude, None, lambda: {"zither of doom"})


def test_an_instrument_of_the_manifest_alone_can_be_named() -> None:
    found = class_filter(("Zither of Doom",), (), None, lambda: {"zither of doom"})
    assert found.refusal("zither of doom") is None
    assert found.refusal("drums") == NOT_IN_CLASSES


def test_every_class_of_a_shipped_set_is_an_instrument() -> None:
    for found in class_sets().values():
        assert found.about
        assert found.mix in ("all", "classes")
        assert set(found.classes) <= vocabulary().families.keys()
