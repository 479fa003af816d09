"""Tokenising rendered text once, and turning spans of characters into ranges of trained tokens.

A token that reaches across a span's edge would be half the prompt's and half the answer's. Such a row is
encoded in pieces cut at that edge, which is also what generation does: the prompt's tokens are given, the
answer's come after.
"""

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from sloth_nb.data.template import Rendered
from sloth_nb.errors import TemplateError

__all__ = ["IGNORED", "Encoded", "RowEncoder", "Token"]

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Token:
    """A token to be looked at: its id, the text it stands for ("" for one of a character's later tokens)."""

    id: int
    text: str
    trained: bool


@dataclass(slots=True)
class Encoded:
    """One row: its ids, each (start, end) range of trained tokens, and whether it was encoded in pieces."""

    ids: list[int]
    trained: list[tuple[int, int]]
    resplit: bool = False

    @property
    def labels(self) -> list[int]:
        """The ids where they are trained, -100 elsewhere."""
        labels = [IGNORED] * len(self.ids)
        for start, end in self.trained:
            labels[start:end] = self.ids[start:end]
        return labels


class RowEncoder:
    """Encodes texts with a fast tokenizer.

    Args:
        tokenizer: a transformers fast tokenizer.
    Raises:
        TemplateError: the tokenizer is not a fast one (it can't say which characters a token came from).
    """

    def __init__(self, tokenizer: Any):
        if not getattr(tokenizer, "is_fast", False):
            raise TemplateError(
                f"{type(tokenizer).__name__} can't say which characters a token came from, so the loss mask "
                "can't be exact. Load the model's fast tokenizer (a tokenizer.json)."
            )
        self.backend = tokenizer.backend_tokenizer
        self.bos_id, self.eos_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        added = self.backend.get_added_tokens_decoder().items()
        # Tokens that swallow the white space beside them (Phi-3's end of turn takes the line break after it).
        self._takes_before = {id for id, token in added if token.lstrip}
        self._takes_after = {id for id, token in added if token.rstrip}
        bare = self.encode(["a"])[0].ids
        full = self.backend.encode("a").ids
        self.adds_bos = self.bos_id is not None and full[:1] == [self.bos_id] and bare[:1] != [self.bos_id]

    def encode(self, texts: list[str]) -> list[Any]:
        """The backend's encodings; special tokens only where the text holds them."""
        if self.backend.truncation or self.backend.padding:
            self.backend.no_truncation()
            self.backend.no_padding()
        return self.backend.encode_batch(texts, add_special_tokens=False)

    def can_write(self, character: str) -> bool:
        """Whether a character comes back from its tokens (or another form of the same character does)."""
        bare, encoding = self.encode(["aa", f"a{character}a"])
        if encoding.ids == bare.ids:
            return False
        back = self.backend.decode(encoding.ids, skip_special_tokens=False)
        same = unicodedata.normalize("NFKD", character).strip(" ")
        return not same or same in unicodedata.normalize("NFKD", back)

    @cached_property
    def lost_ascii(self) -> str:
        """The characters of plain English text that the tokenizer drops: none, unless it was built wrongly."""
        return "".join(c for c in map(chr, (9, 10, *range(32, 127))) if not self.can_write(c))

    def conversations(self, rendered: list[Rendered]) -> Iterator[Encoded]:
        """Templated rows, special tokens and all, trained where their spans are."""
        encodings = self.encode([row.text for row in rendered])
        return (self._masked(row, encoding) for row, encoding in zip(rendered, encodings, strict=True))

    def plain(self, texts: list[str], *, closed: tuple[str, ...] = ()) -> Iterator[Encoded]:
        """Raw texts, trained whole: one BOS before when the tokenizer uses one, one EOS after.

        Args:
            closed: endings after which no EOS is added (a template's end of turn).
        """
        for text, encoding in zip(texts, self.encode(texts), strict=True):
            ids = encoding.ids
            if self.adds_bos and ids[:1] != [self.bos_id]:
                ids = [self.bos_id, *ids]
            if self.eos_id is not None and ids[-1:] != [self.eos_id] and not text.rstrip().endswith(closed):
                ids = [*ids, self.eos_id]
            yield Encoded(ids, [(0, len(ids))])

    def explain(self, row: Rendered) -> list[Token]:
        """The tokens of one templated row, each with its text."""
        (encoded,) = self.conversations([row])
        edges = [0, len(row.text)]
        if encoded.resplit:
            edges = sorted({*edges, *(edge for span in row.spans for edge in span)})
        texts: list[str] = []
        for (a, b), encoding in zip(
            pairwise(edges), self.encode([row.text[a:b] for a, b in pairwise(edges)]), strict=True
        ):
            reached = 0
            for start, end in encoding.offsets:
                texts.append(row.text[a:b][max(start, reached) : end])
                reached = max(reached, end)
        return _tokens(encoded, texts)

    def explain_plain(self, text: str, *, closed: tuple[str, ...] = ()) -> list[Token]:
        """The tokens of one raw text, each with its text."""
        (row,) = self.plain([text], closed=closed)
        tokens = self.explain(Rendered(text, [(0, len(text))]))
        if row.ids[: len(tokens)] != [token.id for token in tokens]:
            tokens = [Token(row.ids[0], "", True), *tokens]
        return tokens + [Token(i, "", True) for i in row.ids[len(tokens) :]]

    def _masked(self, row: Rendered, encoding: Any) -> Encoded:
        to_token, to_chars = encoding.char_to_token, encoding.token_to_chars
        trained = []
        for start, end in row.spans:
            if start >= end:
                continue
            first, last = to_token(start), to_token(end - 1)
            if first is None or last is None:
                return self._in_pieces(row)
            begins, ends = to_chars(first)[0], to_chars(last)[1]
            if (
                begins != start
                and not self._only_takes(row.text[begins:start], encoding.ids[first], "before")
            ) or (ends != end and not self._only_takes(row.text[end:ends], encoding.ids[last], "after")):
                return self._in_pieces(row)
            # A character of several tokens belongs to them all: char_to_token names one of them.
            if row.text[start] > "\x7f":
                while first and to_chars(first - 1)[1] > start:
                    first -= 1
            if row.text[end - 1] > "\x7f":
                while (beyond := to_chars(last + 1)) is not None and beyond[0] < end:
                    last += 1
            trained.append((first, last + 1))
        return Encoded(encoding.ids, trained)

    def _only_takes(self, beyond: str, token: int, side: str) -> bool:
        """Whether a token that reaches across an edge only swallows white space there."""
        return beyond.isspace() and token in (self._takes_before if side == "before" else self._takes_after)

    def _in_pieces(self, row: Rendered) -> Encoded:
        edges = sorted({0, len(row.text), *(edge for span in row.spans for edge in span)})
        wanted = set(row.spans)
        pieces = list(pairwise(edges))
        ids: list[int] = []
        trained = []
        for piece, encoding in zip(pieces, self.encode([row.text[a:b] for a, b in pieces]), strict=True):
            if piece in wanted:
                trained.append((len(ids), len(ids) + len(encoding.ids)))
            ids += encoding.ids
        return Encoded(ids, trained, resplit=True)


def _tokens(row: Encoded, texts: list[str]) -> list[Token]:
    learnt = {i for start, end in row.trained for i in range(start, end)}
    return [Token(id, text, i in learnt) for i, (id, text) in enumerate(zip(row.ids, texts, strict=True))]
