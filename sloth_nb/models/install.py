"""Installing the engine on one model instance: two forwards are replaced, nothing else, and it can be undone.

No class, module or registry of another package is touched, so two models with different settings live side by side.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from torch import nn

from ..engine.causal import CausalEngine
from ..engine.rules import Settings
from ..engine.spec import Unsupported
from .report import Report, causal_of, report_of

__all__ = ["install"]


class _Forward:
    """A forward of one module instance, with the engine in front of the original."""

    def __init__(self, module: nn.Module, handler: Callable[..., Any]):
        self._module, self._handler = module, handler
        self._original = module.forward
        self._had_own = "forward" in module.__dict__
        # Trainers read the signature to know which columns a model takes.
        functools.update_wrapper(self, self._original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._handler(self._original, *args, **kwargs)

    def __reduce__(self) -> Any:
        # A copied or pickled model (a reference model, say) runs plain: the engine belongs to the instance that it
        # was installed on.
        return _plain_forward, (self._module,)

    def install(self) -> None:
        self._module.forward = self

    def undo(self) -> None:
        if self._module.__dict__.get("forward") is not self:
            return
        if self._had_own:
            self._module.forward = self._original
        else:
            del self._module.__dict__["forward"]


def _plain_forward(module: nn.Module) -> Any:
    return types.MethodType(type(module).forward, module)


def install(model: nn.Module, checkpointing: Any = "sloth", **settings: Any) -> Report:
    """Puts the engine on ``model``; installing again replaces the settings.

    Args:
        model: a causal language model of transformers, plain or wrapped by peft.
        checkpointing: what ``Settings.checkpointing`` takes: True, False, "sloth", "unsloth", a policy, or one a layer.
        settings: further fields of ``Settings`` (``mlp_tile``, ``loss_chunk_bytes``, ``cuda_graphs``).
    Returns:
        A ``Report`` of what runs where and, for what was left as it was, why; ``report.undo()`` restores the model.
    """
    causal = causal_of(model)
    previous = report_of(causal)
    if previous is not None:
        previous.undo()
    report = Report(type(causal).__name__)
    report.attach(causal)
    try:
        engine = CausalEngine(causal, Settings(checkpointing, **settings))
    except (Unsupported, AttributeError) as reason:
        report.left = _reason(causal, reason)
        return report
    forwards = [_Forward(causal.model, engine.base_forward), _Forward(causal, engine.causal_forward)]
    for forward in forwards:
        forward.install()
    report.engine = engine
    report.undo_steps = [forward.undo for forward in reversed(forwards)]
    return report


def _reason(causal: nn.Module, error: Exception) -> str:
    if isinstance(error, Unsupported):
        return str(error)
    return f"{type(causal).__name__} is not a decoder of the shape that the engine knows ({error})"
