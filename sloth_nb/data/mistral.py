"""Conversations through mistral-common's own tokenizer, which goes from messages to ids with no text between.

Its control tokens can't come from a message's text, so they part the turns exactly: the assistant speaks
from the token that ends what it is given to the EOS. Which tokens these are is asked of the tokenizer
itself.
"""

from typing import Any

from sloth_nb.data.tokenise import Encoded
from sloth_nb.errors import TemplateError

__all__ = ["MistralEncoder"]

_CALL = {"type": "function", "id": "abcdefghi", "function": {"name": "f", "arguments": {}}}
_ASKED = [{"role": "user", "content": "x"}]
_ANSWERED = [
    *_ASKED,
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "content": "1", "name": "f", "tool_call_id": "abcdefghi"},
]


class MistralEncoder:
    """Encodes conversations with transformers' ``MistralCommonBackend``.

    Raises:
        TemplateError: the tokenizer was loaded in another mode than its default.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        try:
            self.given = {self._ids(_ASKED)[-1], self._ids(_ANSWERED)[-1]}
        except TemplateError as error:
            raise TemplateError(
                f"mistral-common's tokenizer can't be asked for prompts ({error}). "
                "Load it with its default mode."
            ) from error

    def _ids(self, messages: list[dict], tools: list | None = None, **how: Any) -> list[int]:
        try:
            return self.tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=True, return_dict=False, **how
            )
        except Exception as error:  # mistral-common's many validation errors have no common class
            raise TemplateError(f"mistral-common refuses the conversation ({error})") from error

    def conversation(self, messages: list[dict], tools: list | None = None) -> Encoded:
        """One conversation, trained on what the assistant says.

        Raises:
            TemplateError: mistral-common refuses it, or it ends with a tool call.
        """
        ids = (
            self._closed(messages, tools)
            if messages[-1]["role"] == "assistant"
            else self._ids(messages, tools)
        )
        trained, begin = [], 0
        for place, token in enumerate(ids):
            if token in self.given:
                begin = place + 1
            elif token == self.tokenizer.eos_token_id and begin:
                trained.append((begin, place + 1))
        return Encoded(ids, trained)

    def _closed(self, messages: list[dict], tools: list | None) -> list[int]:
        return [*self._ids(messages, tools, continue_final_message=True), self.tokenizer.eos_token_id]
