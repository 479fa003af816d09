"""Switching one model between answering and training."""

from typing import Any

from sloth_nb.models.checkpointing import set_checkpointing
from sloth_nb.models.settings import settings_of
from sloth_nb.models.tokenizers import text_tokenizer

__all__ = ["for_inference", "for_training"]


def for_inference(model: Any) -> Any:
    """Ready to generate: no dropout, a cache, nothing recomputed, and prompts padded on the left.

    Nothing that training needs is given up: ``for_training`` brings all of it back.
    """
    model.eval()  # first: whether the engine can run depends on whether there is dropout
    set_checkpointing(model, False)
    model.config.use_cache = True
    _pad(model, "left")
    return model


def for_training(model: Any, use_gradient_checkpointing: bool | str = True) -> Any:
    """Ready to train: dropout, padding on the right, and gradient checkpointing as asked for."""
    model.train()  # first, as above
    set_checkpointing(model, use_gradient_checkpointing)
    model.config.use_cache = False
    _pad(model, "right")
    return model


def _pad(model: Any, side: str) -> None:
    tokenizer = settings_of(model).tokenizer
    if tokenizer is not None:
        text_tokenizer(tokenizer).padding_side = side
