"""GRPO's other half, generating the answers: a KV cache, and the logits of the last position."""

from sloth_nb.memory.moment import Moment
from sloth_nb.memory.work import Work

__all__ = ["generation", "kv_cache_bytes"]


def kv_cache_bytes(work: Work, tokens: int) -> int:
    """K and V of every decoder layer for this many tokens of every answer, 16-bit."""
    blocks = [block for block in work.model.shape.blocks if block.kind in ("decoder", "cross", "depth")]
    per_token = sum(block.count * 2 * block.kv_heads * block.head_dim * 2 for block in blocks)
    return work.batch * tokens * per_token


def generation(work: Work) -> list[Moment]:
    """The fullest moment of generating, as one entry; none when nothing is generated."""
    if work.task != "grpo":
        return []
    prompt, answer = work.rollout
    shape = work.model.shape
    sampling = work.batch * shape.vocab * (2 + 4 * 3)  # logits, and sorted, summed and drawn from in fp32
    buffer = 2 * shape.largest_linear if work.method in ("qlora", "lora-8bit") else 0
    kinds = {
        "generation": kv_cache_bytes(work, prompt + answer) + sampling,
        "workspace": 2 * work.batch * prompt * (shape.hidden + 2 * max(b.active_ffn for b in shape.blocks)),
        "dequantised": buffer,
    }
    return [Moment("generation", kinds)]
