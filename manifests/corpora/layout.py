"""A corpus by YAML layout: no code where paths tell all.

name: my-corpus
license: {id: CC-BY-4.0, url: "https://..."}
citation: "Who, What, Year"
song: "{subset}/{song}"            # folder of one song below the root; {names} match inside one path component
stems: ["{label}.wav", "*/{label}.flac"]
mixture: mixture.wav               # optional, below the song folder; never a stem; "{root}/..." is below the root
subset: train                      # for songs whose pattern has no {subset}
subsets: {dev: validation, "A - B": test}   # a value of {subset} or a song -> train | validation | test
ignore: ["*.json"]                 # known leftovers of a song; below the root: what is no song, whatever it matches
notes: {"A - B": hi-hat in the bass}        # what is wrong with a song; a note, and in its ``extra``
labels: {"BGVOX ECHO": backing vocals}      # raw label -> instrument, where the vocabulary does not know
residual_db: -30                   # the stems sum to the mixture, but for so much; left out: nobody says that they do
works: {musdb18: "{song}"}         # what recording this is of, so that corpora which share songs are known to

A {name} of the song pattern stands for its value in ``stems``, ``mixture`` and ``works``: ``"{song}-{label}.wav"``.
Hidden files, and whatever else no pattern takes, stand in the song's ``extra`` as leftovers.

A song pattern that ends as audio files do finds files: a song is one file, and ``mixture`` is below its folder.

song: "Wavfile/{song}.wav"
channels: {0: accompaniment, 1: vocals}     # which channel is which stem; or streams: {1: drums, ...} of a container
mixture: "{song}.wav"              # that same file: the mean of its channels; or one of its streams:
mixture_stream: 0

``stems: []`` says that there are only mixtures.
"""

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

from manifests.corpora.base import AUDIO_SUFFIXES, SongListing, StemListing, list_files, read_mapping
from manifests.corpora.patterns import Found, fill, find, matcher, names_in, values_for
from manifests.corpora.works import work
from manifests.errors import CorpusError
from manifests.songs import SUBSETS, Problem

