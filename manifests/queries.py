"""Questions to a manifest in SQL, by DuckDB: filters in a person's own words, and the sums of `manifests.song_stats`.

The manifest is read as far as a question needs it, a row group at a time; nothing but this one file can be read.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from manifests.duplicates import CROSS_SONG, outdated_problems
from manifests.errors import ConfigError, ManifestError
from manifests.problems import PROBLEMS, Effect
from manifests.songs import SONGS_SCHEMA, SONGS_VERSION, Problem, Song, open_table, reading, row_songs, write_batches

MEMORY_LIMIT = "1GB"
"""What DuckDB may keep of a manifest at a time."""


def _codes(kind: Effect) -> str:
    return ", ".join(f"'{code}'" for code, (effect, _) in PROBLEMS.items() if effect is kind)


DERIVED = {
    "hours": "duration_s / 3600",
    "stem_count": "len(stems)",
    "instruments": "list_sort(list_distinct([stem.instrument FOR stem IN stems]))",
    "families": "list_sort(list_distinct([stem.family FOR stem IN stems]))",
    "labels": "list_sort(list_distinct([stem.label FOR stem IN stems]))",
    "problem_codes": "list_sort(list_distinct([problem.code FOR problem IN problems]))",
    "damaged_stems": f"[problem.stem_id FOR problem IN problems IF problem.code IN ({_codes(Effect.STEM)})]",
    "usable": f"len([problem.code FOR problem IN problems IF problem.code IN ({_codes(Effect.SONG)})]) = 0"
    " AND len([stem FOR stem IN stems IF NOT list_contains(damaged_stems, stem.stem_id)]) > 0",
}
"""Columns that a filter may name beside those of the manifest, as SQL over them."""

COLUMNS = (*SONGS_SCHEMA.names, *DERIVED)

_ROW = "manifest_row"
# Quoted text first, so that what stands in quotes is left alone.
_HAS_PROBLEM = re.compile(
    r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|\b(has_problem)\s*\((?:\s*'([^']*)'\s*\))?", re.IGNORECASE
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterSummary:
    """What a filter kept."""

    songs: int
    of: int
    """Songs of the manifest that was filtered."""
    hours: float


@contextmanager
def opened(path: Path | str) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection with the views ``songs`` (the manifest and `DERIVED`) and ``stems`` (one row a stem, with its song's
    ``song_id``, ``corpus`` and ``subset``).

    Raises:
        ManifestError: the file is missing or is no manifest of this version.
    """
    with open_table(path, "songs", SONGS_VERSION, SONGS_SCHEMA):
        pass
    derived = ", ".join(f"{sql} AS {name}" for name, sql in DERIVED.items())
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": MEMORY_LIMIT,
        "autoinstall_known_extensions": False,
    }
    with _plain(Path(path)) as plain, duckdb.connect(config=settings) as connection:
        file = _quoted(str(plain))
        connection.execute(f"SET allowed_paths = [{file}]")
        connection.execute("SET enable_external_access = false")
        # It would stand in the output of a command that prints JSON.
        connection.execute("SET enable_progress_bar = false")
        connection.execute("SET lock_configuration = true")
        connection.execute(
            f"CREATE TEMP VIEW songs AS SELECT * RENAME (file_row_number AS {_ROW}), {derived} "
            f"FROM read_parquet({file}, file_row_number = true, hive_partitioning = false)"
        )
        connection.execute(
            "CREATE TEMP VIEW stems AS SELECT song_id, corpus, subset, stem.* "
            "FROM (SELECT song_id, corpus, subset, unnest(stems) AS stem FROM songs)"
        )
        try:
            yield connection
        except duckdb.Error as error:
            raise ManifestError(f"{path}: {_reason(error)}") from None


