"""One decoder layer's tensors in our engine, forward and backward, as engine/layer.py makes them.

What a policy holds between the two is the tape; everything else lives inside one layer's pass. Keep this file
in step with the engine: the dry run, which runs the real code on fake tensors, is the test that it is.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

from sloth_nb.catalog import Block, ModelInfo
from sloth_nb.memory.attention import attention_cost, attention_kernel
from sloth_nb.memory.policy import Policy, tape_bytes
from sloth_nb.memory.trace import Held, Trace
from sloth_nb.memory.work import Work

__all__ = ["LayerCost", "layer_cost"]


# As in engine/linear.py and engine/layer.py.
ROOM_STEP, RANK_STEP, HOLD_FROM = 64, 8, 1024


@dataclass(frozen=True)
class LayerCost:
    """Bytes of one layer under one policy.

    Attributes:
        held: on the device between forward and backward.
        host: in pinned host memory meanwhile.
        forward, backward: the fullest moment of each pass by kind. A forward's input, a backward's incoming
            gradient and what other layers hold are not counted in them; the layer's own tape is.
    """

    held: int
    host: int
    forward: dict[str, int]
    backward: dict[str, int]


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
    key = (
        id(block),
        id(work.model),
        work.tokens,
        work.sequences,
        work.packed,
        work.method,
        work.rank,
        work.targets,
        policy,
        capability,
        tile,
        below,
        wide_below,
    )
    known = _KNOWN.get(key)
    if known is None or known[0] is not block or known[1] is not work.model:
        if len(_KNOWN) >= 2048:
            _KNOWN.clear()
        known = _KNOWN[key] = (
            block,
            work.model,
            _layer_cost(block, work, policy, capability, tile, below, wide_below),
        )
    return known[2]


# Answers by everything that they depend on: a search for what would fit asks the same again and again. The block
# and the model are held, so that their ids stay theirs.
_KNOWN: "dict[tuple[Any, ...], tuple[Block, ModelInfo, LayerCost]]" = {}


def _layer_cost(
    block: Block,
    work: Work,
    policy: Policy,
    capability: float,
    tile: int | None,
    below: Policy | None,
    wide_below: bool,
) -> LayerCost:
    sizes = _Sizes(block, work, capability, tile)
    held = sum(sizes.tape[name] for name in policy.device)
    if "gate_up" in policy.held:
        held += sizes.low_kept
    moved = {name: sizes.tape[name] for name in policy.host}
    if "attention" in moved:  # the log-sum-exp stays
        held += sizes.attention.saved
        moved["attention"] -= sizes.attention.saved
    host = sum(moved.values())
    passing = {name: sizes.tape[name] for name in below.host} if below else {}
    coming = sum(passing.values())
    leaving = coming - passing.get("gate_up", 0) + (sizes.tape["gate_up"] if wide_below else 0)
    return LayerCost(held, host, _forward(sizes, policy, leaving), _backward(sizes, policy, coming))


class _Sizes:
    """The byte counts that both passes are made of."""

    def __init__(self, block: Block, work: Work, capability: float, tile: int | None):
        self.block, self.work = block, work
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
        self.copies = sum(work.rank * (x.inputs + x.outputs) for x in mine) * item
        # Gradients of one layer as its backward makes them, and the largest one's product before it is added.
        if work.lora:
            self.gradients = 2 * self.copies
            self.product = max((work.rank * max(x.inputs, x.outputs) * 4 for x in mine), default=0)
        else:
            self.gradients = 2 * block.parameters
            self.product = max((x.weights for x in block.linears), default=0) * item

    def low(self, group: str, tokens: int) -> int:
        """The low-rank input of a group's projections, or its gradient."""
        return tokens * self.ranks[group] * self.item

    def apart(self, group: str, tokens: int) -> int:
        """The same, where it doesn't stand beside something wider."""
        return 0 if self.room[group] else self.low(group, tokens)

    def beside(self, group: str, tokens: int) -> int:
        """The room for it beside something of this many tokens."""
        return tokens * self.room[group] * self.item

    def normed(self, group: str, tokens: int) -> int:
        """A group's normed input with what stands beside it, and the reciprocals of its norm."""
        return tokens * ((self.block.hidden + self.room[group]) * self.item + 4)


@cache
def _group(name: str) -> str:
    name = name.rsplit(".", 1)[-1]
    if name in ("q_proj", "k_proj", "v_proj", "qkv_proj"):
        return "qkv"
    if name in ("o_proj", "out_proj"):
        return "output"
    return "down" if name in ("down_proj", "fc2") else "gate_up"


def _attend(trace: Trace, s: _Sizes, tape: dict[str, Held | None]) -> None:
    """The attention half: puts on the tape what isn't there yet."""
    if "qkv" not in tape:
        normed = trace.take("workspace", s.normed("qkv", s.tokens))
        weight = trace.take("dequantised", s.buffer["qkv"])
        tape["qkv"] = trace.take("workspace", s.tape["qkv"])
        tape["low qkv"] = trace.take("workspace", s.low("qkv", s.tokens))
        trace.free(normed, weight)
    if "attention" not in tape:
        heads = trace.take("workspace", s.query + s.narrow if s.block.qk_norm else 0)
        tape["attention"] = trace.take("workspace", s.tape["attention"])
        trace.touch("attention", s.attention.forward)
        trace.free(heads)
    if "middle" not in tape:
        weight = trace.take("dequantised", s.buffer["output"])
        tape["middle"] = trace.take("workspace", s.hidden)
        tape["low output"] = trace.take("workspace", s.low("output", s.tokens))
        if s.block.post_norms:
            trace.touch("workspace", s.hidden + s.rows)
        trace.free(weight)


