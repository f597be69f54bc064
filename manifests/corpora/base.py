"""What every corpus gives: a listing of songs, their stems' paths and labels."""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml

from manifests.errors import CorpusError
from manifests.regular import open_regular
from manifests.songs import Problem, inside

Item = TypeVar("Item")

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".mp4", ".aif", ".aiff")

METADATA_BYTES = {"YAML": 2 << 20, "JSON": 64 << 20}
"""What a file of metadata may have: YAML is read at less than a megabyte a second."""
_YAML_NODES = 1_000_000
_YAML_DEPTH = 100
# libyaml, ten times as fast, where PyYAML was built with it.
_YamlLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StemListing:
    """One stem as the corpus lists it."""

    stem_id: str
    path: str
    """Below the root, with forward slashes; need not exist (the scan records what is missing)."""
    label: str
    stream: int | None = None
    """Index among the audio streams of a file that holds several."""
    channel: int | None = None
    """The one channel of the file that is this stem, where a corpus keeps sources in channels; None: all."""
    instrument: str | None = None
    """Canonical instrument where the corpus knows it better than the vocabulary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SongListing:
    """One song as the corpus lists it."""

    song: str
    """The song's own path or id in the corpus; stable, never a listing position."""
    subset: str
    stems: tuple[StemListing, ...]
    mixture: str | None = None
    mixture_stream: int | None = None
    """Index of the mixture among the audio streams of its file."""
    residual_db: float | None = None
    """Least difference between mixture and sum of the stems, after the best gain and lag, that is worth a problem;
    None where the corpus does not say that the stems sum to the mixture."""
    works: tuple[str, ...] = ()
    """Names, in any corpus, of the work that this recording is of ("musdb18:A - B", "lakh:<md5>"): two songs that share
    one must not be in two subsets. Stands in ``extra``."""
    license: str = ""
    problems: tuple[Problem, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


class Corpus(Protocol):
    """A multitrack data set. Third parties add one by the entry-point group ``mgeldm.corpora``."""

    @property
    def name(self) -> str:
        """Letters, digits, ``-``, ``_`` and ``.``; the first part of every song id."""
        ...

    @property
    def license(self) -> str:
        """Licence of the songs that have none of their own; an SPDX id where there is one."""
        ...

    @property
    def citation(self) -> str:
        """Whom to cite."""
        ...

    def songs(self, root: Path) -> Iterator[SongListing]:
        """List the songs below ``root`` in a stable order. Raises CorpusError when this is no such corpus."""
        ...


def read_mapping(path: Path) -> dict[Any, Any]:
    """Read a mapping from YAML or .json. Raises ValueError, in one line, when the file is missing or anything else.

    Anything else: larger than `METADATA_BYTES`, not UTF-8, with a key that stands twice, or with aliases that make it
    many times as large.
    """
    kind, parse = ("JSON", _parse_json) if path.suffix == ".json" else ("YAML", _parse_yaml)
    try:
        with open_regular(path) as file:
            data = file.read(METADATA_BYTES[kind] + 1)
    except OSError as error:
        raise ValueError(str(error.strerror)) from None
    if len(data) > METADATA_BYTES[kind]:
        raise ValueError(f"larger than the {METADATA_BYTES[kind] >> 20} MiB that {kind} may have")
    try:
        value = parse(data.decode("utf-8-sig"))
    # Besides its own errors, the YAML reader lets through whatever its converters of single values stumble over.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"not readable as {kind}: {reason[:500]}") from None
    if not isinstance(value, dict):
        raise ValueError(f"a mapping was expected, not {type(value).__name__}")
    return value


def _parse_json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _refuse_twice(key for key, _ in pairs)
        return dict(pairs)

    return json.loads(text, object_pairs_hook=unique)


def _parse_yaml(text: str) -> Any:
    _check_depth(text)
    loader = _YamlLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _yaml_size(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_depth(text: str) -> None:
    """Raise ValueError before libyaml's composer, which is recursive in C, would use up the stack."""
    depth = 0
    for event in yaml.parse(text, _YamlLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _YAML_DEPTH:
            raise ValueError(f"nested more than {_YAML_DEPTH} deep")


def _yaml_size(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of nodes, those behind aliases as often as they are named. Raises ValueError."""
    if id(node) in known:
        if known[id(node)] < 0:
            raise ValueError("an alias stands in what it is an alias of")
        return known[id(node)]
    known[id(node)] = -1
    children = [] if isinstance(node, yaml.ScalarNode) else node.value
    if isinstance(node, yaml.MappingNode):
        _refuse_twice((key.tag, key.value) for key, _ in children if isinstance(key, yaml.ScalarNode))
        children = [child for pair in children for child in pair]
    known[id(node)] = size = 1 + sum(_yaml_size(child, known) for child in children)
    if size > _YAML_NODES:
        raise ValueError(f"with its aliases written out, more than {_YAML_NODES} values")
    return size


def _refuse_twice(keys: Iterable[Any]) -> None:
    # One of the two would win in silence.
    if twice := [key for key, count in Counter(keys).items() if count > 1]:
        name = twice[0] if isinstance(twice[0], str) else twice[0][1]
        raise ValueError(f"the key {name[:100]!r} stands twice in one mapping")


def read_metadata(root: Path, relative: str) -> dict[Any, Any]:
    """Like `read_mapping`, for a file below ``root``; a link that leaves it is a ValueError too."""
    path = inside(root, relative)
    if path is None:
        raise ValueError("a link that leaves the root")
    return read_mapping(path)


def find_folders(folder: Path, depth: int, is_song: Callable[[Path], bool]) -> Iterator[Path]:
    """Folders of songs at most ``depth`` levels below ``folder``, in the order of their paths. Raises CorpusError.

    A song may be a link; what is beside songs is not followed, for it may lead to the same songs again.
    """
    try:
        children = list_folders(folder)
    except OSError as error:
        raise CorpusError(f"{folder}: cannot be listed ({error.strerror})") from None
    for child in children:
        if is_song(child):
            yield child
        elif depth > 1 and not child.is_symlink():
            yield from find_folders(child, depth - 1, is_song)


def first_of_each(items: Iterable[Item], name: Callable[[Item], str], root: Path) -> Iterator[Item]:
    """The items but for those whose name was there before, which are warned of: two songs cannot share an id."""
    seen = set()
    for item in items:
        if name(item) in seen:
            logger.warning("%s: there are two songs called %r, the first is taken", root, name(item))
        else:
            seen.add(name(item))
            yield item


def leaves(root: Path, folder: Path) -> bool:
    """Whether ``folder``, all above which is inside ``root``, is a link that leaves it."""
    return folder.is_symlink() and inside(root, folder.relative_to(root).as_posix()) is None


def has_audio(root: Path, path: str) -> bool:
    """Whether there is a file at ``path``. One that would leave the root is the scan's business, and has."""
    try:
        place = inside(root, path)
    except ValueError:
        # Half a surrogate pair, which JSON can say and no file can be called.
        return False
    return place is None or os.path.exists(place)


def list_folders(folder: Path, root: Path | None = None) -> list[Path]:
    """Folders in ``folder`` and links to such, sorted; hidden ones are left out.

    Raises OSError, also if ``folder`` leaves ``root``.
    """
    if root and leaves(root, folder):
        raise OSError(None, "a link that leaves the root", str(folder))
    return [folder / name for name in sorted(os.listdir(folder)) if name[0] != "." and os.path.isdir(folder / name)]


def list_names(folder: Path, problems: list[Problem], root: Path | None = None) -> list[str]:
    """Names in a folder of a song, sorted; none if it is missing.

    A problem is added if it cannot be listed, or if it leaves ``root``.
    """
    try:
        if root and inside(root, folder.relative_to(root).as_posix()) is None:
            problems.append(Problem(code="outside_root", detail=f"the folder {folder.name}"))
            return []
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(Problem(code="unreadable", detail=f"the folder {folder.name}: {error.strerror}"))
        return []


def list_files(
    folder: Path, prefix: str, depth: int, problems: list[Problem], root: Path | None = None
) -> Iterator[str]:
    """Names below ``folder`` of files, and of folders that are hidden, links or too deep for any pattern."""
    for name in list_names(folder, problems, root):
        path = folder / name
        if depth and name[0] != "." and os.path.isdir(path) and not os.path.islink(path):
            yield from list_files(path, f"{prefix}{name}/", depth - 1, problems, root)
        else:
            yield prefix + name
