"""Linear layers with LoRA over any base: y = x W^T + bias + scale * (drop(x) A^T) B^T (Hu et al. 2021,
arXiv:2106.09685), for one projection or several of the same input (q, k, v; gate, up).

Saves x and the low-rank inputs x A^T, nothing of W's size: a quantised W is dequantised again in the
backward. The adapters of one input share one product with it in each direction. Exact with base bias, LoRA
bias, trained bases, dropout (each projection then has a product of its own, and its mask is kept) and
rank-stabilised scales; DoRA is composed from it in dora.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .dequantize import dequantize_int8, dequantize_nf4
from .once import once

__all__ = [
    "LoraSaved",
    "Projection",
    "ProjectionGrads",
    "lora_backward",
    "lora_forward",
    "lora_linear",
    "lora_projections",
    "lora_reference",
]


@dataclass(frozen=True)
class Projection:
    """One linear layer, its adapter, and how its weight is stored."""

    weight: Tensor
    """(out, in) floating point; or the bytes of an NF4 or int8 weight of bitsandbytes, which can't be
    trained."""
    quantised: Any = None
    """None, the NF4 weight's ``quant_state``, or the int8 weight's row scales ``SCB``, a tensor."""
    bias: Tensor | None = None
    a: Tensor | None = None
    """(rank, in); None for a layer without an adapter. Any floating dtype; products are in x's."""
    b: Tensor | None = None
    """(out, rank)"""
    scale: float = 1.0
    dropout: float = 0.0
    """Chance that an element of the adapter's input is dropped; 0 when not training."""
    b_bias: Tensor | None = None
    """(out,), peft's ``lora_bias``; scaled like the product."""

    @property
    def out_features(self) -> int:
        return self.weight.shape[0] if self.quantised is None or self.int8 else self.quantised.shape[0]

    @property
    def int8(self) -> bool:
        return isinstance(self.quantised, Tensor)

    def dense(self, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        """The base weight, (out, in), in ``dtype``; the parameter itself when it is that already."""
        weight = self.weight.detach()
        if self.quantised is None:
            return weight.to(dtype) if out is None else out.copy_(weight)
        if self.int8:
            return dequantize_int8(weight, self.quantised, dtype=dtype, out=out)
        return dequantize_nf4(weight, self.quantised, dtype=dtype, out=out)


def lora_reference(x: Tensor, projection: Projection) -> Tensor:
    """Plain torch with autograd, any device: the truth (without dropout, which is random)."""
    p = projection
    weight = p.weight.to(x.dtype) if p.quantised is None else p.dense(x.dtype)
    y = F.linear(x, weight, None if p.bias is None else p.bias.to(x.dtype))
    if p.a is None:
        return y
    b_bias = None if p.b_bias is None else p.b_bias.to(x.dtype)
    return y + p.scale * F.linear(F.linear(x, p.a.to(x.dtype)), p.b.to(x.dtype), b_bias)


@dataclass
class LoraSaved:
    """What a group's forward leaves for its backward, beside x."""

    low_rank: list[Tensor | None]  # drop(x) A^T of each projection, (tokens, rank)
    masks: list[Tensor | None]  # bool, (tokens, in): what dropout kept


@dataclass
class ProjectionGrads:
    """Gradients of one projection's tensors, each of its dtype; None for what was not asked."""

    weight: Tensor | None = None
    bias: Tensor | None = None
    a: Tensor | None = None
    b: Tensor | None = None
    b_bias: Tensor | None = None


def lora_forward(
    x: Tensor, projections: Sequence[Projection], *, outs: Sequence[Tensor | None] | None = None
) -> tuple[list[Tensor], LoraSaved]:
    """Each projection's output, (tokens, out), and what the backward wants. Records no graph.

    Args:
        x: (tokens, in), fp32 | fp16 | bf16: the compute dtype.
        outs: where outputs go, e.g. columns of one buffer.
    """
    adapted = [p for p in projections if p.a is not None]
    shared = adapted if len(adapted) > 1 and not any(p.dropout for p in adapted) else []
    together = _split(torch.mm(x, _stack(shared, x.dtype).t()), shared) if shared else []
    ys, saved = [], LoraSaved([], [])
    for p, out in zip(projections, outs or [None] * len(projections), strict=True):
        weight = p.dense(x.dtype)
        if p.bias is None:
            y = torch.mm(x, weight.t()) if out is None else torch.mm(x, weight.t(), out=out)
        else:
            bias = p.bias.detach().to(x.dtype)
            y = torch.addmm(bias, x, weight.t()) if out is None else torch.addmm(bias, x, weight.t(), out=out)
        low_rank = mask = None
        if p.a is not None:
            if shared:
                low_rank = together.pop(0)
            else:
                dropped, mask = _drop(x, p.dropout)
                low_rank = torch.mm(dropped, p.a.detach().to(x.dtype).t())
            y.addmm_(low_rank, p.b.detach().to(x.dtype).t(), alpha=p.scale)
            if p.b_bias is not None:
                y.add_(p.b_bias.detach().to(x.dtype), alpha=p.scale)
        ys.append(y)
        saved.low_rank.append(low_rank)
        saved.masks.append(mask)
    return ys, saved


def lora_backward(
    dys: Sequence[Tensor],
    x: Tensor,
    projections: Sequence[Projection],
    saved: LoraSaved,
    *,
    input_grad: bool = True,
    wanted: Sequence[ProjectionGrads | Any] | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor | None, list[ProjectionGrads]]:
    """(dx, gradients of each projection's tensors). Records no graph.

    Args:
        dys: the outputs' gradients, (tokens, out) each.
        x, projections, saved: as the forward took and gave them.
        wanted: for each projection an object whose attributes weight, bias, a, b and b_bias are true where a
            gradient is wanted; by default a, b and b_bias.
        out: where dx goes; may not be x while adapters are trained.
    """
    default = ProjectionGrads(a=True, b=True, b_bias=True)
    wanted = wanted or [default] * len(projections)
    adapted = [p for p in projections if p.a is not None]
    shared = adapted if len(adapted) > 1 and not any(p.dropout for p in adapted) else []
    dts = [None if p.a is None else torch.mm(dy, p.b.detach().to(x.dtype)).mul_(p.scale)
           for dy, p in zip(dys, projections, strict=True)]  # fmt: skip
    together = torch.cat([dt for dt in dts if dt is not None], 1) if shared else None
    das = _split(torch.mm(together.t(), x).t(), shared) if shared and any(w.a for w in wanted) else []
    grads = []
    for p, w, dy, dt, low_rank, mask in zip(
        projections, wanted, dys, dts, saved.low_rank, saved.masks, strict=True
    ):
        got = ProjectionGrads()
        if w.weight and p.quantised is None:
            got.weight = torch.mm(dy.t(), x).to(p.weight.dtype)
        if w.bias and p.bias is not None:
            got.bias = dy.sum(0).to(p.bias.dtype)
        if p.a is not None:
            da = das.pop(0).t() if das else None
            if w.a:
                dropped = x if mask is None else _keep(x, mask, p.dropout)
                got.a = (torch.mm(dt.t(), dropped) if da is None else da).to(p.a.dtype)
            if w.b:
                got.b = torch.mm(dy.t(), low_rank).mul_(p.scale).to(p.b.dtype)
            if w.b_bias and p.b_bias is not None:
                got.b_bias = dy.sum(0).mul_(p.scale).to(p.b_bias.dtype)
        grads.append(got)
    if not input_grad:
        return None, grads
    dx = None
    for p, dy, dt, mask in zip(projections, dys, dts, saved.masks, strict=True):
        weight = p.dense(x.dtype)
        if dx is None:
            dx = torch.mm(dy, weight) if out is None else torch.mm(dy, weight, out=out)
        else:
            dx.addmm_(dy, weight)
        if dt is not None and mask is not None:
            dx.add_(_keep(torch.mm(dt, p.a.detach().to(x.dtype)), mask, p.dropout))
        elif dt is not None and not shared:
            dx.addmm_(dt, p.a.detach().to(x.dtype))
    if shared:
        dx.addmm_(together, _stack(shared, x.dtype))
    return dx, grads


def _stack(projections: Sequence[Projection], dtype: torch.dtype) -> Tensor:
    return torch.cat([p.a.detach().to(dtype) for p in projections])


def _split(columns: Tensor, projections: Sequence[Projection]) -> list[Tensor]:
    return list(columns.split([p.a.shape[0] for p in projections], 1))


def _drop(x: Tensor, chance: float) -> tuple[Tensor, Tensor | None]:
    """x with elements dropped, and which were kept; the draws are those of ``F.dropout`` on x."""
    if chance == 0.0:
        return x, None
    mask = F.dropout(torch.ones_like(x), chance).bool()
    return _keep(x, mask, chance), mask


def _keep(x: Tensor, mask: Tensor, chance: float) -> Tensor:
    return (x * mask).mul_(1 / (1 - chance) if chance < 1 else 0.0)


_PARTS = ("weight", "bias", "a", "b", "b_bias")


class _Lora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, projections: list[Projection], *parts: Tensor | None
    ) -> tuple[Tensor, ...]:
        ys, saved = lora_forward(x, projections)
        ctx.save_for_backward(x, *parts, *saved.low_rank, *saved.masks)
        # The tensors are given back by autograd; what stays here holds none that has a gradient.
        ctx.projections = [replace(p, **dict.fromkeys(_PARTS)) for p in projections]
        return tuple(ys)

    @staticmethod
    @once
    def backward(ctx: Any, *dys: Tensor) -> Any:
        count, needs = len(ctx.projections), ctx.needs_input_grad
        x, *tensors = ctx.saved_tensors
        parts, rest = tensors[: 5 * count], tensors[5 * count :]
        projections, wanted = [], []
        for i, p in enumerate(ctx.projections):
            mine = slice(5 * i, 5 * i + 5)
            projections.append(replace(p, **dict(zip(_PARTS, parts[mine], strict=True))))
            wanted.append(ProjectionGrads(*needs[2:][mine]))
        saved = LoraSaved(rest[:count], rest[count:])
        dys = [dy if dy.stride(-1) == 1 else dy.contiguous() for dy in dys]
        dx, grads = lora_backward(dys, x, projections, saved, input_grad=needs[0], wanted=wanted)
        return dx, None, *(getattr(g, part) for g in grads for part in _PARTS)


