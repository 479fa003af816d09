"""Recognising: the field's shapes are told apart, read rightly, and what is none of them is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import shapes
from shapes import MESSAGES

from sloth_nb.data import Schema, load_data, prepare, recognise, standardise, to_messages
from sloth_nb.data.conversation import read_tools
from sloth_nb.errors import DatasetError

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


@pytest.mark.parametrize("name", shapes.KNOWN)
def test_each_public_shape_is_recognised(name: str):
    row, kind, mapping = shapes.KNOWN[name]
    schema = recognise(load_data([row, row]))
    assert schema.kind == kind, str(schema)
    assert schema.mapping.items() >= mapping.items(), str(schema)
    assert 0.5 < schema.confidence <= 1 and schema.reason


@pytest.mark.parametrize("name", shapes.DECOYS)
def test_no_decoy_is_recognised(name: str):
    row = shapes.DECOYS[name]
    with pytest.raises(DatasetError, match=r"(?s)columns '.*Known forms: messages"):
        recognise(load_data([row, row]))


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        ({"instruction": 1, "output": 2}, {"user": "instruction", "assistant": "output"}),
        ({"question": "6 times 7?", "answer": 42}, {"user": "question", "assistant": "answer"}),
        (
            {"instruction": "Add.", "input": 3, "output": 4.5},
            {"user": "instruction", "context": "input", "assistant": "output"},
        ),
    ],
)
def test_numbers_that_ask_or_answer_are_text_to_be_trained_on(
    row: dict, mapping: dict, shared_tokenizer: Any
):
    schema = recognise(load_data([row, row]), task="sft")
    assert schema.mapping == mapping and schema.confidence == 0.7 and "numbers as text" in schema.reason
    (last,) = prepare([row], shared_tokenizer).dataset["labels"]
    said = shared_tokenizer.decode([i for i in last if i != -100])
    assert said == f"{row[mapping['assistant']]}<|im_end|>"


def test_numbers_in_a_frame_are_trained_on_as_those_of_the_same_csv_file(
    tmp_path: Path, shared_tokenizer: Any
):
    pandas = pytest.importorskip("pandas")
    file = tmp_path / "sums.csv"
    file.write_text("question,answer\n6 times 7?,42\n2 and 3?,5\n", encoding="utf-8")
    both = [prepare(source, shared_tokenizer).dataset.to_list() for source in (file, pandas.read_csv(file))]
    assert both[0] == both[1]


def test_a_number_that_counts_choices_is_no_answer():
    row = {"question": "Which?", "choices": ["a", "b"], "answer": 1}
    assert recognise(load_data([row]), task="sft").kind == "prompt_only"


def test_there_are_enough_of_both():
    assert len(shapes.KNOWN) >= 60 and len(shapes.DECOYS) >= 20


SFT = {n for n, (_, kind, _m) in shapes.KNOWN.items() if kind in ("messages", "sharegpt", "alpaca")}
SFT |= {n for n, (_, kind, _m) in shapes.KNOWN.items() if kind in ("question_answer", "prompt_completion")}


@pytest.mark.parametrize("name", sorted(SFT))
def test_every_shape_with_answers_is_read_as_a_conversation(name: str):
    data = load_data([shapes.KNOWN[name][0]])
    messages = to_messages(data[0], recognise(data))
    assert {m["role"] for m in messages} <= {"system", "user", "assistant", "tool"}
    said = [m for m in messages if m["role"] == "assistant"]
    assert said and all(m["content"] or m["tool_calls"] for m in said)
    assert messages[1 if messages[0]["role"] == "system" else 0]["role"] == "user"


@pytest.mark.parametrize("name", [n for n, shape in shapes.KNOWN.items() if shape[1] == "preference"])
def test_every_preference_has_the_same_standard_form(name: str):
    row = standardise(load_data([shapes.KNOWN[name][0]]))[0]
    assert row["prompt"][-1] == MESSAGES[0]
    assert row["chosen"] == MESSAGES[1:]
    assert row["rejected"][0]["content"] in ("No.", MESSAGES[1]["content"])
    assert (row["prompt"][0]["role"] == "system") == ("orca" in name)


@pytest.mark.parametrize("name", [n for n, shape in shapes.KNOWN.items() if shape[1] == "kto"])
def test_every_liked_answer_has_the_same_standard_form(name: str):
    row = standardise(load_data([shapes.KNOWN[name][0]]))[0]
    assert (row["prompt"], row["completion"]) == (MESSAGES[:1], MESSAGES[1:])
    assert isinstance(row["label"], bool)


@pytest.mark.parametrize("name", [n for n, shape in shapes.KNOWN.items() if shape[1] == "prompt_only"])
def test_every_prompt_has_the_same_standard_form(name: str):
    data = load_data([shapes.KNOWN[name][0]])
    row = standardise(data)[0]
    assert row["prompt"] == MESSAGES[:1]
    assert row.get("answer") == ("4" if "answer" in recognise(data).mapping else None)


@pytest.mark.parametrize(
    ("winner", "first"),
    [(0, True), (1, False), ("a", True), ("model_b", False), ("response_1", True), ("second", False)],
)
def test_a_winner_can_be_named_in_any_usual_way(winner: Any, first: bool):
    row = {"prompt": "q", "response_a": "x", "response_b": "y", "winner": winner}
    chosen = standardise(load_data([row]))[0]["chosen"][0]["content"]
    assert chosen == ("x" if first else "y")


def test_a_tie_is_not_taken_for_a_win():
    row = {"prompt": "q", "response_a": "x", "response_b": "y", "winner": "tie"}
    with pytest.raises(DatasetError, match=r"Row 1: 'tie' doesn't say which"):
        standardise(load_data([row]))


def test_a_task_decides_where_a_data_set_could_serve_for_several():
    ultrafeedback = load_data([shapes.KNOWN["ultrafeedback_binarized"][0]])
    assert recognise(ultrafeedback).kind == "preference"
    assert recognise(ultrafeedback, task="sft").mapping == {"messages": "messages"}
    gsm8k = load_data([shapes.KNOWN["gsm8k"][0]])
    assert recognise(gsm8k, task="rl").mapping == {"prompt": "question", "answer": "answer"}
    with pytest.raises(DatasetError, match="task is one of"):
        recognise(gsm8k, task="dpo")


def test_context_and_history_and_thoughts_and_system_land_in_their_places():
    row = {
        "instruction": "say",
        "input": "hi",
        "output": "yo",
        "system": "s",
        "history": [["q", "a"]],
        "reasoning": "hm",
    }
    data = load_data([row])
    assert to_messages(data[0], recognise(data)) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "say\n\nhi"},
        {"role": "assistant", "content": "yo", "reasoning_content": "hm"},
    ]


def test_unknown_speakers_are_named_with_the_way_to_say_who_they_are():
    turns = [{"from": "narrator", "value": "hi"}, {"from": "hero", "value": "yo"}]
    data = load_data([{"conversations": turns}])
    with pytest.raises(DatasetError, match=r"speakers 'hero', 'narrator' aren't known.*\"roles\": {'hero'"):
        recognise(data)
    schema = Schema(
        "sharegpt", {"messages": "conversations"}, roles={"narrator": "user", "hero": "assistant"}
    )
    assert to_messages(data[0], schema) == TURNS


def test_a_rare_stranger_is_told_but_spoils_nothing():
    stranger = {"conversations": [{"from": "narrator", "value": "x"}]}
    schema = recognise(load_data([*[{"conversations": shapes.SHAREGPT}] * 9, stranger]))
    assert schema.kind == "sharegpt" and "not known: narrator" in schema.reason and schema.confidence == 0.7


def test_rows_of_single_turns_are_told_what_to_do():
    with pytest.raises(DatasetError, match="Each row looks like one turn"):
        recognise(load_data([shapes.DECOYS["one turn a row"]]))


def test_keys_that_arrow_filled_with_none_are_left_out():
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    data = load_data([{"messages": [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [call]}]}])
    user, assistant = to_messages(data[0], recognise(data))
    assert user == TURNS[0]
    assert assistant["tool_calls"] == [{"type": "function", **call}]


def test_the_mapping_prints_as_code_that_reads_the_data_the_same_way():
    schema = Schema("sharegpt", {"messages": "c"}, roles={"Romeo": "user"})
    assert eval(schema.as_code()) == {"messages": "c", "roles": {"Romeo": "user"}}


def test_tools_come_as_templates_want_them_from_any_usual_form():
    bare = {"name": "f", "description": None, "parameters": {"type": "object"}}
    wrapped = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    assert read_tools([bare]) == read_tools(json.dumps([bare])) == read_tools(wrapped) == wrapped
    assert read_tools("[]") is read_tools("") is read_tools(None) is None
