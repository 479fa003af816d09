"""Templates: the user's own are tried before use, kept in the sandbox, and told what they lack."""

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import makers

from sloth_nb.data import ChatTemplate, get_chat_template, lint_template, template_names
from sloth_nb.errors import SlothWarning, TemplateError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def findings(tokenizer: Any, text: str) -> str:
    tokenizer.chat_template = text
    return "\n".join(map(str, lint_template(tokenizer)))


def test_a_sound_template_has_nothing_against_it(tokenizer: Any):
    assert "error" not in findings(tokenizer, CHATML) and "warning" not in findings(tokenizer, CHATML)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.replace("{% endfor %}", ""), "error: line 4 of the template is not Jinja"),
        (
            lambda t: t.replace("{{ m.content }}", "{{ m.text }}"),
            "error: what the assistant says is not written",
        ),
        (
            lambda t: "{{ raise_exception('closed') }}" + t,
            "error: a question and its answer can't be written.*closed",
        ),
        (
            lambda t: t.split("{% if add")[0],
            "add_generation_prompt changes nothing, but the assistant's turn begins",
        ),
        (lambda t: t.replace("assistant\n{% endif", "bot\n{% endif"), "not how a training row begins"),
        (lambda t: t.replace("<|im_end|>", ""), "no special token ends the assistant's turn"),
        (
            lambda t: t.replace("messages %}", "messages if m.role != 'system' %}"),
            "leaves out a system message",
        ),
        (lambda t: t, "note: it leaves out tool calls"),
    ],
)
def test_each_fault_is_found(tokenizer: Any, change: Any, said: str):
    import re

    assert re.search(said, findings(tokenizer, change(CHATML)))


def test_a_doubled_bos_is_found(tokenizer: Any):
    from tokenizers.processors import TemplateProcessing

    bos = tokenizer.bos_token = "<|endoftext|>"
    assert f"writes {bos} twice" in findings(tokenizer, "{{ bos_token + bos_token }}" + CHATML)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    assert "text rows would begin with two" in findings(tokenizer, "{{ bos_token }}" + CHATML)


def test_another_end_of_turn_than_the_eos_is_noted_and_can_be_mapped(tokenizer: Any):
    tokenizer.eos_token = "<|endoftext|>"
    assert "a turn ends with <|im_end|>, the tokenizer's EOS is <|endoftext|>" in findings(tokenizer, CHATML)
    assert get_chat_template(tokenizer, CHATML).eos_token == "<|im_end|>"


def test_no_eos_and_no_template_are_told(tokenizer: Any):
    tokenizer.eos_token = None
    assert "the tokenizer has no EOS" in findings(tokenizer, CHATML)
    tokenizer.chat_template = None
    with pytest.raises(TemplateError, match="has no chat template"):
        lint_template(tokenizer)


def test_a_broken_template_is_refused_before_it_is_used(tokenizer: Any):
    with pytest.raises(TemplateError, match="doesn't work: line 1 of the template is not Jinja"):
        get_chat_template(tokenizer, "{% for m in messages %}{{ m.content }}")


@pytest.mark.parametrize("name", ["llama-3.1", "gemma-3"])
def test_a_template_whose_end_of_turn_the_vocabulary_lacks_warns(tokenizer: Any, name: str):
    with pytest.warns(
        SlothWarning, match="no special token ends the assistant's turn: the model won't learn to stop"
    ):
        get_chat_template(tokenizer, name)


def test_a_sound_template_warns_of_nothing_also_where_only_mapping_gives_an_eos(tokenizer: Any):
    import warnings

    tokenizer.eos_token = None
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlothWarning)
        assert get_chat_template(tokenizer, CHATML).eos_token == "<|im_end|>"


@pytest.mark.parametrize(
    "attack",
    [
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.append(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{% for i in range(10 ** 12) %}{% endfor %}",
    ],
)
def test_a_template_can_t_leave_its_sandbox(tokenizer: Any, attack: str):
    with pytest.raises(TemplateError):
        get_chat_template(tokenizer, attack + CHATML)


@pytest.mark.parametrize("name", template_names())
def test_every_named_template_works_and_masks_its_turns(name: str, tokenizer: Any):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SlothWarning)
        template = ChatTemplate(get_chat_template(tokenizer, name))
    messages = [
        {"role": "user", "content": "alpha"},
        {"role": "assistant", "content": "beta"},
        {"role": "user", "content": "gamma"},
        {"role": "assistant", "content": "delta"},
    ]
    rendered = template.render_with_spans(messages)
    said = [rendered.text[a:b] for a, b in rendered.spans]
    assert ["beta" in said[0], "delta" in said[-1]] == [True, True]
    assert not any(word in text for text in said for word in ("alpha", "gamma"))


def test_an_end_of_turn_that_the_vocabulary_lacks_becomes_the_eos_aloud(tokenizer: Any):
    with pytest.warns(
        SlothWarning, match=r"openchat .* <\|end_of_turn\|>, which this tokenizer doesn't have"
    ):
        get_chat_template(tokenizer, "openchat")
    assert ChatTemplate(tokenizer).end_of_turn == tokenizer.eos_token


def test_other_names_for_the_same_template_work(tokenizer: Any):
    for other, name in (
        ("llama-31", "llama-3.1"),
        ("qwen2.5", "qwen-2.5"),
        ("Phi_4", "phi-4"),
        ("gemma2", "gemma"),
    ):
        assert (
            get_chat_template(tokenizer, other).chat_template
            == get_chat_template(tokenizer, name).chat_template
        )


def test_a_system_message_can_be_put_before_every_conversation(tokenizer: Any):
    template = ChatTemplate(get_chat_template(tokenizer, "chatml", system_message="Be 'slow'."))
    text = template.render([{"role": "user", "content": "hi"}])
    assert text.startswith("<|im_start|>system\nBe 'slow'.<|im_end|>\n<|im_start|>user\nhi")


@pytest.mark.parametrize("file", range(70))
def test_the_turns_are_found_in_every_template_that_llama_cpp_keeps(file: int, tokenizer: Any):
    files = sorted(makers.fetched("llama.cpp").glob("*.jinja"))
    if file >= len(files):
        pytest.skip(f"there are {len(files)}")
    tokenizer.chat_template = files[file].read_text(encoding="utf-8")
    messages = [
        {"role": "user", "content": "alpha"},
        {"role": "assistant", "content": "beta"},
        {"role": "user", "content": "gamma"},
        {"role": "assistant", "content": "delta"},
    ]
    template = ChatTemplate(tokenizer, functions="[]", datetime="today")  # what firefunction asks for
    try:
        rendered = template.render_with_spans(messages)
    except TemplateError:  # some are for conversations with tools only
        tool = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
        rendered = template.render_with_spans(messages, [{"type": "function", "function": tool}])
    said = [rendered.text[a:b] for a, b in rendered.spans]
    assert ["beta" in said[0], "delta" in said[-1]] == [True, True], files[file].name
    assert not any(word in text for text in said for word in ("alpha", "gamma")), files[file].name
