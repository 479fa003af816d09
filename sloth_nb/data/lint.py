"""Lint: what will go wrong with a chat template, found by trying it before anything is trained with it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jinja2

from sloth_nb.data.hearing import PARTS, Hearing
from sloth_nb.data.inert import parse_template
from sloth_nb.data.template import ChatTemplate
from sloth_nb.errors import TemplateError

__all__ = ["Finding", "ending_trouble", "lint", "lint_template"]

_USER = {"role": "user", "content": "x"}
_ANSWER = {"role": "assistant", "content": "y"}


@dataclass(frozen=True)
class Finding:
    """One thing about a template. ``error``: training would go wrong; ``warning``: look at it; ``note``: know it."""

    level: Literal["error", "warning", "note"]
    message: str

    def __str__(self) -> str:
        return f"{self.level}: {self.message}"


def lint_template(tokenizer: Any) -> list[Finding]:
    """What there is to say about a tokenizer's chat template, the worst first; [] when all is well.

    It is asked for its syntax, its generation prompt, how a turn ends, BOS, and the roles it can't say.

    Raises:
        TemplateError: the tokenizer has no template.
    """
    return lint(ChatTemplate(tokenizer))


def lint(template: ChatTemplate) -> list[Finding]:
    """``lint_template`` of a template that need not be the tokenizer's own."""
    findings = list(_syntax(template))
    if not findings:
        for check in (_renders, _generation_prompt, _end_of_turn, _bos, _spans, _roles):
            findings += check(template)
            if any(finding.level == "error" for finding in findings):
                break  # what comes after would only repeat it
    order = ("error", "warning", "note")
    return sorted(findings, key=lambda finding: order.index(finding.level))


def ending_trouble(template: ChatTemplate) -> list[str]:
    """Why a model won't learn from these rows where to stop; [] when it will, or when that can't be told."""
    try:
        return [finding.message for finding in _end_of_turn(template) if finding.level == "warning"]
    except TemplateError:
        return []


def _syntax(template: ChatTemplate) -> Iterator[Finding]:
    try:
        parse_template(template.text)
    except jinja2.TemplateSyntaxError as error:
        yield Finding("error", f"line {error.lineno} of the template is not Jinja: {error.message}.")


def _renders(template: ChatTemplate) -> Iterator[Finding]:
    try:
        text = template.render([_USER, {"role": "assistant", "content": "sloth_nb probe"}])
    except TemplateError as error:
        yield Finding("error", f"a question and its answer can't be written: {error}.")
        return
    if "sloth_nb probe" not in text:
        yield Finding("error", "what the assistant says is not written: nothing could be learnt.")


def _generation_prompt(template: ChatTemplate) -> Iterator[Finding]:
    prompt, whole = template.render([_USER], generate=True), template.render([_USER, _ANSWER])
    if not whole.startswith(prompt):
        yield Finding(
            "warning",
            "what generation begins with is not how a training row begins: the model would be asked in another form "
            f"than it was taught ({prompt[-40:]!r} is not in {whole[:120]!r}).",
        )
    elif template.generation_prompt == "" and whole[len(prompt) :].find("y") > 12:
        yield Finding(
            "warning",
            f"add_generation_prompt changes nothing, but the assistant's turn begins with "
            f"{whole[len(prompt) : whole.find('y', len(prompt))]!r}: that heading would be trained, and left to the "
            "model to write.",
        )


def _end_of_turn(template: ChatTemplate) -> Iterator[Finding]:
    tokenizer, end = template.tokenizer, template.end_of_turn.strip()
    if tokenizer.eos_token is None:
        yield Finding("warning", "the tokenizer has no EOS: generation won't know where to stop.")
    elif not end:
        yield Finding(
            "warning",
            f"no special token ends the assistant's turn: the model won't learn to stop. Write {tokenizer.eos_token} "
            "after its content.",
        )
    elif end != tokenizer.eos_token:
        yield Finding(
            "note",
            f"a turn ends with {end}, the tokenizer's EOS is {tokenizer.eos_token}: generation must stop at both "
            "(get_chat_template(…, map_eos_token=True) makes it the EOS).",
        )
    if tokenizer.pad_token is not None and tokenizer.pad_token == end:
        yield Finding(
            "note",
            f"{end} is the pad token too: a collator that masks padding by its id would mask the end of turns "
            "(sloth_nb's doesn't).",
        )


def _bos(template: ChatTemplate) -> Iterator[Finding]:
    tokenizer = template.tokenizer
    bos, text = tokenizer.bos_token, template.render([_USER, _ANSWER])
    if not bos or not hasattr(tokenizer, "backend_tokenizer"):
        return
    if text.startswith(bos + bos):
        yield Finding("warning", f"the template writes {bos} twice at the beginning.")
    elif text.startswith(bos) and tokenizer(text)["input_ids"][:2] == [tokenizer.bos_token_id] * 2:
        yield Finding(
            "note",
            f"the template writes {bos} and so does tokenizer(text): text rows would begin with two. prepare() and "
            "train_on_responses_only() leave one.",
        )


def _spans(template: ChatTemplate) -> Iterator[Finding]:
    try:
        spans = template.render_with_spans([_USER, _ANSWER, _USER, _ANSWER]).spans
    except TemplateError as error:
        yield Finding("error", f"the assistant's turns can't be found in it: {error}.")
        return
    if len(spans) != 2:
        yield Finding("error", f"its generation markers enclose {len(spans)} parts of two answers.")


def _roles(template: ChatTemplate) -> Iterator[Finding]:
    hearing = Hearing(template)
    for part in PARTS:
        if not hearing.says(part):
            yield Finding("warning" if part == "a system message" else "note", f"it leaves out {part}.")
        elif part not in ("tools", "thoughts") and (why := hearing.refuses(part)):
            yield Finding("note", f"it refuses {part} ({why}).")
