"""Tokenising rendered text once, and turning spans of characters into labels on tokens.

A token that reaches across a span's edge would be half the prompt's and half the answer's. Such a row is
encoded in pieces cut at that edge, which is also what generation does: the prompt's tokens are given, the
answer's come after.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from sloth_nb.errors import TemplateError

__all__ = ["Encoded", "RowEncoder"]

IGNORED = -100


@dataclass
class Encoded:
    """One row's ids and labels (int32, same length); ``resplit`` when it had to be encoded in pieces."""

    ids: np.ndarray
    labels: np.ndarray
    resplit: bool = False


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
        bare = self._encode(["a"])[0].ids
        full = self.backend.encode("a").ids
        self.adds_bos = self.bos_id is not None and full[:1] == [self.bos_id] and bare[:1] != [self.bos_id]

    def _encode(self, texts: list[str]) -> list[Any]:
        self.backend.no_truncation()
        self.backend.no_padding()
        return self.backend.encode_batch(texts, add_special_tokens=False)

    def conversations(self, texts: list[str], spans: list[list[tuple[int, int]] | None]) -> list[Encoded]:
        """Templated texts, special tokens and all. A row whose spans are None is trained whole."""
        return [
            self._masked(text, encoding, found)
            for text, encoding, found in zip(texts, self._encode(texts), spans, strict=True)
        ]

    def plain(self, texts: list[str], *, closed: tuple[str, ...] = ()) -> list[Encoded]:
        """Raw texts, trained whole: one BOS before when the tokenizer uses one, one EOS after.

        Args:
            closed: endings after which no EOS is added (a template's end of turn).
        """
        rows = []
        for text, encoding in zip(texts, self._encode(texts), strict=True):
            ids = encoding.ids
            if self.adds_bos and ids[:1] != [self.bos_id]:
                ids = [self.bos_id, *ids]
            if self.eos_id is not None and ids[-1:] != [self.eos_id] and not text.rstrip().endswith(closed):
                ids = [*ids, self.eos_id]
            array = np.array(ids, dtype=np.int32)
            rows.append(Encoded(array, array.copy()))
        return rows

    def _masked(self, text: str, encoding: Any, spans: list[tuple[int, int]] | None) -> Encoded:
        ids = np.array(encoding.ids, dtype=np.int32)
        if spans is None:
            return Encoded(ids, ids.copy())
        labels = np.full(len(ids), IGNORED, dtype=np.int32)
        for start, end in spans:
            if start >= end:
                continue
            first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
            if first is None or last is None or self._crosses(encoding, first, last, start, end):
                return self._in_pieces(text, spans)
            labels[first : last + 1] = ids[first : last + 1]
        return Encoded(ids, labels)

    @staticmethod
    def _crosses(encoding: Any, first: int, last: int, start: int, end: int) -> bool:
        before = first > 0 and encoding.token_to_chars(first - 1)
        return (
            encoding.token_to_chars(first)[0] != start
            or encoding.token_to_chars(last)[1] != end
            or bool(before and before[1] > start)
        )

    def _in_pieces(self, text: str, spans: list[tuple[int, int]]) -> Encoded:
        edges = sorted({0, len(text), *(edge for span in spans for edge in span)})
        trained = set(spans)
        pieces = list(pairwise(edges))
        encodings = self._encode([text[a:b] for a, b in pieces])
        ids = np.concatenate([np.array(e.ids, dtype=np.int32) for e in encodings])
        labels = [
            np.array(e.ids, dtype=np.int32)
            if piece in trained
            else np.full(len(e.ids), IGNORED, dtype=np.int32)
            for piece, e in zip(pieces, encodings, strict=True)
        ]
        return Encoded(ids, np.concatenate(labels), resplit=True)
