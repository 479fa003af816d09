"""LayerNorm: y = (x - mean) / std * w + b, forward and backward (Ba et al. 2016, arXiv:1607.06450).

Saves x, w and two fp32 numbers a row. Weight and bias may be missing, as in OLMo.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .launch import launch, programs, row_tile, runs_triton, tl, triton
from .once import once
from .rms_norm import WIDEST
from .shapes import rows_of, target_rows, wide

__all__ = ["layer_norm", "layer_norm_backward", "layer_norm_forward", "layer_norm_reference"]


def layer_norm_reference(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Plain torch, any device: the truth; one rounding, at the end."""
    x32 = wide(x)
    centred = x32 - x32.mean(-1, keepdim=True)
    y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    y = y if weight is None else y * weight.to(y.dtype)
    return (y if bias is None else y + bias.to(y.dtype)).to(x.dtype)


@triton.jit
def _forward_kernel(
    X, W, B, Y, MEAN, RSTD, x_row, y_row, rows, n, eps,
    HAS_W: tl.constexpr, HAS_B: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK)[None, :]
    mask = (row < rows)[:, None] & (col < n)
    x = tl.load(X + row[:, None] * x_row + col, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, 1) / n
    centred = tl.where(col < n, x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 1) / n + eps)
    y = centred * rstd[:, None]
    if HAS_W:
        y *= tl.load(W + col, mask=col < n, other=0.0).to(tl.float32)
    if HAS_B:
        y += tl.load(B + col, mask=col < n, other=0.0).to(tl.float32)
    tl.store(Y + row[:, None] * y_row + col, y.to(Y.dtype.element_ty), mask=mask)
    tl.store(MEAN + row, mean, mask=row < rows)
    tl.store(RSTD + row, rstd, mask=row < rows)


