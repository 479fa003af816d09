"""How far one number can go: the longest context and the largest batch that fit."""

from collections.abc import Callable

from sloth_nb.catalog import GPU
from sloth_nb.memory.formulas import estimate_work
from sloth_nb.memory.work import Work

__all__ = ["largest_batch", "longest_context"]

CEILING = 16 * 2**20


def longest_context(work: Work, gpu: GPU, memory: int | None = None) -> int:
    """Tokens a sequence, rounded down to 64; 0 when not even 64 fit."""
    return 64 * _largest(lambda n: work.but(length=64 * n), gpu, memory, CEILING // 64)


def largest_batch(work: Work, gpu: GPU, memory: int | None = None) -> int:
    """Sequences a step; 0 when not even one fits."""
    return _largest(lambda n: work.but(batch=n), gpu, memory, 65536)


def _largest(at: Callable[[int], Work], gpu: GPU, memory: int | None, ceiling: int) -> int:
    """The largest n whose work fits. Memory is nearly a line in n, so the guesses follow that line."""
    budget = gpu.memory if memory is None else memory

    def needed(n: int) -> int:
        return estimate_work(at(n), gpu).total

    low, low_need = 1, needed(1)
    if low_need > budget:
        return 0
    high, high_need = 2, needed(2)
    while high_need <= budget:
        if high >= ceiling:
            return ceiling
        slope = max((high_need - low_need) / (high - low), 1e-9)
        low, low_need = high, high_need
        high = min(ceiling, max(high * 2, int(high + (budget - high_need) / slope) + 1))
        high_need = needed(high)
    turn = 0
    while high - low > 1:
        # Where the line crosses the budget; each third time the middle, or it could creep.
        turn += 1
        share = 0.5 if turn % 3 == 0 else (budget - low_need) / (high_need - low_need)
        middle = min(max(low + int((high - low) * share), low + 1), high - 1)
        need = needed(middle)
        if need <= budget:
            low, low_need = middle, need
        else:
            high, high_need = middle, need
    return low
