"""Merging columns into one prompt, and conversations into text by a template given as an example."""

import random
import re
from typing import Any

from sloth_nb.data.conversation import to_messages
from sloth_nb.data.schema import recognise
from sloth_nb.errors import DatasetError, TemplateError

__all__ = ["apply_chat_template", "merge_columns", "to_sharegpt"]

_OPTIONAL = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)
_COLUMN = re.compile(r"\{([^{}]+?)(\?)?\}")


def merge_columns(pattern: str, row: dict[str, Any]) -> str:
    """One text from several columns.

    ``{name}`` is a column's text. ``[[ … {name} … ]]`` and a line with ``{name?}`` are left out when that
    column is empty in this row.

    Raises:
        DatasetError: the pattern names a column that the row lacks, or that is empty but not optional.
    """

    def fill(text: str) -> str | None:
        empty = False

        def cell(match: re.Match[str]) -> str:
            nonlocal empty
            name = match[1]
            if name not in row:
                raise DatasetError(
                    f"the pattern names a column {name!r}; columns: {', '.join(map(repr, row))}"
                )
            value = "" if row[name] is None else str(row[name])
            empty |= not value.strip()
            return value

        filled = _COLUMN.sub(cell, text)
        return None if empty else filled

    def optional(match: re.Match[str]) -> str:
        return fill(match[1]) or ""

    text = _OPTIONAL.sub(lambda m: optional(m).replace("{", "\0").replace("}", "\1"), pattern)
    lines = []
    for line in text.split("\n"):
        asked = [m[2] for m in _COLUMN.finditer(line)]
        filled = fill(line)
        if filled is None and any(asked):
            continue
        lines.append(_COLUMN.sub(lambda m: str(row[m[1]] or ""), line) if filled is None else filled)
    return "\n".join(lines).replace("\0", "{").replace("\1", "}")


def to_sharegpt(
    dataset: Any,
    merged_prompt: str = "",
    merged_column_name: str = "instruction",
    output_column_name: str = "output",
    remove_unused_columns: bool = True,
    conversation_extension: int = 1,
    random_state: int = 3407,
) -> Any:
    """Rows of columns as ``conversations`` of human and gpt turns.

    Args:
        merged_prompt: how the human's turn is made of columns: ``"{instruction}[[\\nYour input
            is:\\n{input}]]"``; empty takes ``merged_column_name`` as it is.
        output_column_name: the gpt's turn.
        conversation_extension: chain so many randomly drawn rows into one conversation.
    Raises:
        DatasetError: a named column is missing.
    """
    wanted = {m[1] for m in _COLUMN.finditer(merged_prompt)} or {merged_column_name}
    if missing := sorted((wanted | {output_column_name}) - set(dataset.column_names)):
        raise DatasetError(
            f"There is no column {missing[0]!r}. Columns: {', '.join(map(repr, dataset.column_names))}."
        )
    order = random.Random(random_state)
    size = len(dataset)
    partners = [order.sample(range(size), size) for _ in range(conversation_extension - 1)]

    def human(row: dict[str, Any]) -> str:
        return merge_columns(merged_prompt, row) if merged_prompt else str(row[merged_column_name] or "")

    def converse(row: dict[str, Any], index: int) -> dict[str, Any]:
        rows = [row, *(dataset[other[index]] for other in partners)]
        turns = []
        for one in rows:
            turns.append({"from": "human", "value": human(one)})
            turns.append({"from": "gpt", "value": str(one[output_column_name] or "")})
        return {"conversations": turns}

    drop = dataset.column_names if remove_unused_columns else None
    return dataset.map(converse, with_indices=True, remove_columns=drop)


def apply_chat_template(
    dataset: Any,
    tokenizer: Any,
    chat_template: str | None = None,
    default_system_message: str | None = None,
    extra_eos_tokens: list[str] | None = None,
) -> Any:
    """Adds a ``text`` column: every conversation as the template writes it.

    Args:
        tokenizer: its template is used, and replaced first when ``chat_template`` is given.
        chat_template: an example of one exchange with ``{INPUT}`` and ``{OUTPUT}`` (and ``{SYSTEM}``), or
            Jinja.
        default_system_message: stands for ``{SYSTEM}`` where a conversation has none.
        extra_eos_tokens: accepted for older notebooks; must be in the vocabulary already.
    Raises:
        TemplateError: the example lacks {INPUT} or {OUTPUT}, or an extra EOS is not in the vocabulary.
    """
    from sloth_nb.data.template import ChatTemplate

    for token in extra_eos_tokens or ():
        if token not in tokenizer.get_vocab():
            raise TemplateError(f"{token} is not in the tokenizer's vocabulary, so no text can end with it.")
    if chat_template is not None:
        jinja = (
            chat_template
            if "{%" in chat_template
            else _jinja_of(chat_template, tokenizer, default_system_message)
        )
        tokenizer.chat_template = jinja
    template, schema = ChatTemplate(tokenizer), recognise(dataset)
    return dataset.map(lambda row: {"text": template.render(to_messages(row, schema))})


def _jinja_of(example: str, tokenizer: Any, system: str | None) -> str:
    """Jinja from an example exchange; what lies between two exchanges is the literal after ``{OUTPUT}``."""
    if "{INPUT}" not in example or "{OUTPUT}" not in example:
        raise TemplateError(
            "chat_template needs {INPUT} where the user speaks and {OUTPUT} where the assistant does."
        )
    before, rest = example.split("{INPUT}", 1)
    middle, after = rest.split("{OUTPUT}", 1)
    bos = tokenizer.bos_token or ""
    if "{INPUT}" in after:  # two exchanges: the second shows exactly what repeats
        user, repeated = after.split("{INPUT}", 1)
        head = before.removesuffix(user.removeprefix(_shared_end(user, repeated.split("{OUTPUT}", 1)[-1])))
        end = _shared_end(user, repeated.split("{OUTPUT}", 1)[-1])
        user = user.removeprefix(end)
    else:
        end = after
        cut = before.rfind(end) + len(end) if end and end in before else before.rfind("\n\n") + 2
        if cut < 2:
            cut = 0
        head, user = before[:cut], before[cut:]
    end = end or (tokenizer.eos_token or "")
    if bos and head.startswith(bos):
        head = head.removeprefix(bos)
    parts = head.split("{SYSTEM}")
    speech = "messages[0].content if messages[0].role == 'system' else " + repr(system or "")
    start = ("{{ " + repr(bos) + " }}") if bos else ""
    start += ("{{ " + speech + " }}").join("{{ " + repr(part) + " }}" for part in parts)
    return (
        f"{start}"
        "{%- for message in messages -%}{%- if message.role == 'user' -%}"
        "{{ " + repr(user) + " + message.content }}"
        "{%- elif message.role == 'assistant' -%}{{ " + repr(middle) + " }}"
        "{% generation %}{{ message.content + " + repr(end) + " }}{% endgeneration %}"
        "{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}{{ " + repr(middle) + " }}{%- endif -%}"
    )


def _shared_end(between: str, last: str) -> str:
    n = 0
    while n < min(len(between), len(last)) and between[n] == last[n]:
        n += 1
    return between[:n]
