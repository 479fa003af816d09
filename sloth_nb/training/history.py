"""Every number of a run, kept whole and shown small: what a plot, a progress line and a summary read.

Numbers are appended as events arrive (amortised constant time); a plot asks for at most so many points and
gets the extremes of equal stretches plus the newest points as they are, so that no spike is ever hidden.
"""

import math
import threading
import time
from collections.abc import Iterable

import numpy as np

from sloth_nb.training.events import RunEvent

__all__ = ["History"]

_ROOM = 256
_FINAL = {"stopped": "stopped", "finished": "finished", "failed": "failed"}


class _Series:
    """Steps and values in two arrays that double when they are full."""

    def __init__(self) -> None:
        self.steps = np.empty(_ROOM, dtype=np.int64)
        self.values = np.empty(_ROOM, dtype=np.float64)
        self.size = 0

    def append(self, step: int, value: float) -> None:
        if self.size == len(self.steps):
            self.steps = np.resize(self.steps, 2 * self.size)
            self.values = np.resize(self.values, 2 * self.size)
        self.steps[self.size], self.values[self.size] = step, value
        self.size += 1

    def cut_after(self, step: int) -> None:
        self.size = int(np.searchsorted(self.steps[: self.size], step, side="right"))


class History:
    """The numbers of one run by name (``loss``, ``eval_loss``, ``learning_rate``, …), from its events.

    Safe to read while another thread adds. A ``started`` event that goes on from an earlier step (a resumed
    run) drops what was recorded after that step, because those steps are trained again.

    Example:
        >>> history = run.history
        >>> steps, losses = history.view("loss", max_points=500)
    """

    def __init__(self, events: Iterable[RunEvent] = ()):
        self._lock = threading.Lock()
        self._series: dict[str, _Series] = {}
        self._pace: list[tuple[float, int]] = []
        self.step = 0
        self.max_steps = 0
        self.state = "running"
        for event in events:
            self.add(event)

    def add(self, event: RunEvent) -> None:
        """Take in one event; anything in it that is not a number is passed over."""
        with self._lock:
            if event.kind == "started":
                self._restart(event)
            self.step = max(self.step, event.step)
            self.state = _FINAL.get(event.kind, self.state)
            if event.kind in ("step", "eval"):
                for name, value in event.data.items():
                    if isinstance(value, int | float) and not isinstance(value, bool):
                        self._series.setdefault(name, _Series()).append(event.step, float(value))
            if event.kind == "step":
                self._pace = [*self._pace[-63:], (event.time, event.step)]

    def _restart(self, event: RunEvent) -> None:
        self.step, self.state = event.step, "running"
        self.max_steps = int(event.data.get("max_steps") or 0)
        self._pace = [(event.time, event.step)]
        for series in self._series.values():
            series.cut_after(event.step)

    @property
    def names(self) -> list[str]:
        """The names that have at least one number, sorted."""
        with self._lock:
            return sorted(name for name, series in self._series.items() if series.size)

    def latest(self, name: str) -> float | None:
        """The newest number of that name, or None."""
        with self._lock:
            series = self._series.get(name)
            return float(series.values[series.size - 1]) if series and series.size else None

    def first(self, name: str) -> float | None:
        """The oldest number of that name, or None."""
        with self._lock:
            series = self._series.get(name)
            return float(series.values[0]) if series and series.size else None

    def points(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """All steps (n,) int64 and values (n,) float64 of that name; both empty when there are none."""
        with self._lock:
            series = self._series.get(name)
            if series is None:
                return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float64)
            return series.steps[: series.size].copy(), series.values[: series.size].copy()

    def view(self, name: str, max_points: int = 1000) -> tuple[np.ndarray, np.ndarray]:
        """At most ``max_points`` of that name's points, in order, for a plot.

        The newest fifth of ``max_points`` stay as they are. What is older is cut into stretches of a power of
        two points, of each of which the lowest and the highest stay: the stretches keep their place while the
        run grows, so that a live curve doesn't flicker.
        """
        if max_points < 10:
            raise ValueError(f"max_points must be 10 or more, not {max_points}")
        steps, values = self.points(name)
        if len(steps) <= max_points:
            return steps, values
        tail = max_points // 5
        chosen = _extremes(values[:-tail], max_points - tail)
        chosen = np.concatenate([chosen, np.arange(len(values) - tail, len(values))])
        return steps[chosen], values[chosen]

    def seconds_left(self, now: float | None = None) -> float | None:
        """Estimated time to the last step, from the pace of the last 64; None when it can't be known."""
        with self._lock:
            if self.state != "running" or not self.max_steps or len(self._pace) < 2:
                return None
            (first_time, first_step), (last_time, last_step) = self._pace[0], self._pace[-1]
            if last_step <= first_step or last_time <= first_time:
                return None
            seconds_per_step = (last_time - first_time) / (last_step - first_step)
        since = max(0.0, (time.time() if now is None else now) - last_time)
        left = (self.max_steps - last_step) * seconds_per_step
        return max(0.0, left - min(since, seconds_per_step))


def _extremes(values: np.ndarray, budget: int) -> np.ndarray:
    """Indices, ascending and at most ``budget``, of the lowest and the highest value of equal stretches.

    Values that are not numbers are passed over unless a whole stretch is made of them.
    """
    width = 2 ** max(1, math.ceil(math.log2(2 * len(values) / budget)))
    while 2 * math.ceil(len(values) / width) > budget:
        width *= 2
    missing = -len(values) % width
    lows = np.concatenate([np.where(np.isnan(values), np.inf, values), np.full(missing, np.inf)])
    highs = np.concatenate([np.where(np.isnan(values), -np.inf, values), np.full(missing, -np.inf)])
    starts = np.arange(0, len(lows), width)
    lowest = starts + lows.reshape(-1, width).argmin(axis=1)
    highest = starts + highs.reshape(-1, width).argmax(axis=1)
    return np.unique(np.concatenate([lowest, highest]))
