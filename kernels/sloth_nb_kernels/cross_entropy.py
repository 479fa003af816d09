"""Cross-entropy over a vocabulary of any width, loss and gradient in one launch, the gradient in place if
asked.

loss = lse(z) - z_target, dloss/dz = softmax(z) - onehot(target), with z = softcap * tanh(scale * logits /
softcap). The sum is taken online (Milakov & Gimelshein 2018, arXiv:1805.02867), block by block, so that the
row is read twice and stored once, and no vocabulary-sized temporary exists.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .elementary import tanh
from .launch import launch, next_power_of_2, pretending, runs_triton, tl, triton
from .once import once
from .shapes import wide

__all__ = [
    "RowStatistics",
    "count_targets",
    "cross_entropy",
    "cross_entropy_forward",
    "cross_entropy_reference",
    "logits_to_z",
]


def logits_to_z(logits: Tensor, scale: float = 1.0, softcap: float | None = None) -> Tensor:
    """What the loss sees of the logits, in fp32: scaled, then soft-capped (Gemma 2)."""
    z = wide(logits)
    z = z if scale == 1.0 else z * scale
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def cross_entropy_reference(
    logits: Tensor,
    targets: Tensor,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    smoothing: float = 0.0,
    ignore_index: int = -100,
) -> Tensor:
    """Plain torch, any device: the truth. Each row's loss; 0 where the target is ``ignore_index``."""
    z = logits_to_z(logits, scale, softcap)
    return F.cross_entropy(z, targets, ignore_index=ignore_index, label_smoothing=smoothing, reduction="none")


@triton.jit
def load_z(LOGITS, col, mask, scale, softcap, SOFTCAP: tl.constexpr):
    """A block of z in fp32, 0 where masked."""
    z = tl.load(LOGITS + col, mask=mask, other=0.0).to(tl.float32) * scale
    if SOFTCAP:
        z = softcap * tanh(z / softcap)
    return z


