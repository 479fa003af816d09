"""transformers and peft as they come: what the same work takes without our engine.

Every tensor that autograd saves is counted; nothing is fitted. Against the bench of Llama-3.1-8B on an H200
(rank 32 on all projections, bf16): within 0.1 % with checkpointing, 0.5 % without (tests/memory).
"""

from sloth_nb.catalog import GPU, Block
from sloth_nb.memory.attention import attention_cost
from sloth_nb.memory.moment import Moment
from sloth_nb.memory.work import Work

__all__ = ["plain_moments"]


def plain_moments(work: Work, gpu: GPU) -> list[Moment]:
    """The moments of a step of the plain stack. Any policy but "keep" is torch's own checkpointing."""
    shape = work.model.shape
    hidden = 2 * work.tokens * shape.hidden
    keep = work.policy == "keep"
    held = 2 * hidden
    for block in shape.blocks:
        held += block.count * (_saved(block, work) if keep else 2 * work.tokens_in(block) * block.hidden)
    # 16-bit logits, and in fp32 the log-probabilities and the two gradients on the way back.
    logits = work.tokens * shape.vocab * (2 + 3 * 4)

    top = shape.blocks[-1]
    kernel = "host" if gpu.is_cpu else "flash" if gpu.capability >= 8 else "efficient"
    backward = {
        "activations": held,
        "workspace": (0 if keep else _saved(top, work)) + 3 * 2 * work.tokens * top.active_ffn,
        "attention": attention_cost(top, kernel, work.tokens, 2).backward,
        "dequantised": 2 * shape.largest_linear if work.method in ("qlora", "lora-8bit") else 0,
    }
    return [Moment("loss", {"activations": held, "loss": logits}), Moment("backward", backward)]


def _saved(block: Block, work: Work) -> int:
    """What autograd saves of one layer. A frozen linear layer saves nothing, a LoRA its input in fp32."""
    tokens = work.tokens_in(block)
    q, kv = block.heads * block.head_dim, block.kv_heads * block.head_dim
    norms = 2 * 4 * block.hidden * (2 if block.post_norms else 1) + (4 * (q + kv) if block.qk_norm else 0)
    attention = 2 * (2 * q + 2 * kv) + 4 * block.heads
    mlp = 2 * (3 if block.gated else 2) * block.active_ffn
    if work.lora:
        mine = [x for owner, x in work.model.shape.adapted(work.targets) if owner is block]
        inputs = sum(4 * x.inputs + 4 * work.rank for x in mine)
    else:  # for the weights' gradients: states before and after the norm's weight, and the MLP's product
        inputs = 2 * (4 * block.hidden + block.active_ffn)
    return tokens * (norms + attention + mlp + inputs)
