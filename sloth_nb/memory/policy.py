"""Policies by name, and the rule that the engine follows when it is told "sloth".

The five tensors are those of memory/layout.py, which the engine shares.
"""

from dataclasses import dataclass

from sloth_nb.catalog import GPU, Block
from sloth_nb.errors import TrainingError
from sloth_nb.memory import layout, moving
from sloth_nb.memory.layout import NAMES

__all__ = [
    "NAMED",
    "NAMES",
    "POLICIES",
    "Policy",
    "automatic_tile",
    "layer_seconds",
    "sloth_policies",
    "tape_bytes",
]

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


NAMED = {name: Policy(device, host) for name, (device, host) in layout.HELD.items()}

# Of a card's data sheet: large products reach so much of its dense peak, and copies of some megabytes of its link.
PRODUCTS, COPIES = 0.72, 0.9


def tape_bytes(block: Block, tokens: int, item: int = 2) -> dict[str, int]:
    """Bytes of each of a layer's five tensors."""
    gate_up = (2 if block.gated else 1) * block.active_ffn
    return layout.activation_bytes(*_widths(block), block.heads, gate_up, tokens, item)


def _widths(block: Block) -> tuple[int, int, int]:
    return block.hidden, block.heads * block.head_dim, block.kv_heads * block.head_dim


def layer_seconds(block: Block, tokens: int, length: int, gpu: GPU) -> float:
    """A layer's forward on this card, roughly, as the engine's rules reckon it."""
    rate = PRODUCTS * gpu.tflops_16 * 1e12
    return moving.layer_seconds(*_widths(block), block.active_ffn, tokens, length, rate)


def sloth_policies(
    block: Block, layers: int, tokens: int, length: int, gpu: GPU, host_bytes: float
) -> tuple[Policy, ...]:
    """What the engine's own rule gives each layer: as much to the host as is copied while it computes.

    The top layer's backward comes at once, so what it holds stays.
    """
    if gpu.is_cpu or tokens < moving.OFFLOAD_FROM:
        return (NAMED["lean"],) * layers
    sizes, rate = tape_bytes(block, tokens), PRODUCTS * gpu.tflops_16 * 1e12
    moved, wide = moving.moved_by_layers(
        (sizes["input"], sizes["qkv"], sizes["attention"], sizes["middle"], sizes["gate_up"]),
        moving.seconds_again(*_widths(block), tokens, rate), layer_seconds(block, tokens, length, gpu),
        layers, COPIES * gpu.host_gbps * 1e9, host_bytes,
    )  # fmt: skip
    narrow, wider = Policy((), moved), Policy((), (*moved, "gate_up"))
    return (*(wider if i in wide else narrow for i in range(layers - 1)), Policy(moved))


def automatic_tile(block: Block, tokens: int, policies: tuple[Policy, ...]) -> int | None:
    """The tokens of an MLP tile when nobody says: none where every layer holds gate and up anyway."""
    if all(
        "gate_up" in policy.held for policy in dict(zip(map(id, policies), policies, strict=True)).values()
    ):
        return None
    return moving.even_tile(tokens, block.active_ffn, 2)


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
