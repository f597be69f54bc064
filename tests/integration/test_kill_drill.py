from pathlib import Path

import pytest

from tests.support.drill import WEIGHTS, drill, schedule


def test_a_schedule_is_drawn_from_its_seed_and_holds_every_kind() -> None:
    assert schedule(3, 50) == schedule(3, 50) != schedule(4, 50)
    assert {strike.kind for strike in schedule(3, 8)} == {*WEIGHTS}
    assert all(0 <= strike.share < 1 for strike in schedule(3, 50))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_after_every_kind_of_strike_the_data_set_is_that_of_an_undisturbed_run(tmp_path: Path) -> None:
    lines: list[str] = []
    outcome = drill(tmp_path, schedule(4, 8), lines.append, {"train": 8, "test": 1})
    assert outcome.problems == []
    assert outcome.survived.keys() == WEIGHTS.keys()
    # One in the folder and one in the bucket at least.
    assert outcome.finished >= 2
    assert len(lines) == sum(outcome.survived.values()) == 8
