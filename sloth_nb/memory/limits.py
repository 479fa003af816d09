"""How far one number can go: the longest context and the largest batch that fit."""

from collections.abc import Callable

from sloth_nb.catalog import GPU
from sloth_nb.memory.formulas import estimate_work, standing_total
from sloth_nb.memory.work import Work

__all__ = ["largest_batch", "longest_context"]

CEILING = 16 * 2**20


def longest_context(work: Work, gpu: GPU, memory: int | None = None) -> int:
    """Tokens a sequence, rounded down to 64; 0 when not even 64 fit. Where positions are learnt, no more than these."""
    ceiling = work.model.context if work.model.shape.learnt_positions else CEILING
    return 64 * _largest(lambda n: work.but(length=64 * n), gpu, memory, work.length // 64, ceiling // 64)


def largest_batch(work: Work, gpu: GPU, memory: int | None = None) -> int:
    """Sequences a step; 0 when not even one fits."""
    return _largest(lambda n: work.but(batch=n), gpu, memory, work.batch, 65536)


def _largest(at: Callable[[int], Work], gpu: GPU, memory: int | None, first: int, ceiling: int) -> int:
    """The largest n whose work fits. Memory is nearly a line in n, so the guesses, from ``first`` on, follow it."""
    budget = gpu.memory if memory is None else memory
    low, low_need = 0, standing_total(at(1), gpu)
    if low_need > budget:
        return 0
    high, high_need, turn = ceiling + 1, 0, 0
    n = min(max(first, 1), ceiling)
    while high - low > 1:
        need = estimate_work(at(n), gpu).total
        if need <= budget:
            slope = max((need - low_need) / (n - low), 1e-9)
            reach = min(int((budget - need) / slope), 8 * n)
            low, low_need = n, need
        else:
            high, high_need = n, need
        if not high_need:  # nothing was too much yet: onwards, ever faster
            n = min(max(low + reach, low + (1 << max(0, turn - 4))), ceiling)
        else:
            # Where the line crosses the budget; each fifth time the middle, or it could creep.
            share = 0.5 if turn % 5 == 4 else (budget - low_need) / (high_need - low_need)
            n = min(max(low + int((high - low) * share), low + 1), high - 1)
        turn += 1
    return low