_ROOT = "{root}/"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderLayout:
    """One folder a song and one file a stem, or one file a song, described by patterns."""

    name: str
    license: str
    song: str
    stems: tuple[str, ...] = ()
    channels: dict[int, str] = field(default_factory=dict)
    streams: dict[int, str] = field(default_factory=dict)
    citation: str = ""
    mixture: str | None = None
    mixture_stream: int | None = None
    subset: str = "train"
    subsets: dict[str, str] = field(default_factory=dict)
    ignore: tuple[str, ...] = ()
    notes: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    residual_db: float | None = None
    works: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if wrong := next(self._faults(), None):
            raise CorpusError(f"layout {self.name}: {wrong}")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a layout file. Raises CorpusError naming the file and the key that is wrong."""
        try:
            raw = read_mapping(path)
        except ValueError as error:
            raise CorpusError(f"layout {path}: {error}") from None
        if unknown := sorted(str(key) for key in raw.keys() - _KINDS):
            raise CorpusError(f"{path}: unknown key {', '.join(unknown)}; known: {', '.join(sorted(_KINDS))}")
        if missing := [key for key in ("name", "license", "song") if not raw.get(key)]:
            raise CorpusError(f"{path}: {', '.join(missing)} missing")
        if raw.keys().isdisjoint(("stems", "channels", "streams")):
            raise CorpusError(f"{path}: stems missing (or channels, or streams)")
        try:
            return cls(**{key: _KINDS[key](key, value) for key, value in raw.items() if value is not None})
        except TypeError as error:
            raise CorpusError(f"{path}: {error}") from None

    @property
    def song_is_file(self) -> bool:
        """Whether the song pattern finds files, not folders."""
        return self.song.lower().endswith(AUDIO_SUFFIXES)

    def songs(self, root: Path) -> Iterator[SongListing]:
        """List songs in the order of their paths.

        Raises:
            CorpusError: nothing matches the song pattern, or nothing of what does holds a stem.
        """
        kind = "file" if self.song_is_file else "folder"
        listings, others = [], []
        for path, found in find(root, self.song, self.ignores, files=self.song_is_file):
            if found is Found.OUTSIDE:
                listings.append(self._outside(path))
            elif found is Found.MATCH and (match := matcher(self.song).fullmatch(path)):
                listings.append(self._song(root, path, match.groupdict()))
            else:
                others.append(path)
        if not listings:
            raise CorpusError(f"{root}: no {kind} matches {self.song!r}, as layout {self.name} expected")
        if self.stems and not any(listing.stems or _unseen(listing) for listing in listings):
            patterns = " or ".join(map(repr, self.stems))
            raise CorpusError(f"{root}: no file matches {patterns} of layout {self.name} ({len(listings)} folders)")
        if others:
            logger.warning("%s: %d %ss do not match %r, such as %r", root, len(others), kind, self.song, others[0])
        yield from listings

    def ignores(self, path: str) -> bool:
        """Whether ``path``, below a song or below the root, is a known leftover."""
        return any(fnmatchcase(path, pattern) or fnmatchcase(f"{path}/", pattern) for pattern in self.ignore)

    def _song(self, root: Path, path: str, values: dict[str, str]) -> SongListing:
        problems: list[Problem] = []
        leftover: list[str] = []
        song, folder = path, path
        if self.song_is_file:
            song, folder = path.removesuffix(_literal_end(self.song)), path.rpartition("/")[0]
        mixture = self._mixture(folder, values)
        if self.stems:
            stems = self._stem_files(root, folder, values, mixture, leftover, problems)
        else:
            stems = self._stems_within(path)
        if not (self.stems or stems):
            problems.append(Problem(code="mixture_only", detail=f"{self.name} has no stems"))
        note = self.notes.get(song) or self.notes.get(song.rsplit("/", 1)[-1])
        if note:
            problems.append(Problem(code="known_flaw", detail=note))
        return SongListing(
            song=song,
            subset=self._subset(song, values.get("subset"), problems),
            stems=tuple(stems),
            mixture=mixture if mixture and os.path.lexists(root / mixture) else None,
            mixture_stream=self.mixture_stream,
            residual_db=self.residual_db,
            works=tuple(work(collection, fill(pattern, values)) for collection, pattern in self.works.items()),
            license=self.license,
            problems=tuple(problems),
            extra=({"notes": note} if note else {}) | ({"leftover": leftover} if leftover else {}),
        )

    def _outside(self, song: str) -> SongListing:
        """The row of a folder, or of one above those of songs, that is not looked into."""
        problem = Problem(code="outside_root", detail=f"the folder {song}")
        return SongListing(song=song, subset=self.subset, stems=(), license=self.license, problems=(problem,))

    def _stem_files(
        self,
        root: Path,
        folder: str,
        values: dict[str, str],
        mixture: str | None,
        leftover: list[str],
        problems: list[Problem],
    ) -> list[StemListing]:
        """The files of a song's folder that a stem pattern takes; others are added to ``leftover``."""
        stems = []
        matchers = [matcher(pattern, values_for(pattern, values)) for pattern in self.stems]
        depth = max(pattern.count("/") for pattern in self.stems)
        for name in list_files(root / folder, "", depth, problems, root):
            if f"{folder}/{name}" == mixture or self.ignores(name):
                continue
            match = next((match for each in matchers if (match := each.fullmatch(name))), None)
            if match is None or any(part[0] == "." for part in name.split("/")):
                leftover.append(name)
            else:
                stems.append(self._stem(name, f"{folder}/{name}", match["label"]))
        return stems

    def _stems_within(self, path: str) -> list[StemListing]:
        """The channels or streams of a song that is one file."""
        channels = [self._stem(label, path, label, channel=index) for index, label in sorted(self.channels.items())]
        return channels + [
            self._stem(label, path, label, stream=index) for index, label in sorted(self.streams.items())
        ]

    def _stem(
        self, stem_id: str, path: str, label: str, *, stream: int | None = None, channel: int | None = None
    ) -> StemListing:
        instrument = self.labels.get(label)
        return StemListing(
            stem_id=stem_id, path=path, label=label, stream=stream, channel=channel, instrument=instrument
        )

    def _mixture(self, folder: str, values: dict[str, str]) -> str | None:
        if not self.mixture:
            return None
        place = "" if self.mixture.startswith(_ROOT) or not folder else f"{folder}/"
        return place + fill(self.mixture.removeprefix(_ROOT), values)

    def _subset(self, song: str, value: str | None, problems: list[Problem]) -> str:
        for key in (song, song.rsplit("/", 1)[-1], value):
            if key in self.subsets:
                return self.subsets[key]
        if value is None or value in SUBSETS:
            return value or self.subset
        # Taking it for the default could mix a corpus's test songs into training.
        detail = f"{value!r} is none of {', '.join(SUBSETS)}; name it in 'subsets' of layout {self.name}"
        problems.append(Problem(code="unknown_subset", detail=detail))
        return self.subset

    def _faults(self) -> Iterator[str]:
        """What is wrong with the values, each in words."""
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            yield f"{self.name!r}: a name is letters, digits, '-', '_' and '.'"
        mixture = (self.mixture or "").removeprefix(_ROOT)
        for pattern in (self.song, *self.stems, *([mixture] if mixture else [])):
            if not {"", ".", ".."}.isdisjoint(pattern.split("/")):
                yield f"{pattern!r} is no path below the root; no '/' ahead, no '..'"
        for pattern in (self.song, *self.stems):
            try:
                matcher(pattern)
            except re.error as error:
                yield f"the pattern {pattern!r} is wrong ({error})"
        for pattern in self.stems:
            if "label" not in names_in(pattern):
                yield f"the stem pattern {pattern!r} has no {{label}}"
        for key, pattern in (("mixture", mixture), *((f"works: {name}", text) for name, text in self.works.items())):
            for name in {*names_in(pattern)} - {*names_in(self.song)}:
                yield f"{key}: the song pattern {self.song!r} has no {{{name}}}"
        for subset in (self.subset, *self.subsets.values()):
            if subset not in SUBSETS:
                yield f"subset {subset!r} is none of {', '.join(SUBSETS)}"
        yield from self._faults_of_kind()

    def _faults_of_kind(self) -> Iterator[str]:
        within = {"channels": self.channels, "streams": self.streams}
        given = [key for key, value in [("stems", self.stems), *within.items()] if value]
        if len(given) > 1:
            yield f"{' and '.join(given)} exclude each other"
        if not given and not self.mixture:
            yield "stems missing (or channels, or streams); 'stems: []' needs a mixture"
        if self.song_is_file and self.stems:
            yield f"the song pattern {self.song!r} finds files, which have channels or streams, not stems"
        for key, labels in within.items():
            if labels and not self.song_is_file:
                yield f"{key}: the song pattern {self.song!r} finds folders; let it end as the audio files do"
            if len({*labels.values()}) < len(labels):
                yield f"{key}: a label stands there twice"
            if any(index < 0 for index in labels):
                yield f"{key} are counted from 0"


