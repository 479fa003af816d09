"""One decoder layer's passes, tensor by tensor in the order in which engine/layer.py makes them and lets them go.

Keep this file in step with the engine: the dry run, which runs the real code on fake tensors, is the test that it
is.
"""

from dataclasses import dataclass

from sloth_nb.memory.policy import NAMES, Policy
from sloth_nb.memory.sizes import Sizes
from sloth_nb.memory.trace import Held, Trace

__all__ = ["Down", "backward", "first_wanted", "forward"]

# Of the MLP's tiles so many are walked through: from the second on all are alike.
TURNS = 2


def forward(s: Sizes, policy: Policy) -> tuple[Trace, dict[str, int]]:
    """The trace of a forward, and the numbers of what is left of it: the tape, and ``out``."""
    trace, tape = Trace(), {}  # type: ignore[var-annotated]
    copies = [trace.take("workspace", size) for size in s.copies]
    _attend(trace, s, tape)
    # The output takes the middle's place, unless that is held.
    out = trace.take("workspace", s.hidden) if "middle" in policy.held else tape.pop("middle")
    whole = "gate_up" in policy.held
    if whole:
        tape["gate_up"] = trace.take("workspace", s.tape["gate_up"])
    else:
        trace.free(tape.pop("low qkv"), tape.pop("low output"))
    wide = down = None
    before: list[Held | None] = []
    for turn in range(min(TURNS, s.tiles)):
        normed, rows = _normed(trace, s, "gate_up", s.tile)
        wide = wide or trace.take("dequantised", s.buffer["gate_up"])
        made = None if whole else trace.take("workspace", s.ffns * s.ffn)
        low = trace.take("workspace", s.apart("gate_up", s.tile))
        if not s.holds:
            trace.free(wide)
            wide = None
        h = trace.take("workspace", s.gated)
        down = down or trace.take("dequantised", s.buffer["down"])
        grown = [trace.take("workspace", s.tile_hidden)] if s.block.post_norms else []
        low_down = trace.take("workspace", s.apart("down", s.tile))
        if not s.holds:
            trace.free(down)
            down = None
        if s.block.post_norms:
            grown += _normed(trace, s, "", s.tile)
        # A tile's low-rank inputs are looked at until the next tile's are there, and with them what they lie in.
        mine, others = ([normed, h], [low, low_down]) if s.room["down"] else ([low, low_down], [normed, h])
        trace.free(rows, made, *grown, *others, *before)
        before = mine
        if whole and not turn:
            tape["low gate_up"] = trace.take("workspace", s.low("gate_up", s.tokens))
            tape["low down"] = trace.take("workspace", s.low("down", s.tokens))
    trace.free(*copies, wide, down, *before)
    lost = [name for name in NAMES if name in tape and name not in policy.held]
    trace.free(*(tape.pop(name) for name in lost), tape.pop("lse") if "attention" in lost else None)
    left = {name: held[2] for name, held in [*tape.items(), ("out", out)] if held and held[2] >= 0}
    return trace, left


def first_wanted(policy: Policy) -> tuple[str, ...]:
    """What a layer's backward takes from the tape at once; the rest it calls back at its start, for its second half."""
    everything = {"middle", "qkv", "attention"} <= set(policy.held)
    return ("middle", "gate_up") if everything else NAMES


def backward(s: Sizes, policy: Policy, below: Policy | None) -> "Down":
    """The trace of a backward over a layer of policy ``below``, whose first tensors are called back meanwhile."""
    trace = Trace()
    tape: dict[str, Held | None] = {}
    own = {name: s.query if name == "attention" else s.tape[name] for name in NAMES}
    first = first_wanted(policy)
    late = [name for name in policy.host if name not in first]
    for name in policy.held:
        if name not in late:
            tape[name] = trace.there("activations", own[name])
    if "attention" in policy.held:
        tape["lse"] = trace.there("activations", s.attention.saved)
    kept = "gate_up" in policy.held
    if kept:
        for group in s.ranks:
            tape[f"low {group}"] = trace.there("activations", s.low(group, s.tokens))
    found = {name: held[2] for name, held in tape.items() if held and held[2] >= 0}
    for name in late:
        tape[name] = trace.take("activations", own[name])
    next_first = [name for name in first_wanted(below) if name in below.host] if below else []
    called: dict[str, int] = {}

    def call() -> None:
        for name in next_first:
            block = trace.take("activations", own[name])
            if block and block[2] >= 0:
                called[name] = block[2]

    ahead = below is not None and "gate_up" in below.host
    if ahead:
        call()
    copies = [trace.take("workspace", size) for size in s.copies]
    _attend(trace, s, tape)
    weights: list[Held | None] = [None, None]
    for turn in range(min(TURNS, s.tiles)):
        weights = _mlp_backward(trace, s, kept, weights, first=not turn)
    trace.free(tape.pop("gate_up", None), *weights, tape.pop("middle"))
    dqkv = _attention_backward(trace, s, tape)
    if not ahead:
        call()
    _projections_backward(trace, s, tape, dqkv)
    trace.free(*copies, tape.pop("input"), *tape.values())
    return Down(trace, found, called)


@dataclass(frozen=True)
class Down:
    """A backward's trace, the numbers of what it finds on the tape, and of what it calls back for the layer below."""

    trace: Trace
    found: dict[str, int]
    called: dict[str, int]


def _normed(trace: Trace, s: Sizes, group: str, tokens: int) -> list[Held | None]:
    """A norm's output, with room where it is a group's input, and the reciprocals that its backward takes."""
    room = s.room[group] if group else 0
    size = tokens * (s.block.hidden + room) * s.item
    return [trace.take("workspace", size), trace.take("workspace", tokens * 4)]


