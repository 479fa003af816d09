"""Trace: a pretended allocator. Sizes go in and out, and it remembers the fullest moment, by kind.

The formulas walk through a layer's forward and backward with it, statement by statement as the engine does,
so that what they answer is a sum of named tensors and not a fitted constant.
"""

from sloth_nb.memory.caching_allocator import SMALL

__all__ = ["Held", "Trace", "rounded"]

Held = tuple[str, int, int]


def rounded(size: float) -> int:
    """Bytes that the caching allocator hands out for a tensor of this size: whole 512s."""
    return -(-int(size) // 512) * 512


class Trace:
    """Bytes held now and at the peak, by kind; and in ``events`` what large tensors came (bytes) and went (~number).

    Tensors are numbered as they come. Small ones have pages of their own in the real allocator, and no number.
    """

    __slots__ = ("at_peak", "count", "events", "held", "now", "peak")

    def __init__(self) -> None:
        self.now = self.peak = self.count = 0
        self.held: dict[str, int] = {}
        self.at_peak: dict[str, int] = {}
        self.events: list[int] = []

    def there(self, kind: str, size: int) -> Held:
        """Holds a tensor that came before: counted and numbered, but no event."""
        size = -(-size // 512) * 512
        held = self.held
        held[kind] = held.get(kind, 0) + size
        self.now += size
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, held.copy()
        number = -1
        if size > SMALL:
            number = self.count
            self.count += 1
        return kind, size, number

    def take(self, kind: str, size: int) -> Held | None:
        """Holds a tensor of this many bytes; give the result to ``free``."""
        if not size:
            return None
        block = self.there(kind, size)
        if block[2] >= 0:
            self.events.append(block[1])
        return block

    def touch(self, kind: str, size: int) -> None:
        """A tensor that lives for a moment only."""
        self.free(self.take(kind, size))

    def free(self, *blocks: Held | None) -> None:
        """Lets go of what ``take`` gave."""
        for block in blocks:
            if block is not None:
                kind, size, number = block
                self.now -= size
                self.held[kind] -= size
                if number >= 0:
                    self.events.append(~number)