@contextmanager
def _plain(path: Path) -> Iterator[Path]:
    """An absolute path to the file in which DuckDB sees no pattern."""
    path = path.absolute()
    if not set("*?[") & set(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "songs.parquet"
        link.symlink_to(path)
        yield link


def filter_songs(path: Path | str, where: str, out: Path | str) -> FilterSummary:
    """Write the songs of the manifest ``path`` for which ``where`` is true to the manifest ``out``.

    ``where`` is an SQL expression over the columns of the manifest and `DERIVED`, such as
    ``corpus == 'moisesdb' and 'drums' in instruments and not has_problem('leak')``. Metadata stay, so that a scan into
    ``out`` reuses its rows. Duplicates and leaks of songs that are gone are no longer told.

    Raises:
        ConfigError: the expression is wrong; the message names the columns there are.
        ManifestError: the file is missing or is no manifest of this version.
    """
    with opened(path) as connection:
        rows, hours, related = _matching(connection, where)
    with open_table(path, "songs", SONGS_VERSION, SONGS_SCHEMA) as (file, metadata):
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        starts = np.cumsum([0, *counts])

        def parts(rows: np.ndarray) -> Iterator[pa.Table]:
            wanted = np.zeros(sum(counts), np.bool_)
            wanted[rows] = True
            for group, (begin, end) in enumerate(pairwise(starts)):
                if wanted[begin:end].any():
                    with reading(path):
                        rows_of_group = file.read_row_group(group)
                    yield rows_of_group.filter(pa.array(wanted[begin:end]))

        def songs() -> Iterator[Song]:
            for part in parts(related):
                yield from row_songs(part, path)

        outdated = outdated_problems(songs())
        tables = (_judged(part, outdated) for part in parts(rows))
        keys = {name: value for name, value in metadata.items() if name != "songs.version"}
        write_batches(out, tables, SONGS_SCHEMA, "songs", SONGS_VERSION, keys)
    return FilterSummary(songs=len(rows), of=sum(counts), hours=hours)


def _judged(rows: pa.Table, outdated: Mapping[str, tuple[Problem, ...]]) -> pa.Table:
    """The rows with the problems of `CROSS_SONG` that are now true."""
    names = rows["song_id"].to_pylist()
    if outdated.keys().isdisjoint(names):
        return rows
    problems = rows["problems"].to_pylist()
    for index, name in enumerate(names):
        if name in outdated:
            others = [problem for problem in problems[index] if problem["code"] not in CROSS_SONG]
            problems[index] = others + [asdict(problem) for problem in outdated[name]]
    column = rows.schema.get_field_index("problems")
    field = rows.schema.field(column)
    return rows.set_column(column, field, pa.array(problems, field.type))


def _matching(connection: duckdb.DuckDBPyConnection, where: str) -> tuple[np.ndarray, float, np.ndarray]:
    """Rows of the manifest for which ``where`` is true, ascending; their hours in all; and those of them that were
    found to be like other songs."""
    if not where.strip():
        raise ConfigError(f"--where is empty; give an expression over the columns {', '.join(COLUMNS)}")
    # The line break ends a comment, should the expression end with one.
    related = f"list_has_any(problem_codes, [{', '.join(map(_quoted, CROSS_SONG))}])"
    condition = f"{_HAS_PROBLEM.sub(_condition, where)}\n"
    query = f"SELECT {_ROW}, duration_s, {related} AS related FROM songs WHERE ({condition}) ORDER BY {_ROW}"
    try:
        if len(duckdb.extract_statements(query)) != 1:
            raise ConfigError(f"--where {_line(where)}: one expression is wanted, not several statements")
        # On its own, too: brackets that close those around it would pass there.
        duckdb.extract_statements(f"SELECT {condition}")
        found = connection.execute(query).fetchnumpy()
    except duckdb.Error as error:
        raise ConfigError(f"--where {_line(where)}: {_reason(error)}; columns: {', '.join(COLUMNS)}") from None
    rows = np.asarray(found[_ROW], np.int64)
    return rows, float(np.sum(found["duration_s"])) / 3600, rows[np.asarray(found["related"], np.bool_)]


def _condition(match: re.Match[str]) -> str:
    if not match[1]:
        return match[0]
    if match[2] is None:
        return "list_contains(problem_codes, "
    if match[2] not in PROBLEMS:
        raise ConfigError(f"--where: there is no problem {match[2]!r}; known: {', '.join(PROBLEMS)}")
    return f"list_contains(problem_codes, '{match[2]}')"


def _reason(error: duckdb.Error) -> str:
    """The first sentence of DuckDB's message, without its kind and the picture of the query."""
    return _line(str(error).split("\n\n")[0].split("\nLINE")[0].partition(": ")[2] or str(error))


def _line(text: str) -> str:
    return " ".join(text.split())


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
