"""Plans under caps on a real card: the runs that ``tests/memory/measure.py plans`` wrote."""

import json
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parent / "data").glob("plans_*.json"))
# Of the times that a step was measured to take, so much is noise.
NOISE = 0.02


def cases():
    """Each plan with the others that were tried under the same cap."""
    found = []
    for file in FILES:
        for row in json.loads(file.read_text("utf-8"))["rows"]:
            if row["who"] == "plan":
                found.append((row, []))
            else:
                found[-1][1].append(row)
    return found


CASES = cases()
needs_a_file = pytest.mark.skipif(not FILES, reason="no plans were measured: tests/memory/measure.py plans")


def named(case):
    plan, _ = case
    return f"{plan['model']}-{plan['batch'] * plan['accumulation']}x{plan['length']}-{plan['gb']}GB"


@needs_a_file
def test_every_budget_was_tried():
    assert {8, 16, 24, 40, 80} <= {plan["gb"] for plan, _ in CASES}
    assert len(CASES) >= 10


@pytest.mark.parametrize("case", CASES, ids=named)
def test_no_plan_runs_out_of_memory(case):
    plan, _ = case
    assert plan["ok"], plan.get("error")
    assert plan["reserved"] + plan["context"] <= plan["budget"]


@pytest.mark.parametrize(
    "case", [case for case in CASES if case[0]["keep_one"] > case[0]["budget"]], ids=named
)
def test_a_plan_for_more_than_its_budget_spends_at_least_85_percent_of_it(case):
    plan, _ = case
    assert plan["reserved"] + plan["context"] >= 0.85 * plan["budget"]


@needs_a_file
def test_in_nine_of_ten_cases_the_plan_is_the_fastest_that_was_tried():
    slower = {}
    for case in CASES:
        plan, others = case
        fitting = [other["seconds"] for other in others if other["ok"]]
        if fitting and plan["seconds"] > (1 + NOISE) * min(fitting):
            slower[named(case)] = (plan["seconds"], min(fitting))
    assert len(slower) <= len(CASES) // 10, slower
