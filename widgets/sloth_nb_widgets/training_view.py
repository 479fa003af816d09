"""What a run looks like: its history as a figure, tiles, a table and a line of text. No widgets here."""

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from sloth_nb.memory import GB
from sloth_nb.training.events import RunEvent

from .html import Markup, element, join, numbers_table
from .plot import Chart, Figure, Line, format_number

if TYPE_CHECKING:
    from sloth_nb.training.history import History

__all__ = [
    "Facts",
    "duration",
    "figure",
    "joined",
    "notices",
    "progress",
    "progress_line",
    "summary",
    "table",
    "tiles",
]

# Small charts below the loss: title, series, colour, factor.
_SMALL = (
    ("Learning rate", "learning_rate", 2, 1.0),
    ("Gradient norm", "grad_norm", 3, 1.0),
    ("Tokens per second", "tokens_per_second", 7, 1.0),
    ("Memory, GB", "memory_bytes", 6, 1 / GB),
)
_SMOOTH_FROM = 30  # points from which a smoothed line says more than the raw one


class Facts:
    """What a run's events say beside their numbers, gathered as they come (a run may have 100,000 of them)."""

    def __init__(self) -> None:
        self.about: dict[str, Any] = {}  # of the newest start
        self.notices: deque[RunEvent] = deque(maxlen=3)
        self.checkpoint: str | None = None
        self._begun: float | None = None
        self._last = 0.0

    def add(self, event: RunEvent) -> None:
        self._last = event.time
        if event.kind == "started":
            self.about, self._begun = event.data, event.time
        elif event.kind in ("warning", "failed"):
            self.notices.append(event)
        elif event.kind == "checkpoint":
            self.checkpoint = event.data.get("path")

    @property
    def seconds(self) -> float | None:
        """From the newest start to the last event."""
        return None if self._begun is None else self._last - self._begun


