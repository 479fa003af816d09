"""Tokens become text as they come, without ever showing half a character."""

from typing import Any

__all__ = ["TextOfTokens"]

_INCOMPLETE = "\ufffd"  # what a decoder shows for bytes that aren't a whole character yet


class TextOfTokens:
    """Takes generated tokens one by one and gives the text that each completes.

    A token alone doesn't tell its text (spaces and multi-byte characters depend on its neighbours), so the
    tokens of the current line are decoded together, and what was given before is left out.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._given = ""

    def add(self, token: int) -> str:
        self._tokens.append(token)
        text = self._decode()
        if text.endswith(_INCOMPLETE):
            return ""
        new = text[len(self._given) :]
        self._given = text
        if text.endswith("\n"):  # nothing before a line's end changes any more
            self._tokens, self._given = [], ""
        return new

    def end(self) -> str:
        """What is left, when no further token comes."""
        new = self._decode()[len(self._given) :]
        self._tokens, self._given = [], ""
        return new

    def _decode(self) -> str:
        return self._tokenizer.decode(
            self._tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
