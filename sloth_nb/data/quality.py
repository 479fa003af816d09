"""Quality: what looks wrong in rows that can be trained on, counted in passing and never changed."""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from sloth_nb.data.report import DataReport

__all__ = ["RowChecks"]

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# Marks of direction, byte-order marks, soft hyphens and the like; joiners stay out: scripts and emoji need them.
_HIDDEN = re.compile(
    "[\u00ad\u200b\u2028\u2029\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\U000e0000-\U000e007f]"
)
# UTF-8 read as Latin-1 or Windows-1252: an accented capital followed by a sign no language puts there.
_MOJIBAKE = re.compile(
    "[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac[\u0153\u2122\u02dc\u201c\u201d\u2013\u2014\u00a6]"
)


class RowChecks:
    """Looks at rows one by one and counts in ``report.flaws`` what it finds.

    Args:
        can_write: whether the tokenizer keeps a character.
        suspect: it loses some of plain English too, so that no text is passed over.
    """

    def __init__(
        self,
        report: DataReport,
        can_write: Callable[[str], bool] | None = None,
        *,
        suspect: bool = False,
    ):
        self.report, self.can_write, self.suspect = report, can_write, suspect
        self._written: dict[str, bool] = {}
        self._seen: set[int] = set()
        self._orders: dict[tuple[str, ...], tuple[str, ...]] = {}

    def see(self, number: int, text: str, messages: list[dict[str, Any]] | None = None) -> None:
        """Looks at a row's text, and at who speaks when."""
        key = hash(text)
        if key in self._seen:
            self.report.flaw("duplicates", number)
        self._seen.add(key)
        if messages is not None:
            roles = tuple([message["role"] for message in messages])
            if roles not in self._orders:
                self._orders[roles] = _disorder(roles)
            for flaw in self._orders[roles]:
                self.report.flaw(flaw, number)
        if self.suspect or not text.isascii() or not text.replace("\n", " ").replace("\t", " ").isprintable():
            self._characters(number, text)

    def _characters(self, number: int, text: str) -> None:
        if "\ufffd" in text:
            self.report.flaw("replaced", number)
        for character in set(text) if self.can_write else ():
            if character not in self._written:
                self._written[character] = self.can_write(character)
            if not self._written[character]:
                self.report.flaw("unwritable", number, f"U+{ord(character):04X}")
                break
        for flaw, pattern in (("control", _CONTROL), ("hidden", _HIDDEN), ("mojibake", _MOJIBAKE)):
            if found := pattern.search(text):
                self.report.flaw(flaw, number, " ".join(f"U+{ord(c):04X}" for c in found[0]))


def _disorder(roles: tuple[str, ...]) -> tuple[str, ...]:
    """What is unusual about the order of the speakers."""
    flaws = []
    speakers = [role for role in roles if role != "system"]
    if "system" in roles[1:]:
        flaws.append("system")
    if speakers[:1] == ["assistant"]:
        flaws.append("first")
    if any(a == b and a != "tool" for a, b in pairwise(speakers)):
        flaws.append("doubled")
    if speakers and speakers[-1] != "assistant":
        flaws.append("unanswered")
    return tuple(flaws)
