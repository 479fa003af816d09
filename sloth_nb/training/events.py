"""A run is a stream of events, one JSON line each, written beside the checkpoints.

The monitor widget, the command line's progress bar and a reopened notebook all read the same stream
(``<output_dir>/run.jsonl``), so a restarted kernel shows the run's past.
"""

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sloth_nb.errors import TrainingError

__all__ = ["RUN_FILE", "EventKind", "EventLog", "RunEvent", "read_events"]

RUN_FILE = "run.jsonl"

EventKind = Literal["started", "step", "eval", "checkpoint", "warning", "stopped", "finished", "failed"]


@dataclass(frozen=True)
class RunEvent:
    """One thing that happened in a run.

    ``data`` by kind (numbers are plain floats and ints; a value that is not known is left out):

    - ``started``: max_steps, epochs, batch_size, gradient_accumulation_steps, trainable_parameters, model,
      output_dir, resumed_from, report (what the data became), predicted_bytes, plan (what each
      layer keeps, when that was planned), and host, process, process_started: whether that process still lives
      tells a run that goes on from one that was cut off
    - ``step``: loss, learning_rate, grad_norm, epoch, tokens (trained so far, non-padding),
      tokens_per_second, memory_bytes (peak so far: of the GPU's allocator, or this process' resident set)
    - ``eval``: eval_loss and any other ``eval_*`` metric
    - ``checkpoint``: path
    - ``warning``: message
    - ``stopped``: reason, saved (path or null)
    - ``finished``: loss, seconds, tokens, tokens_per_second, memory_bytes, and predicted_bytes beside it
    - ``failed``: message
    """

    kind: EventKind
    step: int
    time: float = field(default_factory=time.time)
    data: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line without its newline."""
        return json.dumps(
            {"event": self.kind, "step": self.step, "time": round(self.time, 3), **self.data}, default=str
        )

    @classmethod
    def from_json(cls, line: str, file: str | os.PathLike[str] = RUN_FILE) -> "RunEvent":
        """The event of one line of ``file``.

        Raises:
            TrainingError: the line is no event.
        """
        try:
            record = json.loads(line)
            return cls(record.pop("event"), record.pop("step"), record.pop("time"), record)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise TrainingError(
                f"{file} doesn't hold the events of a run: one of its lines is {line.strip()[:60]!r}. Give the "
                f"output_dir of a run, or its {RUN_FILE}."
            ) from error


class EventLog:
    """Appends events to a run's file, whole lines only, from any thread."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()

    def write(self, event: RunEvent) -> None:
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(event.to_json() + "\n")


def read_events(path: str | os.PathLike[str]) -> Iterator[RunEvent]:
    """The events of a run's file (or of the folder that holds it); a last line cut short is left out.

    Raises:
        TrainingError: the file is not a run's.
    """
    path = Path(path)
    if path.is_dir():
        path = path / RUN_FILE
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.endswith("\n") and line.strip():
                yield RunEvent.from_json(line, path)
