"""The memory of a loss's logits on a CPU, held from step to step.

A block as large goes to the system as soon as it is free, and comes back page by page: for 100 MB that is 24,000 faults
and pages of zeros in every step.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from sloth_nb_kernels.launch import on_gpu
from torch import Tensor

__all__ = ["HeldLogits"]


class HeldLogits:
    """Lends its one buffer to whoever computes a loss; a second thread meanwhile gets one that isn't kept."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []  # popped and appended to in one go each, whatever other threads do

    @property
    def held(self) -> bool:
        return bool(self._free)

    @contextmanager
    def lent(self, like: Tensor, elements: int) -> Iterator[Tensor | None]:
        """A flat buffer of so many elements of ``like``'s dtype; only pages that are written to take memory.

        None on a GPU, whose allocator keeps what is freed, and in passes that train nothing.
        """
        if on_gpu(like) or not torch.is_grad_enabled():
            yield None
            return
        buffer = like.new_empty(0)
        with suppress(IndexError):
            buffer = self._free.pop()
        if buffer.dtype is not like.dtype or buffer.numel() < elements:
            buffer = like.new_empty(elements)
        yield buffer
        if not self._free:
            self._free.append(buffer)
