"""ChatTemplate: a tokenizer's chat template, rendered with the exact character spans of the assistant's
turns.

The spans come from the template itself: from its ``{% generation %}`` markers when it has them, else from the
differences between renderings of one conversation and of its prefixes. No marker string is ever guessed.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from sloth_nb.errors import TemplateError

__all__ = ["ANY_TOOLS", "ChatTemplate", "Rendered", "TrainOn"]

TrainOn = Literal["assistant", "last", "all"]

# Private-use characters: no template and (checked) no row holds them, so a difference ends where they begin.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"
# Tools for templates that take no conversation without some.
ANY_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
    }
]
_MARKERS = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text, and the (start, end) characters of each assistant turn, its end included."""

    text: str
    spans: list[tuple[int, int]]


class ChatTemplate:
    """The chat template of one tokenizer.

    Args:
        tokenizer: a transformers tokenizer.
        chat_template: Jinja to use instead of the tokenizer's own; the tokenizer is left as it is.
        kwargs: passed to the template at every rendering (``enable_thinking=False``, …).
    Raises:
        TemplateError: the tokenizer has no template, and none is given.
    """

    def __init__(self, tokenizer: Any, *, chat_template: str | None = None, **kwargs: Any):
        if not (chat_template or getattr(tokenizer, "chat_template", None)):
            raise TemplateError(
                f"The tokenizer of {getattr(tokenizer, 'name_or_path', None) or 'this model'} has no chat "
                "template, so a conversation can't be written as text. Give it one: "
                'tokenizer = get_chat_template(tokenizer, "chatml"), or train on a "text" column.'
            )
        self.tokenizer = tokenizer
        self.given = chat_template
        self.kwargs = kwargs

    @property
    def text(self) -> str:
        """The template's own Jinja."""
        template = self.given or self.tokenizer.chat_template
        return template["default"] if isinstance(template, dict) else template

    @cached_property
    def has_markers(self) -> bool:
        """Whether the template says itself which part the assistant writes."""
        return bool(_MARKERS.search(self.text))

    def render(self, messages: list[dict], tools: list | None = None, *, generate: bool = False) -> str:
        """The conversation as text.

        Raises:
            TemplateError: the template refuses the conversation, with its own words.
        """
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                tools=tools,
                chat_template=self.given,
                tokenize=False,
                add_generation_prompt=generate,
                **self.kwargs,
            )
        except Exception as error:  # whatever a stranger's template or its sandbox raises
            raise TemplateError(f"the chat template refuses the conversation ({error})") from error

    def render_with_spans(self, messages: list[dict], tools: list | None = None) -> Rendered:
        """The conversation as text, with the span of each assistant turn.

        Raises:
            TemplateError: the template refuses the conversation, or hides where the assistant's turn lies.
        """
        if self.has_markers:
            return self._by_markers(messages, tools)
        text = self.render(messages, tools)
        spans: list[tuple[int, int]] = []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                floor = spans[-1][1] if spans else 0
                spans.append(self._by_difference(text, messages, tools, i, floor))
        return Rendered(text, spans)

    def _by_markers(self, messages: list[dict], tools: list | None) -> Rendered:
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self.given or self.tokenizer.get_chat_template(tools=tools)
        variables = {**self.tokenizer.special_tokens_map, **self.kwargs}
        try:
            texts, spans = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=True,
                **variables,
            )
        except Exception as error:
            raise TemplateError(f"the chat template refuses the conversation ({error})") from error
        return Rendered(texts[0], [tuple(span) for span in spans[0]])

    def _by_difference(
        self, text: str, messages: list[dict], tools: list | None, i: int, floor: int
    ) -> tuple[int, int]:
        """The span of turn ``i``: from the end of its prefix to the end of the text up to it."""
        start = end = None
        if i:
            prefix = self._try(messages[:i], tools, generate=True)
            if prefix is not None and floor <= len(prefix) and text.startswith(prefix):
                start = len(prefix)
        upto = text if i == len(messages) - 1 else self._try(messages[: i + 1], tools)
        if start is not None and upto is not None and text.startswith(upto):
            end = self._end_of_turn(upto, start)
        if start is None or end is None:
            start, end = self._by_exchange(text, messages, tools, i, floor, start)
        return start, end

    def _by_exchange(
        self, text: str, messages: list[dict], tools: list | None, i: int, floor: int, start: int | None
    ) -> tuple[int, int]:
        """The span of turn ``i`` when the template writes it differently in the middle than at the end.

        The turn is exchanged for characters that occur nowhere; what the two texts don't share is the turn.
        """
        if _OPEN in text or _CLOSE in text:
            raise TemplateError(
                "the conversation holds the characters U+E0F0 or U+E0F1, which mark turns here"
            )
        other, at = self._exchanged(messages, tools, i)
        tail = _common_suffix(text, other, len(text) - floor)
        head = _common_prefix(text, other, min(at, len(text) - tail))
        end = len(text) - tail
        if (close := self.end_of_turn) and text.startswith(close, end):
            end += len(close)
        if start is None:
            start = self._start_of_turn(text, floor, head)
            if start is None and i and messages[i - 1]["role"] == "assistant":
                start = floor  # two turns written as one: what joins them is the assistant's too
        return head if start is None else start, end

    def _exchanged(self, messages: list[dict], tools: list | None, i: int) -> tuple[str, int]:
        """The conversation with turn ``i`` replaced, and where the replacement begins."""
        mark = _OPEN + "x" + _CLOSE
        other = self._try([*messages[:i], {"role": "assistant", "content": mark}, *messages[i + 1 :]], tools)
        if other is None:  # a tool's answer may need the call before it: keep the call, change its words
            other = self._try([*messages[:i], _marked(messages[i], mark), *messages[i + 1 :]], tools)
        at = -1 if other is None else other.find(mark)
        if other is None or at < 0:
            raise TemplateError("the chat template doesn't show where the assistant's turn lies")
        return other, at

    def _start_of_turn(self, text: str, floor: int, head: int) -> int | None:
        """Where the assistant began to speak, between ``floor`` and the first character surely its own."""
        if prompt := self.generation_prompt:
            found = text.rfind(prompt, floor, head)
            return found + len(prompt) if found >= 0 else None
        if self._own_prefix and text.endswith(self._own_prefix, floor, head):
            return head - len(self._own_prefix)
        return None

    def _end_of_turn(self, text: str, start: int) -> int:
        """The end of the last turn of ``text``: its end-of-turn token, or its last character but space."""
        if self.end_of_turn:
            at = text.rfind(self.end_of_turn, start)
            if at >= 0:
                return at + len(self.end_of_turn)
        return max(start, len(text.rstrip()))

    def _try(self, messages: list[dict], tools: list | None, *, generate: bool = False) -> str | None:
        try:
            return self.render(messages, tools, generate=generate)
        except TemplateError:
            return None

    def _asked(self, messages: list[dict], *, generate: bool = False) -> str:
        """A conversation to learn the template's ways from; with tools when it takes none without."""
        plain = self._try(messages, None, generate=generate)
        return self.render(messages, ANY_TOOLS, generate=generate) if plain is None else plain

    @cached_property
    def _probe(self) -> tuple[str, str, str]:
        """What is written from user to assistant, from assistant to user, and after the last assistant."""
        marks = [f"{_OPEN}{n}{_CLOSE}" for n in range(4)]
        roles = ("user", "assistant") * 2
        text = self._asked([{"role": r, "content": m} for r, m in zip(roles, marks, strict=True)])
        places = [text.find(mark) for mark in marks]
        if min(places) < 0 or places != sorted(places):
            raise TemplateError("the chat template doesn't write the turns' contents one after another")
        ends = [place + len(mark) for place, mark in zip(places, marks, strict=True)]
        return text[ends[0] : places[1]], text[ends[1] : places[2]], text[ends[3] :]

    @cached_property
    def generation_prompt(self) -> str:
        """What the template writes before the assistant speaks, when it is asked for a generation prompt."""
        messages = [{"role": "user", "content": "x"}]
        plain, prompted = self._asked(messages), self._asked(messages, generate=True)
        return prompted[len(plain) :] if prompted.startswith(plain) else ""

    @cached_property
    def _own_prefix(self) -> str:
        """What the assistant itself says before its content (a space, an empty thought)."""
        user = {"role": "user", "content": "x"}
        asked = self._asked([user], generate=True)
        answered = self._asked([user, {"role": "assistant", "content": _OPEN}])
        return answered[len(asked) : answered.find(_OPEN)] if answered.startswith(asked) else ""

    @cached_property
    def end_of_turn(self) -> str:
        """What closes an assistant's turn, to the end of its first special token; "" when there is none."""
        after = self._probe[2]
        ends = [after.find(token) + len(token) for token in self._added_tokens if token in after]
        return after[: min(ends)] if ends else ""

    @cached_property
    def _added_tokens(self) -> list[str]:
        return [token for token in self.tokenizer.get_added_vocab() if token.strip()]

    @cached_property
    def response_part(self) -> str:
        """What stands before every assistant turn, and nowhere else."""
        return self.generation_prompt or self._without_end(self._probe[0])

    @cached_property
    def instruction_part(self) -> str:
        """What stands before every user turn that follows an assistant's."""
        return self._without_end(self._probe[1])

    def _without_end(self, between: str) -> str:
        """A separator without the end of the turn before it, nor a space that its next word takes."""
        return between.removeprefix(self.end_of_turn).lstrip().rstrip(" ") or between.strip(" ")


def _marked(message: dict, mark: str) -> dict:
    """A message whose every text ends in ``mark``."""

    def visit(value: Any, key: str = "") -> Any:
        if isinstance(value, str):
            return value if key in ("role", "type", "id") else value + mark
        if isinstance(value, dict):
            return {k: visit(v, k) for k, v in value.items()}
        return [visit(v) for v in value] if isinstance(value, list) else value

    return visit(message)


def _common_prefix(a: str, b: str, limit: int) -> int:
    n = 0
    while n < limit and a[n] == b[n]:
        n += 1
    return n


def _common_suffix(a: str, b: str, limit: int) -> int:
    n = 0
    while n < limit and a[-1 - n] == b[-1 - n]:
        n += 1
    return n
