"""From a conversation or a text to the tokens that a model continues."""

from typing import Any

from sloth_nb.errors import ModelError, TemplateError
from sloth_nb.models.tokenizers import text_tokenizer

__all__ = ["Messages", "encode_prompt"]

Messages = list[dict[str, Any]]


def encode_prompt(
    tokenizer: Any, messages_or_text: Messages | str, tools: list[Any] | None = None
) -> dict[str, Any]:
    """``input_ids`` and ``attention_mask``, each (1, tokens).

    Args:
        tokenizer: a tokenizer, or a processor that holds one.
        messages_or_text: messages go through the chat template; a last message by the assistant is
            continued. A text is one message by the user, or, where the tokenizer has no template, is
            continued as it stands.
        tools: functions that the template tells the model of.
    Raises:
        TemplateError: messages without a template, or a template that refuses them.
        ModelError: nothing to continue.
    """
    inner = text_tokenizer(tokenizer)
    has_template = bool(getattr(tokenizer, "chat_template", None) or getattr(inner, "chat_template", None))
    if isinstance(messages_or_text, str):
        if not has_template:
            return _checked(inner(messages_or_text, return_tensors="pt"))
        messages_or_text = [{"role": "user", "content": messages_or_text}]
    if not has_template:
        raise TemplateError(
            "The tokenizer has no chat template, so it can't lay out messages. Set one (get_chat_template, "
            "or tokenizer.chat_template = …), or pass a text."
        )
    messages = _checked_messages(messages_or_text)
    continues = messages[-1]["role"] == "assistant"
    try:
        encoded = inner.apply_chat_template(
            messages,
            tools=tools,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            return_tensors="pt",
            return_dict=True,
        )
    except Exception as error:  # a template is a program, and raises what it likes
        raise TemplateError(f"The chat template refused these messages: {error}") from error
    return _checked(encoded)


def _checked_messages(messages: Any) -> Messages:
    if not isinstance(messages, list) or not messages:
        raise ModelError(
            "There are no messages to answer. Pass a text, or a list of {'role': …, 'content': …}."
        )
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise ModelError(f"Message {i} is {message!r}, not a dict with a 'role' and a 'content'.")
    return messages


def _checked(encoded: Any) -> dict[str, Any]:
    if encoded["input_ids"].shape[-1] == 0:
        raise ModelError("The prompt is empty: there is nothing to continue.")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}
