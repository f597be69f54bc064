"""Which files are meant, and what their answers are called: no two files of one folder ever have one name.

A target is INPUT-TRACK for what was given, INPUT-TASK-PROMPT-TRACK for what came out. INPUT is words and dashes, and
none of its words is the name of a task; so the first that is one ends it, and different inputs, prompts or tracks are
different files.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath

from manifests.corpora.base import AUDIO_SUFFIXES
from manifests.errors import ConfigError
from mgeldm.files.results import RESULTS_FILE, files_of, printable
from mgeldm.tasks import TASKS

_DIGITS = 8


def slug(text: str) -> str:
    """A file name part: lower-case letters, digits and single dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")[:60].rstrip("-") or "x"


def find_inputs(inputs: Sequence[Path], out: Path, results: Collection[str] = ()) -> dict[Path, PurePath]:
    """Every input file once, and the folder below the results' where its outputs belong.

    A folder stands for the audio files below it, without hidden ones, without ``results``, which are files of ``out``,
    without all of ``out`` where that is a folder inside, and without the results of other commands in folders inside.

    Raises:
        ConfigError: a folder holds none.
    """
    place, done = out.resolve(), {(out / file).resolve() for file in results}
    found: dict[str, tuple[Path, PurePath]] = {}
    for given in inputs:
        if not given.is_dir():
            found.setdefault(os.path.abspath(given), (given, PurePath()))
            continue
        for other in given.rglob(RESULTS_FILE):
            done |= {(other.parent / file).resolve() for file in files_of(other)}
        inside = place != given.resolve() and place.is_relative_to(given.resolve())
        files = [
            path
            for path in sorted(given.rglob("*"))
            if path.suffix.lower() in AUDIO_SUFFIXES
            and path.is_file()
            and not any(part.startswith(".") for part in path.relative_to(given).parts)
        ]
        sounds = [
            path
            for path in files
            if (real := path.resolve()) not in done and not (inside and real.is_relative_to(place))
        ]
        if not sounds:
            but = f" but results of earlier commands ({len(files)} files)" if files else ""
            raise ConfigError(f"{given}: no audio below this folder{but} ({' '.join(AUDIO_SUFFIXES)})")
        for path in sounds:
            found.setdefault(os.path.abspath(path), (path, path.relative_to(given).parent))
    return dict(found.values())


def output_names(
    inputs: Sequence[Path],
    folders: Mapping[Path, PurePath] | None = None,
    taken: Mapping[str, str] | None = None,
) -> dict[Path, str]:
    """A name for each input, in its folder if it has one; in whatever order they come, the same.

    That of the file; where several would share it, with that of its folder before it; where that does not tell them
    apart either, with digits of a hash of the path. ``taken`` are names of earlier commands with the absolute paths of
    their inputs: they are nobody else's.
    """
    folders, taken = folders or {}, taken or {}
    levels = dict.fromkeys(inputs, 0)
    while True:
        places = {path: folders.get(path, PurePath()) / _name(path, level) for path, level in levels.items()}
        names = {path: printable(place.as_posix()) for path, place in places.items()}
        counts = Counter(names.values())
        shared = [
            path
            for path in inputs
            if counts[names[path]] > 1 or taken.get(names[path], place := printable(os.path.abspath(path))) != place
        ]
        if not shared:
            return names
        for path in shared:
            levels[path] += 1


def prompt_names(prompts: Sequence[str]) -> list[str]:
    """A file name part for each prompt, unique even where two are one, or are spelt alike."""
    names: list[str] = []
    for prompt in prompts:
        name, number = slug(prompt), 1
        while (unique := name if number == 1 else f"{name}-{number}") in names:
            number += 1
        names.append(unique)
    return names


def target(name: str, task: str, words: str, track: str, suffix: str) -> str:
    """The file of a track that comes out."""
    return f"{name}-{task}-{words}-{track}.{suffix}"


def given_target(name: str, track: str, suffix: str) -> str:
    """The file of what was given."""
    return f"{name}-{track}.{suffix}"


def mix_target(words: str, seed: int, suffix: str) -> str:
    """The file of what was generated."""
    return f"generate-{words}-seed{seed}.{suffix}"


def _name(path: Path, level: int) -> str:
    """Names of more and more detail; from some level on those of different paths differ."""
    place = os.path.abspath(path)
    if level == 0:
        return _plain(path.stem)
    longer = _plain(f"{Path(place).parent.name}-{path.stem}")
    if level == 1:
        return longer
    digest = hashlib.sha256(os.fsencode(place)).hexdigest()
    return f"{longer}-{digest[: _DIGITS * (level - 1)]}"


def _plain(text: str) -> str:
    """The slug, as one word where one of its words names a task."""
    name = slug(text)
    return name.replace("-", "_") if TASKS.keys() & name.split("-") else name
