"""Schema: which shape a data set has and which column plays which part; found by ``recognise`` or given by hand."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sloth_nb.data.patterns import is_pattern, pattern_columns
from sloth_nb.errors import DatasetError

__all__ = ["Schema", "Task", "mapped"]

Task = Literal["sft", "preference", "kto", "rl", "text"]


@dataclass(frozen=True)
class Schema:
    """What a data set is: its form, which column plays which part, how sure that is, and why.

    ``kind``: messages | sharegpt | alpaca | question_answer | prompt_completion | text | preference | kto |
    prompt_only | vision | audio | tokenised. ``mapping`` goes from a part to a column's name; ``roles`` adds
    speakers' names that are not in the usual list.
    """

    kind: str
    mapping: dict[str, str]
    confidence: float = 1.0
    reason: str = "given by hand"
    roles: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        columns = ", ".join(f"{part} = {column}" for part, column in self.mapping.items())
        return f"{self.kind} ({columns}), {self.confidence:.0%} sure: {self.reason}"

    def as_code(self) -> str:
        """What ``prepare(mapping=…)`` takes to read the data the same way."""
        return repr(self.mapping | ({"roles": self.roles} if self.roles else {}))


_PARTS = {
    "messages", "user", "assistant", "context", "system", "history", "reasoning", "tools", "text", "prompt",
    "completion", "chosen", "rejected", "label", "answer", "images", "audio", "first", "second", "winner",
    "input_ids", "labels", "seq_lengths", "calls",
}  # fmt: skip


def mapped(mapping: Mapping[str, Any] | Schema, columns: list[str]) -> Schema:
    """The Schema that a mapping given by hand means.

    Raises:
        DatasetError: it names a part or a column that doesn't exist, or lacks a part.
    """
    if isinstance(mapping, Schema):
        return mapping
    if not isinstance(mapping, Mapping):
        raise DatasetError(
            f"mapping={mapping!r} is a {type(mapping).__name__}; it says which column plays which part, such as "
            'mapping={"user": "question", "assistant": "answer"} or mapping={"text": "story"}.'
        )
    parts = {part: column for part, column in mapping.items() if part != "roles"}
    if unknown := sorted(set(parts) - _PARTS):
        raise DatasetError(f"mapping has no part {unknown[0]!r}. Parts: {', '.join(sorted(_PARTS))}.")
    if wrong := [part for part, column in parts.items() if not isinstance(column, str)]:
        raise DatasetError(f"mapping[{wrong[0]!r}] is {parts[wrong[0]]!r}, not a column's name.")
    roles = mapping.get("roles") or {}
    if not isinstance(roles, Mapping):
        raise DatasetError(
            f'mapping["roles"] is {roles!r}; it says who speaks as whom: {{"Dr. Moss": "assistant"}}.'
        )
    named = [
        name for value in parts.values() for name in (_named(value) if value not in columns else [value])
    ]
    if missing := [name for name in named if name not in columns]:
        raise DatasetError(f"There is no column {missing[0]!r}. Columns: {', '.join(map(repr, columns))}.")
    for kind, needed in _NEEDED.items():
        if needed <= set(parts):
            return Schema(kind, parts, roles=dict(roles))
    raise DatasetError('mapping needs "messages", or "text", or both "user" and "assistant".')


def _named(value: str) -> list[str]:
    """The columns that a mapping's value means: itself, or those of a pattern."""
    return pattern_columns(value) if is_pattern(value) else [value]


_NEEDED = {
    "preference": {"chosen", "rejected"},
    "kto": {"completion", "label"},
    "messages": {"messages"},
    "prompt_completion": {"prompt", "completion"},
    "question_answer": {"user", "assistant"},
    "text": {"text"},
    "prompt_only": {"prompt"},
    "tokenised": {"input_ids"},
}