@triton.jit
def row_statistics(
    LOGITS,
    vocab,
    scale,
    softcap,
    SOFTCAP: tl.constexpr,
    ENTROPY: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(log-sum-exp, maximum, entropy, sum) of one row of z, in one pass; the last two only if asked, else
    0."""
    top = -1.0e30
    total = 0.0
    weighted = 0.0  # sum of exp(z - top) * (z - top)
    plain = 0.0
    for start in range(0, vocab, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < vocab
        z = load_z(LOGITS, col, mask, scale, softcap, SOFTCAP)
        if MEAN:
            plain += tl.sum(z, 0)
        z = tl.where(mask, z, -float("inf"))
        above = tl.maximum(top, tl.max(z, 0))
        e = tl.exp(z - above)
        shrink = tl.exp(top - above)
        if ENTROPY:
            shifted = tl.where(e > 0.0, z - above, 0.0)
            weighted = shrink * (weighted + total * (top - above)) + tl.sum(e * shifted, 0)
        total = total * shrink + tl.sum(e, 0)
        top = above
    return top + tl.log(total), top, tl.log(total) - weighted / total, plain


@triton.jit
def _kernel(
    LOGITS, TARGETS, GRAD, LOSS, ENTROPIES, CORRECT, l_row, g_row, vocab, scale, softcap, smoothing,
    ignore_index,
    WITH_GRAD: tl.constexpr, STATISTICS: tl.constexpr, SOFTCAP: tl.constexpr, SMOOTH: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    LOGITS += row * l_row
    GRAD += row * g_row
    target = tl.load(TARGETS + row).to(tl.int64)
    trained = target != ignore_index
    known = (target >= 0) & (target < vocab)
    lse, top, entropy, plain = row_statistics(
        LOGITS, vocab, scale, softcap, SOFTCAP, STATISTICS, SMOOTH, BLOCK
    )
    at = load_z(LOGITS, tl.where(known, target, 0), known, scale, softcap, SOFTCAP)
    loss = lse - at
    if SMOOTH:
        loss = (1.0 - smoothing) * loss + smoothing * (lse - plain / vocab)
    loss = tl.where(known, loss, float("nan"))  # a target outside the vocabulary must not pass unseen
    tl.store(LOSS + row, tl.where(trained, loss, 0.0))
    if STATISTICS:
        tl.store(ENTROPIES + row, tl.where(trained, entropy, 0.0))
        tl.store(CORRECT + row, tl.where(trained & (at >= top), 1.0, 0.0))
    if WITH_GRAD:
        for start in range(0, vocab, BLOCK):
            col = start + tl.arange(0, BLOCK)
            mask = col < vocab
            z = load_z(LOGITS, col, mask, scale, softcap, SOFTCAP)
            grad = tl.exp(z - lse)
            if SMOOTH:
                grad -= smoothing / vocab + tl.where(col == target, 1.0 - smoothing, 0.0)
            else:
                grad -= tl.where(col == target, 1.0, 0.0)
            if SOFTCAP:
                grad *= 1.0 - (z / softcap) * (z / softcap)
            grad = tl.where(trained, grad * scale, 0.0)  # of a row that isn't, whatever stands there
            tl.store(GRAD + col, grad.to(GRAD.dtype.element_ty), mask=mask)


class RowStatistics(NamedTuple):
    """What each row of logits says, fp32, 0 where it is ignored: (rows,) each."""

    loss: Tensor
    entropy: Tensor | None  # of softmax(z)
    correct: Tensor | None  # 1 where the target has the largest z


def vocab_tile(vocab: int) -> dict[str, int]:
    block = min(next_power_of_2(vocab), 4096)
    return {"BLOCK": block, "num_warps": max(1, min(8, block // 256))}


def cross_entropy_forward(
    logits: Tensor,
    targets: Tensor,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    smoothing: float = 0.0,
    ignore_index: int = -100,
    grad_out: Tensor | None = None,
    statistics: bool = False,
) -> RowStatistics:
    """Each row's loss and, into ``grad_out``, the gradient of the losses' sum. Records no graph, never waits.

    Args:
        logits: (rows, vocab), fp32 | fp16 | bf16, any row stride.
        targets: (rows,), integers. One that is neither ``ignore_index`` nor inside the vocabulary gives NaN.
        scale: multiplies the logits (Cohere's logit_scale, one over Granite's logits_scaling or a
            temperature).
        softcap: z = softcap * tanh(scale * logits / softcap) (Gemma 2).
        smoothing: label smoothing as torch's cross_entropy has it.
        grad_out: (rows, vocab) for the gradient; ``logits`` itself to overwrite them; None for the loss only.
        statistics: also each row's entropy, and whether its target comes first.
    Raises:
        ValueError: shapes that do not fit each other.
    """
    if logits.dim() != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"needs logits (rows, vocab), targets (rows,): {tuple(logits.shape)}, {tuple(targets.shape)}"
        )
    if grad_out is not None and (grad_out.shape != logits.shape or grad_out.stride(-1) != 1):
        raise ValueError(
            f"grad_out must be {tuple(logits.shape)} with contiguous rows, got {tuple(grad_out.shape)}"
        )
    if not runs_triton(logits):
        return _torch(logits, targets, scale, softcap, smoothing, ignore_index, grad_out, statistics)
    logits, targets = logits if logits.stride(-1) == 1 else logits.contiguous(), targets.contiguous()
    rows, vocab = logits.shape
    loss = torch.empty(rows, dtype=torch.float32, device=logits.device)
    entropy, correct = (torch.empty_like(loss) if statistics else None for _ in range(2))
    grad = logits if grad_out is None else grad_out
    launch(
        _kernel, (rows,),
        logits, targets, grad, loss, loss if entropy is None else entropy, loss if correct is None else
        correct, logits.stride(0), grad.stride(0), vocab, float(scale), float(softcap or 1.0),
        float(smoothing), ignore_index, WITH_GRAD=grad_out is not None, STATISTICS=statistics, SOFTCAP=softcap
        is not None, SMOOTH=smoothing != 0.0, **vocab_tile(vocab),
    )  # fmt: skip
    return RowStatistics(loss, entropy, correct)


def _torch(
    logits: Tensor,
    targets: Tensor,
    scale: float,
    softcap: float | None,
    smoothing: float,
    ignore_index: int,
    grad_out: Tensor | None,
    statistics: bool,
) -> RowStatistics:
    """A few rows at a time, so that the fp32 copies stay in the processor's cache."""
    vocab, step = logits.shape[1], max(1, 2**20 // logits.shape[1])
    trained = targets != ignore_index
    columns = torch.where(trained, targets, 0).long()
    some_left_out = pretending() or not bool(trained.all())
    room = None
    parts = []
    for i in range(0, logits.shape[0], step):
        z, mask, column = (t[i : i + step] for t in (logits, trained, columns))
        z, column = logits_to_z(z, scale, softcap), column[:, None]
        room = torch.empty_like(z) if room is None else room
        p = torch.softmax(z, -1, out=room[: z.shape[0]])
        if vocab > 2**16:  # torch adds each up in a processor's few lanes, and loses digits on the way
            p /= p.sum(-1, keepdim=True)
        # The largest probability gives log-sum-exp without another pass of exponentials.
        top = z.amax(-1)
        lse = top - p.amax(-1).log_()
        at = z.gather(1, column)[:, 0]
        loss = lse - at
        if smoothing:
            loss = (1 - smoothing) * loss + smoothing * (lse - z.mean(-1))
        part = [torch.where(mask, loss, 0)]
        if statistics:
            part += [
                torch.where(mask, lse - (p * z).nan_to_num_(0.0).sum(-1), 0),
                (mask & (at >= top)).to(loss.dtype),
            ]
        parts.append(part)
        if grad_out is not None:
            if smoothing:
                p -= smoothing / vocab
            p.scatter_add_(1, column, p.new_full((), smoothing - 1.0).expand_as(column))
            if softcap is not None:
                p *= 1 - (z / softcap).square_()
            if scale != 1.0:
                p *= scale
            if some_left_out:
                p.masked_fill_(~mask[:, None], 0.0)
            grad_out[i : i + step].copy_(p)
    columns = (
        [torch.cat(list(column)) for column in zip(*parts, strict=True)]
        if parts
        else [wide(logits[:, 0])] * 3
    )
    return RowStatistics(columns[0], columns[1] if statistics else None, columns[2] if statistics else None)


def count_targets(targets: Tensor, ignore_index: int = -100) -> Tensor:
    """How many targets are trained on, as a tensor: nothing waits for it."""
    return (targets != ignore_index).sum()


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, overwrite: bool, want: bool, options: dict
    ) -> Tensor:
        grad = None
        if want and ctx.needs_input_grad[0]:
            grad = (
                logits.detach()
                if overwrite
                else torch.empty_like(logits, memory_format=torch.contiguous_format)
            )
        ctx.grad = grad
        return cross_entropy_forward(logits, targets, grad_out=grad, **options).loss

    @staticmethod
    @once
    def backward(ctx: Any, dloss: Tensor) -> Any:
        if ctx.grad is None:
            raise RuntimeError("the loss keeps one gradient and has given it away: run the forward again")
        grad, ctx.grad = ctx.grad, None
        return grad.mul_(dloss[:, None]), None, None, None, None


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    smoothing: float = 0.0,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum", "none"] = "mean",
    num_items: int | Tensor | None = None,
    overwrite_logits: bool = False,
) -> Tensor:
    """Cross-entropy of (rows, vocab) logits, differentiable; the gradient is made in the forward.

    Arguments as ``cross_entropy_forward`` takes them, and

    Args:
        num_items: what "mean" divides by (the targets of a whole accumulated batch); the trained rows by
            default.
        overwrite_logits: the gradient takes the logits' place, which saves their size; nobody else may need
            them.
    Returns:
        fp32 scalar, or (rows,) with reduction "none".
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be mean, sum or none, got {reduction!r}")
    options = {"scale": scale, "softcap": softcap, "smoothing": smoothing, "ignore_index": ignore_index}
    loss = _CrossEntropy.apply(logits, targets, overwrite_logits, torch.is_grad_enabled(), options)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    return loss.sum() / (count_targets(targets, ignore_index) if num_items is None else num_items)
