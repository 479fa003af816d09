"""The memory of models that were dropped, given back before another one takes as much."""

import gc
from itertools import count

from sloth_nb.engine.heap import give_back_freed_memory

__all__ = ["release_dropped"]

_calls = count()


def release_dropped() -> None:
    """Called before a model is loaded. The first of a process has none before it, and waits for nothing.

    A model's parts refer to each other, so that a dropped one stays until Python looks for such, which it does rarely.
    And glibc keeps what was freed in pieces: with two models of 0.5 GB after one another 0.6 GB.
    """
    if next(_calls) == 0:
        return
    gc.collect()
    give_back_freed_memory()
