"""Attention's own bytes, by the kernel that the engine will choose: saved, and while its backward runs."""

from dataclasses import dataclass

from sloth_nb.catalog import Block

__all__ = ["AttentionCost", "attention_cost", "attention_kernel"]


@dataclass(frozen=True)
class AttentionCost:
    """Bytes for one layer. ``saved`` lives with the output; the others while the kernel runs."""

    saved: int
    forward: int
    backward: int


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
    """What a kernel needs beside q, k, v, the output and their gradients, for this many tokens."""
    wide = tokens * block.heads * block.head_dim
    narrow = tokens * block.kv_heads * block.head_dim
    rows = tokens * block.heads * 4  # log-sum-exp, fp32
    grouped = block.heads != block.kv_heads
    if kernel == "flash":
        # fp32 sums of dq, row sums of dout*out, and for grouped heads dk and dv once a query head.
        return AttentionCost(rows, 0, 4 * wide + rows + (2 * wide * itemsize if grouped else 0))
    if kernel == "cudnn":
        return AttentionCost(rows, 0, 4 * wide + 2 * rows + (2 * wide * itemsize if grouped else 0))
    if kernel == "efficient":
        repeated = 2 * wide * itemsize if grouped else 0
        extra = 2 * (wide - narrow) * itemsize if grouped else 0  # dk and dv once a query head
        return AttentionCost(rows, repeated, repeated + extra + 4 * wide + rows)
    repeated = 2 * wide * itemsize if grouped else 0
    return AttentionCost(rows, repeated, 2 * repeated + 3 * wide * itemsize)
