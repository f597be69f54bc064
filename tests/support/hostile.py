"""Hypothesis strategies of trees that mean harm: names, sound files, metadata, and what is no file."""

import json
import os
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.support import breaking as by
from tests.support.breaking import Place, coded

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".aiff")
_PIECES = [
    b" ",
    b"'",
    b'"',
    b"\n",
    b"\t",
    b"\\",
    b"*",
    b"?",
    b"[",
    b"{label}",
    b"%s",
    b"$x",
    b"-",
    b"~",
    b"#",
    b":",
    b"&",
]
_PIECES += [
    b"..",
    b".",
    b"\x1b[1m",
    b"\x7f",
    b"\xe9",
    b"\xff\xfe",
    b"\xed\xb3\xa9",
    b"a",
    b"A",
    b"S00",
    b"con",
    b"x" * 90,
]
_PIECES += [
    text.encode() for text in ("\u00e9", "e\u0301", "\u202e", "\u05e9", "\U0001f941", "\ufeff", "\u2028", "\\udce9")
]


def _is_name(name: str) -> bool:
    """Whether a file can be called so."""
    try:
        return name not in ("", ".", "..") and {*"/\0"}.isdisjoint(name) and len(os.fsencode(name)) < 200
    except UnicodeEncodeError:
        return False


names = st.lists(st.sampled_from(_PIECES), min_size=1, max_size=4).map(lambda parts: os.fsdecode(b"".join(parts)))
"""Names of files, often no UTF-8."""
names = names.filter(_is_name)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """``data`` cut, with bytes changed, left out or put in; or as it is."""
    out = bytearray(data)
    for _ in range(draw(st.integers(0, 3))):
        # The head is where lies are worth most.
        at = draw(st.one_of(st.integers(0, min(120, len(out))), st.integers(0, len(out))))
        match draw(st.sampled_from(["cut", "change", "leave out", "put in"])):
            case "cut":
                del out[at:]
            case "change":
                out[at : at + 4] = draw(st.binary(min_size=1, max_size=4) | st.just(b"\xff\xff\xff\xff"))
            case "leave out":
                del out[at : at + draw(st.integers(1, 500))]
            case "put in":
                out[at:at] = draw(st.binary(max_size=50))
    return bytes(out)


sounds = st.sampled_from(SUFFIXES).flatmap(lambda suffix: damaged(coded(suffix, seconds=0.5)))
"""Bytes of a sound file, whole or not."""
texts = st.text(max_size=12) | names.map(lambda name: name.encode("utf-8", "replace").decode())
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
"""Whatever JSON and YAML can say."""


@st.composite
def metadata(draw: st.DrawFn, value: Any, kind: str) -> bytes:
    """``value`` as a file of "json" or "yaml": as it should be, with another value somewhere in it, or damaged."""
    if isinstance(value, dict) and value and draw(st.booleans()):
        value = value | {draw(st.sampled_from([*value]) | texts): draw(values)}
    dump = json.dumps if kind == "json" else yaml.safe_dump
    return draw(damaged(dump(value).encode())) if draw(st.booleans()) else dump(value).encode()


@st.composite
def put(draw: st.DrawFn, path: Path, outside: Path) -> bool:
    """Put a sound file, or something else, at ``path``; returns whether there was room for it."""
    if os.path.lexists(path):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    place = Place(path.parent, outside)
    match draw(st.sampled_from(["sound"] * 6 + ["text", "link", "loop", "pipe", "folder"])):
        case "sound":
            path.write_bytes(draw(sounds))
        case "text":
            path.write_bytes(draw(st.binary(max_size=100)))
        case "link":
            by.link(draw(st.sampled_from(["OUTSIDE/secret.wav", "OUTSIDE", "..", "nothing"])))(path, place)
        case "loop":
            by.link("SELF")(path, place)
        case "pipe":
            by.pipe(path, place)
        case "folder":
            path.mkdir()
    return True


@st.composite
def layout_tree(draw: st.DrawFn, root: Path, outside: Path) -> None:
    """Songs of two levels, of any names, for the layout of these tests."""
    for _ in range(draw(st.integers(1, 2))):
        song = root / draw(st.sampled_from(["train", "test"]) | names) / draw(names)
        for _ in range(draw(st.integers(1, 4))):
            draw(put(song / (draw(names)[:60] + draw(st.sampled_from(SUFFIXES))), outside))


@st.composite
def slakh_tree(draw: st.DrawFn, root: Path, outside: Path) -> None:
    for number in range(draw(st.integers(1, 2))):
        song = root / draw(st.sampled_from(["", "train", "omitted"])) / f"Track{number:05d}"
        stems = draw(st.lists(st.sampled_from(["S00", "S01"]) | names, min_size=1, max_size=3, unique=True))
        for stem in stems:
            draw(put(song / "stems" / (stem[:60] + draw(st.sampled_from(SUFFIXES))), outside))
        entries = {stem.encode("utf-8", "replace").decode(): {"inst_class": draw(texts)} for stem in stems}
        (song / "metadata.yaml").write_bytes(draw(metadata({"UUID": "abc", "stems": entries}, "yaml")))
        if draw(st.booleans()):
            draw(put(song / "mix.flac", outside))


@st.composite
def moisesdb_tree(draw: st.DrawFn, root: Path, outside: Path) -> None:
    ids = st.sampled_from(["a", "b", "../../../outside/secret", "\ud800", "\0", ".", ""]) | texts
    for number in range(draw(st.integers(1, 2))):
        song = root / f"{draw(names)[:60]}{number}"
        listed = []
        for _ in range(draw(st.integers(0, 4))):
            stem, track, suffix = (
                draw(st.sampled_from(["drums", "bass"]) | ids),
                draw(ids),
                draw(st.sampled_from(SUFFIXES)),
            )
            listed.append((stem, track, suffix))
            if _is_name(stem) and _is_name(track):
                draw(put(song / stem / f"{track}{suffix}", outside))
        entries = [
            {"stemName": stem, "tracks": [{"id": track, "extension": suffix[1:], "trackType": draw(texts)}]}
            for stem, track, suffix in listed
        ]
        song.mkdir(parents=True, exist_ok=True)
        (song / "data.json").write_bytes(draw(metadata({"artist": draw(texts), "stems": entries}, "json")))


TREES = {"layout": layout_tree, "slakh2100": slakh_tree, "moisesdb": moisesdb_tree}
