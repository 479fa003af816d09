"""Named chat templates: ours, and the model makers' own as TRL ships them (read at run time, not copied)."""

import difflib
from importlib.resources import files
from typing import Any

from sloth_nb.errors import TemplateError
from sloth_nb.notices import warn

__all__ = ["resolve", "template_names", "template_text"]

# Ours: name → (file, what ends a turn or None for the tokenizer's EOS, variables that the file asks for)
_OURS: dict[str, tuple[str, str | None, dict[str, Any]]] = {
    "alpaca": ("alpaca", None, {}),
    "chatml": ("chatml", "<|im_end|>", {}),
    "llama-2": ("llama-2", None, {}),
    "mistral-tekken": ("mistral", None, {"gap": "", "own_system": False}),
    "mistral-v1": ("mistral-v1", None, {}),
    "mistral-v3": ("mistral", None, {"gap": " ", "own_system": False}),
    "mistral-v7": ("mistral", None, {"gap": " ", "own_system": True}),
    "openchat": ("openchat", "<|end_of_turn|>", {}),
    "phi-4": ("phi-4", "<|im_end|>", {}),
    "vicuna": ("vicuna", None, {}),
    "zephyr": ("zephyr", None, {}),
}
# The makers': name → file in TRL's chat_templates
_FROM_TRL = {
    "cohere": "cohere",
    "deepseek-r1": "deepseek_r1_distill",
    "deepseek-v3": "deepseekv3",
    "gemma": "gemma",
    "gemma-3": "gemma3",
    "gemma-4": "gemma4",
    "glm-4-moe": "glm4moe",
    "gpt-oss": "gptoss",
    "lfm-2": "lfm2",
    "llama-3": "llama3",
    "llama-3.1": "llama3_1",
    "llama-3.2": "llama3_2",
    "phi-3": "phi3",
    "phi-3.5": "phi3_5",
    "qwen-2.5": "qwen2_5",
    "qwen-3": "qwen3",
    "qwen-3-instruct": "qwen3_instruct_2507",
}
# Other names that tutorials use. Which template a name means is a fact about the models that carry it.
_ALIASES = {
    "deepseek-r1-distill": "deepseek-r1",
    "gemma-2": "gemma",
    "gemma-3n": "gemma-3",
    "gemma2": "gemma",
    "gemma3": "gemma-3",
    "gemma4": "gemma-4",
    "llama": "llama-2",
    "llama-31": "llama-3.1",
    "llama-32": "llama-3.2",
    "llama-33": "llama-3.1",
    "llama-3.3": "llama-3.1",
    "llama2": "llama-2",
    "llama3": "llama-3",
    "llama3.1": "llama-3.1",
    "llama3.2": "llama-3.2",
    "mistral": "mistral-v3",
    "mistral-nemo": "mistral-tekken",
    "qwen-25": "qwen-2.5",
    "qwen2.5": "qwen-2.5",
    "qwen25": "qwen-2.5",
    "qwen3": "qwen-3",
    "qwen3-instruct": "qwen-3-instruct",
    "qwen3-thinking": "qwen-3",
    "starling": "openchat",
    "yi-chat": "chatml",
}


def template_names() -> list[str]:
    """Every name that ``get_chat_template`` knows, without other names for the same."""
    return sorted([*_OURS, *_FROM_TRL])


def resolve(chat_template: str, tokenizer: Any) -> str:
    """Jinja as it is, a name as its template's Jinja."""
    return chat_template if "{" in chat_template else template_text(chat_template, tokenizer)


def template_text(name: str, tokenizer: Any) -> str:
    """The Jinja of a named template, fitted to ``tokenizer``.

    A template of ours ends turns with its usual token when the vocabulary has it, else with the tokenizer's
    EOS (and a SlothWarning says so): no token is ever added behind the model's back.

    Raises:
        TemplateError: no template has that name (the nearest are given), or no token could end a turn.
    """
    name = _ALIASES.get(name.lower().replace("_", "-"), name.lower().replace("_", "-"))
    if name in _OURS:
        return _own(name, tokenizer)
    if name in _FROM_TRL:
        return (files("trl") / "chat_templates" / f"{_FROM_TRL[name]}.jinja").read_text(encoding="utf-8")
    near = difflib.get_close_matches(name, [*template_names(), *_ALIASES], n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise TemplateError(
        f"There is no chat template named {name!r}.{hint} Known: {', '.join(template_names())}."
    )


def _own(name: str, tokenizer: Any) -> str:
    file, usual, variables = _OURS[name]
    end = usual or tokenizer.eos_token
    if not end:
        raise TemplateError(
            f"The {name} template ends turns with the tokenizer's EOS, and this tokenizer has none."
        )
    if usual and usual not in tokenizer.get_vocab():
        if not tokenizer.eos_token:
            raise TemplateError(
                f"The {name} template ends turns with {usual}; this tokenizer has neither it nor an EOS."
            )
        warn(
            f"The {name} template ends a turn with {usual}, which this tokenizer doesn't have: turns end with its EOS "
            f"{tokenizer.eos_token} instead."
        )
        end = tokenizer.eos_token
    text = (files("sloth_nb.data") / "templates" / f"{file}.jinja").read_text(encoding="utf-8")
    given = {"end_of_turn": end, **variables}
    return "".join(f"{{%- set {key} = {_literal(value)} -%}}" for key, value in given.items()) + text


def _literal(value: str | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
