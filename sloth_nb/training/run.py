"""Run: one training run, in progress or past. It is watched, waited for and stopped through this object.

The thread that trains emits events; everyone else reads them here. Nothing in this file knows a trainer.
"""

import contextlib
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sloth_nb.errors import TrainingError
from sloth_nb.training.events import RUN_FILE, EventLog, RunEvent
from sloth_nb.training.history import History

__all__ = ["Run", "RunState", "StopRequest", "stops_on_interrupt"]

RunState = Literal["waiting", "running", "stopping", "stopped", "finished", "failed"]
OVER = ("stopped", "finished", "failed")

_live: "weakref.WeakValueDictionary[Path, Run]" = weakref.WeakValueDictionary()


@dataclass(frozen=True)
class StopRequest:
    """What was asked of a run that shall end early."""

    save: bool
    reason: str


class Run:
    """A training run: its events, its numbers, and how to stop it or wait for it.

    ``SFTTrainer.start()`` returns one that trains in the background; ``trainer.run`` is the same object,
    before, during and after; ``Run.open(folder)`` brings back a past one, or one that another process trains.

    Example:
        >>> run = trainer.start()
        >>> run.stop()                 # ends after the current step, and saves
        >>> run.wait()
        'stopped'
    """

    trains_here = True

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.events: list[RunEvent] = []
        self.history = History()
        self.state: RunState = "waiting"
        self._listeners: list[Callable[[RunEvent], None]] = []
        self._delivery = threading.RLock()
        self._over = threading.Event()
        self._request: StopRequest | None = None
        self._output: Any = None
        self._error: BaseException | None = None
        self._unwritten: str | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Run":
        """The run whose event file (or its folder) that is: past, or still training anywhere on this disk.

        Raises:
            TrainingError: there is no event file.
        """
        from sloth_nb.training.follow import FollowedRun

        file = Path(path)
        if file.is_dir():
            file = file / RUN_FILE
        if not file.is_file():
            raise TrainingError(
                f"There is no run in {path}: {RUN_FILE} is not there. Give the output_dir of a run, or its "
                f"{RUN_FILE}."
            )
        here = _live.get(file.resolve())
        return here if here is not None else FollowedRun(file)

    # -- for whoever watches ---------------------------------------------------------------------------------

    def listen(self, callback: Callable[[RunEvent], None], replay: bool = False) -> Callable[[], None]:
        """Call back with every coming event, from the thread that trains; ``replay`` gives past ones first.

        A listener that raises is dropped and the run goes on. Returns a function that ends the listening.
        """
        with self._delivery:
            if replay:
                for event in list(self.events):
                    callback(event)
            self._listeners.append(callback)

        def unsubscribe() -> None:
            with contextlib.suppress(ValueError):
                self._listeners.remove(callback)

        return unsubscribe

    @property
    def over(self) -> bool:
        """Whether it has ended, in whichever way."""
        return self.state in OVER

    def stop(self, save: bool = True) -> None:
        """Ask the run to end: after the current step with a checkpoint, or at once without one.

        Returns immediately; ``wait()`` waits for the end. Nothing happens when the run is over.
        """
        self._ask_to_stop(StopRequest(save, "stopped on request"))

    def wait(self, timeout: float | None = None) -> RunState:
        """Block until the run is over and return its state, or the state after ``timeout`` seconds.

        The notebook's own ■ (interrupt) stops the run after its step and saves; a second one stops waiting.

        Raises:
            Whatever the training raised.
        """
        if self.state == "waiting":
            raise TrainingError("This run has not begun. Begin it with trainer.start() or trainer.train().")
        end = None if timeout is None else time.monotonic() + timeout
        with stops_on_interrupt(self):
            while not self._over.wait(0.1):
                if end is not None and time.monotonic() >= end:
                    return self.state
        if self._error is not None:
            raise self._error
        return self.state

    def result(self, timeout: float | None = None) -> Any:
        """The trainer's ``TrainOutput``, once the run is over.

        Raises:
            TimeoutError: it isn't over after ``timeout`` seconds.
            Whatever the training raised.
        """
        self.wait(timeout)
        if not self.over:
            raise TimeoutError(f"the run is still {self.state} after {timeout} s")
        return self._output

    def __repr__(self) -> str:
        loss = self.history.latest("loss")
        at = f"step {self.history.step} of {self.history.max_steps or '?'}"
        return f"Run({self.state}, {at}{'' if loss is None else f', loss {loss:.3f}'}, {str(self.path)!r})"

    # -- for the trainer -------------------------------------------------------------------------------------

    def check_free(self) -> None:
        """Looks whether a training can start into this run's folder.

        Raises:
            TrainingError: this run, or another one with the same folder, is training already.
        """
        if self.state in ("running", "stopping"):
            raise TrainingError(
                "This trainer is already training. Wait for run.wait(), or stop it with run.stop()."
            )
        other = _live.get(self.path.resolve())
        if other is not None and other is not self and not other.over:
            raise TrainingError(
                f"Another run is training into {self.path.parent}, and their checkpoints would get mixed up. Stop it "
                f"first (sloth_nb.Run.open({str(self.path.parent)!r}).stop()), or give this one an output_dir "
                "of its own."
            )

    def begin(self) -> None:
        """A training starts (again) in this process; its events follow.

        Raises:
            TrainingError: see ``check_free``.
        """
        self.check_free()
        _live[self.path.resolve()] = self
        self._over.clear()
        self._request = self._output = self._error = self._unwritten = None
        self.state = "running"

    def emit(self, event: RunEvent) -> None:
        """Write an event to the run's file and hand it to everyone who listens."""
        try:
            EventLog(self.path).write(event)
        except OSError as error:  # a full disk must not end the training
            if self._unwritten is None:
                self._unwritten = str(error)
                self.emit(self._said(event.step, f"Events can't be written to {self.path}: {error}"))
        self._deliver(event)

    def end(self, state: RunState, output: Any = None, error: BaseException | None = None) -> None:
        """The training is over; whoever waits goes on."""
        self._output, self._error, self.state = output, error, state
        self._over.set()

    @property
    def stop_request(self) -> StopRequest | None:
        """What was asked, if the run shall end early."""
        return self._request

    def _ask_to_stop(self, request: StopRequest) -> None:
        if self.state in ("running", "stopping"):
            self._request, self.state = request, "stopping"

    def _deliver(self, event: RunEvent) -> None:
        with self._delivery:
            self.events.append(event)
            self.history.add(event)
            for callback in list(self._listeners):
                try:
                    callback(event)
                except Exception as error:  # a broken view must not end the training
                    self._listeners.remove(callback)
                    self._deliver(self._said(event.step, f"A listener failed and was dropped: {error!r}"))

    @staticmethod
    def _said(step: int, message: str) -> RunEvent:
        return RunEvent("warning", step, data={"message": message})


@contextlib.contextmanager
def stops_on_interrupt(run: Run) -> Iterator[None]:
    """Inside it, the first interrupt (■, Ctrl-C) stops the run gracefully and saves; the second interrupts.

    Signals belong to the main thread: anywhere else this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(number: int, frame: Any) -> None:
        if run.over or run.stop_request is not None or not run.trains_here:
            raise KeyboardInterrupt
        run._ask_to_stop(StopRequest(True, "interrupted"))

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
