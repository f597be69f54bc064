"""The table of broken input, kind by kind: how a sound song is broken, and what the scan must say of it.

A kind is one song of a corpus in its true layout, one change to a file while it is scanned, or one wrong use. The ways
to break are in `tests.support.breaking`. What leads out of the root leads into one folder, so that a test can tell
whether anything there was opened.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from tests.support import breaking as by
from tests.support.breaking import Maker, Place, coded, garbage, samples, text, with_value, write
from tests.support.corpora import LAYOUT, write_layout
from tests.support.sounds import sound, write_sound
from tests.support.trees import medleydb_song, moisesdb_song

Expected = tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of broken input that is a song of a corpus."""

    corpus: str
    name: str
    """What is broken; and what the song is called, where its corpus leaves that open."""
    target: str
    """What the maker gets: a path below the song's folder, in which ``SONG`` is the folder's name."""
    make: Maker
    expected: Expected
    """Code and stem of each problem, but for mere notes that are not named here. None: as good as any other song."""
    usable: int
    """Number of stems that stay usable."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """One kind of wrong use: the scan is refused in one line with these words."""

    name: str
    make: Callable[[Path, Path], tuple[Path | str, Path]]
    """From an empty folder and a sound root: the corpus and the root to scan."""
    words: str


def on(code: str, *stems: str) -> Expected:
    """``code`` on each of ``stems``, or on the song."""
    return tuple((code, stem) for stem in stems or (None,))


def stem(name: str, suffix: str, code: str | None, make: Maker) -> Kind:
    """A file called "piano" beside two sound stems in a folder of a YAML layout; no ``code``: it is sound too."""
    path = f"piano{suffix}"
    return Kind("folders", name, path, make, on(code, path) if code else (), 2 if code else 3)


def song(name: str, expected: Expected, usable: int, make: Maker) -> Kind:
    """A folder of the YAML layout as a whole, with two sound stems before it is broken."""
    return Kind("folders", name, "", make, expected, usable)


def mixture(name: str, make: Maker, code: str | None = "mixture_unreadable") -> Kind:
    """The file of the mixture beside two sound stems."""
    return Kind("folders", name, "mixture.wav", make, on(code) if code else (), 2)


def slakh(name: str, expected: Expected, usable: int, make: Maker, target: str = "metadata.yaml") -> Kind:
    """A song of Slakh2100 with the stems S00 and S01."""
    return Kind("slakh2100", name, target, make, expected, usable)


def moises(name: str, expected: Expected, usable: int, make: Maker, target: str = "data.json") -> Kind:
    """A song of MoisesDB with the stems drums/d and bass/b."""
    return Kind("moisesdb", name, target, make, expected, usable)


def medley(name: str, expected: Expected, usable: int, make: Maker, target: str = "SONG_METADATA.yaml") -> Kind:
    """A song of MedleyDB with the stems S01 and S02."""
    return Kind("medleydb", name, target, make, expected, usable)


def musdb(name: str, code: str, make: Maker, *labels: str) -> Kind:
    """A file of MUSDB18; ``labels`` are the stems that stay usable."""
    bad = [label for label in ("drums", "bass", "other", "vocals") if label not in labels]
    expected = on(code, *bad) + (() if len(labels) > 1 else on("single_stem"))
    return Kind("musdb18", name, "", make, expected, len(labels))


STEMS = ("drums.wav", "bass.wav")
SLAKH = "UUID: abc\nstems:\n  S00: {inst_class: Drums}\n  S01: {inst_class: Bass}\n"
NO_SONG = on("metadata") + on("no_stems")
CODED = (".wav", ".flac", ".mp3", ".ogg", ".m4a", ".aiff")

SONGS: list[Kind] = [
    # What is in the file is not what its name says.
    stem("zero bytes", ".wav", "empty", text("")),
    *(stem(f"text as {suffix[1:]}", suffix, "unreadable", text("not audio\n" * 50)) for suffix in CODED),
    stem("an error page as flac", ".flac", "unreadable", text("<!DOCTYPE html><title>403 Forbidden</title>")),
    stem("random bytes", ".wav", "unreadable", write(lambda: garbage(100_000))),
    stem("wav called m4a", ".m4a", "unreadable", write(lambda: coded(".wav"))),
    stem("m4a called wav", ".wav", "unreadable", write(lambda: coded(".m4a"))),
    stem("flac called wav", ".wav", None, write(lambda: coded(".flac"))),
    stem("mp3 called flac", ".flac", None, write(lambda: coded(".mp3"))),
    stem("a playlist called m4a", ".m4a", "unreadable", by.playlist),
    stem("a concat script called mp4", ".mp4", "unreadable", by.concat_script),
    stem("m4a with its samples in another file", ".m4a", "truncated", by.samples_elsewhere),
    stem("a resource fork out of the root", ".wav", "unreadable", by.resource_fork),
    stem("mp4 without sound", ".mp4", "unreadable", by.video),
    # The file ends too early.
    *(
        stem(f"truncated {s[1:]}", s, "truncated", write(lambda s=s: (d := coded(s))[: len(d) * 7 // 10]))
        for s in CODED
    ),
    stem("a header only", ".wav", "truncated", write(lambda: coded(".wav")[:44])),
    stem("half a header", ".flac", "unreadable", write(lambda: coded(".flac")[:30])),
    stem("m4a without its index", ".m4a", "unreadable", write(lambda: coded(".m4a").replace(b"moov", b"none"))),
    # The header says something false.
    stem("wav that says it is longer", ".wav", "truncated", write(lambda: by.wav_of_bytes(200_000))),
    stem("wav that says it is shorter", ".wav", "longer", write(lambda: by.wav_of_bytes(16_000))),
    stem("wav of unknown length", ".wav", None, write(lambda: by.wav_of_bytes(0xFFFFFFFF))),
    stem("wav of an odd number of bytes", ".wav", None, write(lambda: by.wav_of_bytes(63_999))),
    stem("a sparse wav of 4 GB", ".wav", "unreadable", by.sparse_wav),
    stem("a sparse rf64 of 1 TB", ".wav", "unreadable", by.sparse_rf64),
    stem(
        "aiff that says it is longer",
        ".aiff",
        "truncated",
        write(lambda: by.patched(coded(".aiff"), b"SSND", 0, ">I", 1 << 20)),
    ),
    stem("flac that says it is longer", ".flac", "truncated", write(lambda: by.flac_saying(400_000))),
    stem("flac that says it is shorter", ".flac", "longer", write(lambda: by.flac_saying(1_000, seconds=20))),
    stem("flac that says it lasts 50 days", ".flac", "unreadable", write(lambda: by.flac_saying((1 << 36) - 1))),
    stem("flac of unknown length", ".flac", "unreadable", write(lambda: by.flac_saying(0))),
    stem("wav of 0 channels", ".wav", "unreadable", write(lambda: by.wav_saying(6, "<H", 0))),
    stem("wav of 65535 channels", ".wav", "unreadable", write(lambda: by.wav_saying(6, "<H", 65_535))),
    stem("wav of 0 Hz", ".wav", "unreadable", write(lambda: by.wav_saying(8, "<I", 0))),
    stem("wav of 2 GHz", ".wav", "unreadable", write(lambda: by.wav_saying(8, "<I", 2_000_000_000))),
    stem("wav of 4 GHz", ".wav", "unreadable", write(lambda: by.wav_saying(8, "<I", 0xFFFFFFFF))),
    stem("wav of 1 kHz", ".wav", "unreadable", samples(np.asarray, rate=1_000)),
    stem("wav of an unknown codec", ".wav", "unreadable", write(lambda: by.wav_saying(4, "<H", 0x1234))),
    stem("wav of 0 bits", ".wav", "unreadable", write(lambda: by.wav_saying(18, "<H", 0))),
    stem("wav without samples chunk", ".wav", "unreadable", write(lambda: coded(".wav").replace(b"data", b"junk"))),
    stem("m4a that says it has 150 million samples", ".m4a", "truncated", write(by.many_samples)),
    stem("m4a that asks for all memory", ".m4a", "unreadable", write(lambda: by.m4a_saying(b"stts", 4, 0xFFFFFFFF))),
    stem(
        "mp3 whose tag is longer than the file",
        ".mp3",
        "unreadable",
        write(lambda: by.id3(b"", 1 << 24) + coded(".mp3")),
    ),
    # The middle is damaged.
    stem(
        "flac with garbage in it", ".flac", "truncated", write(lambda: by.overwritten(coded(".flac"), garbage(2_000)))
    ),
    stem("flac with zeros in it", ".flac", "truncated", write(lambda: by.overwritten(coded(".flac"), bytes(2_000)))),
    stem("flac with a byte changed", ".flac", "truncated", write(lambda: by.overwritten(coded(".flac"), b"\x55"))),
    stem("mp3 with garbage in it", ".mp3", "truncated", write(lambda: by.overwritten(coded(".mp3"), garbage(4_000)))),
    stem("m4a with garbage in it", ".m4a", "truncated", write(lambda: by.overwritten(coded(".m4a"), garbage(4_000)))),
    # The samples are of no use.
    stem("wav of no sample", ".wav", "empty", samples(lambda wave: wave[:0])),
    stem("a NaN", ".wav", "not_finite", samples(with_value(np.nan))),
    stem("an infinity", ".wav", "not_finite", samples(with_value(-np.inf))),
    stem("more than 32 bits hold", ".wav", "not_finite", samples(with_value(1e300), "DOUBLE")),
    stem("denormal samples", ".wav", "silent", samples(lambda wave: wave * 1e-40)),
    stem("silence", ".wav", "silent", samples(np.zeros_like, "PCM_16")),
    # Rare, but sound.
    stem("wav of one sample", ".wav", None, samples(lambda wave: np.full(1, 0.5))),
    *(stem(f"wav of {n} Hz", ".wav", None, samples(np.asarray, rate=n)) for n in (8_000, 96_000, 192_000)),
    *(stem(f"wav of {n} channels", ".wav", None, samples(lambda w, n=n: np.tile(w[:, None], n))) for n in (3, 6, 32)),
    *(
        stem(f"wav as {kind}", ".wav", None, write(lambda kind=kind: coded(".wav", subtype=kind)))
        for kind in ("PCM_U8", "PCM_32", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM", "GSM610")
    ),
    stem("extensible wav", ".wav", None, by.headed("WAVEX")),
    stem("rf64", ".wav", None, by.headed("RF64")),
    stem("broadcast wav", ".wav", None, write(by.broadcast_wav)),
    stem("mp3 with a picture of 1 MB", ".mp3", None, write(by.mp3_with_picture)),
    stem("junk behind the end", ".wav", None, write(lambda: coded(".wav") + garbage(5_001))),
    stem("zeros behind the end", ".wav", None, write(lambda: coded(".wav") + bytes(5_000))),
    # What lies there is no file of the root.
    stem("a broken link", ".wav", "missing", by.link("nowhere.wav")),
    stem("a link to itself", ".wav", "unreadable", by.link("SELF")),
    stem("a link out of the root", ".wav", "outside_root", by.link("OUTSIDE/secret.wav")),
    stem("a relative link out of the root", ".wav", "outside_root", by.link("../../outside/secret.wav")),
    stem("a link through a folder out of the root", ".wav", "outside_root", by.link_through_folder),
    stem("a link to a device", ".wav", "outside_root", by.link("/dev/zero")),
    stem("a pipe", ".wav", "unreadable", by.pipe),
    stem("a socket", ".wav", "unreadable", by.socket_file),
    stem("a folder", ".wav", "unreadable", by.folder),
    # Names: what UTF-8 can say is kept.
    song("a name that is no UTF-8", on("bad_name", "caf\\udce9.wav"), 2, by.copied(os.fsdecode(b"caf\xe9.wav"))),
    song(
        "a name that is no UTF-8 and one that looks like it",
        on("bad_name", "caf\\udce9.wav~2"),
        3,
        by.copied(os.fsdecode(b"caf\xe9.wav"), "caf\\udce9.wav"),
    ),
    song("names that are twins but for case", (), 4, by.copied("Drums.wav", "DRUMS.wav")),
    song("names that are twins but for composition", (), 4, by.copied("caf\u00e9.wav", "cafe\u0301.wav")),
    *(
        song(f"a name with {what}", (), 3, by.copied(f"{name}.wav"))
        for what, name in {
            "quotes": 'it\'s "x"',
            "line breaks and tabs": "a\nb\tc\r",
            "words of the shell": "$(x) `y` %s {label} *?[a]",
            "a leading dash": "-rf",
            "letters from right to left": "\u05e9\u05dc\u05d5\u05dd \u202e gnp",
            "emoji": "\U0001f941\ufe0f",
            "control characters": "\x1b[31m\x07\x7f",
            "255 bytes": "x" * 251,
            "spaces at its ends": " x ",
        }.items()
    ),
    # The song as a whole.
    song("no stems", on("no_stems"), 0, by.only()),
    song("one stem", on("single_stem"), 0, by.only("drums.wav")),
    song("all stems silent", on("silent", *STEMS) + on("single_stem"), 0, by.all_silent),
    song("a mixture alone", on("no_stems"), 0, by.mixture_alone),
    song("a song out of the root", on("outside_root") + on("no_stems"), 0, by.link("OUTSIDE")),
    song("links to folders that lead back or nowhere", (), 2, by.folder_links),
    Kind("folders", "stems of unequal length", "x.wav", write(lambda: coded(".wav")), on("unequal_length"), 3),
    mixture("text as mixture", text("not audio")),
    mixture("an empty mixture", text("")),
    mixture("a pipe as mixture", by.pipe),
    mixture("a folder as mixture", by.folder),
    mixture("a mixture out of the root", by.link("OUTSIDE/secret.wav")),
    mixture("a mixture with a NaN", samples(with_value(np.nan))),
    mixture("a silent mixture", samples(np.zeros_like)),
    mixture(
        "a mixture of another rate and length", samples(lambda wave: np.tile(wave, 5), rate=44_100), "unequal_length"
    ),
    # YAML beside the audio.
    *(
        slakh(f"YAML of {what}", on("metadata"), 0, text(content))
        for what, content in {
            "a sequence that never ends": "stems: [S00: {",
            "nothing": "",
            "a list": "- S00\n- S01\n",
            "a list of stems": "stems: [S00, S01]\n",
            "a billion laughs": by.bomb() + SLAKH.replace("Drums", "*a9"),
            "a billion merges": by.merge_bomb() + SLAKH,
            "an alias of itself": "x: &x [*x, *x]\n" + SLAKH,
            "an alias of nothing": "x: *x\n" + SLAKH,
            "a tag that runs a command": "x: !!python/object/apply:os.system ['touch executed']\n" + SLAKH,
            "a tag that makes an object": "x: !!python/object:os.path {}\n" + SLAKH,
            "a tag that its value does not fit": 'x: !!int ""\n' + SLAKH,
            "a time that is none": "x: !!timestamp soon\n" + SLAKH,
            "a day that is none": "x: 2001-99-99\n" + SLAKH,
            "a number of 5000 digits": f"x: {'9' * 5000}\n" + SLAKH,
            "nesting 10,000 deep": f"x: {'[' * 10_000}{']' * 10_000}\n" + SLAKH,
            "20 MB": f"x: {'y' * 20_000_000}\n" + SLAKH,
            "two documents": f"{SLAKH}---\n{SLAKH}",
            "a key twice": SLAKH + "UUID: def\n",
            "a stem twice": SLAKH + "  S00: {inst_class: Guitar}\n",
            "UTF-16": SLAKH.encode("utf-16"),
            "Latin-1": b"# \xe9\n" + SLAKH.encode(),
            "zeros": SLAKH.encode() + bytes(100),
        }.items()
    ),
    slakh("YAML with a byte order mark", (), 2, by.mark_ahead),
    slakh("no metadata", on("metadata"), 0, by.nothing),
    slakh("a pipe as metadata", on("metadata"), 0, by.pipe),
    slakh("a folder as metadata", on("metadata"), 0, by.folder),
    slakh("metadata linked to itself", on("metadata"), 0, by.link("SELF")),
    slakh("metadata out of the root", on("metadata"), 0, by.link("OUTSIDE/metadata.yaml")),
    slakh("a class that is no text", on("unlabelled", "S00"), 2, text(SLAKH.replace("Drums", "[x, 1.5, null]"))),
    slakh("audio without metadata", on("unlabelled", "S01"), 2, text("stems: {S00: {inst_class: Drums}}")),
    slakh("metadata without audio", on("no_audio"), 2, text(SLAKH + "  S02: {inst_class: Guitar}\n")),
    slakh(
        "stems out of the root",
        on("outside_root") + on("no_audio") * 2 + on("no_stems"),
        0,
        by.link("OUTSIDE"),
        "stems",
    ),
    slakh("a file as folder of stems", on("unreadable") + on("no_audio") * 2 + on("no_stems"), 0, by.file, "stems"),
    # JSON beside the audio.
    *(
        moises(f"JSON of {what}", NO_SONG, 0, text(content))
        for what, content in {
            "a list that never ends": '{"stems": [',
            "a list": "[]",
            "no stems": "{}",
            "nesting 100,000 deep": f'{{"stems": {"[" * 100_000}{"]" * 100_000}}}',
            "stems that are numbers": '{"stems": [1, 2]}',
            "tracks that are a text": '{"stems": [{"stemName": "drums", "tracks": "d"}]}',
            "a number of 5000 digits": f'{{"stems": {"9" * 5000}}}',
            "a key twice": '{"stems": [], "stems": []}',
            "UTF-16": '{"stems": []}'.encode("utf-16"),
        }.items()
    ),
    moises("JSON with a NaN", (), 2, by.edited('"pop"', "NaN")),
    moises("JSON with half a character", (), 2, by.edited("pop", "\\ud800")),
    moises("JSON with a byte order mark", (), 2, by.mark_ahead),
    moises("a track listed twice", on("listed_twice"), 2, by.tracks(("drums", "d"))),
    moises(
        "a track above the root",
        on("outside_root", "x/../../../outside/secret"),
        2,
        by.tracks(("x", "../../../outside/secret")),
    ),
    moises(
        "a stem above the root", on("outside_root", "../../outside/secret"), 2, by.tracks(("../../outside", "secret"))
    ),
    moises("an absolute track", on("no_audio"), 2, by.tracks(("x", "OUTSIDE/secret"))),
    moises("an absolute stem", on("no_audio"), 2, by.tracks(("OUTSIDE", "secret"))),
    moises(
        "an extension that climbs",
        on("outside_root", "bass/b", "drums/d") + on("single_stem"),
        0,
        by.json_extension("x/../../../../outside/secret.wav"),
    ),
    moises("a track with a zero byte", on("outside_root", "x/a\0b"), 2, by.tracks(("x", "a\0b"))),
    moises("a track of half a character", on("no_audio"), 2, by.tracks(("x", "\ud800"))),
    moises("a track whose id is a mapping", on("no_audio"), 2, by.tracks(("x", {"a": [1] * 9}))),
    moises("a track of 100,000 letters", on("no_audio"), 2, by.tracks(("x", "y" * 100_000))),
    moises("tracks out of the root", on("outside_root", "drums/d") + on("single_stem"), 0, by.link("OUTSIDE"), "drums"),
    # Metadata that name files.
    medley("a file above the root", on("outside_root", "S03"), 2, by.third("../../../outside/secret.wav")),
    medley("an absolute file", on("no_audio"), 2, by.third("OUTSIDE/secret.wav")),
    medley("a file that is a number", on("metadata"), 0, by.third(3)),
    medley("a stem without a file", on("metadata"), 0, by.medleydb_stems(lambda stems: stems["S01"].pop("filename"))),
    medley(
        "one file as two stems",
        on("listed_twice", "S03"),
        2,
        by.medleydb_stems(lambda stems: stems.update(S03=dict(stems["S01"]))),
    ),
    medley(
        "a stem of no instrument",
        on("unlabelled", "S01"),
        2,
        by.medleydb_stems(lambda stems: stems["S01"].pop("instrument")),
    ),
    medley("no stems in the metadata", on("no_stems"), 0, by.medleydb_stems(lambda stems: stems.clear())),
    medley(
        "a folder of stems out of the root",
        on("outside_root") + on("outside_root", "S01", "S02") + on("single_stem"),
        0,
        by.link("OUTSIDE"),
        "SONG_STEMS",
    ),
    # Containers of streams.
    musdb("three streams", "unreadable", by.streams(3), "drums", "bass"),
    musdb("one stream", "unreadable", by.streams(1)),
    musdb("truncated stem.mp4", "truncated", by.streams(5, 0.8)),
    musdb("text as stem.mp4", "unreadable", text("not audio")),
    musdb("an empty stem.mp4", "empty", text("")),
    musdb("a folder as stem.mp4", "unreadable", by.folder),
    musdb("video as stem.mp4", "unreadable", by.video),
    musdb("stem.mp4 out of the root", "outside_root", by.link("OUTSIDE/secret.m4a")),
]

DENIED: list[Kind] = [
    # For a user who may not read them.
    stem("a file that is denied", ".wav", "unreadable", by.denied(by.file_of_sound)),
    stem("a container that is denied", ".m4a", "unreadable", by.denied(by.file_of_sound)),
    song("a song that is denied", on("unreadable") + on("no_stems"), 0, by.denied()),
    mixture("a mixture that is denied", by.denied(by.file_of_sound)),
    slakh("metadata that are denied", on("metadata"), 0, by.denied()),
    slakh("stems that are denied", on("unreadable") + on("no_audio") * 2 + on("no_stems"), 0, by.denied(), "stems"),
]

CHANGING: list[Kind] = [
    # Made sound, then broken when the file is opened.
    stem("a file that vanishes", ".wav", "missing", by.nothing),
    stem("a file that grows", ".wav", "changed", by.grown),
    stem("a file that shrinks", ".wav", "truncated", by.shrunk),
    stem("a file that is replaced", ".wav", "changed", by.replaced),
    stem("a file that is replaced by a pipe", ".wav", "unreadable", by.pipe),
    stem("a file that is replaced by a folder", ".wav", "unreadable", by.folder),
    stem("a file that is replaced by a link to itself", ".wav", "unreadable", by.link("SELF")),
]


def layout_text(content: str | bytes) -> Callable[[Path, Path], tuple[Path, Path]]:
    """A layout file of this content for the sound root."""

    def make(folder: Path, root: Path) -> tuple[Path, Path]:
        path = folder / "layout.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path, root

    return make


def layout(**changes: object) -> Callable[[Path, Path], tuple[Path, Path]]:
    """The sound layout with these changes."""
    return layout_text(yaml.safe_dump(LAYOUT | changes))


def root_of(corpus: str, make: Callable[[Path], object]) -> Callable[[Path, Path], tuple[str, Path]]:
    """A corpus over what ``make`` leaves at a path that nothing lies at."""

    def at(folder: Path, _: Path) -> tuple[str, Path]:
        make(folder / "root")
        return corpus, folder / "root"

    return at


REFUSALS: list[Refusal] = [
    Refusal("no such corpus", lambda folder, root: ("nonsense", root), "no such corpus"),
    Refusal("no layout file", lambda folder, root: (folder / "none.yaml", root), "No such file"),
    Refusal("a folder as layout", lambda folder, root: (by.made_folder(folder / "layout.yaml"), root), "not a file"),
    Refusal("a pipe as layout", lambda folder, root: (by.made_pipe(folder / "layout.yaml"), root), "not a file"),
    Refusal("an empty layout", layout_text(""), "a mapping was expected"),
    Refusal("a layout of a billion laughs", layout_text(by.bomb() + "name: *a9\n"), "aliases"),
    Refusal("a layout of a billion merges", layout_text(by.merge_bomb()), "aliases"),
    Refusal("a layout with a tag that runs a command", layout_text("name: !!python/name:os.system\n"), "python/name"),
    Refusal("a layout in UTF-16", layout_text("name: x\n".encode("utf-16")), "utf-8"),
    Refusal("a layout with a key twice", layout_text("name: x\nname: y\n"), "'name' stands twice"),
    Refusal("a layout with an unknown key", layout(stem="{label}.wav"), "unknown key stem"),
    Refusal("a layout without stems", layout(stems=[]), "stems missing"),
    Refusal("a layout with a mapping as stem", layout(stems=[{"a": "b"}]), "stems is a text"),
    Refusal("a layout with a stem above the song", layout(stems=["../{label}.wav"]), "no '..'"),
    Refusal("a layout with an absolute stem", layout(stems=["/{label}.wav"]), "no '/' ahead"),
    Refusal("a layout with a song above the root", layout(song="../{song}"), "no '..'"),
    Refusal("a layout with an absolute song", layout(song="/{song}"), "no '/' ahead"),
    Refusal("a layout with a mixture above the root", layout(mixture="{root}/../mix.wav"), "no '..'"),
    Refusal("a layout with an absolute mixture", layout(mixture="/mix.wav"), "no '/' ahead"),
    Refusal("a layout with a stem without label", layout(stems=["*.wav"]), "has no {label}"),
    Refusal("a layout with a label twice", layout(stems=["{label}/{label}.wav"]), "is wrong"),
    Refusal("a layout with a name that leaves its folder", layout(name="../x"), "a name is"),
    Refusal("a layout with a subset that is none", layout(subset="dev"), "subset 'dev'"),
    Refusal("no root", root_of("slakh2100", lambda path: None), "no such folder"),
    Refusal("a subset out of the root", root_of("slakh2100", by.linked_subset), "leaves the root"),
    Refusal("a file as root", root_of("slakh2100", Path.touch), "no such folder"),
    Refusal("a link to itself as root", root_of("slakh2100", lambda path: path.symlink_to(path)), "no such folder"),
    *(
        Refusal(f"an empty root of {corpus}", root_of(corpus, Path.mkdir), "expected" if adapter else "no folder")
        for corpus, adapter in {
            "slakh2100": True,
            "moisesdb": True,
            "medleydb": True,
            "musdb18": True,
            "musdb18hq": False,
        }.items()
    ),
    Refusal(
        "a root of songs without stems",
        root_of("musdb18hq", lambda path: (path / "train/x").mkdir(parents=True)),
        "no file",
    ),
    Refusal("a root that no table can hold", lambda folder, root: ("slakh2100", by.misnamed(root)), "not UTF-8"),
]


# Making them.


def song_name(kind: Kind) -> str:
    """The song's own name in its corpus; of Slakh2100, a number that is the kind's place in the table."""
    if kind.corpus == "slakh2100":
        return f"train/Track{[*SONGS, *DENIED].index(kind):05d}"
    return f"train/{kind.name}" if kind.corpus == "musdb18" else kind.name


def make_outside(folder: Path) -> Path:
    """The folder that nothing may be read of."""
    for suffix in (".wav", ".m4a"):
        write_sound(folder / f"secret{suffix}", sound("secret", seconds=1), by.RATE)
    (folder / "d.wav").write_bytes((folder / "secret.wav").read_bytes())
    (folder / "metadata.yaml").write_text(SLAKH)
    return folder


def make_sound(kind: Kind, root: Path) -> Path:
    """The song of ``kind`` before it is broken; returns its folder."""
    folder = root / song_name(kind)
    stems = {
        "folders": STEMS,
        "slakh2100": ("stems/S00.flac", "stems/S01.flac"),
        "moisesdb": ("drums/d.wav", "bass/b.wav"),
        "medleydb": tuple(f"{folder.name}_STEMS/{folder.name}_STEM_{number:02d}.wav" for number in (1, 2)),
        "musdb18": (),
    }[kind.corpus]
    match kind.corpus:
        case "slakh2100":
            folder.mkdir(parents=True)
            (folder / "metadata.yaml").write_text(SLAKH)
        case "moisesdb":
            by.tracks()(moisesdb_song(folder, ()) / "data.json", Place(folder, folder))
        case "medleydb":
            medleydb_song(folder, ("drum set", "electric bass"))
        case "musdb18":
            folder.parent.mkdir(parents=True, exist_ok=True)
            return folder.with_name(f"{folder.name}.stem.mp4")
    for index, name in enumerate(stems):
        write_sound(folder / name, sound("kind", index, seconds=0.5), by.RATE)
    return folder


def make_kinds(kinds: list[Kind], place: Path) -> list[tuple[str, Path]]:
    """Make the corpora of ``kinds`` below ``place``; returns what to scan: corpora and their roots."""
    outside = make_outside(place / "outside")
    for kind in kinds:
        folder = make_sound(kind, place / kind.corpus)
        target = folder / kind.target.replace("SONG", folder.name)
        kind.make(target, Place(folder, outside))
    layout = {
        "stems": [f"{{label}}{suffix}" for suffix in (*CODED, ".mp4")],
        "mixture": "mixture.wav",
        "subsets": {},
        "song": "{song}",
    }
    write_layout(place / "folders.yaml", **layout)
    corpora = sorted({kind.corpus for kind in kinds})
    return [(str(place / "folders.yaml") if name == "folders" else name, place / name) for name in corpora]