def figure(history: "History", *, points: int = 500, hover: int = 40, whole: bool = True) -> Figure:
    """The loss above, four small charts below; ``points`` bounds what each line holds.

    ``whole`` has room for what may still come; without it, what was never recorded is left out.
    """
    steps, loss = history.view("loss", max_points=points)
    raw = Line("train", steps, loss, "faint" if len(steps) >= _SMOOTH_FROM else "line")
    lines = [raw]
    if len(steps) >= _SMOOTH_FROM:
        lines.append(Line("train, smoothed", *_smooth(*history.points("loss"), points=150)))
    held_out = Line("held out", *history.view("eval_loss", max_points=max(20, points // 4)), "dots", 1)
    if len(held_out.x):
        lines.append(held_out)
    charts = [Chart("Loss", lines, "step", (0, 0, 1, 0.66), hover=hover)]
    recorded = set(history.names)
    small = [chart for chart in _SMALL if whole or chart[1] in recorded]
    for i, (title, name, colour, factor) in enumerate(small):
        x, y = history.view(name, max_points=max(40, points // 4))
        place = (i / 4, 0.69, 0.25, 0.31)
        charts.append(Chart(title, [Line(title, x, y * factor, "line", colour)], place=place, ticks=(2, 3)))
    return Figure(charts, _label(history), width=880, height=420)


def _label(history: "History") -> str:
    loss, held_out = history.latest("loss"), history.latest("eval_loss")
    if loss is None:
        return "Training curves: nothing recorded yet"
    said = f"Training curves: loss {format_number(loss)} at step {history.step}"
    return said if held_out is None else f"{said}, held-out loss {format_number(held_out)}"


def _smooth(steps: np.ndarray, values: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """A centred moving average over a twentieth of the run, at evenly spread points; gaps are passed over."""
    half = max(2, len(values) // 40)
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    at = np.unique(np.linspace(0, len(values) - 1, points).astype(int))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    number = counts[high] - counts[low]
    mean = np.where(number > 0, (sums[high] - sums[low]) / np.maximum(number, 1), np.nan)
    return steps[at], mean


def progress(history: "History") -> Markup | None:
    """A progress bar that screen readers can read, once the number of steps is known."""
    if not history.max_steps:
        return None
    share = min(1.0, history.step / history.max_steps)
    return element(
        "div",
        element("div", style=f"width:{100 * share:.1f}%"),
        class_="sloth-bar",
        role="progressbar",
        aria_label="Training progress",
        aria_valuemin=0,
        aria_valuemax=history.max_steps,
        aria_valuenow=history.step,
    )


def tiles(history: "History", predicted_bytes: float | None = None) -> Markup:
    """The newest numbers, big."""
    of = f" of {history.max_steps:,}" if history.max_steps else ""
    left = history.seconds_left()
    shown = [
        ("Step" + of, f"{history.step:,}"),
        ("Time left", duration(left) if left is not None else "–"),
        ("Loss", _number(history, "loss")),
        ("Held-out loss", _number(history, "eval_loss")),
        ("Tokens per second", _number(history, "tokens_per_second")),
        (_memory_name(predicted_bytes), _number(history, "memory_bytes", 1 / GB, " GB")),
    ]
    made = [
        element("div", element("b", value), element("span", name), class_="sloth-tile")
        for name, value in shown
    ]
    return element("div", made, class_="sloth-tiles")


def _memory_name(predicted_bytes: float | None) -> str:
    return "Peak memory" + (f" (of {predicted_bytes / GB:.1f} predicted)" if predicted_bytes else "")


def _number(history: "History", name: str, factor: float = 1.0, unit: str = "") -> str:
    value = history.latest(name)
    return "–" if value is None else format_number(value * factor) + unit


def summary(history: "History", facts: "Facts") -> str:
    """One sentence: how far it came, in what time, and what became of the loss."""
    of = f" of {history.max_steps:,}" if history.max_steps > history.step else ""
    parts = [f"{history.step:,}{of} steps"]
    if (seconds := facts.seconds) is not None:
        parts[0] += f" in {duration(seconds)}"
    for name, series in (("loss", "loss"), ("held-out loss", "eval_loss")):
        first, last = history.first(series), history.latest(series)
        if first is not None and last is not None:
            parts.append(f"{name} {format_number(first)} → {format_number(last)}")
    speed, memory = history.latest("tokens_per_second"), history.latest("memory_bytes")
    if speed is not None:
        parts.append(f"{format_number(speed)} tokens/s")
    if memory is not None:
        parts.append(f"peak memory {format_number(memory / GB)} GB")
    return "; ".join(parts) + "."


def table(history: "History", rows: int = 12) -> Markup:
    """The curves as a table, for whoever can't see them: the evaluations, or evenly spread steps."""
    steps, loss = history.points("loss")
    held_steps, held = history.points("eval_loss")
    source = held_steps if len(held_steps) > 1 else steps
    chosen = source[np.unique(np.linspace(0, len(source) - 1, rows).astype(int))] if len(source) else source
    body = []
    for step in chosen:
        at = np.searchsorted(steps, step, side="right") - 1
        said = [f"{int(step):,}", format_number(loss[at]) if at >= 0 else "–"]
        match = np.nonzero(held_steps == step)[0]
        body.append([*said, format_number(held[match[-1]]) if len(match) else "–"])
    return numbers_table("Loss by step", ["Step", "Train", "Held out"], body)


def notices(facts: "Facts") -> Markup | None:
    """The newest warnings, and why a run failed."""
    items = []
    for event in facts.notices:
        failed = event.kind == "failed"
        sign = "✖ Failed" if failed else "⚠ Warning"
        text = f" at step {event.step:,}: {event.data.get('message', '')}"
        items.append(element("li", element("b", sign), text, class_="bad" if failed else "warn"))
    return element("ul", items, class_="sloth-notices") if items else None


def progress_line(history: "History") -> str:
    """One line for a log: ``step 120/600 · loss 1.23 · held out 1.3 · 1,234 tokens/s · 2.1 GB · 3 min left``."""
    parts = [f"step {history.step:,}" + (f"/{history.max_steps:,}" if history.max_steps else "")]
    for name, series in (("loss", "loss"), ("held out", "eval_loss")):
        if history.latest(series) is not None:
            parts.append(f"{name} {_number(history, series)}")
    if history.latest("tokens_per_second") is not None:
        parts.append(f"{_number(history, 'tokens_per_second')} tokens/s")
    if history.latest("memory_bytes") is not None:
        parts.append(_number(history, "memory_bytes", 1 / GB, " GB"))
    left = history.seconds_left()
    parts.append(history.state if left is None else f"{duration(left)} left")
    return " · ".join(parts)


def duration(seconds: float) -> str:
    """As people say it, to two places: 42 s, 3 min 20 s, 2 h 5 min, 3 d 4 h."""
    whole = max(0, round(seconds))
    for size, unit, below, below_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            big, rest = divmod(whole, size)
            return f"{big} {unit}" + (f" {rest // below} {below_unit}" if rest // below else "")
    return f"{whole} s"


def joined(*parts: Any) -> Markup:
    """Parts of a view, those that there are."""
    return join(part for part in parts if part)
