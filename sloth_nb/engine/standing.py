"""The modules that the engine stands in for, as they were when it was bound to them.

The engine reads their parameters and never calls them, so that whatever else they'd do would be lost without a word. A
module that does more than its class says is refused with the reason; and what changes later (another adapter or scale,
a parameter in another's place, a hook) is noticed before the next pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from .spec import Unsupported

__all__ = ["Standing", "foreign", "hooked"]

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_HELD = ("_modules", "_parameters", *_HOOKS)
# What an adapter layer of peft computes with, beside its modules and parameters.
_FACTS = ("_disable_adapters", "_active_adapter", "merged_adapters", "scaling", "lora_variant")
# Whose modules do what their parameters say. Another package's subclass may do anything.
_KNOWN = ("torch", "transformers", "peft", "bitsandbytes")


def hooked(module: nn.Module) -> bool:
    """Whether somebody's hook runs with this module."""
    return any(not _harmless(hook) for kind in _HOOKS for hook in module.__dict__[kind].values())


def _harmless(hook: Any) -> bool:
    """transformers' that hand out hidden states, which are never asked of the engine, and everybody's that makes an
    embedding's output ask for a gradient, so that checkpointing has one to follow."""
    source, name = getattr(hook, "__module__", ""), getattr(hook, "__name__", "")
    return source == "transformers.utils.output_capturing" or name.startswith("make_inputs_require_grad")


def foreign(module: nn.Module) -> str | None:
    """What this module does beside what its class does, if anything: its own forward, a hook, a parametrisation."""
    own = module.__dict__
    if "forward" in own:
        return "has a forward of its own"
    if hooked(module):
        return "has a hook"
    if "parametrizations" in own["_modules"]:
        return "has a parametrised weight"
    source = getattr(type(module).forward, "__module__", None) or "nowhere"
    if source.partition(".")[0] not in _KNOWN:
        return f"is a {type(module).__name__} whose forward comes from {source}"
    return None


class Standing:
    """What some of a module's children, with all that is in them, consist of.

    Modules are held, so that no other can come to have the identity of one that went. Parameters are not: a model that
    is merged or loaded anew shall not be there twice.
    """

    def __init__(self, owner: nn.Module, children: Iterable[str]):
        found = [pair for name in children for pair in getattr(owner, name).named_modules(prefix=name)]
        self._names = [name for name, _ in found]
        self._modules = [module for _, module in found]
        own = self._own = [module.__dict__ for module in self._modules]
        self._held = [owner._modules, *(one[kind] for one in own for kind in _HELD if one[kind])]
        self._empty = [one[kind] for one in own for kind in _HELD if not one[kind]]
        self._parameters = [one["_parameters"] for one in own if one["_parameters"]]
        self._alive = [weakref.ref(parameter) for parameter in self.tensors()]
        self._facts = [(one, fact) for one in own for fact in _FACTS if fact in one]
        self._was, self._said = self._look(), [_copied(fact) for fact in self._says()]

    def tensors(self) -> list[Tensor]:
        """The modules' parameters."""
        return [p for held in self._parameters for p in held.values() if p is not None]

    def _look(self) -> tuple[list[Any], ...]:
        """What is compared of every module, each kind in one go: thousands of them in half a millisecond."""
        # bitsandbytes' parameters are a subclass, in which Python answers even for what a tensor knows of itself.
        with torch._C.DisableTorchFunctionSubclass():
            trained = list(map(attrgetter("requires_grad"), self.tensors()))
        return (
            list(map(id, chain.from_iterable(map(dict.values, self._held)))),
            list(map(type, self._modules)),
            ["forward" in own for own in self._own],
            list(map(itemgetter("training"), self._own)),
            trained,
        )

    def _says(self) -> list[Any]:
        return [own.get(fact) for own, fact in self._facts]

    def holds(self) -> bool:
        """Whether all is as it was."""
        if any(self._empty) or not all(alive() is not None for alive in self._alive):
            return False
        return self._look() == self._was and self._says() == self._said

    def check(self) -> None:
        """
        Raises:
            Unsupported: a module does what the engine would pass by, or its weights are not all on one device.
        """
        for name, module in zip(self._names, self._modules, strict=True):
            if (reason := foreign(module)) is not None:
                raise Unsupported(f"{name} {reason}, which the engine would pass by")
        devices = {tensor.device for tensor in self.tensors()}
        if any(device.type == "meta" for device in devices):
            raise Unsupported("some of its weights are not on a device (they are offloaded, or not loaded)")
        if len(devices) > 1:
            raise Unsupported(f"it is spread over {', '.join(sorted(map(str, devices)))}")


def _copied(fact: Any) -> Any:
    return fact.copy() if isinstance(fact, (dict, list)) else fact
