"""Each token's log-probability, and the entropy of what was predicted there, straight from the hidden states.

What preference and policy losses need (DPO, GRPO): any gradient may come back for each token, so the backward
makes
the logits again, a chunk at a time, from the saved log-sum-exp. With p = softmax(z), H its entropy:
dlogp/dz = onehot - p, dH/dz_i = -p_i (log p_i + H).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .cross_entropy import load_z, logits_to_z, row_statistics, vocab_tile
from .launch import launch, runs_triton, tl, triton
from .linear_cross_entropy import CHUNK_BYTES, accumulate_product, check_head, chunk_rows
from .once import once
from .shapes import accumulator

__all__ = [
    "TokenLogProbs",
    "linear_log_probs",
    "linear_log_probs_backward",
    "linear_log_probs_forward",
    "linear_log_probs_reference",
]


def linear_log_probs_reference(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Plain torch, any device: the truth. (log-probabilities, entropies), (rows,) each, fp32."""
    z = logits_to_z(torch.nn.functional.linear(hidden, weight, bias), scale, softcap)
    logp = torch.log_softmax(z, -1)
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


@triton.jit
def _forward_kernel(
    LOGITS, TARGETS, LOGP, LSE, ENTROPIES, l_row, vocab, scale, softcap,
    SOFTCAP: tl.constexpr, ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    LOGITS += row * l_row
    target = tl.load(TARGETS + row).to(tl.int64)
    known = (target >= 0) & (target < vocab)
    lse, _, entropy, _ = row_statistics(LOGITS, vocab, scale, softcap, SOFTCAP, ENTROPY, False, BLOCK)
    at = load_z(LOGITS, tl.where(known, target, 0), known, scale, softcap, SOFTCAP)
    tl.store(LOGP + row, tl.where(known, at - lse, float("nan")))
    tl.store(LSE + row, lse)
    if ENTROPY:
        tl.store(ENTROPIES + row, entropy)


@triton.jit
def _backward_kernel(
    LOGITS, TARGETS, LSE, ENTROPIES, DLOGP, DENTROPY, l_row, vocab, scale, softcap,
    SOFTCAP: tl.constexpr, ENTROPY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # The logits become their gradient.
    row = tl.program_id(0).to(tl.int64)
    LOGITS += row * l_row
    target = tl.load(TARGETS + row).to(tl.int64)
    lse = tl.load(LSE + row)
    dlogp = tl.load(DLOGP + row)
    if ENTROPY:
        entropy = tl.load(ENTROPIES + row)
        dentropy = tl.load(DENTROPY + row)
    for start in range(0, vocab, BLOCK):
        col = start + tl.arange(0, BLOCK)
        mask = col < vocab
        z = load_z(LOGITS, col, mask, scale, softcap, SOFTCAP)
        p = tl.exp(z - lse)
        grad = dlogp * (tl.where(col == target, 1.0, 0.0) - p)
        if ENTROPY:
            grad -= dentropy * tl.where(p > 0.0, p * (z - lse + entropy), 0.0)
        if SOFTCAP:
            grad *= 1.0 - (z / softcap) * (z / softcap)
        tl.store(LOGITS + col, (grad * scale).to(LOGITS.dtype.element_ty), mask=mask)


class TokenLogProbs(NamedTuple):
    """(rows,) each, fp32."""

    log_probs: Tensor
    entropy: Tensor | None
    lse: Tensor  # what the backward wants


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    if bias is None:
        return torch.mm(hidden, weight.t(), out=out)
    return torch.addmm(bias, hidden, weight.t(), out=out)


def linear_log_probs_forward(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> TokenLogProbs:
    """log softmax(scale * (hidden @ weight.T + bias))[target] of every row. Records no graph, never waits.

    Args:
        hidden: (rows, width). weight: (vocab, width), bias: (vocab,), of hidden's dtype.
        targets: (rows,) inside the vocabulary (another gives NaN). Leave out rows beforehand by indexing.
        scale: one over the temperature. softcap: as ``cross_entropy_forward`` has it.
        entropy: also the entropies.
    """
    check_head(hidden, weight, targets, bias)
    rows, vocab = hidden.shape[0], weight.shape[0]
    step = chunk_rows(rows, vocab, hidden.element_size(), chunk_bytes)
    logits = torch.empty(min(step, rows), vocab, dtype=hidden.dtype, device=hidden.device)
    logp, lse, ent = (torch.empty(rows, dtype=accumulator(hidden), device=hidden.device) for _ in range(3))
    for i in range(0, rows, step):
        x, target = hidden[i : i + step], targets[i : i + step].contiguous()
        z = _logits(x, weight, bias, logits[: x.shape[0]])
        parts = logp[i : i + step], lse[i : i + step], ent[i : i + step]
        if runs_triton(z):
            launch(
                _forward_kernel, (z.shape[0],),
                z, target, *parts, z.stride(0), vocab, float(scale), float(softcap or 1.0),
                SOFTCAP=softcap is not None, ENTROPY=entropy, **vocab_tile(vocab),
            )  # fmt: skip
        else:
            _forward_torch(z, target, parts, scale, softcap, entropy)
    return TokenLogProbs(logp, ent if entropy else None, lse)


def _forward_torch(
    logits: Tensor,
    target: Tensor,
    parts: tuple[Tensor, ...],
    scale: float,
    softcap: float | None,
    entropy: bool,
) -> None:
    for i in range(0, logits.shape[0], step := max(1, 2**20 // logits.shape[1])):
        logp, lse, ent = (part[i : i + step] for part in parts)
        z = logits_to_z(logits[i : i + step], scale, softcap)
        torch.logsumexp(z, -1, out=lse)
        torch.sub(z.gather(1, target[i : i + step, None])[:, 0], lse, out=logp)
        if entropy:
            torch.sub(lse, (torch.softmax(z, -1) * z).nan_to_num_(0.0).sum(-1), out=ent)


def linear_log_probs_backward(
    dlog_probs: Tensor,
    dentropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    saved: TokenLogProbs,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    hidden_grad: bool = True,
    weight_grad: bool = False,
    bias_grad: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of (hidden, weight, bias); of the last two fp32 when several chunks were summed.

    ``saved`` is what the forward returned; ``dentropy`` needs its entropy.
    """
    rows, vocab = hidden.shape[0], weight.shape[0]
    step = chunk_rows(rows, vocab, hidden.element_size(), chunk_bytes)
    logits = torch.empty(min(step, rows), vocab, dtype=hidden.dtype, device=hidden.device)
    dhidden = torch.empty_like(hidden) if hidden_grad else None
    dweight = torch.zeros_like(weight) if weight_grad and not rows else None
    dbias = torch.zeros(vocab, dtype=accumulator(hidden), device=hidden.device) if bias_grad else None
    dlog_probs = dlog_probs.to(saved.lse.dtype).contiguous()
    with_entropy = dentropy is not None
    dentropy = dentropy.to(saved.lse.dtype).contiguous() if with_entropy else dlog_probs
    entropy = saved.entropy if with_entropy else saved.lse
    for i in range(0, rows, step):
        at = slice(i, i + step)
        x, target = hidden[at], targets[at].contiguous()
        z = _logits(x, weight, bias, logits[: x.shape[0]])
        given = saved.lse[at], entropy[at], dlog_probs[at], dentropy[at]
        if runs_triton(z):
            launch(
                _backward_kernel, (z.shape[0],),
                z, target, *given, z.stride(0), vocab, float(scale), float(softcap or 1.0),
                SOFTCAP=softcap is not None, ENTROPY=with_entropy, **vocab_tile(vocab),
            )  # fmt: skip
        else:
            _backward_torch(z, target, given, scale, softcap, with_entropy)
        if hidden_grad:
            torch.mm(z, weight, out=dhidden[at])
        if weight_grad:
            dweight = accumulate_product(dweight, z.t(), x, several=rows > step)
        if bias_grad:
            dbias += z.sum(0, dtype=dbias.dtype)
    return dhidden, dweight, dbias


def _backward_torch(
    logits: Tensor,
    target: Tensor,
    given: tuple[Tensor, ...],
    scale: float,
    softcap: float | None,
    with_entropy: bool,
) -> None:
    for i in range(0, logits.shape[0], step := max(1, 2**20 // logits.shape[1])):
        lse, entropy, dlogp, dentropy = (part[i : i + step, None] for part in given)
        z = logits_to_z(logits[i : i + step], scale, softcap)
        log_p = z - lse
        p = log_p.exp()
        grad = -dlogp * p
        if with_entropy:
            grad -= dentropy * (p * log_p.add_(entropy)).nan_to_num_(0.0)
        grad.scatter_add_(1, target[i : i + step, None], dlogp)
        if softcap is not None:
            grad *= 1 - (z / softcap).square_()
        logits[i : i + step].copy_(grad.mul_(scale))


class _LinearLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        entropy: bool,
        options: dict,
    ) -> tuple[Tensor, Tensor | None]:
        result = linear_log_probs_forward(hidden, weight, targets, bias=bias, entropy=entropy, **options)
        ctx.save_for_backward(hidden, weight, bias, targets, *result)
        ctx.options = options
        ctx.set_materialize_grads(False)
        return result.log_probs, result.entropy

    @staticmethod
    @once
    def backward(ctx: Any, dlog_probs: Tensor | None, dentropy: Tensor | None) -> Any:
        hidden, weight, bias, targets, *saved = ctx.saved_tensors
        if dlog_probs is None:
            dlog_probs = torch.zeros_like(saved[0])
        needs = ctx.needs_input_grad
        grads = linear_log_probs_backward(
            dlog_probs, dentropy, hidden, weight, targets, TokenLogProbs(*saved), bias=bias,
            hidden_grad=needs[0], weight_grad=needs[1], bias_grad=needs[2], **ctx.options,
        )  # fmt: skip
        return *(None if grad is None else grad.to(weight.dtype) for grad in grads), None, None, None


def linear_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[Tensor, Tensor | None]:
    """(log-probabilities, entropies or None) of every row, differentiable in hidden, weight and bias.

    Arguments as ``linear_log_probs_forward`` takes them. Logits never exist whole, in either direction.
    """
    options = {"scale": scale, "softcap": softcap, "chunk_bytes": chunk_bytes}
    return _LinearLogProbs.apply(hidden, weight, bias, targets, entropy, options)
