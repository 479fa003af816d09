"""What a layer's forward leaves behind for its backward: kept on the device, moved to the host, or recomputed.

A layer's backward wants five tensors. The input is always there, on the device or the host; the others are
recomputed when they are not. Recomputing never runs the down-projection, whose output nobody needs.

| name      | bytes a token (16-bit)              | what recomputing it costs         |
| --------- | ----------------------------------- | --------------------------------- |
| input     | 2 hidden                            | (always held)                     |
| qkv       | 2 (heads + 2 kv_heads) head_dim     | norm, the q, k, v products, rope  |
| attention | 2 heads head_dim + 4 heads          | the attention's forward           |
| middle    | 2 hidden                            | the output product                |
| gate_up   | 4 intermediate                      | norm, the gate and up products    |
"""

from dataclasses import dataclass
from typing import Any

from sloth_nb.memory import layout
from sloth_nb.memory.layout import NAMES

__all__ = [
    "KEEP",
    "LEAN",
    "NAMES",
    "OFFLOAD",
    "RECOMPUTE",
    "LayerPolicy",
    "activation_bytes",
    "policy_of",
    "widths",
]


@dataclass(frozen=True)
class LayerPolicy:
    """One layer's choice: names kept on the ``device``, names moved to pinned ``host`` memory; the rest recomputed."""

    device: frozenset[str]
    host: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        unknown = (self.device | self.host) - set(NAMES)
        if unknown:
            raise ValueError(f"unknown activations {sorted(unknown)}; known are {', '.join(NAMES)}")
        if "input" not in self.device | self.host:
            raise ValueError("a layer's input must be held, on the device or the host")

    @property
    def held(self) -> frozenset[str]:
        return self.device | self.host

    def __str__(self) -> str:
        if self == KEEP:
            return "keep"
        kept = [n for n in NAMES if n in self.device]
        moved = [n for n in NAMES if n in self.host]
        parts = ([f"keep {' + '.join(kept)}"] if kept else []) + (
            [f"offload {' + '.join(moved)}"] if moved else []
        )
        return ", ".join(parts) + ", recompute the rest"


_NAMED = {
    name: LayerPolicy(frozenset(device), frozenset(host)) for name, (device, host) in layout.HELD.items()
}
KEEP, RECOMPUTE, LEAN, OFFLOAD = (_NAMED[name] for name in ("keep", "recompute", "lean", "offload"))


def policy_of(name: "str | LayerPolicy") -> LayerPolicy:
    """``keep``, ``recompute`` (attention runs forward once), ``lean`` (inputs only), ``offload``; or as given."""
    if isinstance(name, LayerPolicy):
        return name
    if name not in _NAMED:
        raise ValueError(f"unknown policy {name!r}; known are {', '.join(_NAMED)}")
    return _NAMED[name]


def widths(config: Any) -> tuple[int, int, int]:
    """Of the hidden states, all queries, all keys."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.hidden_size, heads * head_dim, config.num_key_value_heads * head_dim


def activation_bytes(config: Any, tokens: int, itemsize: int = 2) -> dict[str, int]:
    """Bytes of each of a layer's activations (the table above)."""
    heads, gate_up = config.num_attention_heads, 2 * config.intermediate_size
    return layout.activation_bytes(*widths(config), heads, gate_up, tokens, itemsize)
