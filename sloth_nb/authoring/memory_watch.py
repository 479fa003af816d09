"""The peak memory of a kernel, watched from outside while its notebook is executed, and ended if it takes too much.

Resident memory is what a container's limit counts. (RLIMIT_DATA counts reserved address space as well: 0.9 GB
more than is used, measured right after importing torch, transformers and pyarrow.)
"""

import contextlib
import threading
from pathlib import Path

import psutil

__all__ = ["MemoryWatch"]

_SECONDS = 0.25


class MemoryWatch:
    """The peak resident memory of a process and its children.

    Args:
        limit_bytes: a process that takes more is killed, as a container would do it. None only watches.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self.peak_bytes = 0
        self.limit_bytes = limit_bytes
        self._process: psutil.Process | None = None
        self._looking = threading.Lock()
        self._over = threading.Event()

    def start(self, process_id: int | None) -> None:
        if process_id is not None:
            with contextlib.suppress(psutil.Error):
                self._process = psutil.Process(process_id)
                threading.Thread(target=self._watch, daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def look(self) -> None:
        """Note what the process has taken by now; at the end of a cell, lest the kernel end between two looks."""
        if self._process is None:
            return
        with self._looking, contextlib.suppress(psutil.Error):
            family = [self._process, *self._process.children(recursive=True)]
            resident = sum(_resident(member) for member in family)
            self.peak_bytes = max(self.peak_bytes, resident, _own_peak(self._process))
            if self.limit_bytes is not None and self.peak_bytes > self.limit_bytes:
                self._process.kill()

    def _watch(self) -> None:
        while not self._over.is_set():
            self.look()
            self._over.wait(_SECONDS if self.limit_bytes is None else _SECONDS / 5)


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def _own_peak(process: psutil.Process) -> int:
    """The system's own record, where it keeps one: between two looks nothing is missed."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration, ValueError):
        return getattr(process.memory_info(), "peak_wset", 0)