def _unseen(listing: SongListing) -> bool:
    """Whether the song may hold stems, for not all of its folder could be looked into."""
    return any(problem.code in ("outside_root", "unreadable") for problem in listing.problems)


def _literal_end(pattern: str) -> str:
    """What follows the last ``{name}`` or ``*`` of a pattern."""
    return re.split(r"[}*]", pattern)[-1]


# Each brings a value of the YAML file to the type of the field. Raises TypeError.


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str | int | float):
        raise TypeError(f"{key} is a text, not {type(value).__name__}")
    return str(value)


def _texts(key: str, value: Any) -> tuple[str, ...]:
    return tuple(_text(key, item) for item in (value if isinstance(value, list) else [value]))


def _mapping(key: str, value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise TypeError(f"{key} is a mapping, not {type(value).__name__}")
    return {_text(key, name): _text(key, item) for name, item in value.items()}


def _numbered(key: str, value: Any) -> dict[int, str]:
    return {_index(key, name): label for name, label in zip(value, _mapping(key, value).values(), strict=True)}


def _index(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{key}: {value!r} is no whole number")
    return value


def _number(key: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{key} is a number, not {value!r}")
    return float(value)


def _license(key: str, value: Any) -> str:
    return _text(f"the id of {key}", value.get("id") if isinstance(value, dict) else value)


_KINDS: dict[str, Any] = {
    "name": _text,
    "license": _license,
    "citation": _text,
    "song": _text,
    "stems": _texts,
    "channels": _numbered,
    "streams": _numbered,
    "mixture": _text,
    "mixture_stream": _index,
    "subset": _text,
    "subsets": _mapping,
    "ignore": _texts,
    "notes": _mapping,
    "labels": _mapping,
    "residual_db": _number,
    "works": _mapping,
}
