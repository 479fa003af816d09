"""The LM head and its loss in one: logits exist a chunk at a time, and the gradient is made in the forward.

Two products a chunk with a frozen head (logits, hidden gradient), three with a trained one; the logits'
gradient overwrites the logits. Rows that are not trained on are left out first where their places are known
without waiting for the device. Gradients are kept unscaled, of the sum of the losses: dividing by the number
of items and by a loss scale happens once, on the small tensors, so that fp16 loses nothing to underflow.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .cross_entropy import RowStatistics, cross_entropy_forward, cross_entropy_reference
from .launch import on_gpu
from .once import once
from .products import product
from .shapes import accumulator

__all__ = [
    "CHUNK_BYTES",
    "LossAndGradients",
    "accumulate_product",
    "check_head",
    "chunk_rows",
    "linear_cross_entropy",
    "linear_cross_entropy_forward",
    "linear_cross_entropy_reference",
    "trained_rows",
]

CHUNK_BYTES = 256 << 20


def linear_cross_entropy_reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None, **options: Any
) -> Tensor:
    """Plain torch, any device: the truth. Each row's loss, through logits that exist whole."""
    return cross_entropy_reference(torch.nn.functional.linear(hidden, weight, bias), targets, **options)


class LossAndGradients(NamedTuple):
    """The sum of the rows' losses (fp32 scalar) and its gradients; None for what was not asked."""

    loss: Tensor
    hidden_grad: Tensor | None  # hidden's shape and dtype
    weight_grad: Tensor | None  # fp32 when several chunks were summed, else the weight's dtype
    bias_grad: Tensor | None  # fp32
    entropy: Tensor | None  # sum over the trained rows, fp32 scalar
    correct: Tensor | None  # trained rows whose target comes first, fp32 scalar


def trained_rows(targets: Tensor, ignore_index: int = -100) -> Tensor:
    """Indices, int64, of the rows to train on. Their number is data: call it where targets live on the CPU,
    or be ready to wait for the device."""
    return (targets != ignore_index).nonzero()[:, 0]


