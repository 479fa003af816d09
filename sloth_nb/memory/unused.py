"""What the caching allocator reserves beyond the tensors: a step's large tensors, walked through its rules.

Best fit cuts long-lived tensors (a layer's output, its attention) out of the segments that wider short-lived ones
(a dequantised weight, an MLP's activation) have just left; what remains of such a segment fits nothing, and the next
layer's wide tensor takes a new one. That happens anew in each layer; where it does so in the same way for long enough,
the layers walked through tell of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sloth_nb.memory.caching_allocator import SMALL, Block, CachingAllocator

if TYPE_CHECKING:
    from sloth_nb.memory.layers import Passes

__all__ = ["Around", "Kind", "Walk", "walk"]

# All layers are walked through, but for those of a kind whose last twelve repeat themselves: every one, every second
# or every third makes the allocator grow as the one before, over two periods of six. Fewer may be a passing thing, and
# layers that make nothing grow may be using up holes.
# Downwards a few are enough: nothing is kept there.
PERIOD, DOWN = 6, 3


@dataclass(frozen=True, eq=False)
class Kind:
    """Equal layers: their passes, the bytes of what each moves to the host, of what it holds on the device, and of
    its input."""

    passes: Passes
    host: dict[str, int]
    held: int
    input: int


@dataclass(frozen=True)
class Walk:
    """What large tensors made the allocator reserve, and what each further layer of each kind would add.

    ``counts``: how many layers of each kind were walked through; the further ones would add something only where
    these repeat themselves.
    """

    reserved: int
    each: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Around:
    """Bytes of what a step makes above and below its layers.

    Attributes:
        hidden: the hidden states. room: what their gradient has beside it.
        loss: what the loss makes for itself. head, embedding: their gradients, where they are trained: then the
            gradients of the layers, which stay, are as large as anything, and the whole step is walked through.
    """

    hidden: int
    room: int
    loss: tuple[int, ...]
    head: int = 0
    embedding: int = 0

    @property
    def whole(self) -> bool:
        return self.embedding > 0


def walk(kinds: Sequence[Kind], counts: Sequence[int], around: Around) -> Walk:
    """One step through the allocator's rules.

    Args:
        kinds: bottom to top, so many layers of each as ``counts`` says.
    """
    step = _Step(around)
    each, walked = [], []
    for kind, count in zip(kinds, counts, strict=True):
        grown: list[int] = []
        for _ in range(count):
            before = step.allocator.reserved
            step.up(kind)
            grown.append(step.allocator.reserved - before)
            if not around.whole and _repeats(grown[-2 * PERIOD :]):
                break
        each.append(sum(grown[-PERIOD:]) / PERIOD)
        walked.append(len(grown))
    step.turn()
    step.down(len(step.tapes) if around.whole else DOWN)
    return Walk(step.allocator.reserved_peak, tuple(each), tuple(walked))


def _repeats(grown: list[int]) -> bool:
    """Whether each layer, each second or each third makes it grow as the one before, over two periods, and some do."""
    return len(grown) == 2 * PERIOD and any(grown) and any(grown[step:] == grown[:-step] for step in (2, 3))


class _Step:
    """One step over the layers that are walked through."""

    def __init__(self, around: Around) -> None:
        self.around = around
        self.allocator = CachingAllocator()
        # Small tensors are not followed: theirs are None.
        self.x: Block | None = None
        self.width = 0
        self.leaving: list[Block] = []
        self.tapes: list[tuple[Kind, dict[str, Block]]] = []

    def up(self, kind: Kind) -> None:
        """One layer's forward, and what becomes of its tape."""
        if kind.input != self.width:  # the lowest, also of another part (Whisper's decoder above its encoder)
            self.width = kind.input
            self.x = self.allocator.allocate(kind.input) if kind.input > SMALL else None
        blocks = self._walk(kind.passes.forward, [])
        tape = {name: blocks[number] for name, number in kind.passes.left.items()}
        out = tape.pop("out", None)
        if self.x is not None:
            tape["input"] = self.x
        for block in self.leaving:
            self.allocator.free(block)
        self.leaving = [tape.pop(name) for name in kind.host if name in tape]
        self.tapes.append((kind, tape))
        self.x = out

    def turn(self) -> None:
        """The last norm, the loss, and the gradient of the layers' output."""
        take, free, hidden = self.allocator.allocate, self.allocator.free, self.around.hidden
        for block in self.leaving:
            free(block)
        take(hidden)  # the normed states, which the model's output holds
        made = [take(size) for size in self.around.loss]
        gradient = take(hidden)
        if self.around.head:
            take(self.around.head)
        for block in made:
            free(block)
        take(hidden)
        free(gradient)
        if self.x is not None:
            free(self.x)
        take(hidden + self.around.room)

    def down(self, layers: int) -> None:
        """The backward of the uppermost layers; of the embedding, too, where it is trained."""
        for place in range(len(self.tapes) - 1, max(len(self.tapes) - 1 - layers, -1), -1):
            kind, tape = self.tapes[place]
            for name in kind.passes.found:  # of the uppermost layer nobody called anything back before
                if name not in tape:
                    tape[name] = self.allocator.allocate(kind.host[name])
            blocks = self._walk(kind.passes.backward, [tape[name] for name in kind.passes.found])
            if place:
                below = self.tapes[place - 1][1]
                below |= {name: blocks[number] for name, number in kind.passes.called.items()}
        if self.around.embedding:
            self.allocator.allocate(self.around.embedding)

    def _walk(self, events: Sequence[int], blocks: list[Block | None]) -> list[Block | None]:
        take, free = self.allocator.allocate, self.allocator.free
        for event in events:
            if event >= 0:
                blocks.append(take(event))
            else:
                free(blocks[~event])
                blocks[~event] = None
        return blocks
