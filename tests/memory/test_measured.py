"""The memory model against what a GPU's allocator said: the rows that tests/memory/measure.py wrote."""

import json
from pathlib import Path

import pytest
from real_models import work_of

from sloth_nb import catalog
from sloth_nb.memory import estimate_work
from sloth_nb.memory.dry_run import dry_run

FILES = sorted((Path(__file__).parent / "data").glob("engine_*.json"))
ROWS = [
    (json.loads(file.read_text("utf-8"))["card"], row)
    for file in FILES
    for row in json.loads(file.read_text("utf-8"))["rows"]
    if row["ok"]
]


def named(value):
    if isinstance(value, dict):
        policy = value["policy"] if isinstance(value["policy"], str) else "mixed"
        packed = "-packed" if value["packed"] else ""
        graphs = "-graphs" if value["graphs"] else ""
        return (
            f"{value['model']}-{value['method']}-{value['batch']}x{value['length']}-{policy}{packed}{graphs}"
        )
    return None


@pytest.mark.parametrize(("card", "row"), ROWS, ids=named)
def test_the_formulas_are_within_8_percent_and_reserved_within_10(card, row):
    said = estimate_work(work_of(row), catalog.gpu(card))
    assert said.tensors == pytest.approx(row["allocated"], rel=0.08)
    assert said.reserved == pytest.approx(row["reserved"], rel=0.10)


@pytest.mark.slow
@pytest.mark.parametrize(("card", "row"), ROWS, ids=named)
def test_the_dry_run_is_within_5_percent_and_reserved_within_10(card, row):
    ran = dry_run(work_of(row), catalog.gpu(card))
    assert ran.tensors == pytest.approx(row["allocated"], rel=0.05)
    assert ran.reserved == pytest.approx(row["reserved"], rel=0.10)
