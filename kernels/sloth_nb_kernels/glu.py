"""Gated linear units: h = act(gate) * up with act = SiLU or GELU (Shazeer 2020, arXiv:2002.05202).

Saves gate and up; the backward recomputes act(gate), can overwrite both with their gradients, and can write h
again in the same pass for whoever needs it (the down-projection's adapter).
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .elementary import gelu, gelu_slope, gelu_tanh, gelu_tanh_slope, silu, silu_slope
from .launch import launch, runs_triton, tl, triton
from .once import once
from .shapes import rows_of, target_rows

__all__ = ["Activation", "glu", "glu_backward", "glu_forward", "glu_reference", "split_gate_up"]

Activation = Literal["silu", "gelu", "gelu_tanh"]
_KINDS = {"silu": 0, "gelu": 1, "gelu_tanh": 2}
_BLOCK = 1024


def glu_reference(gate: Tensor, up: Tensor, activation: Activation = "silu") -> Tensor:
    """Plain torch, any device: the truth."""
    return _activate(gate, activation) * up


def _activate(gate: Tensor, activation: Activation) -> Tensor:
    if activation == "silu":
        return F.silu(gate)
    return F.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")


@triton.jit
def _activation(x, KIND: tl.constexpr):
    if KIND == 0:
        return silu(x)
    elif KIND == 1:
        return gelu(x)
    else:
        return gelu_tanh(x)


@triton.jit
def _slope(x, KIND: tl.constexpr):
    if KIND == 0:
        return silu_slope(x)
    elif KIND == 1:
        return gelu_slope(x)
    else:
        return gelu_tanh_slope(x)


@triton.jit
def _forward_kernel(GATE, UP, H, g_row, u_row, h_row, n, KIND: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = col < n
    gate = tl.load(GATE + row * g_row + col, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(UP + row * u_row + col, mask=mask, other=0.0).to(tl.float32)
    tl.store(H + row * h_row + col, (_activation(gate, KIND) * up).to(H.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    DH, GATE, UP, DGATE, DUP, H, dh_row, g_row, u_row, dg_row, du_row, h_row, n,
    KIND: tl.constexpr, AGAIN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = col < n
    dh = tl.load(DH + row * dh_row + col, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(GATE + row * g_row + col, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(UP + row * u_row + col, mask=mask, other=0.0).to(tl.float32)
    active = _activation(gate, KIND)
    tl.store(DGATE + row * dg_row + col, (dh * up * _slope(gate, KIND)).to(DGATE.dtype.element_ty), mask=mask)
    tl.store(DUP + row * du_row + col, (dh * active).to(DUP.dtype.element_ty), mask=mask)
    if AGAIN:
        tl.store(H + row * h_row + col, (active * up).to(H.dtype.element_ty), mask=mask)


def split_gate_up(gate_up: Tensor) -> tuple[Tensor, Tensor]:
    """The two halves, as views, of one (..., 2 * intermediate) buffer that a fused projection wrote."""
    if gate_up.shape[-1] % 2:
        raise ValueError(f"a fused gate_up buffer has an even last dimension, got {tuple(gate_up.shape)}")
    gate, up = gate_up.chunk(2, -1)
    return gate, up


def glu_forward(
    gate: Tensor, up: Tensor, activation: Activation = "silu", *, out: Tensor | None = None
) -> Tensor:
    """h = act(gate) * up. Records no graph.

    Args:
        gate, up: (..., intermediate), fp32 | fp16 | bf16, any row stride (so halves of one buffer work).
        out: where h goes; may be ``gate`` or ``up`` itself.
    Raises:
        ValueError: unknown activation, or shapes that differ.
    """
    kind = _check(gate, up, activation)
    h, h2 = target_rows(out, gate, "out")
    if not runs_triton(gate):
        return torch.mul(_activate(gate, activation), up, out=h)
    gate2, up2 = rows_of(gate), rows_of(up)
    rows, n = gate2.shape
    launch(
        _forward_kernel, (rows, triton.cdiv(n, _BLOCK)),
        gate2, up2, h2, gate2.stride(0), up2.stride(0), h2.stride(0), n, KIND=kind, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    return h


def glu_backward(
    dh: Tensor,
    gate: Tensor,
    up: Tensor,
    activation: Activation = "silu",
    *,
    dgate: Tensor | None = None,
    dup: Tensor | None = None,
    h: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(dgate, dup) from the gradient of h. Records no graph.

    Args:
        dgate, dup: where the gradients go; ``dgate=gate, dup=up`` overwrites the saved tensors, in place.
        h: a buffer to receive act(gate) * up again in the same pass; may be ``dh`` itself.
    """
    kind = _check(gate, up, activation)
    dgate, dgate2 = target_rows(dgate, gate, "dgate")
    dup, dup2 = target_rows(dup, up, "dup")
    if not runs_triton(gate):
        _backward_torch(dh, gate, up, activation, dgate, dup, h)
        return dgate, dup
    gate2, up2, dh2 = rows_of(gate), rows_of(up), rows_of(dh)
    h2 = dgate2 if h is None else target_rows(h, gate, "h")[1]
    rows, n = gate2.shape
    launch(
        _backward_kernel, (rows, triton.cdiv(n, _BLOCK)),
        dh2, gate2, up2, dgate2, dup2, h2,
        dh2.stride(0), gate2.stride(0), up2.stride(0), dgate2.stride(0), dup2.stride(0), h2.stride(0), n,
        KIND=kind, AGAIN=h is not None, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    return dgate, dup


def _backward_torch(
    dh: Tensor, gate: Tensor, up: Tensor, activation: Activation, dgate: Tensor, dup: Tensor, h: Tensor | None
) -> None:
    active, dactive = _activate(gate, activation), dh * up
    # Everything is read before what may lie in its place is written.
    again = None if h is None else active * up
    torch.mul(dh, active, out=dup)
    if activation == "silu":
        torch.ops.aten.silu_backward.grad_input(dactive, gate, grad_input=dgate)
    else:
        approximate = "tanh" if activation == "gelu_tanh" else "none"
        torch.ops.aten.gelu_backward.grad_input(dactive, gate, approximate=approximate, grad_input=dgate)
    if h is not None:
        h.copy_(again)


def _check(gate: Tensor, up: Tensor, activation: str) -> int:
    if activation not in _KINDS:
        raise ValueError(f"activation must be one of {', '.join(_KINDS)}, got {activation!r}")
    if gate.shape != up.shape:
        raise ValueError(f"gate and up must have one shape, got {tuple(gate.shape)} and {tuple(up.shape)}")
    return _KINDS[activation]


class _GLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return glu_forward(gate, up, activation)

    @staticmethod
    @once
    def backward(ctx: Any, dh: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        dgate, dup = glu_backward(dh, gate, up, ctx.activation)
        return dgate, dup, None


def glu(gate: Tensor, up: Tensor, activation: Activation = "silu") -> Tensor:
    """act(gate) * up, differentiable in both.

    Args:
        gate, up: (..., intermediate), fp32 | fp16 | bf16; halves of one buffer (``split_gate_up``) are fine.
        activation: "silu" (SwiGLU), "gelu" (GEGLU, exact) or "gelu_tanh" (GEGLU, Gemma's approximation).
    Returns:
        Tensor of gate's shape and dtype.
    """
    return _GLU.apply(gate, up, activation)
