"""Columns merged into prompts, and templates given as an example exchange."""

from typing import Any

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloth_nb.data import ChatTemplate, apply_chat_template, to_sharegpt
from sloth_nb.data.patterns import merge_columns
from sloth_nb.errors import DatasetError, TemplateError

ROWS = [{"q": "why", "ctx": "snow", "a": "cold"}, {"q": "why", "ctx": None, "a": "so"}]


@pytest.mark.parametrize(
    ("pattern", "first", "second"),
    [
        ("{q}?[[\nContext: {ctx}]]", "why?\nContext: snow", "why?"),
        ("{q}\n{ctx?}", "why\nsnow", "why"),
        ("[[{ctx}: ]]{q}", "snow: why", "why"),
        ("{q}", "why", "why"),
        ("{q} {ctx}", "why snow", "why "),
    ],
)
def test_optional_parts_vanish_with_their_column(pattern: str, first: str, second: str):
    assert [merge_columns(pattern, row) for row in ROWS] == [first, second]


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(str.strip))
def test_what_a_cell_holds_is_never_taken_for_a_pattern(cell: str):
    assert merge_columns("[[{a}]]|{b}", {"a": cell, "b": cell}) == f"{cell}|{cell}"


def test_a_pattern_with_an_unknown_column_is_refused():
    with pytest.raises(DatasetError, match=r"names a column 'x'; columns: 'q', 'ctx', 'a'"):
        merge_columns("{x}", ROWS[0])
    with pytest.raises(DatasetError, match=r"no column 'x'"):
        to_sharegpt(datasets.Dataset.from_list(ROWS), "{x}", output_column_name="a")


def test_rows_become_conversations_and_can_be_chained():
    data = datasets.Dataset.from_list(ROWS)
    made = to_sharegpt(data, "{q}?", output_column_name="a")
    assert made[0] == {
        "conversations": [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "cold"}]
    }
    longer = to_sharegpt(data, "{q}?", output_column_name="a", conversation_extension=3)
    assert len(longer[0]["conversations"]) == 6
    assert (
        longer.to_list()
        == to_sharegpt(data, "{q}?", output_column_name="a", conversation_extension=3).to_list()
    )


ONE = "Be kind.\n\n### Instruction:\n{INPUT}\n\n### Response:\n{OUTPUT}"
SYSTEM = (
    "<|im_start|>system\n{SYSTEM}<|im_end|><|im_start|>user\n{INPUT}<|im_end|>"
    "<|im_start|>assistant\n{OUTPUT}<|im_end|>"
)
TWO = "S: {SYSTEM}\n>>> {INPUT}\n<<< {OUTPUT}<|im_end|>\n>>> {INPUT}\n<<< {OUTPUT}<|im_end|>\n"
TALK = [
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (
            ONE,
            "Be kind.\n\n### Instruction:\na\n\n### Response:\nb<|im_end|>"
            "### Instruction:\nc\n\n### Response:\nd<|im_end|>",
        ),
        (
            SYSTEM,
            "<|im_start|>system\nslowly<|im_end|><|im_start|>user\na<|im_end|><|im_start|>assistant\nb<|im_end|>"
            "<|im_start|>user\nc<|im_end|><|im_start|>assistant\nd<|im_end|>",
        ),
        (TWO, "S: slowly\n>>> a\n<<< b<|im_end|>\n>>> c\n<<< d<|im_end|>\n"),
    ],
)
def test_an_example_exchange_becomes_a_template(tokenizer: Any, example: str, expected: str):
    tokenizer.bos_token = None
    data = datasets.Dataset.from_list([{"conversations": TALK}])
    made = apply_chat_template(data, tokenizer, example, default_system_message="slowly")
    assert made[0]["text"] == expected
    rendered = ChatTemplate(tokenizer).render_with_spans(TALK)
    assert [rendered.text[a:b].split("<|im_end|>")[0] for a, b in rendered.spans] == ["b", "d"]


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ("{INPUT} only", "needs {INPUT} where"),
        ("{OUTPUT}{INPUT}", "needs {INPUT} where"),
        ("> {INPUT}\n< {OUTPUT}\n? {INPUT}\n! {OUTPUT}\n", "not written alike"),
    ],
)
def test_an_example_that_can_t_be_read_is_refused(tokenizer: Any, example: str, said: str):
    data = datasets.Dataset.from_list([{"conversations": TALK}])
    with pytest.raises(TemplateError, match=said):
        apply_chat_template(data, tokenizer, example)


def test_with_no_example_the_tokenizer_s_own_template_writes_the_text(shared_tokenizer: Any):
    data = datasets.Dataset.from_list([{"conversations": TALK}])
    text = apply_chat_template(data, shared_tokenizer)[0]["text"]
    assert text == shared_tokenizer.apply_chat_template(TALK, tokenize=False)
    with pytest.raises(TemplateError, match="<none> is not in the tokenizer's vocabulary"):
        apply_chat_template(data, shared_tokenizer, extra_eos_tokens=["<none>"])
