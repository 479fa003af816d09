"""Named chat templates: ours, and the model makers' own as TRL ships them (read at run time, not copied)."""

import difflib
import warnings
from importlib.resources import files
from typing import Any

from sloth_nb.errors import SlothWarning, TemplateError

__all__ = ["template_names", "template_text"]

# name → (file in TRL's chat_templates, or None when the template is ours; the token that ends a turn)
_FROM_TRL = {
    "llama-3": "llama3",
    "llama-3.1": "llama3_1",
    "llama-3.2": "llama3_2",
    "qwen-2.5": "qwen2_5",
    "qwen-3": "qwen3",
    "gemma": "gemma",
    "gemma-3": "gemma3",
    "phi-3": "phi3",
    "phi-3.5": "phi3_5",
    "gpt-oss": "gptoss",
    "deepseek-r1": "deepseek_r1_distill",
}
_OURS = {"chatml": "<|im_end|>", "alpaca": None}
_ALIASES = {
    "llama3": "llama-3",
    "llama-31": "llama-3.1",
    "llama-32": "llama-3.2",
    "llama-3.3": "llama-3.1",
    "llama-33": "llama-3.1",
    "qwen2.5": "qwen-2.5",
    "qwen-25": "qwen-2.5",
    "qwen3": "qwen-3",
    "gemma3": "gemma-3",
    "gemma2": "gemma",
}


def template_names() -> list[str]:
    """Every name that ``get_chat_template`` knows, without aliases."""
    return sorted([*_OURS, *_FROM_TRL])


def template_text(name: str, tokenizer: Any) -> str:
    """The Jinja of a named template, fitted to ``tokenizer``.

    A template of ours ends turns with its usual token when the vocabulary has it, else with the tokenizer's
    EOS (and a SlothWarning says so): no token is ever added behind the model's back.

    Raises:
        TemplateError: no template has that name; the nearest names are given.
    """
    name = _ALIASES.get(name.lower(), name.lower())
    if name in _OURS:
        end = _OURS[name] or tokenizer.eos_token
        if end not in tokenizer.get_vocab():
            if not tokenizer.eos_token:
                raise TemplateError(
                    f"The {name} template ends a turn with {end}; this tokenizer has neither that nor an EOS."
                )
            warnings.warn(
                f"The {name} template ends a turn with {end}, which this tokenizer doesn't have: "
                f"turns end with its EOS {tokenizer.eos_token} instead.",
                SlothWarning,
                stacklevel=3,
            )
            end = tokenizer.eos_token
        text = (files("sloth_nb.data") / "templates" / f"{name}.jinja").read_text(encoding="utf-8")
        return "{%- set end_of_turn = " + repr(end) + " -%}" + text
    if name in _FROM_TRL:
        return (files("trl") / "chat_templates" / f"{_FROM_TRL[name]}.jinja").read_text(encoding="utf-8")
    near = difflib.get_close_matches(name, [*template_names(), *_ALIASES], n=3)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise TemplateError(
        f"There is no chat template named {name!r}.{hint} Known: {', '.join(template_names())}."
    )
