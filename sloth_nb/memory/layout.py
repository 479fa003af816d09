"""How the engine lays a layer's tensors out: the five activations, how they may be held, and the room beside others.

The engine makes them so and the memory model counts them so, both from here. Needs no torch.
"""

__all__ = ["HELD", "HOLD_FROM", "NAMES", "activation_bytes", "room_beside"]

# What a layer's backward wants of its forward; engine/policy.py says what each costs.
NAMES = ("input", "qkv", "attention", "middle", "gate_up")

# Policies by name: what stays on the device, and what moves to the host; the rest is recomputed.
HELD: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "keep": (NAMES, ()),
    "recompute": (("input", "attention"), ()),
    "lean": (("input",), ()),
    "offload": ((), ("input", "attention")),
    "offload-wide": ((), ("input", "attention", "middle", "qkv")),
    "offload-all": ((), NAMES),
}

# With more tokens than this an MLP's weights are dequantised once for all its tiles, and held between them.
HOLD_FROM = 1024
# Rows of a widened buffer start at multiples of 128 bytes in 16 bits; a product's depth is a multiple of 8 elements.
_ROOM_STEP, _RANK_STEP = 64, 8


def room_beside(rank: int, quantised: bool) -> int:
    """Columns beside a dequantised weight, and beside what meets it, for adapters of this rank; 0 where they stand
    apart."""
    return -(-rank // _ROOM_STEP) * _ROOM_STEP if quantised and rank % _RANK_STEP == 0 else 0


def activation_bytes(
    hidden: int, query: int, narrow: int, heads: int, gate_up: int, tokens: int, item: int
) -> dict[str, int]:
    """Bytes of each of the five.

    Args:
        hidden, query, narrow, gate_up: widths of the hidden states, of all queries, of all keys, of gate and up.
        heads: of the queries; attention keeps an fp32 log-sum-exp of each.
    """
    return {
        "input": tokens * hidden * item,
        "qkv": tokens * (query + 2 * narrow) * item,
        "attention": tokens * (query * item + 4 * heads),
        "middle": tokens * hidden * item,
        "gate_up": tokens * gate_up * item,
    }
