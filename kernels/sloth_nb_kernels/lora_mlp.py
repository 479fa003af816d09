"""A gated MLP with adapters, in one: down(act(gate(x)) * up(x)), every projection with LoRA over any base.

Saves x, gate and up, and low-rank inputs; the activation's backward writes its gradients over gate and up and
the activated product over its own gradient, so that the backward needs no buffer of the intermediate width
besides one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .glu import Activation, glu_backward, glu_forward, glu_reference
from .lora import LoraSaved, Projection, ProjectionGrads, lora_backward, lora_forward, lora_reference
from .once import once

__all__ = ["lora_mlp", "lora_mlp_reference"]

_PARTS = ("weight", "bias", "a", "b", "b_bias")


def lora_mlp_reference(
    x: Tensor, gate: Projection, up: Projection, down: Projection, activation: Activation = "silu"
) -> Tensor:
    """Plain torch with autograd, any device: the truth (without dropout, which is random)."""
    return lora_reference(glu_reference(lora_reference(x, gate), lora_reference(x, up), activation), down)


class _LoraMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, projections: list[Projection], activation: Activation, *parts: Tensor | None
    ) -> Tensor:
        (gate, up), first = lora_forward(x, projections[:2])
        h = glu_forward(gate, up, activation)
        (y,), second = lora_forward(h, projections[2:])
        low_rank, masks = first.low_rank + second.low_rank, first.masks + second.masks
        ctx.save_for_backward(x, *parts, *low_rank, *masks)
        ctx.gate_up = gate, up  # overwritten by the backward, so not autograd's to guard
        ctx.projections = [replace(p, **dict.fromkeys(_PARTS)) for p in projections]
        ctx.activation = activation
        return y

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> Any:
        if ctx.gate_up is None:
            raise RuntimeError("the backward overwrote what the forward kept: run the forward again")
        (gate, up), ctx.gate_up = ctx.gate_up, None
        needs = ctx.needs_input_grad
        x, *tensors = ctx.saved_tensors
        parts, low_rank, masks = tensors[:15], tensors[15:18], tensors[18:]
        projections, wanted = [], []
        for i, p in enumerate(ctx.projections):
            mine = slice(5 * i, 5 * i + 5)
            projections.append(replace(p, **dict(zip(_PARTS, parts[mine], strict=True))))
            wanted.append(ProjectionGrads(*needs[3:][mine]))
        saved = LoraSaved(low_rank[2:], masks[2:])
        dy = dy if dy.stride(-1) == 1 else dy.contiguous()
        nothing = [ProjectionGrads()]
        # h does not exist here: only its gradient is asked, for which the dtype suffices.
        dh, _ = lora_backward([dy], gate, projections[2:], saved, wanted=nothing)
        dgate, dup = glu_backward(dh, gate, up, ctx.activation, dgate=gate, dup=up, h=dh)
        _, down = lora_backward([dy], dh, projections[2:], saved, wanted=wanted[2:], input_grad=False)
        saved = LoraSaved(low_rank[:2], masks[:2])
        dx, first = lora_backward(
            [dgate, dup], x, projections[:2], saved, wanted=wanted[:2], input_grad=needs[0]
        )
        return dx, None, None, *(getattr(g, part) for g in first + down for part in _PARTS)


def lora_mlp(
    x: Tensor, gate: Projection, up: Projection, down: Projection, activation: Activation = "silu"
) -> Tensor:
    """down(act(gate(x)) * up(x)), differentiable in x and every floating tensor of the projections.

    Args:
        x: (..., hidden), fp32 | fp16 | bf16: the compute dtype.
        activation: as ``glu`` takes it.
    Returns:
        (..., hidden). Its backward runs once.
    """
    projections = [gate, up, down]
    parts = [getattr(p, part) for p in projections for part in _PARTS]
    y = _LoraMLP.apply(x.reshape(-1, x.shape[-1]), projections, activation, *parts)
    return y.view(*x.shape[:-1], y.shape[-1])
