"""Rotary position embedding, half-rotation form, on q and k in one launch (Su et al. 2021, arXiv:2104.09864,
eq. 34).

For the first ``rotary`` dimensions of every head, split in halves a and b: (a cos - b sin, b cos + a sin);
the other dimensions pass through. Linear in its input, so the backward is the same with -sin and nothing but
cos and sin is saved. Scalings (linear, dynamic, YaRN, LongRoPE, Llama 3) live in the cos and sin that
transformers computes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .launch import launch, next_power_of_2, runs_triton, tl, triton
from .once import once

__all__ = ["rope", "rope_backward", "rope_forward", "rope_reference"]


def rope_reference(
    q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, positions: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Plain torch, any device: the truth. Arguments as in ``rope``."""
    cos, sin = cos_sin_of_tokens(cos, sin, positions, q)
    return rotate(q, cos, sin), None if k is None else rotate(k, cos, sin)


def cos_sin_of_tokens(cos: Tensor, sin: Tensor, positions: Tensor | None, q: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, (tokens, 1, rotary / 2), of every token of q, (tokens, heads, head_dim)."""
    tokens = q.shape[0]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    elif cos.shape[0] != tokens:
        cos, sin = (t.repeat(tokens // t.shape[0], 1) for t in (cos, sin))
    return cos[:, None, :], sin[:, None, :]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x, (tokens, heads, head_dim), turned by cos and sin, (tokens, 1, rotary / 2), in their precision."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([(a * cos - b * sin).to(x.dtype), (b * cos + a * sin).to(x.dtype), rest], -1)


@triton.jit
def _rotate_heads(
    X, Y, token, x_token, x_head, y_token, y_head, heads, cos, sin, half, dim,
    COPY: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr,
):  # fmt: skip
    c = tl.arange(0, HALF)[None, :]
    for start in range(0, heads, HEADS):
        head = (start + tl.arange(0, HEADS)).to(tl.int64)[:, None]
        mask = (head < heads) & (c < half)
        source = X + token * x_token + head * x_head + c
        target = Y + token * y_token + head * y_head + c
        a = tl.load(source, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(source + half, mask=mask, other=0.0).to(tl.float32)
        tl.store(target, (a * cos - b * sin).to(Y.dtype.element_ty), mask=mask)
        tl.store(target + half, (b * cos + a * sin).to(Y.dtype.element_ty), mask=mask)
        if COPY:
            r = 2 * half + tl.arange(0, REST)[None, :]
            mask = (head < heads) & (r < dim)
            rest = tl.load(X + token * x_token + head * x_head + r, mask=mask, other=0.0)
            tl.store(Y + token * y_token + head * y_head + r, rest.to(Y.dtype.element_ty), mask=mask)


@triton.jit
def _rope_kernel(
    Q, K, QO, KO, COS, SIN, POSITIONS,
    q_token, q_head, k_token, k_head, qo_token, qo_head, ko_token, ko_head, cos_row, sin_row, table,
    q_heads, k_heads, half, dim,
    INVERSE: tl.constexpr, HAS_K: tl.constexpr, HAS_POSITIONS: tl.constexpr, COPY: tl.constexpr,
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
    if INVERSE:
        sin = -sin
    _rotate_heads(
        Q,
        QO,
        token,
        q_token,
        q_head,
        qo_token,
        qo_head,
        q_heads,
        cos,
        sin,
        half,
        dim,
        COPY,
        Q_HEADS,
        HALF,
        REST,
    )
    if HAS_K:
        _rotate_heads(
            K,
            KO,
            token,
            k_token,
            k_head,
            ko_token,
            ko_head,
            k_heads,
            cos,
            sin,
            half,
            dim,
            COPY,
            K_HEADS,
            HALF,
            REST,
        )


def heads_block(heads: int, half: int) -> int:
    """How many heads a tile holds, so that a tile has at most 4096 elements a half."""
    return max(1, min(next_power_of_2(heads), 4096 // next_power_of_2(half)))


def heads_warps(heads: int, half: int) -> int:
    """Warps for a tile of ``heads``, a power of two as Triton wants it: 8 elements a thread where there are
    enough."""
    return max(1, min(8, heads * next_power_of_2(half) // 256))


def rope_forward(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    inverse: bool = False,
    q_out: Tensor | None = None,
    k_out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """q and k rotated, in one launch. Records no graph.

    Args:
        q, k: (tokens, heads, head_dim), any token and head strides (views into one qkv buffer), last
            contiguous. k may be None.
        cos, sin: (table, rotary / 2), any floating dtype (fp32 is best); of transformers' (…, rotary) pass
            the first half of the columns. Row ``positions[t]`` belongs to token t; without positions row ``t
            % table`` does (so a table of one row a token, or of one batch row, needs none).
        positions: (tokens,), integers.
        inverse: turn back (the transpose).
        q_out, k_out: where results go; ``q_out=q, k_out=k`` rotates in place.
    Raises:
        ValueError: shapes that do not fit each other.
    """
    half, in_place = check_rope(q, k, cos, sin, positions), q_out is q and (k is None or k_out is k)
    q_out, k_out = heads_out(q_out, q, "q_out"), None if k is None else heads_out(k_out, k, "k_out")
    if not runs_triton(q):
        cos, sin = cos_sin_of_tokens(cos, -sin if inverse else sin, positions, q)
        for x, y in ((q, q_out), (k, k_out)):
            if x is not None:
                _rotate_torch(x, cos, sin, y)
        return q_out, k_out
    tokens, q_heads, dim = q.shape
    q, k2, k_out2 = last_contiguous(q), q if k is None else last_contiguous(k), q_out if k is None else k_out
    tile = heads_block(q_heads, half)
    launch(
        _rope_kernel, (tokens,),
        q, k2, q_out, k_out2, cos, sin, cos if positions is None else positions,
        q.stride(0), q.stride(1), k2.stride(0), k2.stride(1),
        q_out.stride(0), q_out.stride(1), k_out2.stride(0), k_out2.stride(1), cos.stride(0), sin.stride(0),
        cos.shape[0], q_heads, k2.shape[1], half, dim,
        INVERSE=inverse, HAS_K=k is not None, HAS_POSITIONS=positions is not None,
        COPY=2 * half < dim and not in_place, Q_HEADS=tile, K_HEADS=heads_block(k2.shape[1], half),
        HALF=next_power_of_2(half), REST=next_power_of_2(dim - 2 * half),
        num_warps=heads_warps(tile, half),
    )  # fmt: skip
    return q_out, k_out


def rope_backward(
    dq: Tensor,
    dk: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    *,
    dq_out: Tensor | None = None,
    dk_out: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The gradients of q and k before the rotation; the forward with -sin. ``dq_out=dq, dk_out=dk`` is in
    place."""
    return rope_forward(dq, dk, cos, sin, positions, inverse=True, q_out=dq_out, k_out=dk_out)


def _rotate_torch(x: Tensor, cos: Tensor, sin: Tensor, y: Tensor) -> None:
    half = cos.shape[-1]
    a, b = x[..., :half], x[..., half : 2 * half]
    first, second = torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)
    y[..., :half].copy_(first)
    y[..., half : 2 * half].copy_(second)
    if y is not x:
        y[..., 2 * half :].copy_(x[..., 2 * half :])


