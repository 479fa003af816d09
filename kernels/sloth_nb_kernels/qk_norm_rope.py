"""RMSNorm over each head of q and k, then RoPE, in one launch (Qwen3, Gemma 3): rope.py's and rms_norm.py's
formulas.

The backward takes q and k as they were before the norm, recomputes each head's reciprocal (one sum over
head_dim, less than reading it back would cost) and can sum the two weights' gradients in the same pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .launch import launch, next_power_of_2, programs, runs_triton, tl, triton
from .once import once
from .rms_norm import reciprocal_rms, rms_norm_backward, rms_norm_forward, rms_norm_reference
from .rope import (
    check_rope,
    heads_block,
    heads_out,
    heads_warps,
    last_contiguous,
    rope_backward,
    rope_forward,
    rope_reference,
)

__all__ = ["qk_norm_rope", "qk_norm_rope_backward", "qk_norm_rope_forward", "qk_norm_rope_reference"]


def qk_norm_rope_reference(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    zero_centred: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Plain torch, any device: the truth. Arguments as in ``qk_norm_rope``."""
    q = rms_norm_reference(q, q_weight, eps, zero_centred=zero_centred)
    k = rms_norm_reference(k, k_weight, eps, zero_centred=zero_centred)
    return rope_reference(q, k, cos, sin, positions)


