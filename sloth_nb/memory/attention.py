"""Attention's own bytes, by the kernel that the engine will choose: saved, and while its backward runs."""

from dataclasses import dataclass

from sloth_nb.catalog import Block

__all__ = ["AttentionCost", "attention_cost", "attention_kernel"]


@dataclass(frozen=True)
class AttentionCost:
    """Bytes for one layer beside q, k, v, the output and their gradients.

    ``saved`` lives with the output; ``forward`` and ``backward`` while they run. ``inside`` is the part of
    ``backward`` that the kernel takes itself, which no Python code sees.
    """

    saved: int
    forward: int
    backward: int
    inside: int


def attention_kernel(block: Block, capability: float, packed: bool, windowed: bool) -> str:
    """The engine's choice (engine/attention.py) for 16-bit tensors."""
    if capability == 0:
        return "host"
    if capability < 8.0 or block.head_dim > 256:
        return "efficient"
    if capability >= 9.0 and not packed and not windowed and block.head_dim <= 128:
        return "cudnn"
    return "flash"


def attention_cost(block: Block, kernel: str, tokens: int, itemsize: int) -> AttentionCost:
    """What a kernel needs for this many tokens."""
    wide = tokens * block.heads * block.head_dim
    narrow = tokens * block.kv_heads * block.head_dim
    rows = tokens * block.heads * 4  # log-sum-exp, fp32
    grouped = block.heads != block.kv_heads
    repeated = 2 * wide * itemsize if grouped else 0  # k and v (or their gradients) once a query head
    if kernel == "flash":  # fp32 sums of dq, and row sums of dout * out
        inside = 4 * wide + rows + repeated
        return AttentionCost(rows, 0, inside, inside)
    if kernel == "cudnn":
        inside = 4 * wide + 2 * rows + repeated
        return AttentionCost(rows, 0, inside, inside)
    if kernel == "efficient":
        inside = 4 * wide + rows
        extra = repeated + (2 * (wide - narrow) * itemsize if grouped else 0)
        return AttentionCost(rows, repeated, inside + extra, inside)
    return AttentionCost(rows, repeated, 2 * repeated + 3 * wide * itemsize, 0)
