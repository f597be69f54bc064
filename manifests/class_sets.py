"""Which stems may be a source and which belong to the mix: classes by name, and sets of them (`class_sets.yaml`)."""

import difflib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from manifests.errors import ConfigError
from manifests.labels import UNMAPPED, lookup, normalise, vocabulary

Mix = Literal["all", "classes"]

EXCLUDED = "split whose source is excluded"
NOT_IN_CLASSES = "split whose source is not in the classes"
AGGREGATE = "split whose source has a label that says nothing"

_FAMILY = "family:"
_SETS = Path(__file__).with_name("class_sets.yaml")


@dataclass(frozen=True, slots=True)
class Classes:
    """Instruments and whole families."""

    instruments: frozenset[str]
    families: frozenset[str]

    def __contains__(self, instrument: str) -> bool:
        return instrument in self.instruments or (bool(self.families) and lookup(instrument).family in self.families)


@dataclass(frozen=True, slots=True)
class ClassFilter:
    """What a plan may take of a song's stems, by their canonical instruments."""

    classes: Classes | None
    """Only these may be a source; None: any."""
    exclude: Classes
    """Never a source."""
    mix: Mix
    """Whether the mix holds all stems of a song, or those of ``classes`` alone."""

    def refusal(self, instrument: str) -> str | None:
        """Why a stem of this instrument may not be a source; None where it may."""
        if instrument in self.exclude:
            return EXCLUDED
        if self.classes is not None and instrument not in self.classes:
            return NOT_IN_CLASSES
        return AGGREGATE if lookup(instrument).aggregate else None

    def in_mix(self, instrument: str) -> bool:
        """Whether a stem of this instrument belongs to the mix."""
        return self.mix == "all" or self.classes is None or instrument in self.classes


def class_filter(
    classes: Collection[str],
    exclude: Collection[str],
    mix: Mix | None,
    instruments: Callable[[], Collection[str]] = frozenset,
) -> ClassFilter:
    """The filter of ``classes`` (instruments, ``family:NAME``, families that are no instrument, named sets).

    ``mix`` None takes what the named sets say where all agree and nothing else is named, else "all". ``instruments``
    are those of the manifest, asked for only where the vocabulary does not know a name.

    Raises:
        ConfigError: a name is not known; the message has near matches.
    """
    named = [class_sets()[key] for key in map(_key, classes) if key in class_sets()]
    single = [name for name in classes if _key(name) not in class_sets()]
    said = {found.mix for found in named}
    own: Mix = said.pop() if len(said) == 1 and not single else "all"
    return ClassFilter(
        classes=_resolved("classes", classes, instruments) if classes else None,
        exclude=_resolved("exclude", exclude, instruments),
        mix=mix or own,
    )


@dataclass(frozen=True, slots=True)
class ClassSet:
    """A set of classes with a name."""

    about: str
    mix: Mix
    classes: tuple[str, ...]


@cache
def class_sets() -> dict[str, ClassSet]:
    """The sets shipped with the package, by name."""
    raw: dict[str, Any] = yaml.safe_load(_SETS.read_text(encoding="utf-8"))
    return {name: ClassSet(value["about"], value["mix"], tuple(value["classes"])) for name, value in raw.items()}


def _key(name: str) -> str:
    return name.strip().casefold()


def _resolved(option: str, names: Iterable[str], manifest: Callable[[], Collection[str]]) -> Classes:
    instruments: set[str] = set()
    families: set[str] = set()
    known = vocabulary().families
    all_families = {*known.values(), UNMAPPED}
    for name in names:
        # An instrument's own name may hold a hyphen ("hi-hat"), which a normalised one does not.
        exact, key = _key(name), normalise(name)
        family = exact.removeprefix(_FAMILY).strip()
        if exact in class_sets():
            instruments.update(class_sets()[exact].classes)
        elif exact.startswith(_FAMILY) and family in all_families:
            families.add(family)
        elif instrument := next((word for word in (exact, key) if word in known), None):
            instruments.add(instrument)
        elif key in all_families:
            families.add(key)
        elif key in manifest():
            instruments.add(key)
        else:
            raise ConfigError(f"{option}: no instrument, family or class set {name!r}{_near(name, key, manifest())}")
    return Classes(frozenset(instruments), frozenset(families))


def _near(name: str, key: str, manifest: Collection[str]) -> str:
    words = vocabulary()
    families = {*words.families.values(), UNMAPPED}
    everything = {*words.families, *class_sets(), *families, *(f"{_FAMILY}{family}" for family in families), *manifest}
    near = [found] if (found := words.aliases.get(key)) else []
    near += [word for word in difflib.get_close_matches(name.casefold(), sorted(everything), 4) if word not in near]
    return f"; did you mean {', '.join(near)}?" if near else "; see manifests/labels.yaml"
