"""Gradient checkpointing on one model: recompute activations in the backward instead of keeping them."""

from typing import Any

from sloth_nb.errors import ModelError

__all__ = ["set_checkpointing"]

_MODES = (True, False, "unsloth", "sloth")


def set_checkpointing(model: Any, mode: bool | str) -> None:
    """Turns gradient checkpointing on or off; the only place that does.

    Args:
        mode: True, "unsloth" or "sloth" to recompute each decoder layer in the backward; False to keep
            activations.
    Raises:
        ModelError: another mode, or a model whose layers can't be recomputed.
    """
    if mode not in _MODES:
        raise ModelError(
            f"use_gradient_checkpointing={mode!r} is not known. Known: {', '.join(map(repr, _MODES))}."
        )
    if not mode:
        _method(model, "disable")()
        return
    model.config.use_cache = False  # a cache can't be recomputed; transformers would say so at every start
    try:
        _method(model, "enable")({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(f"{error} Pass use_gradient_checkpointing=False.") from error


def _method(model: Any, verb: str) -> Any:
    """transformers 5.2x renamed the methods, and warns under the older names."""
    newer = getattr(model, f"activation_checkpointing_{verb}", None)
    return newer or getattr(model, f"gradient_checkpointing_{verb}")
