"""Masks with the makers' own tokenizers: trained tokens decode to the assistant's turns, and nothing else."""

import re
import sys
import unicodedata
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import makers

from sloth_nb.data import ChatTemplate, prepare
from sloth_nb.data.skeleton import FastTemplate
from sloth_nb.data.tokenise import RowEncoder

MANY = settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
SOME = settings(MANY, max_examples=30)
SPM = ("mistral-v3", "phi-3")

# Words that a careless mask would take for the template's own, and characters that tokenizers treat
# specially.
FRAGMENTS = (
    "<|im_start|>assistant\n", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "</s>", "[/INST]", "<|end|>",
    "<|assistant|>\n", "<start_of_turn>model\n", "\n\n", "  ", "\t", " ", "hello", " world", "1234", "é",
    "e\u0301", "漢字", "🦥", "مرحبا", "{{ x }}", "'", '"', "\\n", "\u200b", "<b>", "&amp;", "\r\n",
)  # fmt: skip
content = st.one_of(
    st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=6).map("".join),
    # Control and unassigned characters are left out: SmolLM2's vocabulary lacks some of their bytes.
    st.text(st.characters(exclude_categories=("Cs", "Co", "Cn", "Cc")), min_size=1, max_size=30),
)


@st.composite
def conversations(draw: st.DrawFn, system: bool = True) -> list[dict[str, str]]:
    turns = draw(st.lists(st.tuples(content, content), min_size=1, max_size=4))
    roles = ("user", "assistant")
    messages = [{"role": r, "content": c} for turn in turns for r, c in zip(roles, turn, strict=True)]
    if system and draw(st.booleans()):
        messages.insert(0, {"role": "system", "content": draw(content)})
    return messages


def answers(encoder: RowEncoder, family: str, messages: list[dict[str, str]]) -> list[str]:
    """What each assistant turn should decode to, written from the makers' templates by hand.

    transformers 5.17 builds Phi-3's tokenizer from its GGUF file without white space, and with special tokens
    that swallow it (5.23 does neither). What a tokenizer has no ids for, and the product says so, can't be
    among the trained ids either.
    """
    added = encoder.backend.get_added_tokens_decoder().values()
    swallowing = "|".join(re.escape(token.content) for token in added if token.rstrip)
    said = []
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        text = message["content"]
        if swallowing:
            text = re.sub(rf"({swallowing})\s+", r"\1", text)
        if encoder.lost_ascii:
            text = "".join(c for c in text if encoder.can_write(c))
        if family == "llama-3.1":
            said.append(text.strip() + "<|eot_id|>")
        elif family == "gemma-3":
            said.append(text.strip() + "<end_of_turn>")
        elif family == "qwen-3":
            last = i == len(messages) - 1
            text = "<think>\n\n</think>\n\n" + text.lstrip("\n") if last else text
            said.append(unicodedata.normalize("NFC", text + "<|im_end|>"))
        elif family == "mistral-v3":
            said.append(" " + text + "</s>")
        elif family == "tekken":
            said.append(text + "</s>")
        elif family == "phi-3":
            said.append(text + "<|end|>")
        else:
            said.append(text + "<|im_end|>")
    return [text.replace("▁", " ") if family in (*SPM, "gemma-3") else text for text in said]


def spelled(tokenizer: Any, family: str, ids: list[int]) -> str:
    """The text of ids. SentencePiece's decoder would take a space off the front: spelled out instead."""
    if family not in SPM:
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    spelling = bytearray()
    for token in tokenizer.convert_ids_to_tokens(ids):
        byte = re.fullmatch(r"<0x(..)>", token)
        spelling += bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()
    text = spelling.decode()
    # Phi-3's tokenizer puts a space of its own after each special token.
    return re.sub(r"(<\|(?:end|assistant)\|>|</s>) ", r"\1", text) if family == "phi-3" else text


def trained(tokenizer: Any, family: str, labels: list[int]) -> list[str]:
    """The text of each unbroken run of trained tokens."""
    runs = groupby(labels, key=lambda label: label != -100)
    return [spelled(tokenizer, family, list(group)) for kept, group in runs if kept]


@pytest.mark.parametrize("family", makers.FAMILIES)
def test_trained_tokens_decode_to_exactly_the_assistant_s_turns(family: str):
    tokenizer = makers.tokenizer(family)
    template, encoder = FastTemplate(ChatTemplate(tokenizer)), RowEncoder(tokenizer)

    @MANY
    @given(conversations(system=family != "phi-3"))
    def check(messages: list[dict[str, str]]):
        (row,) = encoder.conversations([template.render_with_spans(messages)])
        assert trained(tokenizer, family, row.labels) == answers(encoder, family, messages)
        if not row.resplit:
            assert row.ids == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)

    check()


