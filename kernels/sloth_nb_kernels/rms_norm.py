"""RMSNorm: y = x / rms(x) * w, forward and backward (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4).

Saves x, w and one fp32 reciprocal a row; recomputes x / rms(x) in the backward. The residual add before the
norm, and the gradient's sum with the residual's, happen in the same pass over memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .launch import launch, programs, row_tile, runs_triton, tl, triton
from .once import once
from .shapes import accumulator, rows_of, target_rows, wide

__all__ = [
    "add_rms_norm",
    "add_rms_norm_forward",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
    "rms_norm_reference",
]

WIDEST = 16384  # a row stays in one program's registers; wider rows take the torch path


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, *, zero_centred: bool = False) -> Tensor:
    """Plain torch, any device: the truth. Rounds where transformers does.

    Llama's norm rounds x / rms(x) to x's dtype before it multiplies by w; Gemma's multiplies by 1 + w in
    fp32.
    """
    x32 = wide(x)
    normed = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)
    if zero_centred:
        return (normed * (1 + weight.to(normed.dtype))).to(x.dtype)
    return (normed.to(x.dtype) * weight).to(x.dtype)


@triton.jit
def _forward_kernel(
    X, RESIDUAL, W, Y, TOTAL, RSTD, x_row, r_row, y_row, t_row, rows, n, eps,
    ADD: tl.constexpr, PLUS: tl.constexpr, ZERO_CENTRED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows)[:, None] & (col < n)
    x = tl.load(X + row[:, None] * x_row + col, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(RESIDUAL + row[:, None] * r_row + col, mask=mask, other=0.0).to(tl.float32)
        total = x.to(TOTAL.dtype.element_ty)
        tl.store(TOTAL + row[:, None] * t_row + col, total, mask=mask)
        x = total.to(tl.float32)  # the norm sees the sum as the residual stream keeps it
    rstd = tl.rsqrt(tl.sum(x * x, 1) / n + eps)
    w = tl.load(W + col, mask=col < n, other=0.0).to(tl.float32)
    normed = x * rstd[:, None]
    if ZERO_CENTRED:
        w += 1.0
    else:
        normed = normed.to(Y.dtype.element_ty).to(tl.float32)
    y = (normed * w).to(Y.dtype.element_ty)
    if PLUS:
        plus = tl.load(RESIDUAL + row[:, None] * r_row + col, mask=mask, other=0.0).to(tl.float32)
        y = (y.to(tl.float32) + plus).to(Y.dtype.element_ty)
    tl.store(Y + row[:, None] * y_row + col, y, mask=mask)
    tl.store(RSTD + row, rstd, mask=row < rows)


@triton.jit
def _backward_kernel(
    DY, X, W, RSTD, RESIDUAL_GRAD, DX, DW, dy_row, x_row, r_row, dx_row, rows, tiles, n,
    ADD: tl.constexpr, WEIGHT: tl.constexpr, ZERO_CENTRED: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)[None, :]
    w = tl.load(W + col, mask=col < n, other=0.0).to(tl.float32)
    if ZERO_CENTRED:
        w += 1.0
    dw = tl.full([1, BLOCK], 0.0, tl.float32)
    for tile in range(tiles):
        row = (program * tiles + tile) * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (col < n)
        dy = tl.load(DY + row[:, None] * dy_row + col, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(X + row[:, None] * x_row + col, mask=mask, other=0.0).to(tl.float32)
        rstd = tl.load(RSTD + row, mask=row < rows, other=0.0)[:, None]
        normed = x * rstd
        if WEIGHT:
            if ZERO_CENTRED:
                dw += tl.sum(dy * normed, 0)[None, :]
            else:
                dw += tl.sum(dy * normed.to(X.dtype.element_ty).to(tl.float32), 0)[None, :]
        g = dy * w
        dx = rstd * (g - normed * (tl.sum(g * normed, 1) / n)[:, None])
        if ADD:
            dx += tl.load(RESIDUAL_GRAD + row[:, None] * r_row + col, mask=mask, other=0.0).to(tl.float32)
        tl.store(DX + row[:, None] * dx_row + col, dx.to(DX.dtype.element_ty), mask=mask)
    if WEIGHT:
        tl.store(DW + program * n + col, dw, mask=col < n)


def rms_norm_forward(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    zero_centred: bool = False,
    plus: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y and the fp32 reciprocals of rms(x), (rows,), that the backward wants. Records no graph.

    Args:
        x: (..., hidden), fp32 | fp16 | bf16. Any stride; copied only when the last dimension is not
            contiguous.
        weight: (hidden,), any floating dtype. With ``zero_centred`` the scale is ``1 + weight`` (Gemma).
        plus: x's shape; added to the norm in the same pass (Gemma's norms before the residual add).
        out: where y goes; may be ``x`` or ``plus`` itself.
    Raises:
        ValueError: weight is not (hidden,), or ``out`` or ``plus`` does not fit.
    """
    y, rstd, _ = _forward(x, None, weight, eps, zero_centred, out, None, plus)
    return y, rstd


