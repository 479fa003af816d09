"""Matrix products of 16-bit operands whose result is fp32: summed and added to inside cuBLAS, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import capability, on_gpu, pretending

__all__ = ["product"]


def product(
    a: Tensor,
    b: Tensor,
    dtype: torch.dtype,
    *,
    alpha: float = 1.0,
    out: Tensor | None = None,
    add: bool = False,
) -> Tensor:
    """alpha * a @ b in ``dtype``: (m, k), (k, n) → (m, n). Records no graph.

    Args:
        out: where it goes, (m, n) of ``dtype``; made new when not given.
        add: it is added to ``out`` instead.
    """
    if out is None:
        out = torch.empty(a.shape[0], b.shape[1], dtype=dtype, device=a.device)
    if a.dtype is dtype:
        return torch.addmm(out, a, b, beta=float(add), alpha=alpha, out=out)
    if dtype is torch.float32 and on_gpu(a) and (a.dtype is torch.float16 or capability(a) >= (8, 0)):
        if pretending():  # torch 2.11 has no addmm of this kind for fake tensors
            return out
        return torch.addmm(out, a, b, beta=float(add), alpha=alpha, out_dtype=dtype, out=out)
    part = torch.mm(a, b)
    return out.add_(part, alpha=alpha) if add else out.copy_(part).mul_(alpha)
