"""``results.json``: what was asked, what came out, and which files of a folder are a command's own."""

import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path, PurePath
from typing import Any, TypeAlias

from manifests.atomic import TEMPORARY_PREFIX, abandoned, check_writable, write_json
from manifests.errors import AudioError, ConfigError

RESULTS_FILE = "results.json"
SAVE_EVERY_S = 2.0

Place: TypeAlias = tuple[int, int]
"""Number of an input, and of a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileResult:
    """One use of the model: what was asked, and the files that came out (paths below the results' folder)."""

    task: str
    prompt: str
    input: str | None
    given: dict[str, str]
    outputs: dict[str, str]
    sampler: str
    steps: int
    guidance: float | tuple[float, ...]
    seed: int
    seconds: float
    """Time from its begin to its end; that of others that were sampled with it is in it."""
    precision: str = "float32"
    key: str = ""
    """Hash over input, prompt, sampling, form and model: equal keys, equal results, but for rounding."""
    given_key: str = ""
    """Hash over what the given file was made of: equal keys, equal files."""
    reference: dict[str, str] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def claims(self) -> dict[str, str]:
        """Its files, but for references, each with the key of what is in it."""
        return claims(self.outputs, self.key, self.given, self.given_key)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileResults:
    """Everything one command did."""

    model: str
    results: tuple[FileResult, ...]
    failures: tuple[dict[str, str], ...] = ()
    """Inputs that could not be read: ``input``, ``code``, ``message``."""
    leftover: tuple[str, ...] = ()
    """Files of commands that have no row: not yet, or no more. The next may write over them."""


def printable(text: str) -> str:
    """Text for a table: bytes of a path that are no UTF-8 are question marks in it."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def failure(path: Path, error: AudioError) -> dict[str, str]:
    """An input that could not be read, for `FileResults.failures`."""
    told = {"input": str(path), "code": error.code, "message": str(error)}
    return {name: printable(text) for name, text in told.items()}


def claims(outputs: Mapping[str, str], key: str, given: Mapping[str, str], given_key: str) -> dict[str, str]:
    """Files by track as files with the key of what is in them."""
    return {**dict.fromkeys(given.values(), given_key), **dict.fromkeys(outputs.values(), key)}


def agree(some: Mapping[str, str], others: Mapping[str, str]) -> bool:
    """Whether no file is claimed by both for different things."""
    return all(others.get(file, key) == key for file, key in some.items())


class Store:
    """The results' folder, as earlier commands left it, and what this one adds."""

    def __init__(self, out: Path) -> None:
        """Look what is there; nothing is written.

        Raises:
            ConfigError: its ``results.json`` is not ours, or of another version.
        """
        self.out = out
        self._model = ""
        self._earlier, leftover = read_results(out / RESULTS_FILE)
        self._leftover = set(leftover)
        self._by_key = {row.key: row for row in self._earlier}
        self._claims = {file: key for row in self._earlier for file, key in row.claims.items()}
        self._rows: dict[Place, FileResult] = {}
        self._failures: dict[int, dict[str, str]] = {}
        self._saved = time.monotonic()

    @property
    def files(self) -> set[str]:
        """Every file that is a command's own."""
        return _files([*self._earlier, *self._rows.values()]) | self._leftover

    @property
    def names(self) -> dict[str, str]:
        """What inputs of earlier commands are called, each with its absolute path."""
        return {
            file.removesuffix(f"-{track}{PurePath(file).suffix}"): os.path.abspath(row.input)
            for row in self._earlier
            if row.input
            for track, file in row.given.items()
        }

    def find(self, key: str) -> FileResult | None:
        """The row of a key, if its files are all there."""
        row = self._by_key.get(key)
        return row if row and self._is_whole(row) else None

    def holds(self, file: str, key: str) -> bool:
        """Whether a file is there, and is what the key says."""
        return self._claims.get(file) == key and (self.out / file).is_file()

    def begin(self, model: str, targets: Mapping[str, str]) -> None:
        """Put down which files a command is going to write, before it does: whatever ends it, they are known as ours.

        Rows whose files are lost, or will be others, are given up; what a killed command left is cleared away.

        Args:
            model: Its name.
            targets: Files with the key of what will be in them.

        Raises:
            ConfigError: the folder cannot be written.
        """
        check_writable(self.out)
        self._model = model
        self._leftover |= self.files | targets.keys()
        self._earlier = [row for row in self._earlier if agree(row.claims, targets) and self._is_whole(row)]
        own = {self.out / file for file in (*self._leftover, RESULTS_FILE)}
        for folder in {path.parent for path in own}:
            for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
                final = abandoned(path.name)
                if final and path.with_name(final) in own:
                    path.unlink(missing_ok=True)
        if targets:
            self._write()

    def add(self, place: Place, row: FileResult) -> None:
        """A row of this command; written now and then."""
        self._rows[place] = row
        if time.monotonic() - self._saved > SAVE_EVERY_S:
            self._write()

    def fail(self, number: int, failure: dict[str, str]) -> None:
        """An input of this command that could not be read."""
        self._failures[number] = failure

    def close(self) -> FileResults:
        """Write ``results.json`` for good; returns what this command did."""
        self._leftover = {file for file in self._leftover if (self.out / file).is_file()}
        return self._write()

    def _write(self) -> FileResults:
        rows = tuple(row for _, row in sorted(self._rows.items(), key=lambda item: item[0]))
        keys = {row.key for row in rows}
        stay = tuple(row for row in self._earlier if row.key not in keys)
        named = _files([*rows, *stay])
        results = FileResults(
            model=self._model,
            results=rows,
            failures=tuple(failure for _, failure in sorted(self._failures.items())),
            leftover=tuple(sorted(self._leftover - named)),
        )
        write_json(self.out / RESULTS_FILE, asdict(replace(results, results=(*rows, *stay))))
        self._saved = time.monotonic()
        return results

    def _is_whole(self, row: FileResult) -> bool:
        return all((self.out / file).is_file() for file in row.claims)


def read_results(path: Path) -> tuple[list[FileResult], list[str]]:
    """The rows of a ``results.json`` and the files left over; none where there is no such file.

    Raises:
        ConfigError: it is not ours, or of another version.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        leftover = raw["leftover"]
        if not all(isinstance(file, str) for file in leftover):
            raise TypeError("leftover")
        return [_row(row) for row in raw["results"]], list(leftover)
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{path}: no results of this version ({type(error).__name__}: {reason}), and it will not be written over; "
            "move it away, or choose another folder"
        ) from None


def files_of(path: Path) -> set[str]:
    """The files that a ``results.json`` lists; none where it is not ours."""
    try:
        rows, leftover = read_results(path)
    except ConfigError:
        return set()
    return _files(rows) | set(leftover)


def _files(rows: Iterable[FileResult]) -> set[str]:
    return {file for row in rows for file in (*row.claims, *row.reference.values())}


def amend(out: Path, rows: Iterable[FileResult]) -> None:
    """Put rows into the place of those of the same keys in the ``results.json`` of a folder."""
    path = out / RESULTS_FILE
    raw, by_key = json.loads(path.read_text(encoding="utf-8")), {row.key: asdict(row) for row in rows}
    write_json(path, raw | {"results": [by_key.get(row["key"], row) for row in raw["results"]]})


def _row(raw: Any) -> FileResult:
    needed = {
        entry.name for entry in fields(FileResult) if MISSING is entry.default and MISSING is entry.default_factory
    }
    if missing := (needed | {"key"}) - raw.keys():
        raise KeyError(", ".join(sorted(missing)))
    row = FileResult(**raw)
    if not all(isinstance(file, str) for files in (row.given, row.outputs, row.reference) for file in files.values()):
        raise TypeError("a file is no text")
    return row
