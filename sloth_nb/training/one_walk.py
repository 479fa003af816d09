"""What transformers' loop asks of all modules at every step, answered from one walk over them.

A model with adapters has thousands of modules, and a step walks over all of them for ``train()``, ``zero_grad()``, the
gradients to clip and the number of parameters: with the 224 adapters of an 8B model 50 ms on the processor of a small
machine, in part of which the device has nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["OneWalk"]

_ANSWERED = ("train", "zero_grad", "num_parameters")


class OneWalk:
    """A model's modules and parameters, as they are when first asked for.

    Modules that come or go later are not noticed; which parameters have a gradient is looked at every time.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._own: dict[str, Callable[..., Any]] = {}
        self._modules: list[dict[str, Any]] = []
        self._parameters: list[nn.Parameter] = []
        self._counts: dict[tuple[bool, bool], int] = {}

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Within it the model's own methods are answered from here; what somebody else put in their place stays."""
        free = [name for name in _ANSWERED if hasattr(self.model, name) and name not in vars(self.model)]
        self._own = {name: getattr(self.model, name) for name in free}
        for name in free:
            setattr(self.model, name, getattr(self, name))
        try:
            yield
        finally:
            for name in free:
                delattr(self.model, name)

    def train(self, mode: bool = True) -> nn.Module:
        """As ``nn.Module.train``; where all modules are in that mode, nothing is left to do."""
        self._walk()
        if all(own["training"] is mode for own in self._modules):
            return self.model
        return self._own["train"](mode)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As ``nn.Module.zero_grad``."""
        if not set_to_none:
            self._own["zero_grad"](set_to_none)
            return
        for parameter in self.with_gradient():
            parameter.grad = None

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """As transformers counts them, in each of its ways once."""
        way = only_trainable, exclude_embeddings
        if way not in self._counts:
            self._counts[way] = self._own["num_parameters"](*way)
        return self._counts[way]

    def with_gradient(self) -> list[nn.Parameter]:
        """The parameters that have a gradient now, in the model's order."""
        self._walk()
        # bitsandbytes' parameters are a subclass, in which Python answers even for what a tensor knows of itself.
        with torch._C.DisableTorchFunctionSubclass():
            return [parameter for parameter in self._parameters if parameter.grad is not None]

    def _walk(self) -> None:
        if not self._modules:
            self._modules = [module.__dict__ for module in self.model.modules()]
            self._parameters = list(self.model.parameters())