def add_rms_norm_forward(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    *,
    zero_centred: bool = False,
    out: Tensor | None = None,
    total_out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """total = residual + x, rounded to the residual's dtype, and its norm, in one pass: (y, rstd, total).

    ``total_out`` may be ``residual`` or ``x`` itself. The backward is ``rms_norm_backward(dy, total, ...,
    residual_grad=dtotal)``, whose result is the gradient of both x and residual.
    """
    return _forward(x, residual, weight, eps, zero_centred, out, total_out, None)


def _forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
    zero_centred: bool,
    out: Tensor | None,
    total_out: Tensor | None,
    plus: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    n = _check(x, weight)
    for name, other in (("residual", residual), ("plus", plus)):
        if other is not None and other.shape != x.shape:
            raise ValueError(f"{name} must have shape {tuple(x.shape)}, got {tuple(other.shape)}")
    y, y2 = target_rows(out, x, "out")
    add = residual is not None
    total, total2 = target_rows(total_out, residual, "total_out") if add else (x, y2)
    if not _runs(x, n):
        if add:
            torch.add(residual, x, out=total)
        # plus may be out: then its sum needs a place of its own until the end.
        made = y2 if plus is None else torch.empty_like(y2)
        rstd = _forward_torch(rows_of(total), weight, eps, zero_centred, made)
        if plus is not None:
            torch.add(made, rows_of(plus), out=y2)
        return y, rstd, total
    x2 = rows_of(x)
    other2 = rows_of(residual) if add else x2 if plus is None else rows_of(plus)
    rstd = torch.empty(x2.shape[0], dtype=torch.float32, device=x.device)
    tile = row_tile(n)
    launch(
        _forward_kernel, (triton.cdiv(x2.shape[0], tile["ROWS"]),),
        x2, other2, weight.contiguous(), y2, total2, rstd,
        x2.stride(0), other2.stride(0), y2.stride(0), total2.stride(0), x2.shape[0], n, eps,
        ADD=add, PLUS=plus is not None, ZERO_CENTRED=zero_centred, **tile,
    )  # fmt: skip
    return y, rstd, total


def _forward_torch(x: Tensor, weight: Tensor, eps: float, zero_centred: bool, y: Tensor) -> Tensor:
    """Writes y and returns the reciprocals; no fp32 copy of x is kept."""
    rstd = reciprocal_rms(x, eps)
    if zero_centred:
        y.copy_((x * rstd[:, None]).mul_(1 + weight.to(rstd.dtype)))
    else:
        torch.mul(x, rstd[:, None], out=y)
        y.copy_(y * weight) if weight.dtype != y.dtype else y.mul_(weight)
    return rstd


def reciprocal_rms(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean(x^2) + eps) over the last dimension, in plain torch, fp32."""
    norm = torch.linalg.vector_norm(x, dim=-1, dtype=accumulator(x))
    return torch.rsqrt(norm.square_().div_(x.shape[-1]).add_(eps))


def rms_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    rstd: Tensor,
    *,
    zero_centred: bool = False,
    residual_grad: Tensor | None = None,
    weight_grad: bool = False,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(dx, dw) from the gradient of y. Records no graph.

    Args:
        dy, x, weight, rstd: as the forward took and gave them.
        residual_grad: x's gradient by other ways, x's shape, any floating dtype: dx is added into it **in
            place** and it is what comes back as dx.
        weight_grad: also sum dw, in the weight's dtype. Two stages in a fixed order, so it is reproducible.
        out: where dx goes when there is no ``residual_grad``; may be ``dy`` itself.
    """
    n = _check(x, weight)
    add = residual_grad is not None
    if add and out is not None:
        raise ValueError("pass residual_grad or out, not both: the sum goes into residual_grad")
    dx, dx2 = target_rows(residual_grad if add else out, x, "residual_grad" if add else "out")
    x2, dy2 = rows_of(x), rows_of(dy)
    if not _runs(x, n):
        return dx, _backward_torch(dy2, x2, weight, rstd, zero_centred, add, weight_grad, dx2)
    tile = row_tile(n)
    tiles = triton.cdiv(x2.shape[0], tile["ROWS"])
    count = programs(x, tiles) if weight_grad else tiles
    each = triton.cdiv(tiles, max(count, 1))
    count = triton.cdiv(tiles, max(each, 1))
    partial = torch.empty((count, n) if weight_grad else (1,), dtype=torch.float32, device=x.device)
    launch(
        _backward_kernel, (count,),
        dy2, x2, weight.contiguous(), rstd.contiguous(), dx2, dx2, partial,
        dy2.stride(0), x2.stride(0), dx2.stride(0), dx2.stride(0), x2.shape[0], each, n,
        ADD=add, WEIGHT=weight_grad, ZERO_CENTRED=zero_centred, **tile,
    )  # fmt: skip
    return dx, partial.sum(0).to(weight.dtype) if weight_grad else None


def _backward_torch(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    rstd: Tensor,
    zero_centred: bool,
    add: bool,
    weight_grad: bool,
    dx: Tensor,
) -> Tensor | None:
    normed = x * rstd[:, None]
    dy32 = dy.to(normed.dtype)
    dw = (
        (dy32 * (normed if zero_centred else normed.to(x.dtype))).sum(0).to(weight.dtype)
        if weight_grad
        else None
    )
    g = dy32 * (1 + weight.to(normed.dtype) if zero_centred else weight)
    along = torch.linalg.vecdot(g, normed)[:, None].div_(x.shape[-1])
    grad = torch.addcmul(g, normed, along, value=-1).mul_(rstd[:, None])
    dx.add_(grad) if add else dx.copy_(grad)
    return dw


def _runs(x: Tensor, n: int) -> bool:
    return runs_triton(x) and n <= WIDEST


def _check(x: Tensor, weight: Tensor) -> int:
    n = x.shape[-1]
    if weight.shape != (n,):
        raise ValueError(
            f"weight must have shape ({n},) to match x {tuple(x.shape)}, got {tuple(weight.shape)}"
        )
    return n


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, zero_centred: bool) -> Tensor:
        y, rstd = rms_norm_forward(x, weight, eps, zero_centred=zero_centred)
        ctx.save_for_backward(x, weight, rstd)
        ctx.zero_centred = zero_centred
        return y

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, rstd = ctx.saved_tensors
        dx, dw = rms_norm_backward(
            dy, x, weight, rstd, zero_centred=ctx.zero_centred, weight_grad=ctx.needs_input_grad[1]
        )
        return dx, dw, None, None


