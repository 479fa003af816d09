"""The makers' own tools and tests say what conversations look like; ours agree with them."""

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import makers

from sloth_nb.data import ChatTemplate, get_chat_template, prepare

SYSTEM = {"role": "system", "content": "Be brief."}
words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cn", "Co")), min_size=1, max_size=20)
talks = st.lists(st.tuples(words, words), min_size=1, max_size=3)


def messages_of(turns: list[tuple[str, str]], system: bool) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    talk = [{"role": r, "content": c.strip() or "x"} for t in turns for r, c in zip(roles, t, strict=True)]
    return [SYSTEM, *talk] if system else talk


@pytest.mark.parametrize("family", ["mistral-v3", "tekken"])
def test_ids_equal_mistral_common_s(family: str):
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    own = makers.tokenizer(family)
    file = "tokenizer.model" if family == "mistral-v3" else "tekken.json"
    path = makers.fetched("mistral") / file
    if file == "tokenizer.model":  # mistral-common tells the version by the name
        named = path.with_name("mistral_instruct_tokenizer_240323.model.v3")
        named.write_bytes(path.read_bytes())
        path = named
    theirs = MistralTokenizer.from_file(str(path), mode="finetuning")

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(talks, st.booleans())
    def check(turns: list[tuple[str, str]], system: bool):
        messages = messages_of(turns, system)
        expected = theirs.encode_chat_completion(ChatCompletionRequest(messages=messages)).tokens
        assert prepare([{"messages": messages}], own).dataset[0]["input_ids"] == expected

    check()


def test_mistral_common_s_own_backend_is_masked_as_the_fast_tokenizer_is(tmp_path: Path):
    from transformers import AutoTokenizer

    (tmp_path / "tekken.json").write_bytes((makers.fetched("mistral") / "tekken.json").read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "mistral"}')
    backend, fast = AutoTokenizer.from_pretrained(tmp_path), makers.tokenizer("tekken")
    call = {"type": "function", "id": "abcdefghi", "function": {"name": "add", "arguments": {"x": 1}}}
    tools = [
        SYSTEM,
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "two", "name": "add", "tool_call_id": "abcdefghi"},
        {"role": "assistant", "content": "two"},
    ]
    rows = [{"messages": messages_of([("a", "b"), ("c", "d")], True)}, {"messages": tools}]
    for train_on in ("assistant", "last", "all"):
        ours = prepare(rows, backend, train_on=train_on).dataset.to_list()
        assert ours == prepare(rows, fast, train_on=train_on).dataset.to_list()


def llama_cpp_cases() -> list[tuple[str, str]]:
    """(name, expected text) of llama.cpp's own test of chat templates, read from its source."""
    source = (makers.fetched("llama.cpp") / "test-chat-template.cpp").read_text(encoding="utf-8")
    cases = []
    for block in source.split("/* .name= */")[1:]:
        strings = dict(re.findall(r'/\* \.(\w+)= \*/\s*(?:U8C\()?("(?:[^"\\]|\\.)*")', block))
        name = ast.literal_eval(block[: block.index("\n")].strip().rstrip(","))
        expected = ast.literal_eval(strings.get("expected_output_jinja", '""')) or ast.literal_eval(
            strings["expected_output"]
        )
        cases.append((name, expected))
    return cases


# llama.cpp's own conversation; the last user turn is answered by the generation prompt.
CONVERSATION = [
    {"role": "system", "content": "You are a helpful assistant"},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi there"},
    {"role": "user", "content": "Who are you"},
    {"role": "assistant", "content": "   I am an assistant   "},
    {"role": "user", "content": "Another question"},
]
NAMED = {
    "chatml": "teknium/OpenHermes-2.5-Mistral-7B",
    "llama-2": "TheBloke/FusionNet_34Bx2_MoE-AWQ",
    "llama-3": "Llama-3",
    "mistral-tekken": "Mistral-Nemo-Instruct-2407 (mistralai 'v3-tekken' template",
    "mistral-v1": "mistralai/Mistral-7B-Instruct-v0.2 (mistralai 'v1' template",
    "mistral-v3": "Mistral-Large-Instruct-2407 (mistralai 'v3' template",
    "mistral-v7": "mistralai/Mistral-Large-Instruct-2411 (mistralai 'v7' template)",
    "openchat": "openchat/openchat-3.5-0106",
    "phi-4": "phi-4",
    "vicuna": "eachadea/vicuna-13b-1.1",
}


@pytest.mark.parametrize("name", NAMED)
def test_named_templates_equal_llama_cpp_s_goldens(name: str, tokenizer: Any):
    (expected,) = (text for case, text in llama_cpp_cases() if case.startswith(NAMED[name]))
    tokenizer.add_tokens(["<|end_of_turn|>", "</s>", "<s>"], special_tokens=True)
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    talk = [dict(message) for message in CONVERSATION]
    if name == "mistral-v3":  # the template of that model trims what is said, mistral-common doesn't
        talk[4]["content"] = talk[4]["content"].strip()
    text = ChatTemplate(get_chat_template(tokenizer, name, map_eos_token=False)).render(talk, generate=True)
    assert text.removeprefix("<s>") == expected.removeprefix("<s>")


TRL_AND_LLAMA_CPP = {
    "llama-3.1": "meta-llama-Llama-3.1-8B-Instruct",
    "llama-3.2": "meta-llama-Llama-3.2-3B-Instruct",
    "qwen-2.5": "Qwen-Qwen2.5-7B-Instruct",
    "phi-3.5": "microsoft-Phi-3.5-mini-instruct",
    "gemma": "google-gemma-2-2b-it",
    "gpt-oss": "openai-gpt-oss-120b",
}


@pytest.mark.parametrize("name", TRL_AND_LLAMA_CPP)
def test_named_templates_write_what_llama_cpp_s_copies_of_the_makers_do(name: str, tokenizer: Any):
    file = makers.fetched("llama.cpp") / f"{TRL_AND_LLAMA_CPP[name]}.jinja"
    ours = ChatTemplate(get_chat_template(tokenizer, name, map_eos_token=False))
    talk = CONVERSATION[1:] if name == "gemma" else CONVERSATION
    expected = [ours.render(talk, generate=True), ours.render(talk[:-1])]
    tokenizer.chat_template = file.read_text(encoding="utf-8")
    theirs = ChatTemplate(tokenizer)
    assert [theirs.render(talk, generate=True), theirs.render(talk[:-1])] == expected


@pytest.mark.parametrize(("name", "family"), [("mistral-v3", "mistral-v3"), ("mistral-tekken", "tekken")])
def test_our_mistral_templates_give_mistral_common_s_ids_with_tools_too(name: str, family: str):
    import copy

    theirs = makers.tokenizer(family)
    ours = get_chat_template(copy.deepcopy(theirs), name, map_eos_token=False)
    call = {"type": "function", "id": "abcdefghi", "function": {"name": "add", "arguments": {"x": 1}}}
    tool = {
        "type": "function",
        "function": {"name": "add", "description": "d", "parameters": {"type": "object"}},
    }
    talk = [
        SYSTEM,
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "", "tool_calls": [call, {**call, "id": "ihgfedcba"}]},
        {"role": "tool", "content": "two", "name": "add", "tool_call_id": "abcdefghi"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "yes"},
    ]
    rows = [{"messages": talk, "tools": [tool]}, {"messages": messages_of([("a", "b"), ("c", "d")], True)}]
    assert prepare(rows, ours).dataset.to_list() == prepare(rows, theirs).dataset.to_list()
