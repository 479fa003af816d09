"""DoRA: a LoRA layer whose rows are rescaled to a trained length (Liu et al. 2024, arXiv:2402.09353, eq. 5
and 11).

y = m / |W + scale B A| * (x W^T + scale (x A^T) B^T) + bias, the norms taken by row and, as the paper's
section 4.3 has it, without a gradient. Composed: lora.py's products, torch's rescaling. With dropout only the
correction sees
the dropped input, as peft has it: y = x W^T + bias + (m / |.| - 1) drop(x) W^T + m / |.| scale (drop(x) A^T)
    B^T.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from .lora import Projection, lora_linear

__all__ = ["dora_linear", "row_lengths"]


def row_lengths(projection: Projection, dtype: torch.dtype) -> Tensor:
    """|W + scale B A| of every row, (out,), in ``dtype``; no gradient."""
    with torch.no_grad():
        p = projection
        merged = torch.addmm(p.dense(dtype), p.b.to(dtype), p.a.to(dtype), alpha=p.scale)
        return torch.linalg.vector_norm(merged, dim=1)


def dora_linear(x: Tensor, projection: Projection, magnitude: Tensor) -> Tensor:
    """A projection with DoRA, differentiable in x, magnitude and every floating tensor of the projection.

    Args:
        x: (..., in), the compute dtype.
        projection: with an adapter, without a LoRA bias (DoRA has none).
        magnitude: (out,), the rows' trained lengths.
    Raises:
        ValueError: no adapter, a LoRA bias, or a magnitude that is not (out,).
    """
    p = projection
    if p.a is None or p.b_bias is not None:
        raise ValueError("DoRA needs an adapter without a LoRA bias")
    if magnitude.shape != (p.out_features,):
        raise ValueError(f"magnitude must be ({p.out_features},), got {tuple(magnitude.shape)}")
    factor = (magnitude / row_lengths(p, x.dtype)).to(x.dtype)
    if p.dropout == 0.0:
        y = lora_linear(x, replace(p, bias=None)) * factor
        return y if p.bias is None else y + p.bias.to(x.dtype)
    dropped = F.dropout(x, p.dropout)
    base = replace(p, a=None, b=None, b_bias=None)
    correction = lora_linear(dropped, replace(p, bias=None, dropout=0.0)) * factor
    return lora_linear(x, base) + correction - lora_linear(dropped, replace(base, bias=None))
