"""Conversations: every chat-like shape of row becomes one list of ``{"role", "content", ...}`` messages."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from sloth_nb.data.patterns import is_pattern, merge_columns
from sloth_nb.errors import DatasetError

__all__ = [
    "PAIR_KEYS",
    "ROLE_ALIASES",
    "UNSURE_ROLES",
    "content_key",
    "message_reader",
    "normalise_messages",
    "read_tools",
    "role_key",
    "row_text",
    "to_messages",
]

# What data sets call the speakers. Unknown names are an error: a guessed speaker would be trained on wrongly.
_SPEAKERS = {
    "system": "system developer",
    "user": "user human prompter input question instruction",
    "assistant": """
        assistant gpt chatgpt bing bard bot ai model output response answer claude gemini llm chatbot gpt4
        gpt-4 gpt-3.5-turbo
    """,
    "tool": "tool function observation function_response tool_response ipython",
    "tool_call": "function_call tool_call",
}
# Names of people rather than of parts: right in most data sets, but worth a look.
_PEOPLE = {
    "user": "client customer patient student person questioner asker",
    "assistant": "agent doctor teacher advisor therapist counselor tutor expert",
}
UNSURE_ROLES = frozenset(name for people in _PEOPLE.values() for name in people.split())
ROLE_ALIASES = {
    name: role for table in (_SPEAKERS, _PEOPLE) for role, words in table.items() for name in words.split()
}
ROLE_KEYS = ("role", "from", "speaker", "author")
CONTENT_KEYS = ("content", "value", "text", "message", "utterance")
# Turns that hold a question and its answer, by their keys.
PAIR_KEYS = {
    "input": "output",
    "human": "assistant",
    "user": "assistant",
    "question": "answer",
    "prompt": "response",
    "instruction": "output",
}


def role_key(turn: Mapping[str, Any]) -> str | None:
    """The key under which a turn names its speaker."""
    return next((key for key in ROLE_KEYS if key in turn), None)


def content_key(turn: Mapping[str, Any]) -> str | None:
    """The key under which a turn holds what is said."""
    return next((key for key in CONTENT_KEYS if key in turn), None)


def normalise_messages(turns: Any, aliases: Mapping[str, str] = ROLE_ALIASES) -> list[dict[str, Any]]:
    """A list of turns with any usual role names, as messages that chat templates understand.

    Keys whose value is None are left out (Arrow fills a struct's missing keys with None, and templates ask
    ``is defined``); tool-call arguments given as JSON text become objects, as templates expect.

    Raises:
        DatasetError: the turns are no list, a turn has no speaker or an unknown one, or its content is
            neither text nor parts nor a tool call.
    """
    if isinstance(turns, str):
        turns = _parse_json(turns)
    if not isinstance(turns, (list, tuple)):
        raise DatasetError(f"a conversation is a list of turns, not {type(turns).__name__}")
    if turns and all(isinstance(turn, str) for turn in turns):
        return [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(turns, 1):
        if pair := _both(turn):
            messages += pair
        else:
            messages.append(_message(turn, number, aliases))
    return messages


def _both(turn: Any) -> list[dict[str, Any]]:
    """A turn that holds a question and its answer, as two messages (and a system message, if it has one)."""
    if not isinstance(turn, Mapping) or role_key(turn):
        return []
    for user, assistant in PAIR_KEYS.items():
        if isinstance(turn.get(user), str) and isinstance(turn.get(assistant), str):
            messages = [
                {"role": "user", "content": turn[user]},
                {"role": "assistant", "content": turn[assistant]},
            ]
            system = turn.get("system")
            return [{"role": "system", "content": system}, *messages] if system else messages
    return []


def _message(turn: Any, number: int, aliases: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise DatasetError(f"turn {number} is {type(turn).__name__}, not a dict with a role and a content")
    given = {k: v for k, v in turn.items() if v is not None}
    key = role_key(given)
    if key is None:
        raise DatasetError(f"turn {number} has no role (its keys: {', '.join(map(str, turn)) or 'none'})")
    name = str(given.pop(key)).strip()
    role = aliases.get(name) or aliases.get(name.lower())
    if role is None:
        raise DatasetError(f"turn {number} is spoken by {name!r}; known: {', '.join(sorted(set(aliases)))}")
    held = content_key(given)
    content = given.pop(held) if held else None
    if role == "tool_call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(content)}
    if "tool_calls" in given:
        given["tool_calls"] = _calls(given["tool_calls"])
    if "function_call" in given:
        given["tool_calls"] = _calls(given.pop("function_call"))
    if content is None:
        if not given.get("tool_calls") and not given.get("reasoning_content"):
            raise DatasetError(f"turn {number} ({role}) has no content")
        content = ""
    if isinstance(content, (int, float)):
        content = str(content)
    if isinstance(content, (list, tuple)):
        content = [_part(part, number) for part in content]
    elif isinstance(content, Mapping):
        content = json.dumps(content, ensure_ascii=False)
    elif not isinstance(content, str):
        raise DatasetError(f"turn {number} ({role}) has a content of type {type(content).__name__}, not text")
    return {"role": role, "content": content, **given}


def _part(part: Any, number: int) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise DatasetError(f"turn {number} has a content part of type {type(part).__name__}")
    return {k: v for k, v in part.items() if v is not None}


def _calls(value: Any) -> list[dict[str, Any]]:
    """Tool calls in the OpenAI shape, from a list, one call, or JSON text of either."""
    if isinstance(value, str):
        value = _parse_json(value)
    calls = []
    for call in value if isinstance(value, (list, tuple)) else [value]:
        if not isinstance(call, Mapping):
            raise DatasetError(
                f"a tool call is an object with a name and arguments, not {type(call).__name__}"
            )
        function = dict(call.get("function") or call)
        arguments = function.get("arguments", function.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = _parse_json(arguments) if arguments.strip() else {}
        made = {"type": "function", "function": {"name": function.get("name"), "arguments": arguments}}
        if call.get("id"):
            made["id"] = call["id"]
        calls.append(made)
    return calls


def read_tools(value: Any) -> list[dict[str, Any]] | None:
    """A row's tools as templates take them, from a list or JSON text; None when there are none.

    Bare functions get their ``{"type": "function", …}`` wrapping; keys that Arrow filled with None are left
    out.
    """
    if isinstance(value, str):
        value = _parse_json(value) if value.strip() else None
    if not value:
        return None
    tools = [_without_none(tool) for tool in (value if isinstance(value, (list, tuple)) else [value])]
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, (list, tuple)) else value


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(f"expected JSON, found {text[:60]!r} ({error.msg})") from error


def to_messages(row: Mapping[str, Any], schema: Any) -> list[dict[str, Any]]:
    """One row as messages, by what ``recognise`` found (or the mapping given by hand).

    Raises:
        DatasetError: the row doesn't hold what the schema says.
    """
    return message_reader(schema)(row)


def message_reader(schema: Any) -> Callable[[Mapping[str, Any]], list[dict[str, Any]]]:
    """``to_messages`` for many rows of one schema."""
    columns = schema.mapping
    aliases = {**ROLE_ALIASES, **schema.roles}
    if "messages" in columns:
        return _turns_reader(columns["messages"], columns.get("system"), aliases)
    if "completion" in columns:
        return _continued_reader(columns["prompt"], columns["completion"], aliases)
    return _calls_reader(columns) if "calls" in columns else _pair_reader(columns)


def _turns_reader(turns: str, system: str | None, aliases: Mapping[str, str]) -> Callable:
    def read(row: Mapping[str, Any]) -> list[dict[str, Any]]:
        messages = normalise_messages(row.get(turns), aliases)
        if system and row.get(system) and messages[:1] and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": str(row[system])})
        return messages

    return read


def _continued_reader(prompt: str, completion: str, aliases: Mapping[str, str]) -> Callable:
    def read(row: Mapping[str, Any]) -> list[dict[str, Any]]:
        asked = row.get(prompt)
        if isinstance(asked, str):
            asked = [{"role": "user", "content": asked}]
        said = row.get(completion)
        if isinstance(said, str):
            said = [{"role": "assistant", "content": said}]
        return normalise_messages(asked, aliases) + normalise_messages(said, aliases)

    return read


def _calls_reader(columns: Mapping[str, str]) -> Callable:
    user, calls, system = columns["user"], columns["calls"], columns.get("system")

    def read(row: Mapping[str, Any]) -> list[dict[str, Any]]:
        question, made = _cell(row, user), _calls(row.get(calls))
        if not question.strip() or not made:
            raise DatasetError(f"column {(calls if question.strip() else user)!r} is empty")
        messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
        messages.append({"role": "assistant", "content": "", "tool_calls": made})
        said = _cell(row, system) if system else ""
        return [{"role": "system", "content": said}, *messages] if said else messages

    return read


def _pair_reader(columns: Mapping[str, str]) -> Callable:
    user, assistant = columns["user"], columns["assistant"]
    context, system = columns.get("context"), columns.get("system")
    history, reasoning = columns.get("history"), columns.get("reasoning")

    def read(row: Mapping[str, Any]) -> list[dict[str, Any]]:
        question, answer = row.get(user), row.get(assistant)
        if type(question) is not str or type(answer) is not str:
            question, answer = _cell(row, user), _cell(row, assistant)
        if context and (more := _cell(row, context)):
            question = f"{question}\n\n{more}" if question else more
        if not question or question.isspace():
            raise DatasetError(f"column {user!r} is empty")
        if not answer or answer.isspace():
            raise DatasetError(f"column {assistant!r} is empty")
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        if reasoning and (thought := _cell(row, reasoning)):
            messages[1]["reasoning_content"] = thought
        if history and row.get(history):
            messages = _past(row[history]) + messages
        if system and (said := _cell(row, system)):
            messages.insert(0, {"role": "system", "content": said})
        return messages

    return read


def _past(history: Any) -> list[dict[str, Any]]:
    """Earlier exchanges: pairs of texts, or turns."""
    if all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in history):
        return normalise_messages([text for pair in history for text in pair])
    return normalise_messages(history)


def row_text(row: Mapping[str, Any], column: str) -> str:
    """A row's running text: a column's, or a pattern's."""
    return _cell(row, column)


def _cell(row: Mapping[str, Any], column: str) -> str:
    """A cell's text; that of a pattern where ``column`` is one."""
    if column not in row and is_pattern(column):
        return merge_columns(column, dict(row))
    value = row.get(column)
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(
        value, Mapping
    ):  # an answer with its place in the text (SQuAD), or with its aliases (TriviaQA)
        value = value.get("text", value.get("value"))
    if isinstance(
        value, (list, tuple)
    ):  # of several right answers the first; SQuAD 2.0 has questions with none
        value = value[0] if value else ""
    if isinstance(value, str):
        return value
    raise DatasetError(f"column {column!r} holds {type(value).__name__}, not text")
