"""Choice of samples by an SQL expression over the columns of the index, by DuckDB, which can read nothing else."""

from collections.abc import Sequence
from dataclasses import asdict

import duckdb
import pyarrow as pa

from manifests.errors import ConfigError
from manifests.shards import INDEX_SCHEMA, IndexRow

_ROW = "index_row"


def matching_rows(rows: Sequence[IndexRow], where: str) -> list[IndexRow]:
    """The rows for which ``where`` is true, such as ``subset == 'train' and list_contains(instruments, 'drums')``.

    Raises:
        ConfigError: the expression is wrong; the message names the columns there are.
    """
    columns = ", ".join(INDEX_SCHEMA.names)
    if not where.strip():
        raise ConfigError(f"--where is empty; give an expression over the columns {columns}")
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=INDEX_SCHEMA)
    table = table.append_column(_ROW, pa.array(range(len(rows)), pa.int64()))
    # The line break ends a comment, should the expression end with one.
    query = f"SELECT {_ROW} FROM samples WHERE ({where}\n) ORDER BY {_ROW}"
    with duckdb.connect(config={"autoinstall_known_extensions": False}) as connection:
        connection.register("given", table)
        connection.execute("CREATE TABLE samples AS SELECT * FROM given")
        connection.unregister("given")
        for setting in ("enable_external_access = false", "enable_progress_bar = false", "lock_configuration = true"):
            connection.execute(f"SET {setting}")
        try:
            if len(duckdb.extract_statements(query)) != 1:
                raise ConfigError(f"--where {_line(where)}: one expression is wanted, not several statements")
            # On its own, too: brackets that close those around it would pass there.
            duckdb.extract_statements(f"SELECT {where}\n")
            chosen = connection.execute(query).fetchall()
        except duckdb.Error as error:
            reason = str(error).split("\n\n")[0].split("\nLINE")[0].partition(": ")[2] or str(error)
            raise ConfigError(f"--where {_line(where)}: {_line(reason)}; columns: {columns}") from None
    return [rows[number] for (number,) in chosen]


def _line(text: str) -> str:
    return " ".join(text.split())
