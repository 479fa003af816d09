"""Pulse: does something at most so often a second, however often it is asked to. Asked from any thread."""

import threading
import time
from collections.abc import Callable

__all__ = ["Pulse"]

SHARE = 0.02  # of a processor
MOST = 4  # times the wished pause


class Pulse:
    """Calls ``action`` soon after ``poke()``, never two within ``seconds``; what comes between is gathered.

    An action that works long is called more rarely still (up to four times), so that it takes a fiftieth of a
    processor: what is watched must not be slowed down by watching. No thread waits while there is nothing to do,
    and ``action`` never runs twice at once.
    """

    def __init__(self, action: Callable[[], None], seconds: float):
        self.action = action
        self.seconds = seconds
        self._lock = threading.Lock()
        self._acting = threading.RLock()
        self._timer: threading.Timer | None = None
        self._next = float("-inf")

    def poke(self) -> None:
        """Something is new; returns at once."""
        with self._lock:
            if self._timer is not None:
                return
            delay = max(0.0, self._next - time.monotonic())
            self._timer = threading.Timer(delay, self._fire)
            self._timer.daemon = True
            self._timer.start()

    def now(self) -> None:
        """Acts in this thread, at once, and instead of what was pending: for the last word of all."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
        self._fire()

    def _fire(self) -> None:
        with self._acting:
            begun, worked = time.monotonic(), time.thread_time()
            with self._lock:
                self._timer = None
                self._next = begun + self.seconds
            self.action()
            worked = time.thread_time() - worked
            with self._lock:
                self._next = begun + min(max(self.seconds, worked / SHARE), MOST * self.seconds)
