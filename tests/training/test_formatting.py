"""A formatting function writes one row's text, or that of a batch as older tutorials have it; never single letters."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloth_nb.errors import DatasetError
from sloth_nb.training import formatting
from sloth_nb.training.formatting import formatted

ROWS = [
    {"instruction": "Who are you?", "output": "Moss.", "tags": ["a", "b"]},
    {"instruction": "Hm", "output": "A sloth, who has eaten.", "tags": []},
    {"instruction": "", "output": "?", "tags": ["c"]},
]
WANTED = [f"### Q: {row['instruction']}\n### A: {row['output']}" for row in ROWS]


def by_index(ex):
    return [f"### Q: {ex['instruction'][i]}\n### A: {ex['output'][i]}" for i in range(len(ex["instruction"]))]


def by_zip(ex):
    return [f"### Q: {q}\n### A: {a}" for q, a in zip(ex["instruction"], ex["output"], strict=False)]


def by_appending(examples):
    texts = []
    for q, a in zip(examples["instruction"], examples["output"], strict=True):
        texts.append("### Q: " + q + "\n### A: " + a)
    return texts


def by_row(row):
    return f"### Q: {row['instruction']}\n### A: {row['output']}"


def by_row_in_a_list(row):
    return [by_row(row)]


@pytest.mark.parametrize("function", [by_index, by_zip, by_appending, by_row, by_row_in_a_list])
@pytest.mark.parametrize("first", range(3))
def test_rows_and_batches_are_told_apart(function, first):
    assert list(formatted(iter(ROWS[first:] + ROWS[:first]), function)) == WANTED[first:] + WANTED[:first]


cells = st.text(max_size=4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.fixed_dictionaries({"instruction": cells, "output": cells}), min_size=1, max_size=5))
def test_whatever_the_cells_hold_a_batched_function_gives_one_text_for_each_row(rows):
    for function in (by_index, by_zip, by_appending, by_row, by_row_in_a_list):
        assert list(formatted(rows, function)) == [by_row(row) for row in rows]


def test_a_function_may_make_several_texts_of_one_row():
    assert list(formatted(ROWS, lambda row: [row["instruction"], row["output"]]))[:2] == [
        "Who are you?",
        "Moss.",
    ]
    talk = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}]
    assert list(formatted(talk, lambda row: [turn["content"] for turn in row["messages"]])) == ["Hi", "Hello"]
    assert list(formatted(ROWS, lambda row: row["tags"])) == ["a", "b", "c"]


def test_a_list_that_may_mean_either_is_refused():
    with pytest.raises(DatasetError, match=r"can't be told which.*one string for each row"):
        list(formatted(ROWS, lambda row: [f"- {tag}" for tag in row["tags"]]))


def test_large_data_come_in_batches_and_what_is_no_text_is_named_by_its_rows(monkeypatch):
    monkeypatch.setattr(formatting, "_BATCH", 2)
    assert list(formatted(ROWS, by_zip)) == WANTED
    with pytest.raises(DatasetError, match="made a int of rows 3 to 3"):
        list(formatted(ROWS, lambda ex: by_zip(ex) if "?" not in ex["output"] else 3))


def test_an_error_within_the_function_is_the_user_s_own():
    with pytest.raises(KeyError, match="question"):
        list(formatted(ROWS, lambda row: row["question"]))


def test_no_rows_make_no_text():
    assert list(formatted([], by_row)) == []
