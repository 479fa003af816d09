"""Writes down what torch's allocator would be asked for while torch runs on fake tensors.

What a library kernel takes for itself while it runs is added from the formulas' table, because no Python sees it.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from sloth_nb.catalog import Block
from sloth_nb.memory.attention import attention_cost
from sloth_nb.memory.fake_kernels import called
from sloth_nb.memory.whole_step import Stretch

__all__ = ["FakeAllocator"]

aten = torch.ops.aten
_BACKWARDS = {
    aten._flash_attention_backward.default: "flash",
    aten._scaled_dot_product_cudnn_attention_backward.default: "cudnn",
    aten._efficient_attention_backward.default: "efficient",
}


class FakeAllocator(TorchDispatchMode):
    """Writes down which storages come and go: ``stretches`` of events, one between two marks."""

    def __init__(self) -> None:
        super().__init__()
        self.stretches: list[Stretch] = []
        self._open: Stretch | None = None
        self._known = WeakIdKeyDictionary()
        self._count = 0

    def mark(self, name: Any) -> None:
        """Ends the stretch before and begins one of this name; None begins none."""
        self._open = None
        if name is not None:
            self._open = Stretch(name)
            self.stretches.append(self._open)

    def _add(self, tensor: Tensor, in_place_of: Tensor | None = None) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known or tensor.device.type == "meta":
            return
        number, size = self._count, storage.nbytes()
        self._count += 1
        self._known[storage] = number
        first = None if in_place_of is None else self._known.get(in_place_of.untyped_storage())
        if first is None:
            self._write("come", number, size)
        else:
            self._write("take over", number, first)
        weakref.finalize(storage, self._write, "go", number, size)

    def _write(self, what: str, number: int, value: int) -> None:
        if self._open is not None:
            self._open.events.append((what, number, value))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kernel = _BACKWARDS.get(func)
        out = called(func, args, kwargs)
        # Real tensors that meet in autograd are summed in place; fake ones are not.
        first = args[0] if func is aten.add.Tensor and args[0].shape == out.shape else None
        for leaf in out if isinstance(out, tuple | list) else (out,):
            if isinstance(leaf, Tensor):
                self._add(leaf, first)
            elif leaf is not None and not isinstance(leaf, int | float | bool):
                for inner in tree_iter(leaf):
                    if isinstance(inner, Tensor):
                        self._add(inner)
        if kernel:
            self._write("inside", -1, _inside(kernel, args[1], args[2]))
        return out


def _inside(kernel: str, q: Tensor, k: Tensor) -> int:
    """What an attention backward takes beside the gradients that it returns."""
    at = 1 if kernel == "cudnn" else -2
    heads, head_dim = q.shape[at], q.shape[-1]
    block = Block(1, "decoder", 0, heads, k.shape[at], head_dim, 0, (), 0)
    return attention_cost(block, kernel, q.numel() // (heads * head_dim), q.element_size()).inside
