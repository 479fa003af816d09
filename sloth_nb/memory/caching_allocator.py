"""torch's caching allocator on paper: which segments it takes from the driver for a run of requests.

What ``torch.cuda.max_memory_reserved`` says is the sum of its segments, and depends on the order in which tensors
come and go. The rules are those of torch's CUDACachingAllocator (c10/cuda), for one stream and without options.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

__all__ = ["CachingAllocator", "OutOfRoom"]

MIB = 2**20
UNIT = 512
# Up to so many bytes a request is small and shares segments of two MB; up to ten MB it gets one of twenty, of
# which others may have the rest; above that a segment of its own, in whole two MBs.
SMALL, SMALL_SEGMENT, MIDDLE, MIDDLE_SEGMENT, STEP = MIB, 2 * MIB, 10 * MIB, 20 * MIB, 2 * MIB


class OutOfRoom(MemoryError):
    """The cap is too low for a request, with everything returned that is wholly free."""


@dataclass(slots=True, eq=False)
class Block:
    """A piece of a segment; ``before`` and ``after`` are its neighbours there."""

    size: int
    address: int
    small: bool
    free: bool = False
    before: Block | None = field(default=None, repr=False)
    after: Block | None = field(default=None, repr=False)


class CachingAllocator:
    """``allocated`` and ``reserved`` bytes now and at their peaks, under a ``cap`` of reserved bytes or none."""

    def __init__(self, cap: int | None = None) -> None:
        self.cap = cap
        self.allocated = self.reserved = self.allocated_peak = self.reserved_peak = 0
        # Free blocks by size and address, of small and large requests.
        self._free: dict[bool, list[tuple[int, int, Block]]] = {True: [], False: []}
        self._next = 0

    def allocate(self, size: int) -> Block:
        """A block for this many bytes.

        Raises:
            OutOfRoom: the cap is too low.
        """
        size = -(-size // UNIT) * UNIT or UNIT
        small = size <= SMALL
        free = self._free[small]
        place = bisect_left(free, (size,))
        block = free.pop(place)[2] if place < len(free) else self._segment(size, small)
        rest = block.size - size
        if rest > SMALL or (small and rest):  # what is split off is free
            other = Block(rest, block.address + size, small, True, block, block.after)
            if block.after is not None:
                block.after.before = other
            block.after, block.size = other, size
            insort(free, (rest, other.address, other))
        block.free = False
        self.allocated += block.size
        if self.allocated > self.allocated_peak:
            self.allocated_peak = self.allocated
        return block

    def _segment(self, size: int, small: bool) -> Block:
        if small:
            whole = SMALL_SEGMENT
        else:
            whole = MIDDLE_SEGMENT if size < MIDDLE else -(-size // STEP) * STEP
        if self.cap is not None and self.reserved + whole > self.cap:
            self.empty_cache()
            if self.reserved + whole > self.cap:
                raise OutOfRoom(f"{size} bytes: {self.reserved} are reserved of {self.cap}")
        self.reserved += whole
        self.reserved_peak = max(self.reserved_peak, self.reserved)
        block = Block(whole, self._next, small)
        self._next += whole
        return block

    def free(self, block: Block) -> None:
        """Takes a block back; free neighbours become one."""
        self.allocated -= block.size
        free, before, after = self._free[block.small], block.before, block.after
        if before is not None and before.free:
            del free[bisect_left(free, (before.size, before.address))]
            block.address, block.size = before.address, block.size + before.size
            block.before = before.before
            if block.before is not None:
                block.before.after = block
        if after is not None and after.free:
            del free[bisect_left(free, (after.size, after.address))]
            block.size += after.size
            block.after = after.after
            if block.after is not None:
                block.after.before = block
        block.free = True
        insort(free, (block.size, block.address, block))

    def empty_cache(self) -> None:
        """Gives the segments back of which nothing is used."""
        for free in self._free.values():
            kept = [entry for entry in free if entry[2].before is not None or entry[2].after is not None]
            self.reserved -= sum(size for size, _, _ in free) - sum(size for size, _, _ in kept)
            free[:] = kept  # in place: ``allocate`` may hold this list
