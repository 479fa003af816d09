"""What a chat template prints of a conversation, refuses, or leaves out in silence: found by asking it."""

from typing import Any

from sloth_nb.data.template import ANY_TOOLS, ChatTemplate
from sloth_nb.errors import TemplateError

__all__ = ["PARTS", "Hearing"]

# The keys and roles that a template may not know, by the names that the report gives them.
_NAMES = {
    "system": "a system message",
    "tool": "a tool's answer",
    "tool_calls": "tool calls",
    "reasoning_content": "thoughts",
}
PARTS = (*_NAMES.values(), "tools")
_MARK = "sloth\ue0f4nb"


class Hearing:
    """One template's ways with system messages, tools, tool calls, tools' answers and thoughts."""

    def __init__(self, template: ChatTemplate):
        self.template = template
        self._heard: dict[str, bool | str] = {}

    def says(self, part: str) -> bool:
        """Whether the template prints what ``part`` names. What it refuses is not left out in silence: True."""
        return self._ask(part) is not False

    def refuses(self, part: str) -> str:
        """Why the template refuses what ``part`` names; "" when it doesn't."""
        heard = self._ask(part)
        return heard if isinstance(heard, str) else ""

    def unsaid(self, messages: list[dict], tools: list | None = None) -> set[str]:
        """What these messages hold that the template never prints, by its name in ``PARTS``."""
        held = ["tools"] if tools else []
        for message in messages:
            if len(message) > 2:
                held += [_NAMES[key] for key in message if key in _NAMES]
            if message["role"] in _NAMES:
                held.append(_NAMES[message["role"]])
        return {part for part in held if not self.says(part)} if held else set()

    def _ask(self, part: str) -> bool | str:
        """Whether ``part`` is printed, or the template's reason to refuse it."""
        if part not in self._heard:
            try:
                self._heard[part] = _MARK in self.template.render(*_speaking(part))
            except TemplateError as error:
                self._heard[part] = str(error.__cause__ or error)
        return self._heard[part]


def _speaking(part: str) -> tuple[list[dict[str, Any]], list | None]:
    """A conversation that says the mark in one part, and the tools that go with it."""
    user, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
    call = {"type": "function", "id": "abcdefghi", "function": {"name": "f", "arguments": {}}}
    asked = {"role": "assistant", "content": "", "tool_calls": [call]}
    tool = {"role": "tool", "content": "1", "name": "f", "tool_call_id": "abcdefghi"}
    if part == "a system message":
        return [{"role": "system", "content": _MARK}, user, answer], None
    if part == "a tool's answer":
        return [user, asked, {**tool, "content": _MARK}, answer], ANY_TOOLS
    if part == "tool calls":
        call["function"] = {"name": _MARK, "arguments": {}}
        return [user, asked, tool, answer], ANY_TOOLS
    if part == "thoughts":
        return [user, {**answer, "reasoning_content": _MARK}], None
    described = {**ANY_TOOLS[0]["function"], "description": _MARK}
    return [user, answer], [{"type": "function", "function": described}]