def _attend(trace: Trace, s: Sizes, tape: dict[str, Held | None]) -> None:
    """The attention half: puts on the tape what isn't there yet."""
    last: list[Held | None] = []
    if "qkv" not in tape:
        normed, rows = _normed(trace, s, "qkv", s.tokens)
        weight = trace.take("dequantised", s.buffer["qkv"])
        tape["qkv"] = trace.take("workspace", s.tape["qkv"])
        if s.room["qkv"]:  # copied out of what it lies in
            trace.free(weight)
        trace.free(tape.get("low qkv"))
        tape["low qkv"] = trace.take("workspace", s.low("qkv", s.tokens))
        trace.free(normed, None if s.room["qkv"] else weight)
        last.append(rows)
    if "attention" not in tape:
        if s.block.qk_norm:
            last += [trace.take("workspace", s.query), trace.take("workspace", s.narrow)]
        tape["attention"] = trace.take("workspace", s.query)
        tape["lse"] = trace.take("workspace", s.attention.saved)
        trace.touch("attention", s.attention.forward)
    if "middle" not in tape:
        weight = trace.take("dequantised", s.buffer["output"])
        tape["middle"] = out = trace.take("workspace", s.hidden)
        trace.free(tape.get("low output"))
        tape["low output"] = trace.take("workspace", s.low("output", s.tokens))
        if s.block.post_norms:
            tape["middle"], rows = _normed(trace, s, "", s.tokens)
            trace.free(out, rows)
        trace.free(weight)
    trace.free(*last)


def _mlp_backward(
    trace: Trace, s: Sizes, kept: bool, weights: list[Held | None], first: bool
) -> list[Held | None]:
    """One tile; returns the weights that the next one uses."""
    wide, down = weights
    mine = _normed(trace, s, "gate_up", s.tile)
    if not kept:
        mine.append(trace.take("workspace", s.gate_up))
        wide = wide or trace.take("dequantised", s.buffer["gate_up"])
        mine.append(trace.take("workspace", s.apart("gate_up", s.tile)))
        if not s.holds:
            trace.free(wide)
            wide = None
    used = []
    if s.block.post_norms:
        used.append(trace.take("workspace", s.gated))
        down = down or trace.take("dequantised", s.buffer["down"])
        m = trace.take("workspace", s.tile_hidden)
        mine.append(trace.take("workspace", s.apart("down", s.tile)))
        if not s.holds:
            trace.free(down)
            down = None
        mine += _normed(trace, s, "", s.tile)
        used.append(trace.take("workspace", s.tile_hidden + s.beside("down", s.tile)))
        trace.free(m)
    down = down or trace.take("dequantised", s.buffer["down"])
    mine.append(trace.take("workspace", s.apart("down", s.tile)))
    used.append(trace.take("workspace", s.ffn))
    if not kept and not s.block.post_norms:
        mine.append(trace.take("workspace", s.low("down", s.tile)))
    if not s.holds:
        trace.free(down)
        down = None
    _gradients(trace, s, "down", first)
    trace.free(*used)
    wide = wide or trace.take("dequantised", s.buffer["gate_up"])
    mine.append(trace.take("workspace", s.apart("gate_up", s.tile)))
    trace.touch("workspace", s.tile_hidden)
    if not s.holds:
        trace.free(wide)
        wide = None
    _gradients(trace, s, "gate_up", first)
    trace.free(*mine)
    return [wide, down]


def _gradients(trace: Trace, s: Sizes, group: str, first: bool = True) -> None:
    """A group's gradients: made by the first tile, added to by the others; where a product can't add, beside it."""
    for size in s.gradients[group]:
        if first:
            trace.take("gradients", size)
        if not s.adds:
            trace.touch("gradients", size)


def _attention_backward(trace: Trace, s: Sizes, tape: dict[str, Held | None]) -> Held | None:
    """Down to the gradient of q, k and v side by side, which it returns."""
    weight = trace.take("dequantised", s.buffer["output"])
    mine: list[Held | None] = []
    dout = None
    if s.block.post_norms:
        out = trace.take("workspace", s.hidden)
        mine.append(trace.take("workspace", s.low("output", s.tokens)))
        mine += _normed(trace, s, "", s.tokens)
        dout = trace.take("workspace", s.hidden + s.beside("output", s.tokens))
        trace.free(out)
    elif "low output" not in tape:
        mine.append(trace.take("workspace", s.low("output", s.tokens)))
    mine.append(trace.take("workspace", s.apart("output", s.tokens)))
    used = [trace.take("workspace", s.query)]
    _gradients(trace, s, "output")
    trace.free(dout, weight)
    if s.block.qk_norm:
        used += [trace.take("workspace", s.query), trace.take("workspace", s.narrow)]
    parts = [trace.take("workspace", size) for size in (s.query, s.narrow, s.narrow)]
    trace.touch("attention", s.attention.backward)
    trace.free(*used, tape.pop("attention"), tape.pop("lse"))
    dqkv = trace.take("workspace", s.qkv + s.beside("qkv", s.tokens))
    trace.free(*parts, *mine)
    return dqkv


def _projections_backward(trace: Trace, s: Sizes, tape: dict[str, Held | None], dqkv: Held | None) -> None:
    trace.free(tape.pop("qkv"))
    mine = _normed(trace, s, "", s.tokens)
    weight = trace.take("dequantised", s.buffer["qkv"])
    if "low qkv" not in tape:
        mine.append(trace.take("workspace", s.low("qkv", s.tokens)))
    mine.append(trace.take("workspace", s.apart("qkv", s.tokens)))
    dnormed = trace.take("workspace", s.hidden)
    trace.free(weight, dnormed)
    _gradients(trace, s, "qkv")
    trace.free(*mine, dqkv)
