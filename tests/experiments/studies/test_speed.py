"""The speed study's arithmetic; its processes are run by the quick scale of test_reproduce."""

import json

import numpy as np
import pytest

from experiments.studies import speed
from experiments.studies.claims import FAILS, HOLDS, UNDECIDED
from experiments.studies.speed_worker import SIDES, agent_of


def measures(ours, peer):
    named = {"train": ours, "fused": [1.0] * len(ours), "rejax": peer}
    named["floor"] = [4.0] * len(ours)
    values = {f"{side}_steps_per_second": rates for side, rates in named.items()}
    for side in named:
        values |= {f"{side}_{x}": [2.5] for x in ("compile_seconds", "start_seconds", "peak_mib")}
    return values


@pytest.mark.parametrize(
    ("peer", "verdict"),
    [([100.0, 110.0, 105.0], HOLDS), ([199.0, 200.0, 201.0], FAILS), ([100.0, 200.0, 150.0], None)],
)
def test_a_row_holds_where_the_ratio_of_rounds_reaches_its_goal(peer, verdict):
    cells = {"ppo_cartpole_4": {"measures": measures([200.0, 210.0, 205.0], peer)}}
    first, *others = speed.STUDY.verdicts(cells)
    assert first.claim.startswith("ppo_cartpole_4: at least 1.3 times")
    assert first.verdict == (verdict or UNDECIDED)
    assert {other.verdict for other in others} == {UNDECIDED}


def test_the_table_has_the_median_of_ratios_not_the_ratio_of_medians():
    settings = speed.STUDY.cells("full")["ppo_cartpole_4"]
    cell = {"settings": settings, "measures": measures([2.0, 8.0, 9.0], [1.0, 2.0, 9.0])}
    (table,) = speed.STUDY.tables({"ppo_cartpole_4": cell | {"machine": "2 x CPU"}})
    assert table.title == "2 x CPU"
    assert [row[1] for row in table.rows] == ["train", "fused", "floor", "rejax"]
    assert [row[2] for row in table.rows] == ["8", "1", "4", "2"]
    assert table.rows[3][3] == "2.00 (1.00 to 4.00)"


@pytest.mark.parametrize("name", speed.ROWS)
def test_each_row_is_work_that_divides_evenly(name):
    """Else the sides would not take the same number of steps."""
    settings = speed.STUDY.cells("full")[name]
    assert set(settings["sides"]) <= set(SIDES)
    agent = agent_of(json.loads(json.dumps(settings)))
    assert agent.num_iterations * agent.steps_per_iteration == settings["steps"]
    if hasattr(agent, "hidden_sizes"):
        np.testing.assert_array_equal(
            agent.hidden_sizes, settings["values"].get("hidden_sizes", [256] * 2)
        )
