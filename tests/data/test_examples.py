"""The shipped data sets are what they say they are."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from sloth_nb.data import arithmetic_reward, example, example_names, prepare, recognise, standardise
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


KINDS = {
    "quickstart": "messages",
    "instruction": "alpaca",
    "multi_turn": "messages",
    "preference": "preference",
    "kto": "kto",
    "arithmetic": "prompt_only",
    "story": "text",
    "tools": "messages",
}


@pytest.mark.parametrize("name", KINDS)
def test_each_data_set_is_what_it_says_and_holds_out_what_it_doesn_t_train(name: str):
    train, held_out = example(name)
    assert recognise(train).kind == recognise(held_out).kind == KINDS[name]
    shown = {json.dumps({k: v for k, v in row.items() if k != "check"}) for row in train}
    assert len(shown) == len(train) and len(held_out) >= 3
    assert not shown & {json.dumps({k: v for k, v in row.items() if k != "check"}) for row in held_out}
    assert set(example_names()) == set(KINDS)


@pytest.mark.parametrize(
    "name", [n for n, kind in KINDS.items() if kind in ("messages", "alpaca", "text") and n != "tools"]
)
def test_what_can_be_trained_on_has_no_flaw(name: str, shared_tokenizer: Any):
    for split in example(name):
        report = prepare(split, shared_tokenizer).report
        assert report.kept == len(split) and not report.flaws and not report.truncated


def test_the_other_data_sets_come_in_the_trainers_forms():
    for name, columns in (
        ("preference", {"prompt", "chosen", "rejected"}),
        ("kto", {"prompt", "completion", "label"}),
        ("arithmetic", {"prompt", "answer"}),
    ):
        made = standardise(example(name, "train"))
        assert set(made.column_names) == columns
    labels = example("kto", "train")["label"][:]
    assert sum(labels) * 2 == len(labels)


def test_every_sum_is_right_and_the_verifier_knows_it():
    train, held_out = example("arithmetic")
    for row in [*train, *held_out]:
        a, sign, b = re.search(r"(\d+) ([-+*]) (\d+)", row["prompt"][0]["content"]).groups()
        assert str({"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign]) == row["answer"]


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        ("12", 1.5),
        (" 12. ", 1.5),
        ("5 + 7 is 12", 1.0),
        ("It is 12.0", 1.0),
        ("13", 0.5),
        ("twelve", 0.0),
        ("12 or 13", 0.0),
        ([{"role": "assistant", "content": "12"}], 1.5),
    ],
)
def test_the_verifier_rewards_right_numbers_and_bare_ones(completion: Any, reward: float):
    assert arithmetic_reward([completion], ["12"], prompts=["?"]) == [reward]


def test_unknown_names_and_splits_are_refused():
    assert "quickstart" in example_names()
    with pytest.raises(DatasetError, match=r"Known: .*quickstart"):
        example("quickstrat")
    with pytest.raises(DatasetError, match=r"train and held_out"):
        example("quickstart", split="test")


def test_importing_the_room_needs_no_torch():
    code = "import sys, sloth_nb.data; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