@triton.jit
def _backward_kernel(
    DY, X, W, MEAN, RSTD, DX, PARTIAL, dy_row, x_row, dx_row, rows, tiles, n,
    HAS_W: tl.constexpr, ADD: tl.constexpr, WEIGHT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, BLOCK)[None, :]
    dw = tl.full([1, BLOCK], 0.0, tl.float32)
    db = tl.full([1, BLOCK], 0.0, tl.float32)
    for tile in range(tiles):
        row = (program * tiles + tile) * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (col < n)
        g = tl.load(DY + row[:, None] * dy_row + col, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(X + row[:, None] * x_row + col, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(MEAN + row, mask=row < rows, other=0.0)[:, None]
        rstd = tl.load(RSTD + row, mask=row < rows, other=0.0)[:, None]
        normed = tl.where(mask, (x - mean) * rstd, 0.0)
        if WEIGHT:
            dw += tl.sum(g * normed, 0)[None, :]
            db += tl.sum(g, 0)[None, :]
        if HAS_W:
            g *= tl.load(W + col, mask=col < n, other=0.0).to(tl.float32)
        dx = rstd * (g - (tl.sum(g, 1) / n)[:, None] - normed * (tl.sum(g * normed, 1) / n)[:, None])
        target = DX + row[:, None] * dx_row + col
        if ADD:
            dx += tl.load(target, mask=mask, other=0.0).to(tl.float32)
        tl.store(target, dx.to(DX.dtype.element_ty), mask=mask)
    if WEIGHT:
        tl.store(PARTIAL + program * 2 * n + col, dw, mask=col < n)
        tl.store(PARTIAL + program * 2 * n + n + col, db, mask=col < n)


def layer_norm_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, *, out: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """y and each row's mean and reciprocal deviation, fp32 (rows,). Records no graph.

    Args:
        x: (..., hidden), fp32 | fp16 | bf16. Any stride; copied only when the last dimension is not
            contiguous.
        weight, bias: (hidden,) or None.
        out: where y goes; may be ``x`` itself.
    Raises:
        ValueError: weight or bias is not (hidden,), or ``out`` does not fit.
    """
    n = _check(x, weight, bias)
    y, y2 = target_rows(out, x, "out")
    x2 = rows_of(x)
    if not _runs(x, n):
        x2 = x2 if weight is None or weight.dtype == x.dtype else wide(x2)
        made, mean, rstd = torch.native_layer_norm(x2, (n,), *_like(x2, weight, bias), eps)
        y2.copy_(made)
        return y, wide(mean)[:, 0], wide(rstd)[:, 0]
    mean, rstd = (torch.empty(x2.shape[0], dtype=torch.float32, device=x.device) for _ in range(2))
    tile = row_tile(n)
    launch(
        _forward_kernel, (triton.cdiv(x2.shape[0], tile["ROWS"]),),
        x2, *(x2 if one is None else one.contiguous() for one in (weight, bias)), y2, mean, rstd,
        x2.stride(0), y2.stride(0), x2.shape[0], n, eps,
        HAS_W=weight is not None, HAS_B=bias is not None, **tile,
    )  # fmt: skip
    return y, mean, rstd


def layer_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    *,
    residual_grad: Tensor | None = None,
    weight_grad: bool = False,
    out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """(dx, dw, db) from the gradient of y. Records no graph. Arguments as ``rms_norm_backward`` takes them.

    dw and db, in the weight's dtype (x's without one), are summed in two stages in a fixed order.
    """
    n = _check(x, weight, None)
    add = residual_grad is not None
    if add and out is not None:
        raise ValueError("pass residual_grad or out, not both: the sum goes into residual_grad")
    dx, dx2 = target_rows(residual_grad if add else out, x, "residual_grad" if add else "out")
    x2, dy2 = rows_of(x), rows_of(dy)
    dtype = x.dtype if weight is None else weight.dtype
    if not _runs(x, n):
        wide_x, wide_dy = wide(x2), wide(dy2)
        made, _, _ = torch.ops.aten.native_layer_norm_backward(
            wide_dy,
            wide_x,
            (n,),
            mean[:, None],
            rstd[:, None],
            *_like(wide_x, weight, None),
            [True, False, False],
        )
        dw = db = None
        if weight_grad:  # before dx may take dy's place
            dw = (wide_x - mean[:, None]).mul_(rstd[:, None]).mul_(wide_dy).sum(0).to(dtype)
            db = wide_dy.sum(0).to(dtype)
        dx2.add_(made) if add else dx2.copy_(made)
        return dx, dw, db
    tile = row_tile(n)
    tiles = triton.cdiv(x2.shape[0], tile["ROWS"])
    count = programs(x, tiles) if weight_grad else tiles
    each = triton.cdiv(tiles, max(count, 1))
    count = triton.cdiv(tiles, max(each, 1))
    partial = torch.empty((count, 2, n) if weight_grad else (1,), dtype=torch.float32, device=x.device)
    launch(
        _backward_kernel, (count,),
        dy2, x2, x2 if weight is None else weight.contiguous(), mean.contiguous(), rstd.contiguous(), dx2, partial,
        dy2.stride(0), x2.stride(0), dx2.stride(0), x2.shape[0], each, n,
        HAS_W=weight is not None, ADD=add, WEIGHT=weight_grad, **tile,
    )  # fmt: skip
    if not weight_grad:
        return dx, None, None
    total = partial.sum(0).to(dtype)
    return dx, total[0], total[1]


def _like(x: Tensor, *weights: Tensor | None) -> list[Tensor | None]:
    return [None if weight is None else weight.to(x.dtype) for weight in weights]


def _runs(x: Tensor, n: int) -> bool:
    return runs_triton(x) and n <= WIDEST


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> int:
    n = x.shape[-1]
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.shape != (n,):
            raise ValueError(
                f"{name} must have shape ({n},) to match x {tuple(x.shape)}, got {tuple(value.shape)}"
            )
    return n


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        y, mean, rstd = layer_norm_forward(x, weight, bias, eps)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, mean, rstd = ctx.saved_tensors
        _, want_w, want_b, _ = ctx.needs_input_grad
        dx, dw, db = layer_norm_backward(dy, x, weight, mean, rstd, weight_grad=want_w or want_b)
        return dx, dw if want_w else None, db.to(ctx.bias_dtype) if want_b else None, None


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over the last dimension, differentiable in x, weight and bias.

    Arguments as ``layer_norm_forward`` takes them; returns a tensor of x's shape and dtype, statistics in
    fp32.
    """
    return _LayerNorm.apply(x, weight, bias, eps)
