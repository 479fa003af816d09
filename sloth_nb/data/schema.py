"""Recognising: which of the field's shapes a data set has, how sure that is, and why.

Every shape is one function of the column names and a few rows; the first that answers wins, most telling
first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sloth_nb.data.conversation import CONTENT_KEYS, ROLE_ALIASES, ROLE_KEYS
from sloth_nb.errors import DatasetError

__all__ = ["KNOWN_FORMS", "Schema", "recognise"]

KNOWN_FORMS = (
    'messages: [{"role", "content"}, …]; conversations: [{"from", "value"}, …]; '
    "instruction (+ input) and output; question and answer; prompt and completion; text"
)
SAMPLE = 100

USER_COLUMNS = ("instruction", "question", "prompt", "query", "input", "user", "human", "problem")
CONTEXT_COLUMNS = ("input", "context")
ASSISTANT_COLUMNS = (
    "output", "response", "answer", "completion", "assistant", "target", "reply", "solution",
)  # fmt: skip
SYSTEM_COLUMNS = ("system", "system_prompt")
TEXT_COLUMNS = ("text", "content", "document")


@dataclass(frozen=True)
class Schema:
    """What a data set is: its form, which column plays which part, how sure that is, and why.

    ``mapping`` goes from a part (messages | user, context, system, assistant | text) to a column's name;
    ``roles`` adds speakers' names that are not in the usual list.
    """

    kind: str
    mapping: dict[str, str]
    confidence: float = 1.0
    reason: str = "given by hand"
    roles: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        columns = ", ".join(f"{part} = {column}" for part, column in self.mapping.items())
        return f"{self.kind} ({columns}), {self.confidence:.0%} sure: {self.reason}"


def recognise(dataset: Any) -> Schema:
    """The form of a data set, from its columns and its first rows.

    Raises:
        DatasetError: no known form fits; names the columns that were found and the forms that are known.
    """
    names = list(dataset.column_names)
    rows = [dataset[i] for i in range(min(len(dataset), SAMPLE))]
    lowered = {name.lower(): name for name in names}
    for form in (_conversation, _pair, _text):
        if schema := form(lowered, rows):
            return schema
    raise DatasetError(
        f"Can't tell what to train on from the columns {', '.join(map(repr, names))}.\n"
        f"  Known forms: {KNOWN_FORMS}.\n"
        '  Rename the columns, or say which is which: mapping={"user": "…", "assistant": "…"}.'
    )


def _conversation(names: Mapping[str, str], rows: list[dict[str, Any]]) -> Schema | None:
    usual = ("messages", "conversations", "conversation", "chat", "dialogue", "dialog", "turns")
    for name in [
        *(names[n] for n in usual if n in names),
        *(n for low, n in names.items() if low not in usual),
    ]:
        turns = [t for row in rows for t in (row[name] if isinstance(row[name], list) else [])]
        if not turns or not all(isinstance(t, dict) for t in turns):
            continue
        role = next((k for k in ROLE_KEYS if k in turns[0]), None)
        content = next((k for k in CONTENT_KEYS if k in turns[0]), None)
        if role is None or content is None:
            continue
        speakers = {str(t.get(role)).lower() for t in turns}
        unknown = sorted(speakers - set(ROLE_ALIASES))
        kind = "messages" if (role, content) == ("role", "content") else "sharegpt"
        mapping = (
            {"messages": name}
            | _optional(names, "system", SYSTEM_COLUMNS)
            | _optional(names, "tools", ("tools",))
        )
        reason = f"every turn has {role!r} and {content!r}; speakers: {', '.join(sorted(speakers))}"
        if unknown:
            reason += f"; not known: {', '.join(unknown)}"
        return Schema(kind, mapping, 0.5 if unknown else 1.0 if name.lower() in usual else 0.9, reason)
    return None


def _pair(names: Mapping[str, str], rows: list[dict[str, Any]]) -> Schema | None:
    user = next((n for n in USER_COLUMNS if n in names), None)
    assistant = next((n for n in ASSISTANT_COLUMNS if n in names and n != user), None)
    if user is None or assistant is None:
        return None
    if not (_is_text(rows, names[user]) and _is_text(rows, names[assistant])):
        return None
    mapping = {"user": names[user]}
    if context := next(
        (n for n in CONTEXT_COLUMNS if n in names and n != user and _is_text(rows, names[n])), None
    ):
        mapping["context"] = names[context]
    mapping |= _optional(names, "system", SYSTEM_COLUMNS) | {"assistant": names[assistant]}
    kind = (
        "alpaca"
        if user == "instruction"
        else "prompt_completion"
        if assistant == "completion"
        else "question_answer"
    )
    return Schema(
        kind,
        mapping,
        1.0 if kind != "question_answer" else 0.9,
        f"columns {user!r} and {assistant!r} hold text",
    )


def _text(names: Mapping[str, str], rows: list[dict[str, Any]]) -> Schema | None:
    for name in TEXT_COLUMNS:
        if name in names and _is_text(rows, names[name]):
            return Schema("text", {"text": names[name]}, 1.0, f"column {names[name]!r} holds text")
    if len(names) == 1:
        (name,) = names.values()
        if _is_text(rows, name):
            return Schema("text", {"text": name}, 0.6, f"the only column, {name!r}, holds text")
    return None


def _optional(names: Mapping[str, str], part: str, candidates: tuple[str, ...]) -> dict[str, str]:
    return next(({part: names[c]} for c in candidates if c in names), {})


def _is_text(rows: list[dict[str, Any]], name: str) -> bool:
    values = [row[name] for row in rows if row[name] is not None]
    return bool(values) and all(isinstance(v, str) for v in values)
