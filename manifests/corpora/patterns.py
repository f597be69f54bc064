"""Patterns of paths: ``{name}`` and ``*`` match within one path component, the rest is literal."""

import os
import re
from collections.abc import Callable, Iterator
from enum import Enum, auto
from functools import lru_cache
from pathlib import Path

from manifests.corpora.base import leaves, list_folders
from manifests.errors import CorpusError

_FIELD = re.compile(r"\{(\w+)\}")


def names_in(pattern: str) -> list[str]:
    """The names that stand in braces."""
    return _FIELD.findall(pattern)


def fill(pattern: str, values: dict[str, str]) -> str:
    """The pattern with each ``{name}`` replaced by its value. Raises KeyError."""
    return _FIELD.sub(lambda match: values[match[1]], pattern)


def values_for(pattern: str, values: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Those of ``values`` that the stem pattern ``pattern`` names; a stem's label is its own."""
    return tuple((name, values[name]) for name in names_in(pattern) if name in values and name != "label")


@lru_cache(maxsize=1024)
def matcher(pattern: str, values: tuple[tuple[str, str], ...] = ()) -> re.Pattern[str]:
    """The regular expression of a pattern; a name of ``values`` stands for its value. Raises re.error."""
    known, out = dict(values), ""
    for part in re.split(r"(\{\w+\}|\*)", pattern):
        if (name := _FIELD.fullmatch(part)) and name[1] in known:
            out += re.escape(known[name[1]])
        else:
            out += f"(?P<{name[1]}>[^/]+?)" if name else "[^/]*" if part == "*" else re.escape(part)
    return re.compile(out)


class Found(Enum):
    """What a path below the root is to a pattern."""

    MATCH = auto()
    OTHER = auto()
    OUTSIDE = auto()
    """It matches as far as it goes, but is a link that leaves the root; what is behind it is not looked at."""


def find(root: Path, pattern: str, skips: Callable[[str], bool], *, files: bool) -> Iterator[tuple[str, Found]]:
    """Folders (or files) below ``root`` and what they are to ``pattern``, in the order of their paths.

    What does not match its component of the pattern is not gone into. Hidden names and paths that ``skips`` is true of
    are left out. Raises CorpusError when a folder cannot be listed.
    """

    def below(prefix: str, components: list[str]) -> Iterator[tuple[str, Found]]:
        here, rest = components[0], components[1:]
        for name in _children(root / prefix, files=files and not rest):
            path = prefix + name
            if skips(path):
                continue
            if not matcher(here).fullmatch(name):
                yield path, Found.OTHER
            elif (rest or not files) and leaves(root, root / path):
                yield path, Found.OUTSIDE
            elif rest:
                yield from below(f"{path}/", rest)
            else:
                yield path, Found.MATCH

    yield from below("", pattern.split("/"))


def _children(folder: Path, *, files: bool) -> list[str]:
    """Names of folders; or, where files are looked for, of everything: a folder called as a file is a file's defect."""
    try:
        if not files:
            return [child.name for child in list_folders(folder)]
        return sorted(name for name in os.listdir(folder) if name[0] != ".")
    except OSError as error:
        raise CorpusError(f"{folder}: cannot be listed ({error.strerror})") from None
