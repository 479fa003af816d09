"""Seeing tensors as the kernels do: matrices of rows with a contiguous last dimension."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accumulator", "rows_of", "target_rows", "wide"]


def rows_of(x: Tensor) -> Tensor:
    """``x`` as (rows, last), a view where strides allow; copied only when the last dimension is not
    contiguous."""
    x = x.reshape(-1, x.shape[-1]) if x.dim() != 2 else x
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def target_rows(out: Tensor | None, like: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """A buffer to write into and its (rows, last) view; made new, in the shape of ``like``, when ``out`` is
    None.

    Raises:
        ValueError: ``out`` has another shape, or can't be seen as rows without a copy.
    """
    if out is None:
        out = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    elif out.shape != like.shape:
        raise ValueError(f"{name} must have shape {tuple(like.shape)}, got {tuple(out.shape)}")
    if out.stride(-1) != 1 and out.shape[-1] != 1:
        raise ValueError(f"{name} needs a contiguous last dimension, got strides {out.stride()}")
    return out, out if out.dim() == 2 else out.view(-1, out.shape[-1])


def accumulator(x: Tensor) -> torch.dtype:
    """The dtype that statistics and sums over ``x`` are taken in: float32, or float64 when x is that
    already."""
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def wide(x: Tensor) -> Tensor:
    """``x`` in its accumulator's dtype."""
    return x.to(accumulator(x))
