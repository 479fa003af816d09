"""A step of the whole model out of the stretches of a few layers, tensor by tensor through the caching allocator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sloth_nb.memory.caching_allocator import Block, CachingAllocator

__all__ = ["Stretch", "WholeStep"]

OUTSIDE = -1


@dataclass
class Stretch:
    """What happened between two marks, in order: (what, number of the tensor, value).

    "come" and "go" have the tensor's bytes; "take over" the number of the tensor whose place this one takes, because
    autograd sums into it; "inside" the bytes that a kernel takes while it runs. ``name`` is ("forward", place) or
    ("backward", place) of a layer's pass, or of something outside the layers.
    """

    name: Any
    events: list[tuple[str, int, int]] = field(default_factory=list)

    @property
    def place(self) -> int:
        return self.name[1] if isinstance(self.name, tuple) else OUTSIDE

    @property
    def rise(self) -> int:
        """How far memory rises above where it began."""
        now = top = 0
        for what, _, value in self.events:
            now += value if what == "come" else -value if what == "go" else 0
            top = max(top, now + (value if what == "inside" else 0))
        return top


class WholeStep:
    """Replays stretches of some layers (by place) for all layers of the model.

    Args:
        stretches: the first outside the layers, then a forward and a backward of every place.
        stands_for: for each layer, the place of the one that stands for it. Places are in the layers' order, so that
            a neighbour of a place is a neighbour of each layer that it stands for.
        buffers: gradients are written into buffers that are there, and not made.
    """

    def __init__(
        self, stretches: Sequence[Stretch], stands_for: Sequence[int], *, buffers: bool = False
    ) -> None:
        self.by_name = {stretch.name: stretch for stretch in stretches}
        self.layers_of: dict[int, list[int]] = {}
        for layer, place in enumerate(stands_for):
            self.layers_of.setdefault(place, []).append(layer)
        self.home = {n: s.place for s in stretches for what, n, _ in s.events if what == "come"}
        layers = range(len(stands_for))
        self.order: list[tuple[str, Any, int]] = [("forward", stretches[0].name, OUTSIDE)]
        self.order += [("forward", ("forward", stands_for[layer]), layer) for layer in layers]
        self.order += [("backward", ("backward", stands_for[layer]), layer) for layer in reversed(layers)]
        gone = {n for s in stretches for what, n, _ in s.events if what != "come"}
        self.left_out = set()
        if buffers:
            down = [s for s in stretches if isinstance(s.name, tuple) and s.name[0] == "backward"]
            self.left_out = {n for s in down for what, n, _ in s.events if what == "come" and n not in gone}

    def run(self, allocator: CachingAllocator) -> tuple[str, list[Block]]:
        """One step: during which pass memory was fullest, and what is left at its end."""
        live: dict[int, dict[int, tuple[int, Block]]] = {}
        moment = "forward"
        for way, name, layer in self.order:
            peak = allocator.allocated_peak
            stretch = self.by_name[name]
            for what, number, value in stretch.events:
                if what == "inside":
                    allocator.free(allocator.allocate(value))
                elif number in self.left_out:
                    continue
                elif what == "come":
                    live.setdefault(layer, {})[number] = value, allocator.allocate(value)
                else:
                    first = value if what == "take over" else number
                    found = self._find(live, first, layer, stretch.place, value if what == "go" else None)
                    if found is None:
                        continue
                    if what == "take over":
                        live.setdefault(layer, {})[number] = found
                        self.home[number] = stretch.place
                    else:
                        allocator.free(found[1])
            if allocator.allocated_peak > peak:
                moment = way
        return moment, [block for tensors in live.values() for _, block in tensors.values()]

    def _find(
        self,
        live: dict[int, dict[int, tuple[int, Block]]],
        number: int,
        layer: int,
        place: int,
        size: int | None,
    ) -> tuple[int, Block] | None:
        """The tensor of this number, as this layer sees it: its own, or that of a layer as far away as it was.

        Between two layers others may have been left out; and another place may stand for that layer, whose tensor is
        then known by its size.
        """
        home = self.home.get(number)
        if home is None:  # from before the step
            return None
        if home == OUTSIDE:
            return live.get(OUTSIDE, {}).pop(number, None)
        there = layer + home - place
        for other in sorted(self.layers_of[home], key=lambda other: abs(other - there)):
            if number in live.get(other, ()):
                return live[other].pop(number)
            if other == there:
                break
        tensors = live.get(there, {})
        alike = next((other for other, (bytes_, _) in tensors.items() if bytes_ == size), OUTSIDE)
        return tensors.pop(alike, None)
