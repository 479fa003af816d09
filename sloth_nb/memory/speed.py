"""How long a step takes, roughly: what the planner ranks its choices by, not what it promises.

Products at the share of the card's peak that large ones reach, everything else at the speed of its memory,
copies at the link's, and never less than the launches take. Shares of the data sheet, from the H200 bench.
"""

from dataclasses import dataclass

from sloth_nb.catalog import GPU, Block
from sloth_nb.memory.policy import PRODUCTS, Policy, tape_bytes
from sloth_nb.memory.work import Work

__all__ = ["LayerTime", "layer_time", "step_seconds"]

ATTENTION = 0.45
LOW_RANK = 0.20  # products with a side of a few dozen
MEMORY = 0.80
LAUNCH = 5e-6
CONTENTION = 0.1  # copies beside the arithmetic still cost it this share of their time
LAUNCHES = {"forward": 24, "backward": 56}


@dataclass(frozen=True)
class LayerTime:
    """Seconds of one layer, both passes together, and bytes that it sends over the link each way."""

    seconds: float
    link: int


def layer_time(block: Block, work: Work, policy: Policy, gpu: GPU, tile: int | None = None) -> LayerTime:
    """One layer of this block under one policy."""
    tokens = block.positions * work.sequences if block.positions else work.tokens
    rate = PRODUCTS * gpu.tflops_16 * 1e12
    bandwidth = MEMORY * gpu.bandwidth * 1e9
    query, narrow = block.heads * block.head_dim, block.kv_heads * block.head_dim
    ffns = 2 if block.gated else 1
    held = policy.held

    weights = block.linear_weights + block.expert_weights * block.experts_per_token // max(block.experts, 1)
    products = (3 if work.method == "full" else 2) * 2 * tokens * weights
    again = {
        "qkv": block.hidden * (query + 2 * narrow),
        "middle": query * block.hidden,
        "gate_up": ffns * block.hidden * block.active_ffn,
    }
    products += sum(2 * tokens * size for name, size in again.items() if name not in held)
    # Causal attention: half of the square. Its backward is two and a half forwards.
    scores = 2 * tokens * work.length * query
    scores *= 3.5 if "attention" in held else 4.5
    low_rank = 0.0
    if work.lora:
        mine = [x for owner, x in work.model.shape.adapted(work.targets) if owner is block]
        low_rank = 12 * tokens * work.rank * sum(x.inputs + x.outputs for x in mine)
    moved = 2 * tokens * (30 * block.hidden + 8 * query + 12 * block.active_ffn)
    if work.method in ("qlora", "lora-8bit"):
        missing = sum(size for name, size in again.items() if name not in held and name != "gate_up")
        moved += 2.5 * (2 * block.linear_weights + missing)
    seconds = products / rate + scores / (ATTENTION * gpu.tflops_16 * 1e12)
    seconds += low_rank / (LOW_RANK * gpu.tflops_16 * 1e12) + moved / bandwidth
    tiles = -(-tokens // tile) if tile else 1
    launches = LAUNCHES["forward"] + LAUNCHES["backward"] + (5 - len(held)) * 4 + (tiles - 1) * 24
    sizes = tape_bytes(block, tokens)
    link = sum(sizes[name] for name in policy.host)
    return LayerTime(max(seconds, 0.0 if gpu.is_cpu else launches * LAUNCH), link)


def step_seconds(work: Work, gpu: GPU) -> float:
    """One optimiser step: ``accumulation`` micro-steps of ``batch`` sequences each."""
    shape = work.model.shape
    policies = work.policies(gpu)
    tile = work.tile(policies, gpu)
    made: dict[tuple[int, Policy], LayerTime] = {}
    going = iter(policies)
    layers, link = 0.0, 0
    for number, block in enumerate(shape.blocks):
        for _ in range(block.count):
            key = (number, next(going))
            if key not in made:
                made[key] = layer_time(block, work, key[1], gpu, tile)
            layers += made[key].seconds
            link += made[key].link
    # Copies run beside the arithmetic; what the whole pass can't hide shows.
    copies = 2 * link / (gpu.host_gbps * 1e9)
    layers = max(layers, copies) + CONTENTION * copies
    head = 3 * 2 * work.tokens * shape.hidden * shape.vocab / (PRODUCTS * gpu.tflops_16 * 1e12)
    chunks = -(-work.tokens * shape.vocab * 2 // work.loss_chunk)
    head += chunks * 8 * LAUNCH
    if work.embedding_offload:
        head += 2 * work.tokens * shape.hidden / (gpu.host_gbps * 1e9) + 1e-4
    trained = shape.parameters if not work.lora else 0
    return work.accumulation * (layers + head) + 20 * trained / (MEMORY * gpu.bandwidth * 1e9) + 2e-3
