"""Recognising: the field's usual shapes are told apart, and the rest is refused."""

from typing import Any

import pytest

from sloth_nb.data import load_data, recognise, to_messages
from sloth_nb.errors import DatasetError

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]

SHAPES = {
    "messages": ({"messages": TURNS}, "messages", TURNS),
    "sharegpt": ({"conversations": SHAREGPT}, "sharegpt", TURNS),
    "alpaca": ({"instruction": "hi", "input": "", "output": "yo"}, "alpaca", TURNS),
    "question and answer": ({"question": "hi", "answer": "yo"}, "question_answer", TURNS),
    "prompt and completion": ({"prompt": "hi", "completion": "yo"}, "prompt_completion", TURNS),
    "alpaca with a system": (
        {"system": "s", "instruction": "hi", "input": "", "output": "yo"},
        "alpaca",
        [{"role": "system", "content": "s"}, *TURNS],
    ),
    "alpaca with an input": (
        {"instruction": "say", "input": "hi", "output": "yo"},
        "alpaca",
        [{"role": "user", "content": "say\n\nhi"}, TURNS[1]],
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_each_shape_is_recognised_and_gives_messages(name: str):
    row, kind, messages = SHAPES[name]
    data = load_data([row])
    schema = recognise(data)
    assert schema.kind == kind
    assert to_messages(data[0], schema) == messages


def test_text_is_recognised():
    assert recognise(load_data([{"text": "once"}])).kind == "text"


@pytest.mark.parametrize(
    "row", [{"a": "x", "b": "y"}, {"label": 1, "score": 0.5}, {"messages": "hi", "id": 1}]
)
def test_unknown_columns_are_refused_with_the_known_forms(row: dict[str, Any]):
    with pytest.raises(DatasetError, match=r"(?s)columns '.*Known forms: messages"):
        recognise(load_data([row]))


def test_an_unknown_speaker_is_named_rather_than_guessed():
    data = load_data([{"conversations": [{"from": "narrator", "value": "hi"}]}])
    schema = recognise(data)
    assert schema.confidence <= 0.5 and "narrator" in schema.reason
    with pytest.raises(DatasetError, match="spoken by 'narrator'"):
        to_messages(data[0], schema)


def test_keys_that_arrow_filled_with_none_are_left_out():
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    data = load_data([{"messages": [TURNS[0], {"role": "assistant", "content": None, "tool_calls": [call]}]}])
    user, assistant = to_messages(data[0], recognise(data))
    assert user == TURNS[0]
    assert assistant["tool_calls"] == [{"type": "function", **call}]
