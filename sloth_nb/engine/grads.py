"""Where a hand-written backward puts the gradients of parameters: summed over tiles, in the parameter's dtype."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sloth_nb_kernels.products import product
from torch import Tensor

__all__ = ["Grads", "buffers_for"]


def buffers_for(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Room for each one's gradient. Matrices whose rows are as long lie one upon the other, in their order, so that one
    product can write the gradients of several."""
    buffers: dict[int, Tensor] = {}
    alike: defaultdict[tuple, list[int]] = defaultdict(list)
    for i, p in enumerate(parameters):
        if p.dim() == 2 and p.numel() * p.element_size() % 16 == 0:  # optimisers read sixteen bytes at a time
            alike[p.device, p.dtype, p.shape[1]].append(i)
        else:
            buffers[i] = torch.empty_like(p, requires_grad=False)
    for (device, dtype, width), places in alike.items():
        rows = [parameters[i].shape[0] for i in places]
        whole = torch.empty(sum(rows), width, dtype=dtype, device=device)
        buffers.update(zip(places, whole.split(rows), strict=True))
    return [buffers[i] for i in range(len(parameters))]


@dataclass
class _Stack:
    """One product that holds several parameters' gradients, rows upon rows."""

    parameters: list[Tensor]
    total: Tensor
    in_place: bool
    """Whether it is written where the gradients belong."""


class Grads:
    """Gradients by parameter. Parameters that were not asked for are skipped at no cost."""

    def __init__(self, wanted: list[Tensor], into: list[Tensor] | None = None):
        self._index = {id(p): i for i, p in enumerate(wanted)}
        self._into = into
        self._grads: list[Tensor | None] = [None] * len(wanted)
        self._stacks: dict[int, _Stack] = {}

    def wants(self, parameter: Tensor | None) -> bool:
        return parameter is not None and id(parameter) in self._index

    def add(self, parameter: Tensor | None, value: Tensor) -> None:
        """Adds a gradient of the parameter's shape; the tensor is taken over, not copied."""
        if not self.wants(parameter):
            return
        i = self._index[id(parameter)]
        if self._grads[i] is not None:
            self._grads[i].add_(value)
        elif self._into is not None:
            self._grads[i] = self._into[i].copy_(value)
        else:
            self._grads[i] = value.to(parameter.dtype)

    def add_outer(self, parameter: Tensor | None, left: Tensor, right: Tensor, alpha: float = 1.0) -> None:
        """Adds alpha * left^T right."""
        if not self.wants(parameter):
            return
        i = self._index[id(parameter)]
        if self._grads[i] is not None:
            product(left.t(), right, parameter.dtype, alpha=alpha, out=self._grads[i], add=True)
        else:
            into = None if self._into is None else self._into[i]
            self._grads[i] = product(left.t(), right, parameter.dtype, alpha=alpha, out=into)

    def add_stacked(self, parameters: list[Tensor], left: Tensor, right: Tensor) -> None:
        """Adds left^T right, the rows of which are the gradients of several parameters, one upon the other.

        They are told apart by ``settle``.
        """
        if not any(self.wants(p) for p in parameters):
            return
        stack = self._stacks.get(id(parameters[0]))
        if stack is None:
            place = self._in_a_row(parameters)
            total = product(left.t(), right, parameters[0].dtype, out=place)
            self._stacks[id(parameters[0])] = _Stack(parameters, total, place is not None)
        else:
            product(left.t(), right, parameters[0].dtype, out=stack.total, add=True)

    def _in_a_row(self, parameters: list[Tensor]) -> Tensor | None:
        """These parameters' buffers as one, where they lie one upon the other and hold nothing yet."""
        places = [self._index.get(id(p)) for p in parameters]
        if self._into is None or any(i is None or self._grads[i] is not None for i in places):
            return None
        parts = [self._into[i] for i in places]
        first, rows = parts[0], 0
        for part in parts:
            here = part.storage_offset() - first.storage_offset() == rows * first.shape[1]
            if part._base is None or part._base is not first._base or not here:
                return None
            rows += part.shape[0]
        return first.as_strided((rows, first.shape[1]), (first.shape[1], 1))

    def settle(self) -> None:
        """Hands the stacked gradients to their parameters."""
        copies, parts = [], []
        for stack in self._stacks.values():
            sizes = [p.shape[0] for p in stack.parameters]
            for parameter, part in zip(stack.parameters, stack.total.split(sizes), strict=True):
                i = self._index.get(id(parameter))
                if i is None:
                    continue
                if self._into is not None and self._grads[i] is None:
                    self._grads[i] = self._into[i]
                    if not stack.in_place:
                        copies.append(self._into[i])
                        parts.append(part)
                else:
                    self.add(parameter, part)
        if copies:
            torch._foreach_copy_(copies, parts)
        self._stacks.clear()

    def add_sum(self, parameter: Tensor | None, value: Tensor) -> None:
        """Adds the sum over the tokens (a bias' gradient), summed in fp32."""
        if self.wants(parameter):
            self.add(parameter, value.sum(0, dtype=torch.float32))

    def result(self) -> list[Tensor | None]:
        return self._grads
