"""Patterns of paths: ``{name}`` and ``*`` match within one path component, the rest is literal."""

import os
import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

from manifests.corpora.base import list_folders
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


def find(root: Path, pattern: str, skips: Callable[[str], bool], *, files: bool) -> Iterator[tuple[str, bool]]:
    """Folders (or files) below ``root`` that match ``pattern``, in the order of their paths, each with True.

    What matches no component of the pattern is not gone into, and comes with False. Hidden names and paths that
    ``skips`` is true of are left out. Raises CorpusError when a folder cannot be listed.
    """

    def below(prefix: str, components: list[str]) -> Iterator[tuple[str, bool]]:
        here, rest = components[0], components[1:]
        for name in _children(root / prefix, files=files and not rest):
            path = prefix + name
            if skips(path):
                continue
            if not matcher(here).fullmatch(name):
                yield path, False
            elif rest:
                yield from below(f"{path}/", rest)
            else:
                yield path, True

    yield from below("", pattern.split("/"))


def _children(folder: Path, *, files: bool) -> list[str]:
    try:
        if not files:
            return [child.name for child in list_folders(folder)]
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise CorpusError(f"{folder}: cannot be listed ({error.strerror})") from None
    return [name for name in names if name[0] != "." and not os.path.isdir(folder / name)]