def lora_projections(x: Tensor, projections: Sequence[Projection]) -> tuple[Tensor, ...]:
    """Several projections of one input, differentiable in x and every floating tensor of theirs.

    Args:
        x: (..., in), fp32 | fp16 | bf16; all products are in its dtype, gradients come back in each
            parameter's.
        projections: at least one.
    Returns:
        (..., out) each.
    Raises:
        ValueError: a projection whose parts do not fit x or each other.
    """
    for p in projections:
        _check(x, p)
    parts = [getattr(p, part) for p in projections for part in _PARTS]
    flat = x.reshape(-1, x.shape[-1])
    ys = _Lora.apply(flat, list(projections), *parts)
    return tuple(y.view(*x.shape[:-1], y.shape[-1]) for y in ys)


def lora_linear(x: Tensor, projection: Projection) -> Tensor:
    """One projection, differentiable; as ``lora_projections``."""
    return lora_projections(x, [projection])[0]


def _check(x: Tensor, p: Projection) -> None:
    if (p.a is None) != (p.b is None):
        raise ValueError("an adapter has both a and b")
    if p.quantised is None and p.weight.shape[-1] != x.shape[-1]:
        raise ValueError(f"weight {tuple(p.weight.shape)} does not take x {tuple(x.shape)}")
    if p.a is not None and (p.a.shape[1] != x.shape[-1] or p.b.shape != (p.out_features, p.a.shape[0])):
        raise ValueError(
            f"an adapter of rank r needs a (r, {x.shape[-1]}) and b ({p.out_features}, r), "
            f"got {tuple(p.a.shape)} and {tuple(p.b.shape)}"
        )