def heads_out(out: Tensor | None, like: Tensor, name: str) -> Tensor:
    """A buffer for per-head results: ``out`` checked, or a new contiguous one."""
    if out is None:
        return torch.empty(like.shape, dtype=like.dtype, device=like.device)
    if out.shape != like.shape or out.stride(-1) != 1:
        raise ValueError(
            f"{name} must be {tuple(like.shape)} with a contiguous last dimension, got {tuple(out.shape)}"
        )
    return out


def last_contiguous(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def check_rope(q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, positions: Tensor | None) -> int:
    """Half the rotary width, after checking that q, k, cos, sin and positions fit each other."""
    half, table = cos.shape[-1], cos.shape[0]
    if q.dim() != 3 or (
        k is not None and (k.dim() != 3 or k.shape[0] != q.shape[0] or k.shape[2] != q.shape[2])
    ):
        shapes = tuple(q.shape), None if k is None else tuple(k.shape)
        raise ValueError(
            f"q and k must be (tokens, heads, head_dim) with the same tokens and head_dim, got {shapes}"
        )
    if cos.dim() != 2 or sin.shape != cos.shape or 2 * half > q.shape[-1]:
        raise ValueError(
            f"cos and sin must both be (table, rotary / 2) with rotary <= head_dim {q.shape[-1]}, "
            f"got {tuple(cos.shape)} and {tuple(sin.shape)}"
        )
    if positions is not None and positions.shape != q.shape[:1]:
        raise ValueError(f"positions must be ({q.shape[0]},), got {tuple(positions.shape)}")
    if positions is None and q.shape[0] and (table == 0 or q.shape[0] % table):
        raise ValueError(
            f"without positions {q.shape[0]} tokens must be a multiple of the {table} rows of cos"
        )
    if (
        cos.stride(-1) != 1
        or sin.stride(-1) != 1
        or (positions is not None and not positions.is_contiguous())
    ):
        raise ValueError("cos, sin and positions need a contiguous last dimension")
    return half


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, positions: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(cos, sin, positions)
        return rope_forward(q, k, cos, sin, positions)

    @staticmethod
    @once
    def backward(ctx: Any, dq: Tensor, dk: Tensor | None) -> Any:
        cos, sin, positions = ctx.saved_tensors
        return *rope_backward(dq, dk, cos, sin, positions), None, None, None


def rope(
    q: Tensor, k: Tensor | None, cos: Tensor, sin: Tensor, positions: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """q and k rotated by their positions, differentiable in both. Arguments as ``rope_forward`` takes them.

    Returns:
        New contiguous tensors of q's and k's shapes and dtypes; products are fp32.
    """
    return _Rope.apply(q, k, cos, sin, positions)
