"""What a step on a CPU frees stays in the process for the next one: glibc would give it to the system, and ask again.

A page that comes back costs a fault and is zeroed: tens of thousands a step, a twentieth to a tenth of its time.
"""

import ctypes
import os
import sys
import threading

__all__ = ["FreedMemory", "give_back_freed_memory"]

# mallopt(3): from how large on a block is mapped by itself, and how much free memory is kept at the heap's end.
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_ALL = 2**31 - 1
# Where glibc's own rule arrives once a process has freed something large.
_USUAL = {_MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}

# Python's collector may drop one in the midst of anything.
_lock = threading.RLock()
_holders = 0


class FreedMemory:
    """As long as one of these exists, freed memory is kept. Where the allocator isn't glibc's, or the environment says
    when it gives memory back, it is left as it is."""

    def __init__(self) -> None:
        _hold(1)

    def __del__(self) -> None:
        _hold(-1)

    @property
    def kept(self) -> bool:
        """Whether it is."""
        return _mallopt() is not None


def _hold(change: int) -> None:
    global _holders
    with _lock:
        before, _holders = _holders, _holders + change
        mallopt = None if before and _holders else _mallopt()
        if mallopt is None:
            return
        for option, usual in _USUAL.items():
            # Older ones take no more than what is usual for blocks mapped by themselves.
            if not (_holders and mallopt(option, _ALL)):
                mallopt(option, usual)


def _mallopt() -> "ctypes._FuncPointer | None":
    """glibc's, where it is this process' and nobody outside has made these settings."""
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    for name in ("mmap_threshold", "trim_threshold"):
        if f"MALLOC_{name.upper()}_" in os.environ or name in tunables:
            return None
    return _of_libc("mallopt")


def _of_libc(name: str) -> "ctypes._FuncPointer | None":
    """A function of glibc's; None on other systems."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def give_back_freed_memory() -> None:
    """Hands the system all pages that hold nothing any more."""
    trim = _of_libc("malloc_trim")
    if trim is not None:
        trim(0)
