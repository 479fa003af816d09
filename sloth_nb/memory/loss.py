"""The head and the loss: chunks of logits under a byte budget, the gradient made in the forward."""

from dataclasses import dataclass

from sloth_nb.memory.work import Work

__all__ = ["LossCost", "chunk_rows", "loss_cost"]


@dataclass(frozen=True)
class LossCost:
    """``peak`` while it runs, ``gradient`` of a trained head, which stays; ``parts``: tensors beside hidden states."""

    peak: int
    gradient: int
    parts: tuple[int, ...]


def chunk_rows(rows: int, vocab: int, budget: int) -> int:
    """Rows of logits that exist at a time: as many as fit the budget, evened out over the chunks.

    The same rule as the kernel's (sloth_nb_kernels.linear_cross_entropy.chunk_rows), for 16-bit logits.
    """
    most = max(1, budget // (2 * vocab))
    if rows <= most:
        return rows
    even = -(-rows // -(-rows // most))
    return min(-(-even // 64) * 64, most - most % 64) if most >= 64 else even


def loss_cost(work: Work) -> LossCost:
    """Bytes of the fused linear cross-entropy: normed hidden states, their gradient, a chunk of logits."""
    shape = work.model.shape
    hidden = 2 * work.tokens * shape.hidden
    rows = chunk_rows(work.tokens, shape.vocab, work.loss_chunk)
    chunk = 2 * rows * shape.vocab
    if work.lora:
        return LossCost(2 * hidden + chunk, 0, (chunk,))
    # A trained head's gradient is summed over the chunks in fp32 and rounded at the end: both exist then.
    head = shape.head_parameters
    summed = (4 if rows < work.tokens else 2) * head
    return LossCost(2 * hidden + max(chunk + summed, summed + 2 * head), 2 * head, (chunk, summed))
