"""What a run costs while it runs: tokens a second, and the peak of the memory that is scarce."""

import contextlib
import sys
import time
from collections.abc import Iterator

import psutil
import torch

__all__ = ["Pace", "forget_peaks", "peak_memory_bytes"]


def forget_peaks(device: torch.device) -> None:
    """Peaks of CUDA's allocator begin anew; a process' resident set has no such mark."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak so far, without waiting for the device: of CUDA's allocator, else of the process' resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Pace:
    """Tokens a second of training alone: evaluating and saving stop the clock."""

    def __init__(self) -> None:
        self.begin(0)

    def begin(self, tokens: int) -> None:
        """Start counting from here; ``tokens`` were trained before (a resumed run)."""
        self._last = self._start = time.perf_counter()
        self._paused = self._paused_at_last = 0.0
        self._tokens_at_start = self._tokens_at_last = tokens

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        before = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - before

    def since_last(self, tokens: int) -> float:
        """Tokens a second since the last call, given all tokens so far."""
        now = time.perf_counter()
        seconds = now - self._last - (self._paused - self._paused_at_last)
        rate = (tokens - self._tokens_at_last) / max(seconds, 1e-9)
        self._last, self._paused_at_last, self._tokens_at_last = now, self._paused, tokens
        return rate

    def overall(self, tokens: int) -> float:
        """Tokens a second since ``begin``."""
        seconds = time.perf_counter() - self._start - self._paused
        return (tokens - self._tokens_at_start) / max(seconds, 1e-9)
