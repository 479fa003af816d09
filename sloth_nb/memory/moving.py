"""The "sloth" rule, and when a step is captured: arithmetic of sizes and rates, said once.

The engine obeys it with rates that it measured (engine/rules.py); the memory model foretells it with a card's data
sheet (memory/policy.py).
"""

from functools import lru_cache

__all__ = [
    "HOST_BOUND",
    "LINK_SHARE",
    "OFFLOAD_FROM",
    "WIDE_BYTES",
    "even_tile",
    "layer_seconds",
    "moved_by_layers",
    "seconds_again",
]

# Below this many tokens a layer's tensors are too small to be worth a trip to the host.
OFFLOAD_FROM = 1024
# A tile of gate and up: big enough to keep the matrix units busy, small beside the weights.
TILE_BYTES = 128 << 20
# A step is captured while a layer's forward takes the device less than this: a host launches it in 2 to 4 ms, and what
# else a notebook draws meanwhile comes on top. A captured one holds its gradients' buffers all the time, and is hardly
# faster where the device is behind anyway.
HOST_BOUND = 4e-3
# A layer's forward runs at this share of the rate of large products (norms, gates and dequantisation are between); of
# that time copying may fill this much.
EFFICIENCY, LINK_SHARE = 0.75, 0.95
# One layer that moves gate_up costs as much memory as many do, so that few are not worth it: at least this share of
# all layers does, or none; and none where it is larger than this, as with long sequences.
WIDE_FROM, WIDE_BYTES = 0.25, 1 << 30


def layer_seconds(
    hidden: int, query: int, narrow: int, ffn: int, tokens: int, length: int, rate: float
) -> float:
    """A layer's forward, roughly: its products, and causal attention's in sequences of ``length``.

    Args:
        hidden, query, narrow, ffn: widths of the hidden states, of all queries, of all keys, of gate.
        rate: of large products, operations a second.
    """
    weights = hidden * (2 * query + 2 * narrow + 3 * ffn)
    return 2.0 * tokens * (weights + length * query) / (EFFICIENCY * rate)


def seconds_again(hidden: int, query: int, narrow: int, tokens: int, rate: float) -> tuple[float, float]:
    """What computing ``middle`` and ``qkv`` a second time takes: the output product, and the q, k, v products."""
    each = 2.0 * tokens * hidden / (EFFICIENCY * rate)
    return each * query, each * (query + 2 * narrow)


@lru_cache(maxsize=64)
def moved_by_layers(
    sizes: tuple[int, int, int, int, int],
    again: tuple[float, float],
    seconds: float,
    layers: int,
    link: float,
    host: float,
) -> tuple[tuple[str, ...], frozenset[int]]:
    """What every layer moves to the host (the last holds it on the device: its backward comes at once), and the
    numbers of the layers that also move gate_up.

    That is what makes the device wait less than computing it ``again`` would take. Copies run beside a layer's
    forward, ``seconds`` of it, at ``link`` bytes a second; what they take longer shows. gate_up goes along where there
    is time left and the host, of ``host`` bytes, can hold it.

    Args:
        sizes: bytes of input, qkv, attention, middle and gate_up.
        again: seconds of middle and of qkv.
    """
    inputs, qkv, attention, middle, gate_up = sizes
    moved, carried = ["input", "attention"], inputs + attention
    for name, size, longer in (("middle", middle, again[0]), ("qkv", qkv, again[1])):
        more = carried + size
        shows = max(0.0, more / link - seconds) - max(0.0, carried / link - seconds)
        if shows <= longer and more * layers <= host:
            moved.append(name)
            carried = more
    room = min(seconds * link * LINK_SHARE, host / max(layers, 1)) - carried
    wide = 0
    if len(moved) == 4 and room > 0:
        wide = min(layers - 1, int(room * layers // gate_up))
    if wide < WIDE_FROM * layers or gate_up > WIDE_BYTES:
        wide = 0
    # Spread evenly, so that the link never has two in a row.
    return tuple(moved), frozenset(n * (layers - 1) // wide for n in range(wide))


def even_tile(tokens: int, ffn: int, item: int) -> int | None:
    """Tokens of an MLP tile; None where one takes all. Equal ones, in steps that fill the matrix units."""
    most = max(1024, TILE_BYTES // (2 * ffn * item))
    if tokens <= most:
        return None
    even = -(-tokens // -(-tokens // most))
    return -(-even // 128) * 128
