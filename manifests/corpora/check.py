"""Looking at a corpus before it is scanned: what its layout is, and what of a folder the layout takes.

Both read no audio. `check` is for writing a layout by trial: it tells what matched, what was left over, and why.
"""

import inspect
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from manifests.corpora.base import AUDIO_SUFFIXES, Corpus
from manifests.corpora.layout import FolderLayout
from manifests.corpora.patterns import matcher
from manifests.corpora.registry import corpus_names, get_corpus, layout_path
from manifests.errors import CorpusError
from manifests.labels import UNMAPPED, lookup
from manifests.problems import is_failure
from manifests.roots import OpenRoot, container, open_root
from manifests.songs import SUBSETS

_SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelCount:
    """A raw label, what it is mapped to, and how many stems have it."""

    label: str
    instrument: str
    family: str
    stems: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProblemCount:
    """A problem code of the listing, how often it stands there, and the first song and detail that have it."""

    code: str
    count: int
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Files that no song lists, all for one reason."""

    why: str
    suffix: str
    files: int
    example: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusCheck:
    """What of a folder a corpus takes."""

    corpus: str
    root: str
    error: str | None
    """Why there is no such corpus here, or None."""
    complete: bool
    """False when time was up, so that there may be more than is counted."""
    subsets: dict[str, int]
    """Songs of each subset; a song whose subset is not known counts where it was put, and as a problem."""
    mixtures: int
    """Songs that have a mixture."""
    without_stems: int
    labels: tuple[LabelCount, ...]
    """Most frequent first."""
    unmapped: dict[str, int]
    """Labels that the vocabulary does not know, and how many stems have them."""
    problems: tuple[ProblemCount, ...]
    leftover: tuple[Leftover, ...]
    """Most files first."""

    @property
    def failed(self) -> bool:
        """Whether nothing matched, or something of what did cannot be used until a person mends it."""
        return self.error is not None or any(is_failure(problem.code) for problem in self.problems)


def check(name: str, root: Path | str, *, seconds: float = 1.0) -> CorpusCheck:
    """See what the corpus ``name`` (or the layout at that path) takes of ``root``, a folder or a URL.

    Listing stops ``seconds`` after the first song, and so does the search for leftovers; 0 is without limit.

    Raises:
        CorpusError: no such corpus, a wrong layout, or no such folder. That nothing matches is a result, not an error.
    """
    corpus = get_corpus(name)
    with open_root(root) as place:
        return _check(corpus, place, seconds)


def _check(corpus: Corpus, place: OpenRoot, seconds: float) -> CorpusCheck:
    root = place.folder
    subsets, labels, problems = Counter[str](), Counter[str](), Counter[str]()
    instruments: dict[str, str] = {}
    examples: dict[str, str] = {}
    taken: set[str] = set()
    mixtures = without_stems = 0
    error, complete, end = None, True, float("inf")
    try:
        for listing in corpus.songs(root):
            # A layout is slow before the first song only, for it has found all by then.
            end = end if subsets else _deadline(seconds)
            subsets[listing.subset] += 1
            mixtures += listing.mixture is not None
            without_stems += not listing.stems
            paths = [stem.path for stem in listing.stems] + ([listing.mixture] if listing.mixture else [])
            taken |= {container(path) for path in paths}
            for stem in listing.stems:
                label = _line(stem.label)
                labels[label] += 1
                instruments.setdefault(label, stem.instrument or stem.label)
            for problem in listing.problems:
                problems[problem.code] += 1
                examples.setdefault(problem.code, _line(f"{listing.song}: {problem.detail}"))
            if time.monotonic() > end:
                complete = False
                break
    except CorpusError as failure:
        error = _line(place.named(str(failure)))
    leftover: list[Leftover] = []
    # What a listing that was cut short did not come to is not left over.
    if complete:
        leftover, complete = _leftovers(corpus, root, taken, _deadline(seconds))
    counts = [_label_count(label, instruments[label], count) for label, count in labels.most_common()]
    return CorpusCheck(
        corpus=corpus.name,
        root=_line(place.root),
        error=error,
        complete=complete,
        subsets={subset: subsets[subset] for subset in SUBSETS if subset in subsets},
        mixtures=mixtures,
        without_stems=without_stems,
        labels=tuple(counts),
        unmapped={count.label: count.stems for count in counts if count.family == UNMAPPED},
        problems=tuple(
            ProblemCount(code=code, count=count, example=examples[code]) for code, count in problems.most_common()
        ),
        leftover=tuple(leftover),
    )


def why_left(layout: FolderLayout, path: str) -> str:
    """Why the layout takes no file at ``path``, below the root."""
    parts, wanted = path.split("/"), layout.song.split("/")
    if any(layout.ignores("/".join(parts[:end])) for end in range(1, len(parts) + 1)):
        return "ignored, as the layout says"
    if any(part.startswith(".") for part in parts):
        return "hidden"
    for part, pattern in zip(parts, wanted, strict=False):
        if not matcher(pattern).fullmatch(part):
            return f"does not match {pattern!r} of the song pattern {layout.song!r}"
    depth = len(parts) - len(wanted)
    if layout.song_is_file:
        return f"{'not as deep as' if depth < 0 else 'deeper than'} the song pattern {layout.song!r}"
    if depth < 1:
        return f"not in a folder as deep as the song pattern {layout.song!r}"
    name = "/".join(parts[len(wanted) :])
    if layout.ignores(name):
        return "ignored, as the layout says"
    if depth - 1 > max((pattern.count("/") for pattern in layout.stems), default=0):
        return "deeper in the song than any stem pattern"
    if not any(name.endswith(_suffix(pattern)) for pattern in layout.stems):
        return f"ends otherwise than the stem patterns, {', '.join(sorted({_suffix(p) for p in layout.stems}))}"
    return f"matches none of the stem patterns, {', '.join(layout.stems)}"


def summary(found: CorpusCheck) -> str:
    """What was found, for a person."""
    songs = sum(found.subsets.values())
    lines = [f"{found.corpus} below {found.root}"]
    if found.error:
        lines += ["", f"nothing matched: {found.error}"]
    else:
        subsets = ", ".join(f"{subset} {count}" for subset, count in found.subsets.items())
        lines += ["", f"songs     {songs}: {subsets}", f"mixtures  {found.mixtures} of {songs} songs have one"]
        lines += [f"no stems  {found.without_stems} songs"] if found.without_stems else []
    if found.labels:
        rows = [
            (str(each.stems), each.label, each.instrument if each.family != UNMAPPED else "NOT IN THE VOCABULARY")
            for each in found.labels
        ]
        lines += ["", "stems     label -> instrument", *_columns(rows)]
    if found.problems:
        rows = [(str(each.count), each.code, each.example) for each in found.problems]
        lines += ["", "problems", *_columns(rows)]
    if found.leftover:
        rows = [(str(each.files), each.suffix, f"{each.why}; such as {each.example}") for each in found.leftover]
        lines += ["", "left over", *_columns(rows)]
    if not found.complete:
        lines += ["", "time was up: there may be more than this; --seconds 0 looks at all"]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """A corpus in words."""

    name: str
    license: str
    citation: str
    layout: str
    """The tree, its subsets and its known defects: a YAML layout, or what the adapter says of itself."""


def describe(name: str) -> Description:
    """Describe the corpus ``name``, or the layout at that path. Raises CorpusError."""
    corpus = get_corpus(name)
    if path := layout_path(name):
        text = path.read_text(encoding="utf-8")
    else:
        kind = type(corpus)
        module = sys.modules.get(kind.__module__)
        texts = [inspect.getdoc(thing) for thing in (module, kind) if thing]
        text = "\n\n".join(inspect.cleandoc(each) for each in texts if each)
    return Description(name=corpus.name, license=corpus.license, citation=corpus.citation, layout=text.strip())


def describe_all() -> dict[str, str]:
    """Licence and citation of every corpus by its name; of one of another package that is broken, what is wrong."""
    found = {}
    for name in corpus_names():
        try:
            corpus = get_corpus(name)
            found[name] = f"{corpus.license}; {corpus.citation}"
        except CorpusError as error:
            found[name] = f"cannot be used: {error}"
    return found


def _deadline(seconds: float) -> float:
    return time.monotonic() + seconds if seconds else float("inf")


def _label_count(label: str, known_as: str, stems: int) -> LabelCount:
    found = lookup(known_as)
    return LabelCount(label=label, instrument=_line(found.instrument), family=found.family, stems=stems)


def _leftovers(corpus: Corpus, root: Path, taken: set[str], end: float) -> tuple[list[Leftover], bool]:
    """Files below ``root`` that are not ``taken``, by reason and suffix; and whether time was enough to see all."""
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], str] = {}
    complete = True
    for path in _files(root):
        if time.monotonic() > end:
            complete = False
            break
        if path not in taken:
            key = _why(corpus, path), os.path.splitext(path)[1]
            counts[key] += 1
            examples.setdefault(key, path)
    found = [
        Leftover(why=_line(why), suffix=_line(suffix), files=count, example=_line(examples[why, suffix]))
        for (why, suffix), count in counts.most_common()
    ]
    return found, complete


def _why(corpus: Corpus, path: str) -> str:
    if isinstance(corpus, FolderLayout):
        return why_left(corpus, path)
    return "audio that no song lists" if path.lower().endswith(AUDIO_SUFFIXES) else "no audio"


def _files(root: Path) -> Iterator[str]:
    """Paths of all files below ``root``, in order; links to folders are not followed."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        place = Path(folder).relative_to(root).as_posix()
        yield from (name if place == "." else f"{place}/{name}" for name in sorted(names))


def _suffix(pattern: str) -> str:
    return os.path.splitext(pattern)[1]


def _line(text: str) -> str:
    """One line of UTF-8: file names may hold anything."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def _columns(rows: list[tuple[str, str, str]]) -> list[str]:
    """Rows in columns, but no more than a person reads."""
    shown = rows[:_SHOWN]
    first, second = (max(len(row[column]) for row in shown) for column in (0, 1))
    lines = [f"  {row[0].rjust(first)}  {row[1].ljust(second)}  {row[2]}".rstrip() for row in shown]
    return lines + ([f"  ... and {len(rows) - _SHOWN} more; --json has them all"] if len(rows) > _SHOWN else [])
