"""Memory that was freed, handed back to the system."""

import ctypes
import sys

__all__ = ["give_back_freed_memory"]


def give_back_freed_memory() -> None:
    """Hands the system all pages that hold nothing any more: glibc keeps what was freed in pieces."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