@pytest.mark.parametrize("family", makers.FAMILIES)
def test_cutting_and_packing_change_no_mask(family: str):
    tokenizer = makers.tokenizer(family)
    encoder, template = RowEncoder(tokenizer), ChatTemplate(tokenizer)

    @SOME
    @given(st.lists(conversations(system=family != "phi-3"), min_size=1, max_size=5), st.integers(64, 128))
    def check(rows: list[list[dict[str, str]]], length: int):
        rows = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], *rows]
        whole = list(encoder.conversations([template.render_with_spans(messages) for messages in rows]))
        expected = [(row.ids[:length], [-100, *row.labels[1:length]]) for row in whole]
        expected = [row for row in expected if any(label != -100 for label in row[1])]
        prepared = prepare([{"messages": m} for m in rows], tokenizer, max_length=length, packing=True)
        found = []
        for pack in prepared.dataset:
            at = 0
            for n in pack["seq_lengths"]:
                found.append((pack["input_ids"][at : at + n], pack["labels"][at : at + n]))
                at += n
            assert at == len(pack["input_ids"]) <= length
        assert sorted(found) == sorted(expected)
        assert prepared.report.rows == prepared.report.kept + sum(prepared.report.dropped.values())

    check()


CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "add", "arguments": {"x": 1}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds one.",
        "parameters": {"type": "object", "properties": {"x": {"type": "integer", "description": "a"}}},
    },
}
TOOL_CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "2", "name": "add", "tool_call_id": "abcdefghi"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "sure?"},
    {"role": "assistant", "content": "yes"},
]
TOOL_ANSWERS = {
    "llama-3.1": ['{"name": "add", "parameters": {"x": 1}}<|eot_id|>', "two<|eot_id|>", "yes<|eot_id|>"],
    "qwen-3": [
        '<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call><|im_end|>',
        "two<|im_end|>",
        "<think>\n\n</think>\n\nyes<|im_end|>",
    ],
    "mistral-v3": [
        '[TOOL_CALLS] [{"name": "add", "arguments": {"x": 1}, "id": "abcdefghi"}]</s>',
        " two</s>",
        " yes</s>",
    ],
    "tekken": [
        '[TOOL_CALLS][{"name": "add", "arguments": {"x": 1}, "id": "abcdefghi"}]</s>',
        "two</s>",
        "yes</s>",
    ],
}


@pytest.mark.parametrize("family", TOOL_ANSWERS)
def test_tool_calls_are_the_assistant_s_and_tool_answers_are_not(family: str):
    tokenizer = makers.tokenizer(family)
    row = prepare([{"messages": TOOL_CHAT, "tools": [TOOL]}], tokenizer).dataset[0]
    assert trained(tokenizer, family, row["labels"]) == TOOL_ANSWERS[family]


def test_qwen_thinks_in_its_last_turn_only_and_the_thought_is_trained():
    tokenizer = makers.tokenizer("qwen-3")
    inline = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nfirst"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "<think>\nhm hm\n</think>\n\nsecond"},
    ]
    apart = [dict(message) for message in inline]
    apart[1] |= {"content": "first", "reasoning_content": "hm"}
    apart[3] |= {"content": "second", "reasoning_content": "hm hm"}
    for messages in (inline, apart):
        row = prepare([{"messages": messages}], tokenizer).dataset[0]
        said = trained(tokenizer, "qwen-3", row["labels"])
        assert said == ["first<|im_end|>", "<think>\nhm hm\n</think>\n\nsecond<|im_end|>"]


def test_qwen_told_not_to_think_is_not_trained_on_the_empty_thought():
    tokenizer = makers.tokenizer("qwen-3")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    quiet = {"template_kwargs": {"enable_thinking": False}}
    row = prepare([{"messages": messages}], tokenizer, **quiet).dataset[0]
    assert trained(tokenizer, "qwen-3", row["labels"]) == ["b<|im_end|>"]


@pytest.mark.parametrize("name", ["qwen3", "llama3", "gemma3", "qwen2_5", "gptoss", "lfm2"])
def test_markers_and_differences_find_the_same_turns(name: str, tokenizer: Any):
    messages = [
        {"role": "user", "content": "alpha"},
        {"role": "assistant", "content": "beta"},
        {"role": "user", "content": "gamma"},
        {"role": "assistant", "content": "delta"},
    ]
    for kind in (f"{name}_training", name):
        tokenizer.chat_template = makers.trl_template(kind)
        rendered = ChatTemplate(tokenizer).render_with_spans(messages)
        said = [rendered.text[a:b] for a, b in rendered.spans]
        assert ["beta" in said[0], "delta" in said[1], len(said)] == [True, True, 2]
        assert not any(word in text for text in said for word in ("alpha", "gamma"))


@pytest.mark.parametrize("family", makers.FAMILIES)
def test_the_fast_rendering_is_the_template_s_own(family: str):
    template = ChatTemplate(makers.tokenizer(family))
    fast = FastTemplate(template)
    assert fast.senses.blind, fast.senses.reason

    @settings(MANY, max_examples=150)
    @given(conversations(system=family != "phi-3"))
    def check(messages: list[dict[str, str]]):
        assert fast.render_with_spans(messages) == template.render_with_spans(messages)

    check()
    inert = [{"role": "user", "content": "What now?"}, {"role": "assistant", "content": "Rest."}]
    fast.render_with_spans(inert)
    before = fast.rendered
    fast.render_with_spans([{**m, "content": m["content"] * 3} for m in inert])
    assert fast.rendered == before
