"""Where a hand-written backward puts the gradients of parameters: summed over tiles, in the parameter's dtype."""

import torch
from sloth_nb_kernels.launch import on_gpu
from torch import Tensor

__all__ = ["Grads", "outer"]


def outer(left: Tensor, right: Tensor, alpha: float, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """alpha * left^T right over the tokens: (tokens, a), (tokens, b) → (a, b), rounded once, to ``dtype``."""
    if on_gpu(left) and left.dtype != dtype and dtype is torch.float32:
        if out is None:
            out = torch.empty(left.shape[1], right.shape[1], dtype=dtype, device=left.device)
        torch.mm(left.t(), right, out_dtype=torch.float32, out=out)
        return out.mul_(alpha) if alpha != 1.0 else out
    if alpha == 1.0:
        product = torch.mm(left.t(), right)
    else:
        empty = left.new_empty(left.shape[1], right.shape[1])
        product = torch.addmm(empty, left.t(), right, beta=0, alpha=alpha)
    return product.to(dtype) if out is None else out.copy_(product)


class Grads:
    """Gradients by parameter. Parameters that were not asked for are skipped at no cost."""

    def __init__(self, wanted: list[Tensor], into: list[Tensor] | None = None):
        self._index = {id(p): i for i, p in enumerate(wanted)}
        self._into = into
        self._grads: list[Tensor | None] = [None] * len(wanted)

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
        if self._grads[i] is None and self._into is not None:
            self._grads[i] = outer(left, right, alpha, parameter.dtype, self._into[i])
        else:
            self.add(parameter, outer(left, right, alpha, parameter.dtype))

    def add_sum(self, parameter: Tensor | None, value: Tensor) -> None:
        """Adds the sum over the tokens (a bias' gradient), summed in fp32."""
        if self.wants(parameter):
            self.add(parameter, value.sum(0, dtype=torch.float32))

    def result(self) -> list[Tensor | None]:
        return self._grads
