"""Counts the bytes of live storages while torch runs on fake tensors: torch's allocator, pretended.

Sizes are whole 512s as the real one's. What a library kernel takes for itself while it runs is added from the
formulas' table, because no Python sees it.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakIdKeyDictionary

from sloth_nb.catalog import Block
from sloth_nb.memory.attention import attention_cost

__all__ = ["FakeAllocator", "Stretch"]

aten = torch.ops.aten
_BACKWARDS = {
    aten._flash_attention_backward.default: "flash",
    aten._scaled_dot_product_cudnn_attention_backward.default: "cudnn",
    aten._efficient_attention_backward.default: "efficient",
}


@dataclass
class Stretch:
    """Between two marks: by how much memory grew, and how far above its start it rose meanwhile."""

    name: Any
    growth: int
    rise: int


class FakeAllocator(TorchDispatchMode):
    """``live`` bytes now and ``peak`` since the last mark. ``stretches`` between marks."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.stretches: list[Stretch] = []
        self._open: tuple[Any, int] | None = None
        self._known = WeakIdKeyDictionary()

    def mark(self, name: Any) -> None:
        """Ends the stretch before and begins one of this name; None begins none."""
        if self._open is not None:
            before, start = self._open
            self.stretches.append(Stretch(before, self.live - start, self.peak - start))
        self._open = None if name is None else (name, self.live)
        self.peak = self.live

    def _add(self, tensor: Tensor, in_place_of: Tensor | None = None) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known or tensor.device.type == "meta":
            return
        size = -(-storage.nbytes() // 512) * 512
        self._known[storage] = size
        self.live += size
        if in_place_of is None:
            self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._subtract, size)

    def _subtract(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kernel = _BACKWARDS.get(func)
        if kernel == "efficient":  # its meta function names an argument twice in torch 2.13
            out = (*(torch.empty_like(x) for x in args[1:4]), None)
        else:
            out = func(*args, **(kwargs or {}))
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
            self.peak = max(self.peak, self.live + _inside(kernel, args[1], args[2]))
        return out


def _inside(kernel: str, q: Tensor, k: Tensor) -> int:
    """What an attention backward takes beside the gradients that it returns."""
    at = 1 if kernel == "cudnn" else -2
    heads, head_dim = q.shape[at], q.shape[-1]
    block = Block(1, "decoder", 0, heads, k.shape[at], head_dim, 0, (), 0)
    return attention_cost(block, kernel, q.numel() // (heads * head_dim), q.element_size()).inside
