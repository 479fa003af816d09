"""Logits only where something is learnt: the same loss and gradients, without logits that nobody reads."""

import inspect
from typing import Any

import torch

__all__ = ["only_trained_positions", "takes_positions"]

IGNORED = -100


def takes_positions(model: torch.nn.Module) -> bool:
    """Whether a causal model can be told which positions to make logits for, and shift-free labels.

    Both are transformers' own: ``logits_to_keep`` of the forward, ``shift_labels`` of its usual loss. A model
    with a loss of its own, and prompt learning (which lengthens the sequence), are left as they are.
    """
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return False
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = inspect.signature(type(base).forward).parameters
    takes_kwargs = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in names.values())
    return "logits_to_keep" in names and takes_kwargs and getattr(base, "loss_type", None) == "ForCausalLM"


def only_trained_positions(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same batch, told to make logits only in columns where some row has a token to learn.

    Args:
        inputs: with ``labels`` (B, S), -100 where nothing is learnt; column i's label is predicted by column
            i - 1, so column 0 is never learnt.

    Returns:
        ``inputs`` with ``logits_to_keep`` (K,) and ``shift_labels`` (B, K): K columns that predict a token.
    """
    shifted = inputs["labels"][:, 1:]
    columns = (shifted != IGNORED).any(dim=0).nonzero().squeeze(1)
    if (
        len(columns) == 0
    ):  # nothing is learnt in this batch: one column keeps the loss a number with a gradient
        columns = columns.new_zeros(1)
    return {**inputs, "logits_to_keep": columns, "shift_labels": shifted[:, columns].contiguous()}
