"""The table of corpora says what the corpora say."""

from pathlib import Path

import pytest

from manifests.corpora import corpus_names, get_corpus
from tests.support.listings import listed
from tests.support.trees import make_tree

TABLE = Path(__file__).parents[2] / "docs" / "corpora.md"


def rows() -> dict[str, list[str]]:
    """Cells of each corpus, by its name."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row for row in cells}


def test_the_table_holds_every_corpus() -> None:
    assert list(rows()) == corpus_names()


@pytest.mark.parametrize("name", corpus_names())
def test_licence_and_promised_sum_are_those_of_the_corpus(name: str, tmp_path: Path) -> None:
    row = rows()[name]
    assert len(row) == 7
    assert row[2].split(" ")[0] == get_corpus(name).license
    promised = {listing.residual_db for listing in listed(name, make_tree(name, tmp_path)).values()}
    assert len(promised) == 1
    (residual,) = promised
    assert (f"{residual:g} dB" in row[5]) if residual is not None else "dB" not in row[5]
