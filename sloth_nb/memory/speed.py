"""How long a step takes, roughly: what the planner ranks its choices by, not what it promises.

Products at the share of the card's peak that large ones reach, everything else at the speed of its memory,
copies at the link's, and never less than the launches take. Shares of the data sheet, from the H200 bench.
"""

from dataclasses import dataclass

from sloth_nb.catalog import GPU, Block
from sloth_nb.memory.passes import first_wanted
from sloth_nb.memory.policy import PRODUCTS, Policy, tape_bytes
from sloth_nb.memory.work import Work

__all__ = ["LayerTime", "layer_time", "step_seconds"]

ATTENTION = 0.45
LOW_RANK = 0.20  # products with a side of a few dozen
MEMORY = 0.80
# What a launch takes at least: replayed from a graph, or by Python, op by op (H200 rows of few tokens).
REPLAYED, LAUNCHED = 5e-6, 55e-6
CONTENTION = 0.1  # copies beside the arithmetic still cost it this share of their time
# Of a layer's backward: what follows its attention, and the MLP, which comes first.
LAST_PART, SECOND_HALF = 0.2, 0.5
# Of a layer's two passes: without adapters, by those, by norms after each half.
LAUNCHES = {"layer": 40, "adapters": 40, "post norms": 24}


@dataclass(frozen=True)
class LayerTime:
    """Seconds of one layer's passes, and bytes that it sends over the link and back again.

    ``narrow`` of them leave during the next layer's forward, ``wide`` ones (gate and up) piece by piece during those
    up to the next layer that sends some. ``late`` ones come back during the layer's own backward, before its second
    half; the others during that of the layer above: all of it where gate and up are among them, else its end.
    """

    forward: float
    backward: float
    narrow: int
    wide: int
    late: int

    def waits(self, above: "LayerTime", link: float) -> float:
        """Seconds that its backward waits for what comes back, below a layer like ``above``."""
        early = self.narrow + self.wide - self.late
        hidden = above.backward * (1 if self.wide else LAST_PART) - (above.late / link if self.wide else 0)
        wait = max(0.0, early / link - max(hidden, 0.0))
        return wait + max(0.0, self.late / link - SECOND_HALF * self.backward)

    def alone(self, link: float) -> float:
        """Seconds of such a layer among its like; ``link`` is in bytes a second."""
        sent = (self.narrow + self.wide) / link
        return max(self.forward, sent) + self.backward + self.waits(self, link) + CONTENTION * 2 * sent


def layer_time(block: Block, work: Work, policy: Policy, gpu: GPU, tile: int | None = None) -> LayerTime:
    """One layer of this block under one policy."""
    tokens = work.tokens_in(block)
    query, narrow = block.heads * block.head_dim, block.kv_heads * block.head_dim
    ffns = 2 if block.gated else 1
    held = policy.held

    weights = block.linear_weights + block.expert_weights * block.experts_per_token // max(block.experts, 1)
    again = {
        "qkv": block.hidden * (query + 2 * narrow),
        "middle": query * block.hidden,
        "gate_up": ffns * block.hidden * block.active_ffn,
    }
    missing = {name: size for name, size in again.items() if name not in held}
    # Each number is of the (forward, backward). Causal attention does half of the square; its backward is two and a
    # half forwards.
    products = (weights, (2 if work.method == "full" else 1) * weights + sum(missing.values()))
    scores = (1.0, 2.5 if "attention" in held else 3.5)
    low_rank = 0
    if work.lora:
        mine = [x for owner, x in work.model.shape.adapted(work.targets) if owner is block]
        low_rank = 4 * tokens * work.rank * sum(x.inputs + x.outputs for x in mine)
    moved = 2 * tokens * (10 * block.hidden + 3 * query + 4 * block.active_ffn)
    small = 2.5 * (work.method in ("qlora", "lora-8bit"))
    unpacked = (
        block.linear_weights,
        block.linear_weights + sum(missing.values()) - missing.get("gate_up", 0),
    )
    tiles = -(-tokens // tile) if tile else 1
    launches = LAUNCHES["layer"] + (5 - len(held)) * 4 + (tiles - 1) * 24
    launches += LAUNCHES["adapters"] * work.lora + LAUNCHES["post norms"] * block.post_norms
    launched = 0.0 if gpu.is_cpu else launches * (REPLAYED if work.captured(gpu) else LAUNCHED)

    rate, bandwidth = gpu.tflops_16 * 1e12, MEMORY * gpu.bandwidth * 1e9
    passes = []
    for way, share in ((0, 1), (1, 2)):
        seconds = 2 * tokens * products[way] / (PRODUCTS * rate)
        seconds += 2 * tokens * work.length * query * scores[way] / (ATTENTION * rate)
        seconds += share * low_rank / (LOW_RANK * rate)
        seconds += (share * moved + small * unpacked[way]) / bandwidth
        passes.append(max(seconds, launched * share / 3))
    sizes = tape_bytes(block, tokens)
    wide = sizes["gate_up"] if "gate_up" in policy.host else 0
    late = sum(sizes[name] for name in policy.host if name not in first_wanted(policy))
    return LayerTime(passes[0], passes[1], sum(sizes[name] for name in policy.host) - wide, wide, late)


def step_seconds(work: Work, gpu: GPU) -> float:
    """One optimiser step: ``accumulation`` micro-steps of ``batch`` sequences each."""
    shape = work.model.shape
    policies = work.policies(gpu)
    tile = work.tile(policies, gpu)
    made: dict[tuple[int, Policy], LayerTime] = {}
    going = iter(policies)
    times: list[LayerTime] = []
    for number, block in enumerate(shape.blocks):
        for _ in range(block.count):
            key = (number, next(going))
            if key not in made:
                made[key] = layer_time(block, work, key[1], gpu, tile)
            times.append(made[key])
    layers = _both_passes(times, gpu.host_gbps * 1e9)
    head = 3 * 2 * work.tokens * shape.hidden * shape.vocab / (PRODUCTS * gpu.tflops_16 * 1e12)
    chunks = -(-work.tokens * shape.vocab * 2 // work.loss_chunk)
    head += chunks * 8 * REPLAYED
    if work.embedding_offload:
        head += 2 * work.tokens * shape.hidden / (gpu.host_gbps * 1e9) + 1e-4
    trained = shape.parameters if not work.lora else 0
    return work.accumulation * (layers + head) + 20 * trained / (MEMORY * gpu.bandwidth * 1e9) + 2e-3


def _both_passes(times: list[LayerTime], link: float) -> float:
    """All layers' seconds, each beside the copies that go on meanwhile: the slower of the two is what shows."""
    senders = [i for i, time in enumerate(times) if time.wide]
    pieces = {i: max(1, j - i - 1) for i, j in zip(senders, [*senders[1:], len(times)], strict=False)}
    total, leaving, piece, left = 0.0, 0.0, 0.0, 0
    for i, time in enumerate(times):
        total += max(time.forward, leaving / link)
        if time.wide:
            piece, left = time.wide / pieces[i], pieces[i]
        leaving = time.narrow + (piece if left else 0.0)
        left = max(0, left - 1)
    total += leaving / link
    # The uppermost layer's finds nothing to hide behind; and all of it costs the arithmetic beside it something.
    nothing = LayerTime(0.0, 0.0, 0, 0, 0)
    for time, above in zip(times, [*times[1:], nothing], strict=True):
        total += time.backward + time.waits(above, link)
    return total + CONTENTION * 2 * sum(time.narrow + time.wide for time in times) / link
