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

    def take(self, kind: str, size: int, new: bool = True) -> Held | None:
        """Holds a tensor of this many bytes; give the result to ``free``. One that isn't new makes no event."""
        if not size:
            return None
        size = -(-size // 512) * 512
        held = self.held
        held[kind] = held.get(kind, 0) + size
        self.now = now = self.now + size
        if now > self.peak:
            self.peak, self.at_peak = now, held.copy()
        if size <= SMALL:
            return kind, size, -1
        number = self.count
        self.count = number + 1
        if new:
            self.events.append(size)
        return kind, size, number

    def there(self, kind: str, size: int) -> Held | None:
        """Holds a tensor that came before."""
        return self.take(kind, size, new=False)

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