def chunk_rows(rows: int, vocab: int, itemsize: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Rows of logits a chunk: what fits the budget, evenly spread, in multiples of 64 where there are that
    many."""
    most = max(1, chunk_bytes // (vocab * itemsize))
    if rows <= most:
        return max(rows, 1)
    even = -(-rows // -(-rows // most))
    return min(-(-even // 64) * 64, most - most % 64) if most >= 64 else even


def linear_cross_entropy_forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    smoothing: float = 0.0,
    ignore_index: int = -100,
    keep: Tensor | None = None,
    hidden_grad: bool = True,
    weight_grad: bool = False,
    bias_grad: bool = False,
    statistics: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
    logits: Tensor | None = None,
    out: Tensor | None = None,
) -> LossAndGradients:
    """Loss and gradients of ``cross_entropy(hidden @ weight.T + bias, targets)``. Records no graph.

    Args:
        hidden: (rows, width). weight: (vocab, width), bias: (vocab,), of hidden's dtype.
        targets: (rows,), already shifted.
        scale, softcap, smoothing, ignore_index: as ``cross_entropy_forward`` takes them.
        keep: (kept,) int64, the rows to compute (``trained_rows`` of the targets, made on the host with the
            batch). Without it all rows are computed on a GPU, where counting them would make the host wait;
            on a CPU the trained ones are found here.
        statistics: also the sums of entropy and of correct first guesses.
        chunk_bytes: how large the one buffer of logits may grow.
        logits: that buffer, flat, of hidden's dtype and device, overwritten; one is made when it isn't given.
        out: where the hidden gradient goes; may be ``hidden`` itself.
    Raises:
        ValueError: shapes or dtypes that do not fit each other.
    """
    check_head(hidden, weight, targets, bias)
    if keep is None and not on_gpu(hidden):
        keep = trained_rows(targets, ignore_index)
        keep = None if keep.numel() == targets.numel() else keep
    rows = hidden.shape[0] if keep is None else keep.shape[0]
    vocab = weight.shape[0]
    step = chunk_rows(rows, vocab, hidden.element_size(), chunk_bytes)
    if logits is None:
        logits = hidden.new_empty(min(step, rows) * vocab)
    logits = _chunk_of(logits, min(step, rows), vocab, hidden)
    dhidden = dweight = dbias = None
    if hidden_grad:
        dhidden = torch.empty_like(hidden) if out is None else out
        if keep is not None and dhidden is hidden:
            raise ValueError("out may be hidden itself only when every row is computed")
        if keep is not None:
            dhidden.zero_()
    any_grad = hidden_grad or weight_grad or bias_grad
    parts: list[RowStatistics] = []
    for i in range(0, rows, step):
        chosen = slice(i, i + step) if keep is None else keep[i : i + step]
        x, target = hidden[chosen], targets[chosen]
        z = logits[: x.shape[0]]
        if bias is None:
            torch.mm(x, weight.t(), out=z)
        else:
            torch.addmm(bias, x, weight.t(), out=z)
        parts.append(
            cross_entropy_forward(
                z, target, scale=scale, softcap=softcap, smoothing=smoothing, ignore_index=ignore_index,
                grad_out=z if any_grad else None, statistics=statistics,
            )
        )  # fmt: skip
        if weight_grad:
            dweight = accumulate_product(dweight, z.t(), x, several=rows > step)
        if bias_grad:
            part = z.sum(0, dtype=accumulator(z))
            dbias = part if dbias is None else dbias.add_(part)
        if hidden_grad and keep is None:
            torch.mm(z, weight, out=dhidden[chosen])
        elif hidden_grad:
            dhidden.index_copy_(0, chosen, torch.mm(z, weight))
    if weight_grad and dweight is None:
        dweight = torch.zeros_like(weight)
    if bias_grad and dbias is None:
        dbias = torch.zeros(vocab, dtype=accumulator(hidden), device=hidden.device)
    loss, entropy, correct = (
        _sum(column, hidden) for column in (zip(*parts, strict=True) if parts else [()] * 3)
    )
    return LossAndGradients(
        loss, dhidden, dweight, dbias, entropy if statistics else None, correct if statistics else None
    )


def _chunk_of(logits: Tensor, rows: int, vocab: int, like: Tensor) -> Tensor:
    """(rows, vocab) of a flat buffer."""
    alike = logits.dtype is like.dtype and logits.device == like.device
    if not (alike and logits.dim() == 1 and logits.is_contiguous() and logits.numel() >= rows * vocab):
        raise ValueError(
            f"logits must be a flat buffer of {rows * vocab} or more {like.dtype} on {like.device}, "
            f"got {tuple(logits.shape)} {logits.dtype} on {logits.device}"
        )
    return logits[: rows * vocab].view(rows, vocab)


def _sum(column: tuple[Tensor | None, ...], like: Tensor) -> Tensor | None:
    """One sum over all chunks' rows: one launch, and the same order whatever the chunks."""
    if not column:
        return torch.zeros((), dtype=accumulator(like), device=like.device)
    return None if column[0] is None else torch.cat(column).sum()


def accumulate_product(total: Tensor | None, a: Tensor, b: Tensor, *, several: bool) -> Tensor:
    """total + a @ b, kept in fp32 when ``several`` products are summed."""
    if not several:
        return torch.mm(a, b)
    return product(a, b, accumulator(a), out=total, add=total is not None)


def check_head(hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None) -> None:
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            "hidden must be (rows, width) and weight (vocab, width), "
            f"got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets must be ({hidden.shape[0]},), got {tuple(targets.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({weight.shape[0]},), got {tuple(bias.shape)}")
    if weight.dtype != hidden.dtype or (bias is not None and bias.dtype != hidden.dtype):
        raise ValueError(f"the head must have hidden's dtype {hidden.dtype}, got {weight.dtype}")


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        want: bool,
        options: dict,
    ) -> Tensor:
        needs = [want and need for need in ctx.needs_input_grad[:3]]
        result = linear_cross_entropy_forward(
            hidden, weight, targets, bias=bias,
            hidden_grad=needs[0], weight_grad=needs[1], bias_grad=needs[2], **options,
        )  # fmt: skip
        ctx.grads = result[1:4]
        ctx.dtype = weight.dtype
        return result.loss

    @staticmethod
    @once
    def backward(ctx: Any, dloss: Tensor) -> Any:
        if ctx.grads is None:
            raise RuntimeError("the loss keeps one gradient and has given it away: run the forward again")
        grads, ctx.grads = ctx.grads, None
        scaled = [None if grad is None else grad.mul_(dloss).to(ctx.dtype) for grad in grads]
        return *scaled, None, None, None


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean",
    num_items: int | Tensor | None = None,
    keep: Tensor | None = None,
    chunk_bytes: int = CHUNK_BYTES,
    logits: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of ``hidden @ weight.T + bias``, differentiable in hidden, weight and bias.

    Arguments as ``linear_cross_entropy_forward`` takes them; ``num_items`` is what "mean" divides by (the
    targets of a whole accumulated batch), the trained rows of this call by default.

    Returns:
        fp32 scalar.
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be mean or sum, got {reduction!r}")
    options = {
        "scale": scale, "softcap": softcap, "smoothing": smoothing, "ignore_index": ignore_index,
        "keep": keep, "chunk_bytes": chunk_bytes, "logits": logits,
    }  # fmt: skip
    loss = _LinearCrossEntropy.apply(hidden, weight, bias, targets, torch.is_grad_enabled(), options)
    if reduction == "sum":
        return loss
    return loss / ((targets != ignore_index).sum() if num_items is None else num_items)
