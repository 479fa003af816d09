"""One decoder layer's cost in our engine: what its policy holds, and the fullest moment of each pass.

What a policy holds between forward and backward is the tape; everything else lives inside one layer's pass
(memory/passes.py).
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from sloth_nb.catalog import Block
from sloth_nb.memory.attention import attention_cost, attention_kernel
from sloth_nb.memory.passes import Down, backward, forward
from sloth_nb.memory.policy import Policy, tape_bytes
from sloth_nb.memory.trace import Trace
from sloth_nb.memory.work import Work

__all__ = ["LayerCost", "Passes", "Sizes", "layer_cost"]


# As in engine/linear.py and engine/layer.py.
ROOM_STEP, RANK_STEP, HOLD_FROM = 64, 8, 1024


@dataclass(frozen=True)
class Passes:
    """What comes and goes in a layer's two passes (``Trace.events``), and by which numbers the tape goes between.

    ``left`` of the forward are tensors by name, the layer's output among them; ``found`` those that the backward
    starts with, ``called`` those of the layer below that it brings back from the host.
    """

    forward: tuple[int, ...]
    left: dict[str, int]
    backward: tuple[int, ...]
    found: dict[str, int]
    called: dict[str, int]


@dataclass(frozen=True)
class LayerCost:
    """Bytes of one layer under one policy.

    Attributes:
        held: on the device between forward and backward.
        host: in pinned host memory meanwhile.
        forward, backward: the fullest moment of each pass by kind. A forward's input, a backward's incoming
            gradient and what other layers hold are not counted in them; the layer's own tape and gradients are.
        passes: both passes, tensor by tensor.
    """

    held: int
    host: int
    forward: dict[str, int]
    backward: dict[str, int]
    passes: Passes
    block: Block
    policy: Policy
    moved: dict[str, int]
    room: int


def layer_cost(
    block: Block,
    work: Work,
    policy: Policy,
    capability: float,
    *,
    tile: int | None = None,
    below: Policy | None = None,
    wide_below: bool = False,
) -> LayerCost:
    """The cost of one layer of this block; where windows alternate, of one without a window.

    ``below`` is the policy of the layer under it, whose tensors are on their way to the host during its forward,
    and come back during its backward. gate_up goes in pieces, over all the layers until the next that moves its
    own: with ``wide_below`` a lower layer's is still on its way.
    """
    sizes = _sizes(block, work, capability, tile)
    key = (policy, below, wide_below)
    cost = sizes.costs.get(key)
    if cost is None:
        cost = sizes.costs[key] = _layer_cost(sizes, policy, below, wide_below)
    return cost


def _sizes(block: Block, work: Work, capability: float, tile: int | None) -> "Sizes":
    """Remembered by everything that they depend on: a search for what would fit asks for the same again and again."""
    key = (id(block), id(work.model), work.tokens, work.sequences, work.packed, work.method)
    key += (work.rank, work.targets, capability, tile)
    known = _KNOWN.get(key)
    # The sizes hold block and model, so that their ids stay theirs.
    if known is None or known.block is not block or known.work.model is not work.model:
        if len(_KNOWN) >= 1024:
            _KNOWN.clear()
        known = _KNOWN[key] = Sizes(block, work, capability, tile)
    return known


_KNOWN: "dict[tuple[Any, ...], Sizes]" = {}


def _layer_cost(sizes: "Sizes", policy: Policy, below: Policy | None, wide_below: bool) -> LayerCost:
    held = sum(sizes.tape[name] for name in policy.device)
    if "gate_up" in policy.held:
        held += sizes.low_kept
    moved = {name: sizes.tape[name] for name in policy.host}
    if "attention" in moved:  # the log-sum-exp stays
        held += sizes.attention.saved
        moved["attention"] -= sizes.attention.saved
    host = sum(moved.values())
    passing = {name: sizes.tape[name] for name in below.host} if below else {}
    leaving = sum(passing.values()) - passing.get("gate_up", 0)
    leaving += sizes.tape["gate_up"] if wide_below else 0
    if policy not in sizes.forwards:
        sizes.forwards[policy] = forward(sizes, policy)
    if (policy, below) not in sizes.backwards:
        sizes.backwards[policy, below] = backward(sizes, policy, below)
    (up, left), down = sizes.forwards[policy], sizes.backwards[policy, below]
    passes = Passes(tuple(up.events), left, tuple(down.trace.events), down.found, down.called)
    room = max(sizes.room["down"], sizes.room["output"])
    going = up.at_peak | {"activations": leaving}
    return LayerCost(held, host, going, down.trace.at_peak, passes, sizes.block, policy, moved, room)


class Sizes:
    """The byte counts that both passes are made of."""

    def __init__(self, block: Block, work: Work, capability: float, tile: int | None):
        self.block, self.work = block, work
        self.costs: dict[tuple[Policy, Policy | None, bool], LayerCost] = {}
        self.forwards: dict[Policy, tuple[Trace, dict[str, int]]] = {}
        self.backwards: dict[tuple[Policy, Policy | None], Down] = {}
        item = self.item = 2
        tokens = self.tokens = block.positions * work.sequences if block.positions else work.tokens
        self.tile = min(tokens, tile or tokens)
        hidden, heads = block.hidden, block.heads * block.head_dim
        narrow = block.kv_heads * block.head_dim
        self.hidden = tokens * hidden * item
        self.query, self.narrow = tokens * heads * item, tokens * narrow * item
        self.qkv = self.query + 2 * self.narrow
        self.rows = tokens * 4
        self.tile_hidden = self.tile * hidden * item

        kernel = attention_kernel(block, capability, work.packed, windowed=False)
        self.attention = attention_cost(block, kernel, tokens, item)
        self.tape = tape_bytes(block, tokens, item)
        self.ffns = 2 if block.gated else 1

        groups = ("qkv", "output", "gate_up", "down")
        wrapped = work.model.shape.adapted(work.targets) if work.lora else []
        mine = [linear for owner, linear in wrapped if owner is block]
        self.ranks = dict.fromkeys(groups, 0)
        for linear in mine:
            self.ranks[_group(linear.name)] += work.rank
        sides = {group: [0, 0] for group in groups}
        for linear in block.linears:
            side = sides[_group(linear.name)]
            side[0], side[1] = linear.inputs, side[1] + linear.outputs
        small = work.method in ("qlora", "lora-8bit")
        # The adapters' B stands beside a dequantised weight and A beneath it; what meets them has as many columns
        # beside its own.
        self.room = {
            g: -(-rank // ROOM_STEP) * ROOM_STEP if small and rank % RANK_STEP == 0 else 0
            for g, rank in self.ranks.items()
        }
        self.buffer = {
            g: (o + (self.ranks[g] if self.room[g] else 0)) * (i + self.room[g]) * item if small else 0
            for g, (i, o) in sides.items()
        }
        self.low_kept = tokens * sum(self.ranks.values()) * item
        self.tape["gate_up"] += tokens * self.room["gate_up"] * item
        self.ffn = self.tile * block.active_ffn * item
        self.gated = self.ffn + self.tile * self.room["down"] * item
        self.gate_up = self.ffns * self.ffn + self.tile * self.room["gate_up"] * item
        # With few tokens the MLP's weights are dequantised for each use, not held between them.
        self.holds = tokens > HOLD_FROM
        self.tiles = -(-tokens // max(self.tile, 1))
        # Copies of the adapters in 16 bits, and the gradients: of an adapter's A and B, or of the whole weights.
        # The A of a group stand one upon the other.
        pieces: dict[str, list[int]] = {group: [] for group in groups}
        self.copies: list[int] = []
        if work.lora:
            for linear in mine:
                pieces[_group(linear.name)].append(work.rank * linear.outputs)
            for group, rank in self.ranks.items():
                if rank:
                    stacked = rank * sides[group][0]
                    self.copies += [item * size for size in (stacked, *pieces[group])]
                    pieces[group].append(stacked)
        else:
            for linear in block.linears:
                pieces[_group(linear.name)].append(linear.weights)
            pieces["gate_up"] += [block.expert_weights] if block.expert_weights else []
        self.gradients = {
            group: [size * (4 if work.lora else item) for size in sizes] for group, sizes in pieces.items()
        }
        self.adds = not work.lora or capability >= 8.0

    def low(self, group: str, tokens: int) -> int:
        """The low-rank input of a group's projections, or its gradient."""
        return tokens * self.ranks[group] * self.item

    def apart(self, group: str, tokens: int) -> int:
        """The same, where it doesn't stand beside something wider."""
        return 0 if self.room[group] else self.low(group, tokens)

    def beside(self, group: str, tokens: int) -> int:
        """The room for it beside something of this many tokens."""
        return tokens * self.room[group] * self.item


@cache
def _group(name: str) -> str:
    name = name.rsplit(".", 1)[-1]
    if name in ("q_proj", "k_proj", "v_proj", "qkv_proj"):
        return "qkv"
    if name in ("o_proj", "out_proj"):
        return "output"
    return "down" if name in ("down_proj", "fc2") else "gate_up"