def _forward(s: _Sizes, policy: Policy, leaving: int) -> dict[str, int]:
    trace, tape = Trace(), {}  # type: ignore[var-annotated]
    trace.take("activations", leaving)
    trace.take("workspace", s.copies)
    _attend(trace, s, tape)
    # The output takes the middle's place, unless that is held.
    trace.take("workspace", s.hidden if "middle" in policy.held else 0)
    whole = "gate_up" in policy.held
    trace.take("workspace", s.tape["gate_up"] + s.low_kept if whole else 0)
    trace.free(tape["low qkv"], tape["low output"])  # kept, they are counted with gate and up
    trace.take("workspace", s.normed("gate_up", s.tile))
    weight = trace.take("dequantised", s.buffer["gate_up"])
    trace.take("workspace", 0 if whole else s.gate_up)
    trace.take("workspace", s.apart("gate_up", s.tile))
    if not s.holds:
        trace.free(weight)
    trace.take("workspace", s.gated)  # the activation
    trace.take("dequantised", s.buffer["down"])
    trace.take("workspace", s.apart("down", s.tile) + (2 * s.tile_hidden if s.block.post_norms else 0))
    return trace.at_peak


def _backward(s: _Sizes, policy: Policy, coming: int) -> dict[str, int]:
    trace = Trace()
    tape = {name: trace.take("activations", s.tape[name]) for name in policy.held}
    kept = "gate_up" in policy.held
    low_kept = trace.take("activations", s.low_kept if kept else 0)
    trace.take("activations", coming)
    trace.take("workspace", s.copies)
    trace.take("gradients", s.gradients if s.work.lora else 0)
    _attend(trace, s, tape)
    weights = _mlp_backward(trace, s, kept)
    trace.free(*weights, tape.pop("gate_up", None), tape.pop("middle"))
    _attention_backward(trace, s, tape, kept)
    trace.free(low_kept)
    return trace.at_peak


def _mlp_backward(trace: Trace, s: _Sizes, kept: bool) -> list[Held | None]:
    """One tile; leaves the weights that the next one would use."""
    wide = down = gate_up = low = None
    normed = trace.take("workspace", s.normed("gate_up", s.tile))
    if not kept:
        gate_up = trace.take("workspace", s.gate_up)
        wide = trace.take("dequantised", s.buffer["gate_up"])
        low = trace.take("workspace", s.apart("gate_up", s.tile))
    if not s.holds:
        trace.free(wide)
        wide = None
    extra = []
    if s.block.post_norms:
        extra = [trace.take("workspace", s.gated)]
        down = trace.take("dequantised", s.buffer["down"])
        m = trace.take("workspace", s.tile_hidden)
        if not s.holds:
            trace.free(down)
            down = None
        trace.touch("workspace", s.tile_hidden + s.tile * 4)  # its norm, made again
        extra.append(trace.take("workspace", s.tile_hidden + s.beside("down", s.tile) + s.tile * 4))
        trace.free(m)
    low_grad = trace.take("workspace", s.apart("down", s.tile))
    down = down or trace.take("dequantised", s.buffer["down"])
    dh = trace.take("workspace", s.ffn)
    if not s.holds:
        trace.free(down)
        down = None
    low_input = trace.take("workspace", 0 if kept else s.low("down", s.tile))
    trace.touch("gradients", s.product)
    trace.free(dh, low_grad, low_input, *extra)
    low_grad = trace.take("workspace", s.apart("gate_up", s.tile))
    trace.touch("gradients", s.product)
    last = wide or trace.take("dequantised", s.buffer["gate_up"])
    trace.touch("workspace", s.tile_hidden)
    trace.free(low_grad, low, gate_up, normed)
    if s.holds:
        return [last, down]
    trace.free(last)
    return []


def _attention_backward(trace: Trace, s: _Sizes, tape: dict[str, Held | None], kept: bool) -> None:
    weight = trace.take("dequantised", s.buffer["output"])
    there = kept or "low output" in tape
    low = trace.take("workspace", (0 if there else s.low("output", s.tokens)) + s.apart("output", s.tokens))
    post = 2 * s.hidden + s.beside("output", s.tokens) if s.block.post_norms else 0
    grown = trace.take("workspace", post)
    dattention = trace.take("workspace", s.query)
    trace.touch("gradients", s.product)
    trace.free(weight, grown)
    heads = trace.take("workspace", s.query + s.narrow if s.block.qk_norm else 0)
    parts = trace.take("workspace", s.qkv)  # dq, dk, dv
    trace.touch("attention", s.attention.backward)
    trace.free(dattention, heads, tape.pop("attention"))
    out = trace.take("workspace", s.qkv + s.beside("qkv", s.tokens))  # side by side
    trace.free(parts, tape.pop("qkv"))
    normed = trace.take("workspace", s.normed("qkv", s.tokens))
    there = kept or "low qkv" in tape
    lows = trace.take("workspace", (0 if there else s.low("qkv", s.tokens)) + s.apart("qkv", s.tokens))
    trace.touch("gradients", s.product)
    weight = trace.take("dequantised", s.buffer["qkv"])
    trace.touch("workspace", s.hidden)
    trace.free(weight, lows, normed, out, low)
