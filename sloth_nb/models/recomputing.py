"""transformers' own activation checkpointing, under whichever name its release has for it."""

from typing import Any

__all__ = ["disable", "enable", "is_on"]


def enable(model: Any) -> None:
    """Raises ValueError when the model's layers can't be recomputed."""
    model.config.use_cache = False  # a cache can't be recomputed; transformers would say so at every start
    _method(model, "enable")({"use_reentrant": False})


def disable(model: Any) -> None:
    _method(model, "disable")()


def is_on(model: Any) -> bool:
    newer = hasattr(model, "is_activation_checkpointing")  # transformers warns about the older name
    return bool(model.is_activation_checkpointing if newer else model.is_gradient_checkpointing)


def _method(model: Any, verb: str) -> Any:
    """transformers 5.2x renamed the methods, and warns under the older names."""
    newer = getattr(model, f"activation_checkpointing_{verb}", None)
    return newer or getattr(model, f"gradient_checkpointing_{verb}")
