"""A run read from its file: a past one, or one that another process (or a kernel now gone) trains.

A thread reads what is appended, so that a reopened notebook shows a run that goes on elsewhere.
"""

import platform
import threading
import weakref
from pathlib import Path
from typing import Any

import psutil

from sloth_nb.errors import TrainingError
from sloth_nb.training.events import RunEvent
from sloth_nb.training.run import Run, StopRequest

__all__ = ["EventTail", "FollowedRun", "process_mark"]

_SECONDS_BETWEEN_LOOKS = 0.5


def process_mark() -> dict[str, Any]:
    """What tells later whether the process that trains still lives: part of a run's ``started`` event."""
    process = psutil.Process()
    return {
        "host": platform.node(),
        "process": process.pid,
        "process_started": round(process.create_time(), 2),
    }


def _is_gone(started: RunEvent) -> bool:
    """Whether the process that wrote this event has ended; False when that can't be known from here."""
    mark = started.data
    if mark.get("host") != platform.node() or "process" not in mark:
        return False
    try:
        born = psutil.Process(mark["process"]).create_time()
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False
    return abs(born - mark["process_started"]) > 1


class EventTail:
    """Reads what is appended to an event file, whole lines only, from ``offset`` bytes on."""

    def __init__(self, path: Path, offset: int = 0):
        self.path, self._read, self._rest = path, offset, b""

    def new(self) -> list[RunEvent]:
        """The events since the last call; none while the file isn't there."""
        try:
            size = self.path.stat().st_size
            if size < self._read:  # the file was replaced by a new run's
                self._read, self._rest = 0, b""
            if size == self._read:
                return []
            with self.path.open("rb") as file:
                file.seek(self._read)
                new = file.read()
        except OSError:
            return []
        self._read += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        return [
            RunEvent.from_json(line.decode("utf-8", "replace"), self.path) for line in lines if line.strip()
        ]


class FollowedRun(Run):
    """A run that this process doesn't train. It can be watched and waited for, but not stopped from here."""

    trains_here = False

    def __init__(self, path: Path):
        super().__init__(path)
        self._tail = EventTail(path)
        self._look()
        self._see_whether_gone()
        if not self.over:
            threading.Thread(
                target=_follow, args=(weakref.ref(self),), name="sloth-nb-follow", daemon=True
            ).start()

    def _ask_to_stop(self, request: StopRequest) -> None:
        if not self.over:
            where = next((e.data.get("process") for e in reversed(self.events) if e.kind == "started"), None)
            raise TrainingError(
                f"This run trains in another process ({where or 'unknown'}), which alone can stop it. "
                "Interrupt the kernel of the notebook that started it."
            )

    def _look(self) -> None:
        for event in self._tail.new():
            self._take(event)

    def _take(self, event: RunEvent) -> None:
        self._deliver(event)
        if event.kind in ("stopped", "finished"):
            self.end(event.kind)
        elif event.kind == "failed":
            self.end("failed", error=TrainingError(event.data.get("message", "the run failed")))
        elif event.kind == "started":
            self._over.clear()
            self._error = None
            self.state = "running"

    def _see_whether_gone(self) -> None:
        started = next((event for event in reversed(self.events) if event.kind == "started"), None)
        if self.over or started is None or not _is_gone(started):
            return
        self._look()  # it may have ended between the two looks
        if not self.over:
            message = (
                "The process that trained this run is gone and left no last word (a closed kernel, or a "
                "crash). trainer.train(resume_from_checkpoint=True) goes on from its last checkpoint."
            )
            self._take(RunEvent("failed", self.history.step, data={"message": message}))


def _follow(reference: "weakref.ref[FollowedRun]") -> None:
    """Look twice a second until the run is over or nobody holds it any more."""
    nap = threading.Event()
    while (run := reference()) is not None and not run.over:
        run._look()
        run._see_whether_gone()
        del run
        nap.wait(_SECONDS_BETWEEN_LOOKS)
