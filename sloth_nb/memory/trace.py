"""Trace: a pretended allocator. Sizes go in and out, and it remembers the fullest moment, by kind.

The formulas walk through a layer's forward and backward with it, statement by statement as the engine does,
so that what they answer is a sum of named tensors and not a fitted constant.
"""

from dataclasses import dataclass, field

__all__ = ["Held", "Trace", "rounded"]

Held = tuple[str, int]


def rounded(size: float) -> int:
    """Bytes that the caching allocator hands out for a tensor of this size: whole 512s."""
    return -(-int(size) // 512) * 512


@dataclass
class Trace:
    """Bytes held now and at the peak, by kind."""

    now: int = 0
    peak: int = 0
    held: dict[str, int] = field(default_factory=dict)
    at_peak: dict[str, int] = field(default_factory=dict)

    def take(self, kind: str, size: float) -> Held:
        """Holds a tensor of this many bytes; give the result to ``free``."""
        size = rounded(size)
        self.now += size
        self.held[kind] = self.held.get(kind, 0) + size
        if self.now > self.peak:
            self.peak, self.at_peak = self.now, dict(self.held)
        return kind, size

    def touch(self, kind: str, size: float) -> None:
        """A tensor that lives for a moment only."""
        self.free(self.take(kind, size))

    def free(self, *blocks: Held | None) -> None:
        for block in blocks:
            if block is not None:
                kind, size = block
                self.now -= size
                self.held[kind] -= size
