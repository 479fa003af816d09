"""Columns merged into conversations, and conversations into text by a template given as an example."""

import random
import re
from dataclasses import dataclass
from typing import Any

from sloth_nb.data.conversation import to_messages
from sloth_nb.data.patterns import merge_columns, pattern_columns
from sloth_nb.data.recognising import recognise
from sloth_nb.errors import DatasetError, TemplateError

__all__ = ["apply_chat_template", "to_sharegpt"]


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
    wanted = set(pattern_columns(merged_prompt)) or {merged_column_name}
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


@dataclass(frozen=True)
class _Exchange:
    """The literals of a template given as an example: before all, before a question, an answer, and after it."""

    head: str
    user: str
    assistant: str
    end: str


def _read_example(example: str) -> _Exchange:
    """The literals of an example of one exchange, or of two (where what repeats can be seen).

    Raises:
        TemplateError: {INPUT} and {OUTPUT} don't take turns, or two exchanges are not written alike.
    """
    places = re.findall(r"\{(INPUT|OUTPUT)\}", example)
    if places not in (["INPUT", "OUTPUT"], ["INPUT", "OUTPUT"] * 2):
        raise TemplateError(
            "chat_template needs {INPUT} where the user speaks and {OUTPUT} where the assistant does, once each or "
            "twice in turn."
        )
    literals = re.split(r"\{(?:INPUT|OUTPUT)\}", example)
    before, middle, after = literals[0], literals[1], literals[-1]
    if len(literals) == 3:
        # The heading of a question begins after what ends a turn, or after the last empty line.
        cut = before.rfind(after) + len(after) if after and after in before else before.rfind("\n\n") + 2
        cut = cut if cut >= 2 else 0
        return _Exchange(before[:cut], before[cut:], middle, after)
    between = literals[2]
    user = between.removeprefix(after)
    if literals[3] != middle or not between.startswith(after) or not before.endswith(user):
        raise TemplateError(
            "the two exchanges in chat_template are not written alike, so what repeats can't be told."
        )
    return _Exchange(before.removesuffix(user), user, middle, after)


def _jinja_of(example: str, tokenizer: Any, system: str | None) -> str:
    """The Jinja that writes conversations as the example does."""
    exchange = _read_example(example)
    end = exchange.end or tokenizer.eos_token or ""
    bos = tokenizer.bos_token or ""
    said = "(messages[0].content if messages[0].role == 'system' else " + repr(system or "") + ")"
    head = " + ".join(
        said if part == "{SYSTEM}" else repr(part)
        for part in re.split(r"(\{SYSTEM\})", bos + exchange.head.removeprefix(bos))
    )
    return (
        "{{ " + head + " }}"
        "{%- for message in messages -%}{%- if message.role == 'user' -%}"
        "{{ " + repr(exchange.user) + " + message.content }}"
        "{%- elif message.role == 'assistant' -%}{{ " + repr(exchange.assistant) + " }}"
        "{% generation %}{{ message.content + " + repr(end) + " }}{% endgeneration %}"
        "{%- elif not loop.first or message.role != 'system' -%}"
        "{{ raise_exception('this chat template has no role ' + message.role) }}"
        "{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ " + repr(exchange.assistant) + " }}{%- endif -%}"
    )
