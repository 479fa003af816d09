"""Conversations: every chat-like shape of row becomes one list of ``{"role", "content", ...}`` messages."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from sloth_nb.errors import DatasetError

__all__ = ["ROLE_ALIASES", "message_reader", "normalise_messages", "to_messages"]

# What data sets call the speakers. Unknown names are an error: a guessed speaker would be trained on wrongly.
ROLE_ALIASES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "input": "user",
    "question": "user",
    "instruction": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "output": "assistant",
    "response": "assistant",
    "answer": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function_call": "tool_call",
    "tool_call": "tool_call",
    "ipython": "tool",
}
ROLE_KEYS = ("role", "from", "speaker", "author")
CONTENT_KEYS = ("content", "value", "text", "message")


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
    return [_message(turn, number, aliases) for number, turn in enumerate(turns, 1)]


def _message(turn: Any, number: int, aliases: Mapping[str, str]) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise DatasetError(f"turn {number} is {type(turn).__name__}, not a dict with a role and a content")
    given = {k: v for k, v in turn.items() if v is not None}
    role_key = next((k for k in ROLE_KEYS if k in given), None)
    if role_key is None:
        raise DatasetError(f"turn {number} has no role (its keys: {', '.join(map(str, turn)) or 'none'})")
    name = str(given.pop(role_key)).strip()
    role = aliases.get(name) or aliases.get(name.lower())
    if role is None:
        raise DatasetError(f"turn {number} is spoken by {name!r}; known: {', '.join(sorted(set(aliases)))}")
    content_key = next((k for k in CONTENT_KEYS if k in given), None)
    content = given.pop(content_key) if content_key else None
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
    if "messages" in columns:
        return _turns_reader(columns["messages"], columns.get("system"), {**ROLE_ALIASES, **schema.roles})
    return _pair_reader(columns["user"], columns.get("context"), columns.get("system"), columns["assistant"])


def _turns_reader(turns: str, system: str | None, aliases: Mapping[str, str]) -> Callable:
    def read(row: Mapping[str, Any]) -> list[dict[str, Any]]:
        messages = normalise_messages(row[turns], aliases)
        if system and row.get(system) and messages[:1] and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": str(row[system])})
        return messages

    return read


def _pair_reader(user: str, context: str | None, system: str | None, assistant: str) -> Callable:
    def read(row: Mapping[str, Any]) -> list[dict[str, Any]]:
        question, answer = _cell(row, user), _cell(row, assistant)
        if context and (more := _cell(row, context)):
            question = f"{question}\n\n{more}" if question else more
        if not question or question.isspace():
            raise DatasetError(f"column {user!r} is empty")
        if not answer or answer.isspace():
            raise DatasetError(f"column {assistant!r} is empty")
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        if system and (said := _cell(row, system)):
            messages.insert(0, {"role": "system", "content": said})
        return messages

    return read


def _cell(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, (int, float)):
        return str(value)
    raise DatasetError(f"column {column!r} holds {type(value).__name__}, not text")
