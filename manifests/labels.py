"""The vocabulary: raw label -> canonical instrument -> family, and the words for a set of instruments.

The table is `labels.yaml`, versioned. A label is looked up as an exact alias first, then by the rules in order; what
neither knows keeps its own words as its instrument, in the family "unmapped", and is reported, never dropped.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import yaml

UNMAPPED = "unmapped"
_TABLE = Path(__file__).with_name("labels.yaml")


@dataclass(frozen=True, slots=True)
class Label:
    """What the vocabulary says of a raw label."""

    instrument: str
    family: str
    aggregate: bool = False
    """True where the name says nothing of what sounds ("other"); never a source on its own."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The parsed table."""

    version: str
    families: dict[str, str]
    """instrument -> family"""
    aliases: dict[str, str]
    """normalised raw label -> instrument"""
    rules: tuple[tuple[re.Pattern[str], str], ...]
    aggregates: frozenset[str]


@cache
def vocabulary() -> Vocabulary:
    """The vocabulary shipped with the package."""
    raw: dict[str, Any] = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    families: dict[str, str] = {}
    aliases: dict[str, str] = {}
    for family, instruments in raw["families"].items():
        for instrument, names in instruments.items():
            families[instrument] = family
            for name in [instrument, *(names or [])]:
                key = normalise(name)
                if aliases.setdefault(key, instrument) != instrument:
                    raise ValueError(f"labels.yaml: {name!r} stands under {aliases[key]!r} and {instrument!r}")
    rules = tuple((re.compile(rule["pattern"]), rule["instrument"]) for rule in raw["rules"])
    for _, instrument in rules:
        if instrument not in families:
            raise ValueError(f"labels.yaml: a rule names the unknown instrument {instrument!r}")
    return Vocabulary(raw["version"], families, aliases, rules, frozenset(raw["aggregates"]))


def normalise(label: str) -> str:
    """Lower case, camel case and punctuation to single spaces, trailing numbers off.

    ``LeadVoxDouble2`` becomes ``lead vox double``; letters of any script stay.
    """
    text = unicodedata.normalize("NFKC", label)
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    text = re.sub(r"[\W_]+", " ", text.casefold()).strip()
    return re.sub(r"[ \d]+$", "", text) or text


@lru_cache(maxsize=65536)
def lookup(label: str) -> Label:
    """Map a raw label. Never fails: an unknown label is its own instrument in the family "unmapped"."""
    words = vocabulary()
    key = normalise(label)
    instrument = words.aliases.get(key) or next((name for rule, name in words.rules if rule.search(key)), None)
    if instrument is None:
        return Label(key or "unknown", UNMAPPED, aggregate=not key)
    return Label(instrument, words.families[instrument], instrument in words.aggregates)


def phrase(instruments: Iterable[str]) -> str:
    """Words for a set of instruments, in alphabetical order: ``bass, drums and piano``. Raises ValueError for none."""
    names = sorted(set(instruments))
    if not names:
        raise ValueError("no instruments: a phrase needs at least one")
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
