"""Recognising: which of the field's shapes a data set has, how sure that is, and why."""

from typing import Any

from sloth_nb.data.columns import Table
from sloth_nb.data.forms import ORDER, hint
from sloth_nb.data.schema import Schema, Task
from sloth_nb.errors import DatasetError

__all__ = ["KNOWN_FORMS", "recognise"]

KNOWN_FORMS = (
    'messages: [{"role", "content"}, …]; conversations: [{"from", "value"}, …]; instruction (+ input) and '
    "output; question and answer; prompt and completion; text; chosen and rejected; prompt, completion and "
    "label; prompt (+ answer) for RL; image or audio with text; input_ids"
)


def recognise(dataset: Any, *, task: Task | None = None) -> Schema:
    """The form of a data set, from its columns and its first rows.

    Args:
        task: what it is for, when a data set could serve for several things: ``"sft"`` looks at conversations
            and answers before preferences, ``"rl"`` at prompts with an answer to check them by.
    Raises:
        DatasetError: no known form fits; names the columns that were found and the forms that are known.
    """
    if task not in ORDER:
        raise DatasetError(f"task is one of {', '.join(map(repr, ORDER))}, not {task!r}.")
    table = Table(dataset)
    for form in ORDER[task]:
        if schema := form(table):
            return schema
    columns = f"Can't tell what to train on from the columns {', '.join(map(repr, table.names))}."
    what_now = (
        hint(table) or 'Rename the columns, or say which is which: mapping={"user": "…", "assistant": "…"}.'
    )
    raise DatasetError(f"{columns} {what_now}\n  Known forms: {KNOWN_FORMS}.")