@triton.jit
def _forward_heads(
    X, W, Y, token, x_token, x_head, y_token, y_head, heads, cos, sin, half, dim, eps,
    ZERO_CENTRED: tl.constexpr, PARTIAL: tl.constexpr,
    HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    c = tl.arange(0, HALF)[None, :]
    r = 2 * half + tl.arange(0, REST)[None, :]
    wa = tl.load(W + c, mask=c < half, other=0.0).to(tl.float32)
    wb = tl.load(W + half + c, mask=c < half, other=0.0).to(tl.float32)
    wr = tl.load(W + r, mask=r < dim, other=0.0).to(tl.float32)
    if ZERO_CENTRED:
        wa += 1.0
        wb += 1.0
        wr += 1.0
    for start in range(0, heads, HEADS):
        head = (start + tl.arange(0, HEADS)).to(tl.int64)[:, None]
        mask = (head < heads) & (c < half)
        source = X + token * x_token + head * x_head
        target = Y + token * y_token + head * y_head
        a = tl.load(source + c, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(source + half + c, mask=mask, other=0.0).to(tl.float32)
        square = tl.sum(a * a + b * b, 1)
        if PARTIAL:
            rest = tl.load(source + r, mask=(head < heads) & (r < dim), other=0.0).to(tl.float32)
            square += tl.sum(rest * rest, 1)
        rstd = tl.rsqrt(square / dim + eps)[:, None]
        a *= rstd
        b *= rstd
        if not ZERO_CENTRED:
            a = a.to(Y.dtype.element_ty).to(tl.float32)
            b = b.to(Y.dtype.element_ty).to(tl.float32)
        a *= wa
        b *= wb
        tl.store(target + c, (a * cos - b * sin).to(Y.dtype.element_ty), mask=mask)
        tl.store(target + half + c, (b * cos + a * sin).to(Y.dtype.element_ty), mask=mask)
        if PARTIAL:
            rest *= rstd
            if not ZERO_CENTRED:
                rest = rest.to(Y.dtype.element_ty).to(tl.float32)
            tl.store(target + r, (rest * wr).to(Y.dtype.element_ty), mask=(head < heads) & (r < dim))


@triton.jit
def _forward_kernel(
    Q, K, QW, KW, QO, KO, COS, SIN, POSITIONS,
    q_token, q_head, k_token, k_head, qo_token, qo_head, ko_token, ko_head, cos_row, sin_row, table,
    q_heads, k_heads, half, dim, eps,
    ZERO_CENTRED: tl.constexpr, HAS_POSITIONS: tl.constexpr, PARTIAL: tl.constexpr,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    if HAS_POSITIONS:
        position = tl.load(POSITIONS + token).to(tl.int64)
    else:
        position = token % table
    c = tl.arange(0, HALF)[None, :]
    cos = tl.load(COS + position * cos_row + c, mask=c < half, other=0.0).to(tl.float32)
    sin = tl.load(SIN + position * sin_row + c, mask=c < half, other=0.0).to(tl.float32)
    _forward_heads(
        Q, QW, QO, token, q_token, q_head, qo_token, qo_head, q_heads, cos, sin, half, dim, eps,
        ZERO_CENTRED, PARTIAL, Q_HEADS, HALF, REST,
    )  # fmt: skip
    _forward_heads(
        K, KW, KO, token, k_token, k_head, ko_token, ko_head, k_heads, cos, sin, half, dim, eps,
        ZERO_CENTRED, PARTIAL, K_HEADS, HALF, REST,
    )  # fmt: skip


@triton.jit
def _backward_heads(
    DY, X, W, DX, dwa, dwb, dwr, token, dy_token, dy_head, x_token, x_head, dx_token, dx_head,
    heads, cos, sin, half, dim, eps,
    ZERO_CENTRED: tl.constexpr, PARTIAL: tl.constexpr, WEIGHT: tl.constexpr,
    HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    c = tl.arange(0, HALF)[None, :]
    r = 2 * half + tl.arange(0, REST)[None, :]
    wa = tl.load(W + c, mask=c < half, other=0.0).to(tl.float32)
    wb = tl.load(W + half + c, mask=c < half, other=0.0).to(tl.float32)
    wr = tl.load(W + r, mask=r < dim, other=0.0).to(tl.float32)
    if ZERO_CENTRED:
        wa += 1.0
        wb += 1.0
        wr += 1.0
    for start in range(0, heads, HEADS):
        head = (start + tl.arange(0, HEADS)).to(tl.int64)[:, None]
        mask = (head < heads) & (c < half)
        mask_rest = (head < heads) & (r < dim)
        gradient = DY + token * dy_token + head * dy_head
        source = X + token * x_token + head * x_head
        target = DX + token * dx_token + head * dx_head
        da = tl.load(gradient + c, mask=mask, other=0.0).to(tl.float32)
        db = tl.load(gradient + half + c, mask=mask, other=0.0).to(tl.float32)
        a = tl.load(source + c, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(source + half + c, mask=mask, other=0.0).to(tl.float32)
        square = tl.sum(a * a + b * b, 1)
        if PARTIAL:
            dr = tl.load(gradient + r, mask=mask_rest, other=0.0).to(tl.float32)
            rest = tl.load(source + r, mask=mask_rest, other=0.0).to(tl.float32)
            square += tl.sum(rest * rest, 1)
        rstd = tl.rsqrt(square / dim + eps)[:, None]
        a *= rstd
        b *= rstd
        ga = da * cos + db * sin  # the rotation turned back
        gb = db * cos - da * sin
        if WEIGHT:
            if ZERO_CENTRED:
                dwa += tl.sum(ga * a, 0)[None, :]
                dwb += tl.sum(gb * b, 0)[None, :]
            else:
                dwa += tl.sum(ga * a.to(X.dtype.element_ty).to(tl.float32), 0)[None, :]
                dwb += tl.sum(gb * b.to(X.dtype.element_ty).to(tl.float32), 0)[None, :]
        ga *= wa
        gb *= wb
        along = tl.sum(ga * a + gb * b, 1)
        if PARTIAL:
            rest *= rstd
            if WEIGHT:
                if ZERO_CENTRED:
                    dwr += tl.sum(dr * rest, 0)[None, :]
                else:
                    dwr += tl.sum(dr * rest.to(X.dtype.element_ty).to(tl.float32), 0)[None, :]
            dr *= wr
            along += tl.sum(dr * rest, 1)
        along = (along / dim)[:, None]
        tl.store(target + c, (rstd * (ga - a * along)).to(DX.dtype.element_ty), mask=mask)
        tl.store(target + half + c, (rstd * (gb - b * along)).to(DX.dtype.element_ty), mask=mask)
        if PARTIAL:
            tl.store(target + r, (rstd * (dr - rest * along)).to(DX.dtype.element_ty), mask=mask_rest)
    return dwa, dwb, dwr


@triton.jit
def _backward_kernel(
    DQY, DKY, Q, K, QW, KW, DQ, DK, DW, COS, SIN, POSITIONS,
    dqy_token, dqy_head, dky_token, dky_head, q_token, q_head, k_token, k_head,
    dq_token, dq_head, dk_token, dk_head, cos_row, sin_row, table,
    tokens, each, q_heads, k_heads, half, dim, eps,
    ZERO_CENTRED: tl.constexpr, HAS_POSITIONS: tl.constexpr, PARTIAL: tl.constexpr, WEIGHT: tl.constexpr,
    Q_HEADS: tl.constexpr, K_HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, HALF)[None, :]
    qa = tl.full([1, HALF], 0.0, tl.float32)
    qb = tl.full([1, HALF], 0.0, tl.float32)
    qr = tl.full([1, REST], 0.0, tl.float32)
    ka = tl.full([1, HALF], 0.0, tl.float32)
    kb = tl.full([1, HALF], 0.0, tl.float32)
    kr = tl.full([1, REST], 0.0, tl.float32)
    for token in range(program * each, tl.minimum(program * each + each, tokens)):
        if HAS_POSITIONS:
            position = tl.load(POSITIONS + token).to(tl.int64)
        else:
            position = token % table
        cos = tl.load(COS + position * cos_row + c, mask=c < half, other=0.0).to(tl.float32)
        sin = tl.load(SIN + position * sin_row + c, mask=c < half, other=0.0).to(tl.float32)
        qa, qb, qr = _backward_heads(
            DQY, Q, QW, DQ, qa, qb, qr, token, dqy_token, dqy_head, q_token, q_head, dq_token, dq_head,
            q_heads, cos, sin, half, dim, eps, ZERO_CENTRED, PARTIAL, WEIGHT, Q_HEADS, HALF, REST,
        )  # fmt: skip
        ka, kb, kr = _backward_heads(
            DKY, K, KW, DK, ka, kb, kr, token, dky_token, dky_head, k_token, k_head, dk_token, dk_head,
            k_heads, cos, sin, half, dim, eps, ZERO_CENTRED, PARTIAL, WEIGHT, K_HEADS, HALF, REST,
        )  # fmt: skip
    if WEIGHT:
        r = 2 * half + tl.arange(0, REST)[None, :]
        row = DW + program * 2 * dim
        tl.store(row + c, qa, mask=c < half)
        tl.store(row + half + c, qb, mask=c < half)
        tl.store(row + r, qr, mask=r < dim)
        tl.store(row + dim + c, ka, mask=c < half)
        tl.store(row + dim + half + c, kb, mask=c < half)
        tl.store(row + dim + r, kr, mask=r < dim)


def qk_norm_rope_forward(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    zero_centred: bool = False,
    q_out: Tensor | None = None,
    k_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """q and k, each head normed and then rotated, in one launch. Records no graph.

    Args:
        q, k, cos, sin, positions: as ``rope_forward`` takes them.
        q_weight, k_weight: (head_dim,); with ``zero_centred`` the scale is 1 + weight.
        q_out, k_out: where results go; ``q_out=q, k_out=k`` is in place (and loses what the backward needs).
    Raises:
        ValueError: shapes that do not fit each other.
    """
    half = _check(q, k, q_weight, k_weight, cos, sin, positions)
    q_out, k_out = heads_out(q_out, q, "q_out"), heads_out(k_out, k, "k_out")
    if not runs_triton(q):
        for x, weight, out in ((q, q_weight, q_out), (k, k_weight, k_out)):
            out.copy_(rms_norm_forward(x, weight, eps, zero_centred=zero_centred)[0])
        rope_forward(q_out, k_out, cos, sin, positions, q_out=q_out, k_out=k_out)
        return q_out, k_out
    q, k = last_contiguous(q), last_contiguous(k)
    tokens, q_heads, dim = q.shape
    launch(
        _forward_kernel, (tokens,),
        q, k, q_weight.contiguous(), k_weight.contiguous(), q_out, k_out, cos, sin,
        cos if positions is None else positions,
        q.stride(0), q.stride(1), k.stride(0), k.stride(1),
        q_out.stride(0), q_out.stride(1), k_out.stride(0), k_out.stride(1), cos.stride(0), sin.stride(0),
        cos.shape[0], q_heads, k.shape[1], half, dim, eps,
        ZERO_CENTRED=zero_centred, HAS_POSITIONS=positions is not None, **_tile(q, k, half),
    )  # fmt: skip
    return q_out, k_out


def qk_norm_rope_backward(
    dq: Tensor,
    dk: Tensor,
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    zero_centred: bool = False,
    weight_grad: bool = False,
    dq_out: Tensor | None = None,
    dk_out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """(gradient of q, of k, of q_weight, of k_weight) from those of the rotated results. Records no graph.

    Args:
        dq, dk: gradients of what the forward returned.
        q, k: what the forward took, before the norm.
        weight_grad: also sum the weights' gradients (two stages in a fixed order).
        dq_out, dk_out: where results go; may be dq and dk, or q and k themselves.
    """
    half = _check(q, k, q_weight, k_weight, cos, sin, positions)
    dq_out, dk_out = heads_out(dq_out, q, "dq_out"), heads_out(dk_out, k, "dk_out")
    if not runs_triton(q):
        turned = rope_backward(dq, dk, cos, sin, positions)
        weights = []
        for dy, x, weight, out in zip(turned, (q, k), (q_weight, k_weight), (dq_out, dk_out), strict=True):
            rstd = reciprocal_rms(x, eps).flatten()
            dx, dw = rms_norm_backward(
                dy, x, weight, rstd, zero_centred=zero_centred, weight_grad=weight_grad, out=dy
            )
            out.copy_(dx)
            weights.append(dw)
        return dq_out, dk_out, *weights
    dq, dk, q, k = (last_contiguous(t) for t in (dq, dk, q, k))
    tokens, q_heads, dim = q.shape
    count = programs(q, tokens) if weight_grad else tokens
    each = triton.cdiv(tokens, count) if tokens else 1
    count = triton.cdiv(tokens, each)
    partial = torch.empty((count, 2, dim) if weight_grad else (1,), dtype=torch.float32, device=q.device)
    launch(
        _backward_kernel, (count,),
        dq, dk, q, k, q_weight.contiguous(), k_weight.contiguous(), dq_out, dk_out, partial, cos, sin,
        cos if positions is None else positions,
        dq.stride(0), dq.stride(1), dk.stride(0), dk.stride(1), q.stride(0), q.stride(1), k.stride(0), k.stride(1),
        dq_out.stride(0), dq_out.stride(1), dk_out.stride(0), dk_out.stride(1),
        cos.stride(0), sin.stride(0), cos.shape[0], tokens, each, q_heads, k.shape[1], half, dim, eps,
        ZERO_CENTRED=zero_centred, HAS_POSITIONS=positions is not None, WEIGHT=weight_grad, **_tile(q, k,
        half),
    )  # fmt: skip
    if not weight_grad:
        return dq_out, dk_out, None, None
    total = partial.sum(0)
    return dq_out, dk_out, total[0].to(q_weight.dtype), total[1].to(k_weight.dtype)


def _tile(q: Tensor, k: Tensor, half: int) -> dict[str, Any]:
    dim = q.shape[2]
    heads = heads_block(q.shape[1], half)
    return {
        "PARTIAL": 2 * half < dim,
        "Q_HEADS": heads,
        "K_HEADS": heads_block(k.shape[1], half),
        "HALF": next_power_of_2(half),
        "REST": next_power_of_2(dim - 2 * half),
        "num_warps": heads_warps(heads, half),
    }


def _check(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
) -> int:
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight.shape != q.shape[-1:]:
            raise ValueError(f"{name} must have shape ({q.shape[-1]},), got {tuple(weight.shape)}")
    return check_rope(q, k, cos, sin, positions)


class _QKNormRope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        q_weight: Tensor,
        k_weight: Tensor,
        eps: float,
        cos: Tensor,
        sin: Tensor,
        positions: Tensor | None,
        zero_centred: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(q, k, q_weight, k_weight, cos, sin, positions)
        ctx.eps, ctx.zero_centred = eps, zero_centred
        return qk_norm_rope_forward(
            q, k, q_weight, k_weight, eps, cos, sin, positions, zero_centred=zero_centred
        )

    @staticmethod
    @once
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> Any:
        q, k, q_weight, k_weight, cos, sin, positions = ctx.saved_tensors
        grads = qk_norm_rope_backward(
            dq, dk, q, k, q_weight, k_weight, ctx.eps, cos, sin, positions,
            zero_centred=ctx.zero_centred, weight_grad=ctx.needs_input_grad[2] or ctx.needs_input_grad[3],
        )  # fmt: skip
        return *grads, None, None, None, None, None


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    eps: float,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    zero_centred: bool = False,
) -> tuple[Tensor, Tensor]:
    """q and k normed a head at a time and rotated, differentiable in q, k and both weights.

    Arguments as ``qk_norm_rope_forward`` takes them; returns new contiguous tensors of q's and k's shapes.
    """
    return _QKNormRope.apply(q, k, q_weight, k_weight, eps, cos, sin, positions, zero_centred)
