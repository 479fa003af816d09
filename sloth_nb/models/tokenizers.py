"""Loading a model's tokenizer (or processor) and mending what makes training go wrong."""

from typing import Any

from sloth_nb.errors import ModelError
from sloth_nb.interrupts import put_off
from sloth_nb.models.sources import HubOptions
from sloth_nb.notices import warn

__all__ = ["load_tokenizer", "mend_tokenizer", "text_tokenizer"]

# Tokens that models keep for padding or for nothing, in the order of preference. None is ever added: a new
# token would need a new row of the embeddings.
_SPARE_TOKENS = (
    "<|finetune_right_pad_id|>",
    "<|finetune_right_pad|>",
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<|PAD_TOKEN|>",
    "<|vision_pad|>",
    "<|endoftext|>",
    "<|dummy_0|>",
    "<|reserved_special_token_0|>",
    "<unused0>",
    "<unk>",
)


def load_tokenizer(name: str, options: HubOptions, *, processor: bool, trust_remote_code: bool) -> Any:
    """The tokenizer; or for a model that also sees or hears, the processor that holds one, if there is one.

    Raises:
        ModelError: it can't be loaded, with transformers' own reason.
    """
    from transformers import AutoTokenizer

    arguments = {"trust_remote_code": trust_remote_code, **options.arguments()}
    if processor:
        with put_off():  # half a second of modules that a model of text alone does without
            from transformers import AutoProcessor
        try:
            return AutoProcessor.from_pretrained(name, **arguments)
        except (OSError, ValueError, ImportError) as error:
            warn(f"{name} has no processor that can be loaded, so only text goes in: {_first_line(error)}")
    try:
        return AutoTokenizer.from_pretrained(name, **arguments)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(f"The tokenizer of {name} can't be loaded: {_first_line(error)}") from error


def text_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer inside a processor; a tokenizer itself."""
    return getattr(tokenizer, "tokenizer", tokenizer)


def mend_tokenizer(tokenizer: Any, context: int | None) -> None:
    """A padding token that isn't the end of a text where the vocabulary has one to spare, padding to the
    right, and a length that means something. Changes the tokenizer in place, and adds no token.
    """
    inner = text_tokenizer(tokenizer)
    if inner.pad_token is None or inner.pad_token == inner.eos_token:
        inner.pad_token = _spare_token(inner) or inner.eos_token
    inner.padding_side = "right"
    if context and inner.model_max_length > 10**9:  # transformers' way to say "unknown"
        inner.model_max_length = context


def _spare_token(tokenizer: Any) -> str | None:
    known = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    return next((token for token in _SPARE_TOKENS if token in known and token != tokenizer.eos_token), None)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
