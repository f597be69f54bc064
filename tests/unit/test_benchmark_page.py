"""The page of results: one line a name, the newest."""

from benchmarks.__main__ import markdown
from benchmarks.result import Result


def result(name: str, value: float) -> Result:
    return Result(name=name, value=value, unit="ratio", goal=1.5, better="higher", detail={"seconds": 3})


def test_a_result_takes_the_place_of_its_older_one_and_leaves_others() -> None:
    page = markdown(markdown(markdown("", result("a.one", 1.0)), result("a.two", 2.0)), result("a.one", 3.0))
    rows = [line for line in page.splitlines() if line.startswith("| a.")]
    assert [row.rpartition(" | ")[0] for row in rows] == [
        "| a.one | 3 ratio | 1.5 | higher | seconds 3",
        "| a.two | 2 ratio | 1.5 | higher | seconds 3",
    ]
    assert page.count("| name |") == page.count("| --- | --- | --- | --- | --- | --- |") == 1
    assert page.startswith("# Benchmarks\n")
