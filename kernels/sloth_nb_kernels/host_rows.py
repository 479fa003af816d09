"""Rows of a matrix that lies in pinned host memory, read by the device itself: an embedding that takes no room there.

Pinned memory is mapped into the device's address space, so that a kernel fetches the rows it wants over the link,
some MB a step, and neither copies the matrix nor makes the host wait. Frozen matrices only: there is no backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .launch import launch, next_power_of_2, runs_triton, tl, triton

__all__ = ["host_rows", "host_rows_reference"]


def host_rows_reference(matrix: Tensor, rows: Tensor) -> Tensor:
    """Plain torch, any device: the truth, by way of the host. Arguments as in ``host_rows``."""
    return torch.nn.functional.embedding(rows.to(matrix.device), matrix).to(rows.device)


@triton.jit
def _host_rows_kernel(ROWS, MATRIX, OUT, count, columns, m_row, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    known = column < columns
    row = tl.load(ROWS + place).to(tl.int64)
    there = known & (row >= 0) & (row < count)
    values = tl.load(MATRIX + row * m_row + column, mask=there, other=float("nan"))
    tl.store(OUT + place * columns + column, values, mask=known)


def host_rows(matrix: Tensor, rows: Tensor) -> Tensor:
    """The rows of a host matrix, on the device of their numbers.

    Args:
        matrix: (count, width) fp32 | fp16 | bf16 on the CPU, rows contiguous; pinned where ``rows`` is on CUDA.
        rows: integers of any shape, each from 0 to count - 1. A kernel can't raise: for others it gives NaN.
    Returns:
        (*rows.shape, width) on the device of ``rows``.
    Raises:
        ValueError: memory that the device can't read, or shapes that make no matrix.
    """
    if matrix.dim() != 2 or matrix.stride(1) != 1:
        raise ValueError(f"needs a (count, width) matrix with contiguous rows, got {tuple(matrix.shape)}")
    if not runs_triton(rows):
        return host_rows_reference(matrix, rows)
    if rows.is_cuda and not matrix.is_pinned():
        raise ValueError("the matrix is in host memory that a device can't read: pin_memory() it first")
    flat, width = rows.contiguous().flatten(), matrix.shape[1]
    out = torch.empty(flat.numel(), width, dtype=matrix.dtype, device=rows.device)
    block = min(2048, next_power_of_2(width))
    launch(
        _host_rows_kernel, (flat.numel(), triton.cdiv(width, block)),
        flat, matrix, out, matrix.shape[0], width, matrix.stride(0), BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out.view(*rows.shape, width)
