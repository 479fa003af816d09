"""One decoder layer's cost in our engine: what its policy holds, and the fullest moment of each pass.

What a policy holds between forward and backward is the tape; everything else lives inside one layer's pass
(memory/passes.py).
"""

from dataclasses import dataclass, field
from typing import Any

from sloth_nb.catalog import Block
from sloth_nb.memory.passes import Down, backward, forward
from sloth_nb.memory.policy import Policy
from sloth_nb.memory.sizes import Sizes
from sloth_nb.memory.trace import Trace
from sloth_nb.memory.work import Work

__all__ = ["LayerCost", "Passes", "layer_cost"]


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
        host: in pinned host memory meanwhile; ``moved``: the same by name.
        input: of its input, wherever that is.
        forward, backward: the fullest moment of each pass by kind. A forward's input, a backward's incoming
            gradient and what other layers hold are not counted in them; the layer's own tape and gradients are.
        passes: both passes, tensor by tensor.
        room: what stands beside the gradient of its output.
    """

    held: int
    host: int
    input: int
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
    known = _known(block, work, capability, tile)
    key = (policy, below, wide_below)
    cost = known.costs.get(key)
    if cost is None:
        cost = known.costs[key] = _layer_cost(known, policy, below, wide_below)
    return cost


@dataclass
class _Known:
    """What has been worked out already with these sizes."""

    sizes: Sizes
    costs: dict[tuple[Policy, Policy | None, bool], LayerCost] = field(default_factory=dict)
    forwards: dict[Policy, tuple[Trace, dict[str, int]]] = field(default_factory=dict)
    backwards: dict[tuple[Policy, Policy | None], Down] = field(default_factory=dict)


def _known(block: Block, work: Work, capability: float, tile: int | None) -> _Known:
    """Remembered by everything that they depend on: a search for what would fit asks for the same again and again."""
    key = (id(block), id(work.model), work.tokens, work.sequences, work.packed, work.method)
    key += (work.rank, work.targets, capability, tile)
    known = _KNOWN.get(key)
    # The sizes hold block and model, so that their ids stay theirs.
    if known is None or known.sizes.block is not block or known.sizes.work.model is not work.model:
        if len(_KNOWN) >= 1024:
            _KNOWN.clear()
        known = _KNOWN[key] = _Known(Sizes(block, work, capability, tile))
    return known


_KNOWN: dict[tuple[Any, ...], _Known] = {}


def _layer_cost(known: _Known, policy: Policy, below: Policy | None, wide_below: bool) -> LayerCost:
    sizes = known.sizes
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
    if policy not in known.forwards:
        known.forwards[policy] = forward(sizes, policy)
    if (policy, below) not in known.backwards:
        known.backwards[policy, below] = backward(sizes, policy, below)
    (up, left), down = known.forwards[policy], known.backwards[policy, below]
    passes = Passes(tuple(up.events), left, tuple(down.trace.events), down.found, down.called)
    room = max(sizes.room["down"], sizes.room["output"])
    going = up.at_peak | {"activations": leaving}
    own = sizes.tape["input"]
    return LayerCost(held, host, own, going, down.trace.at_peak, passes, sizes.block, policy, moved, room)
