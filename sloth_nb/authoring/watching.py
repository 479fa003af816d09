"""Watching a kernel from outside while its notebook is executed: its memory, and the progress of its runs."""

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from sloth_nb.training.announce import RUN_MIME
from sloth_nb.training.follow import EventTail
from sloth_nb.training.history import History
from sloth_nb.training.progress import progress_line

__all__ = ["MemoryWatch", "ProgressWatch"]

_SECONDS = 0.25


class MemoryWatch:
    """The peak resident memory of a process and its children."""

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._over = threading.Event()

    def start(self, process_id: int | None) -> None:
        if process_id is not None:
            threading.Thread(target=self._watch, args=(process_id,), daemon=True).start()

    def stop(self) -> None:
        self._over.set()

    def _watch(self, process_id: int) -> None:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(process_id)
            while not self._over.is_set():
                family = [process, *process.children(recursive=True)]
                resident = sum(_resident(member) for member in family)
                self.peak_bytes = max(self.peak_bytes, resident, _own_peak(process))
                self._over.wait(_SECONDS)


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


class ProgressWatch:
    """Says how the training runs go that a notebook announces (see ``sloth_nb.training.announce``)."""

    def __init__(self, say: Callable[[str], None], every: float = 5.0):
        self._say, self._every = say, every
        self._lines: list[str] = []

    def watches(self, data: Mapping[str, Any], folder: Path) -> bool:
        """Whether that output announces a run, which is followed from now on."""
        about = data.get(RUN_MIME)
        if about is None:
            return False
        path, offset = folder / about["path"], int(about["offset"])
        threading.Thread(target=self._follow, args=(path, offset), daemon=True).start()
        return True

    def _follow(self, path: Path, offset: int) -> None:
        tail, history, said = EventTail(path, offset), History(), 0.0
        while history.state == "running":
            events = tail.new()
            for event in events:
                history.add(event)
            news = any(event.kind in ("eval", "finished", "stopped", "failed") for event in events)
            if events and (news or time.monotonic() - said >= self._every):
                self._say(f"    {progress_line(history)}")
                said = time.monotonic()
            time.sleep(_SECONDS)
