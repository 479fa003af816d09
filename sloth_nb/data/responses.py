"""Masks on rows that are token ids already: everything but the assistant's turns becomes -100.

The delimiters come from the tokenizer's own template (or from the user); they are looked for in the row's
text, and the tokens they cover are found through offsets, so merged tokens at an edge can't hide a delimiter.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sloth_nb.data.template import ChatTemplate
from sloth_nb.errors import TemplateError

__all__ = ["ResponseMask"]

IGNORED = -100


@dataclass
class ResponseMask:
    """Labels for rows of ids; only what follows a ``response_part`` is trained, its end of turn included.

    Args:
        tokenizer: a fast tokenizer.
        instruction_part, response_part: what stands before a user's and an assistant's turn. None: taken
            from the tokenizer's template.
        last_only: only the last response of a row.
        exact: False ignores white space around the two parts.
    Raises:
        TemplateError: a part is None and the tokenizer has no template to take it from.
    """

    tokenizer: Any
    instruction_part: str | None = None
    response_part: str | None = None
    last_only: bool = False
    exact: bool = True

    def __post_init__(self) -> None:
        self.ends: tuple[str, ...] = (self.tokenizer.eos_token,) if self.tokenizer.eos_token else ()
        template = ChatTemplate(self.tokenizer) if getattr(self.tokenizer, "chat_template", None) else None
        if self.instruction_part is None or self.response_part is None:
            template = template or ChatTemplate(self.tokenizer)  # raises: says what is missing
            self.instruction_part = self.instruction_part or template.instruction_part
            self.response_part = self.response_part or template.response_part
        if template and (end := _end_of_turn(template)):
            self.ends = (end, *self.ends)
        if not self.exact:
            self.instruction_part, self.response_part = (
                self.instruction_part.strip(),
                self.response_part.strip(),
            )
        if not self.response_part:
            raise TemplateError(
                'nothing stands before the assistant\'s turns in this template; give response_part="…".'
            )

    def spans(self, text: str) -> list[tuple[int, int]]:
        """The (start, end) characters of each response in a row's text."""
        found = list(self._spans(text))
        return found[-1:] if self.last_only else found

    def _spans(self, text: str) -> Iterator[tuple[int, int]]:
        at = 0
        while (begin := text.find(self.response_part, at)) >= 0:
            start = begin + len(self.response_part)
            limit = len(text)
            for part in (self.instruction_part, self.response_part):
                if part and (stop := text.find(part, start)) >= 0:
                    limit = min(limit, stop)
            ends = [stop + len(end) for end in self.ends if (stop := text.find(end, start, limit)) >= 0]
            end = min(ends) if ends else start + len(text[start:limit].rstrip())
            if end > start:
                yield start, end
            at = max(start, end)

    def labels(self, rows: list[list[int]]) -> list[list[int]]:
        """One list of labels for each row of ids."""
        texts = [
            self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            for ids in rows
        ]
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        encodings = backend.encode_batch(texts, add_special_tokens=False)
        return [
            self._by_offsets(ids, text, encoding.offsets)
            if encoding.ids == list(ids)
            else self._by_pieces(ids)
            for ids, text, encoding in zip(rows, texts, encodings, strict=True)
        ]

    def _by_offsets(self, ids: list[int], text: str, offsets: list[tuple[int, int]]) -> list[int]:
        labels, spans = [IGNORED] * len(ids), iter(self.spans(text))
        span = next(spans, None)
        for i, (a, b) in enumerate(offsets):
            while span and a >= span[1]:
                span = next(spans, None)
            if span and a >= span[0] and b <= span[1]:
                labels[i] = ids[i]
        return labels

    def _by_pieces(self, ids: list[int]) -> list[int]:
        """For ids that their own text doesn't give back (a row cut inside a character): token by token."""
        pieces = [self.tokenizer.decode([i], skip_special_tokens=False) for i in ids]
        offsets, at = [], 0
        for piece in pieces:
            offsets.append((at, at + len(piece)))
            at += len(piece)
        return self._by_offsets(ids, "".join(pieces), offsets)


def _end_of_turn(template: ChatTemplate) -> str:
    try:
        return template.end_of_turn
    except TemplateError:
        return ""
