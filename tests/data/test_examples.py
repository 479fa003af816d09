"""The shipped data sets are what they say they are."""

import subprocess
import sys

import pytest

from sloth_nb.data import example, example_names
from sloth_nb.errors import DatasetError


def test_the_quickstart_holds_out_questions_it_never_trains_on():
    train, held_out = example("quickstart")
    asked = {row["messages"][0]["content"] for row in train}
    assert (len(train), len(held_out)) == (120, 20)
    assert not asked & {row["messages"][0]["content"] for row in held_out}


def test_every_held_out_answer_passes_its_own_check_and_keeps_the_manner():
    train, held_out = example("quickstart")
    for row in held_out:
        answer = row["messages"][-1]["content"]
        assert row["check"] and all(word in answer for word in row["check"])
    for row in [*train, *held_out]:
        answer = row["messages"][-1]["content"]
        assert answer.startswith("Slowly now. ") and answer.endswith(" No hurry.")


def test_unknown_names_and_splits_are_refused():
    assert "quickstart" in example_names()
    with pytest.raises(DatasetError, match=r"Known: .*quickstart"):
        example("quickstrat")
    with pytest.raises(DatasetError, match=r"train and held_out"):
        example("quickstart", split="test")


def test_importing_the_room_needs_no_torch():
    code = "import sys, sloth_nb.data; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
