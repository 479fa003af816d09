"""Policies by name, and the rule that the engine follows when it is told "sloth".

The five tensors are those of engine/policy.py: what a layer's forward leaves behind for its backward.
"""

from dataclasses import dataclass
from functools import lru_cache

from sloth_nb.catalog import GPU, Block
from sloth_nb.errors import TrainingError

__all__ = [
    "HOST_BOUND",
    "NAMED",
    "NAMES",
    "POLICIES",
    "Policy",
    "automatic_tile",
    "layer_seconds",
    "sloth_policies",
    "tape_bytes",
]

NAMES = ("input", "qkv", "attention", "middle", "gate_up")

POLICIES = {
    "keep": "keep every activation",
    "recompute": "keep each layer's input and attention, recompute the rest",
    "lean": "keep each layer's input only",
    "offload": "move inputs and attention to host memory, recompute the rest",
    "offload-wide": "move all but gate and up to host memory",
    "offload-all": "move every activation to host memory",
    "sloth": "move to host memory what is copied while the card computes (the engine's own rule)",
}


@dataclass(frozen=True)
class Policy:
    """One layer's choice: names kept on the device, names moved to the host; the rest is recomputed."""

    device: tuple[str, ...]
    host: tuple[str, ...] = ()

    @property
    def held(self) -> tuple[str, ...]:
        return self.device + self.host

    def __str__(self) -> str:
        kept, moved = " + ".join(self.device), " + ".join(self.host)
        return ", ".join(part for part in (kept and f"keep {kept}", moved and f"move {moved}") if part)


NAMED = {
    "keep": Policy(NAMES),
    "recompute": Policy(("input", "attention")),
    "lean": Policy(("input",)),
    "offload": Policy((), ("input", "attention")),
    "offload-wide": Policy((), ("input", "attention", "middle", "qkv")),
    "offload-all": Policy((), NAMES),
}

# As in engine/rules.py (a test holds the two together): at what share of its products' rate a layer's forward
# runs, how much of that time copying may fill, from how many tokens on it is worth a trip, of how many layers at least
# gate and up go too and up to what size, how large a tile of them may be, and below how many seconds of it a step is
# captured.
EFFICIENCY, LINK_SHARE, OFFLOAD_FROM, WIDE_FROM, WIDE_BYTES = 0.75, 0.95, 1024, 0.25, 1 << 30
TILE_BYTES, HOST_BOUND = 128 << 20, 1e-3
PRODUCTS = 0.72  # of a card's dense peak, that large products reach


def tape_bytes(block: Block, tokens: int, item: int = 2) -> dict[str, int]:
    """Bytes of each of a layer's five tensors."""
    query, narrow = block.heads * block.head_dim, block.kv_heads * block.head_dim
    return {
        "input": tokens * block.hidden * item,
        "qkv": tokens * (query + 2 * narrow) * item,
        "attention": tokens * (query * item + 4 * block.heads),
        "middle": tokens * block.hidden * item,
        "gate_up": tokens * (2 if block.gated else 1) * block.active_ffn * item,
    }


@lru_cache(maxsize=64)
def _moved_and_wide(
    sizes: tuple[int, ...], again: tuple[float, float], seconds: float, link: float, host: float, layers: int
) -> tuple[tuple[str, ...], int]:
    """What every layer moves, and how many also move gate and up.

    ``again``: seconds that computing ``middle`` and ``qkv`` again takes; ``host``: bytes for all layers.
    """
    by_name = dict(zip(NAMES, sizes, strict=True))
    moved = ["input", "attention"]
    carried = sum(by_name[name] for name in moved)
    for name, longer in zip(("middle", "qkv"), again, strict=True):
        more = carried + by_name[name]
        shows = max(0.0, more / link - seconds) - max(0.0, carried / link - seconds)
        if shows <= longer and more * layers <= host:
            moved.append(name)
            carried = more
    room = min(seconds * link * LINK_SHARE, host / max(layers, 1)) - carried
    wide = 0
    if len(moved) == 4 and room > 0:
        wide = min(layers - 1, int(room * layers // by_name["gate_up"]))
    worth_it = wide >= WIDE_FROM * layers and by_name["gate_up"] <= WIDE_BYTES
    return tuple(moved), wide if worth_it else 0


def layer_seconds(block: Block, tokens: int, length: int, gpu: GPU) -> float:
    """A layer's forward on this card, roughly, as the engine's rules reckon it."""
    query, narrow = block.heads * block.head_dim, block.kv_heads * block.head_dim
    weights = block.hidden * (2 * query + 2 * narrow + 3 * block.active_ffn)
    return 2.0 * tokens * (weights + length * query) / (EFFICIENCY * PRODUCTS * gpu.tflops_16 * 1e12)


def sloth_policies(
    block: Block, layers: int, tokens: int, length: int, gpu: GPU, host_bytes: float
) -> tuple[Policy, ...]:
    """What the engine's own rule gives each layer: as much to the host as is copied while it computes.

    The top layer's backward comes at once, so what it holds stays.
    """
    if gpu.is_cpu or tokens < OFFLOAD_FROM:
        return (NAMED["lean"],) * layers
    rate, link = EFFICIENCY * PRODUCTS * gpu.tflops_16 * 1e12, gpu.host_gbps * 1e9
    each = 2.0 * tokens * block.hidden * block.head_dim / rate
    again = each * block.heads, each * (block.heads + 2 * block.kv_heads)
    sizes = tape_bytes(block, tokens)
    moved, wide = _moved_and_wide(
        tuple(sizes[name] for name in NAMES), again, layer_seconds(block, tokens, length, gpu), link,
        host_bytes, layers,
    )  # fmt: skip
    policies = [Policy((), moved)] * (layers - 1)
    wider = Policy((), (*moved, "gate_up"))
    for n in range(wide):
        policies[n * (layers - 1) // wide] = wider
    return (*policies, Policy(moved))


def automatic_tile(block: Block, tokens: int, policies: tuple[Policy, ...]) -> int | None:
    """The tokens of an MLP tile when nobody says: none where every layer holds gate and up anyway."""
    if all(
        "gate_up" in policy.held for policy in dict(zip(map(id, policies), policies, strict=True)).values()
    ):
        return None
    most = max(1024, TILE_BYTES // (4 * block.active_ffn))
    if tokens <= most:
        return None
    even = -(-tokens // -(-tokens // most))
    return -(-even // 128) * 128


def named(policy: str) -> Policy:
    """One of POLICIES that is the same for every layer.

    Raises:
        TrainingError: "sloth", which is a rule for all layers together.
    """
    if policy not in NAMED:
        raise TrainingError(
            f"policy {policy!r} is for all layers together; for one layer: {', '.join(NAMED)}."
        )
    return NAMED[policy]