class _AddRMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor, weight: Tensor, eps: float, zero_centred: bool
    ) -> tuple[Tensor, Tensor]:
        y, rstd, total = add_rms_norm_forward(x, residual, weight, eps, zero_centred=zero_centred)
        ctx.save_for_backward(total, weight, rstd)
        ctx.zero_centred = zero_centred
        return y, total

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor, dtotal: Tensor) -> Any:
        total, weight, rstd = ctx.saved_tensors
        # Cloned, since autograd may hand the same dtotal to somebody else.
        dx, dw = rms_norm_backward(
            dy, total, weight, rstd, zero_centred=ctx.zero_centred,
            residual_grad=dtotal.clone(memory_format=torch.contiguous_format),
            weight_grad=ctx.needs_input_grad[2],
        )  # fmt: skip
        return dx, dx, dw, None, None


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, zero_centred: bool = False) -> Tensor:
    """RMSNorm over the last dimension, differentiable in x and weight.

    Args:
        x: (..., hidden), fp32 | fp16 | bf16. Any stride; copied only when the last dimension is not
            contiguous.
        weight: (hidden,). With ``zero_centred`` the scale is ``1 + weight`` (Gemma).
        eps: added to the mean square.
    Returns:
        Tensor of x's shape and dtype. Statistics are fp32.
    Raises:
        ValueError: weight is not (hidden,), with both shapes.
    """
    return _RMSNorm.apply(x, weight, eps, zero_centred)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, zero_centred: bool = False
) -> tuple[Tensor, Tensor]:
    """(norm of residual + x, residual + x) in one pass, differentiable in all three tensors."""
    return _AddRMSNorm.apply(x, residual, weight, eps, zero_centred)
