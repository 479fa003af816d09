"""TrainingMonitor: a run as it happens, with its stop buttons; afterwards its curves, kept in the notebook.

Live it is one widget, so that a reloaded page shows it again and goes on: JupyterLab drops what
``update_display`` sends after a reload. When the run is over, what a saved notebook shows without a kernel
takes the widget's place: a summary, and the figure as a bundle.
"""

import os
import time
import weakref
from collections.abc import Sequence
from typing import Any, ClassVar

import ipywidgets as widgets

from sloth_nb.errors import TrainingError
from sloth_nb.training.events import RunEvent
from sloth_nb.training.run import Run

from . import controls, host, plot
from . import training_view as view
from .html import Markup, element, join, stylesheet
from .panel import Panel
from .pulse import Pulse

__all__ = ["TrainingMonitor"]

_BADGES = {
    "waiting": ("○ waiting", ""),
    "running": ("● training", "good"),
    "stopping": ("◌ stopping", "warn"),
    "stopped": ("■ stopped", "warn"),
    "finished": ("✔ finished", "good"),
    "failed": ("✖ failed", "bad"),
}
_OVER = ("stopped", "finished", "failed")
_newest: "weakref.WeakKeyDictionary[Run, weakref.ref[TrainingMonitor]]" = weakref.WeakKeyDictionary()


class TrainingMonitor(Panel):
    """Loss (train and held out), learning rate, gradient norm, speed, memory and time left of a run.

    Args:
        run: a ``Run`` (of ``trainer.start()``), a trainer (before or while it trains), or the folder or event
            file of a run, past or still training elsewhere.

    Example:
        >>> run = trainer.start()
        >>> TrainingMonitor(run)                  # in a notebook it shows itself
        >>> TrainingMonitor("outputs")            # later, or in another notebook
    """

    seconds_between_updates: ClassVar[float] = 0.5
    seconds_between_lines: ClassVar[float] = 5.0  # where only a log is read
    seconds_between_announcements: ClassVar[float] = 5.0  # a screen reader must get a word in
    snapshot_delay: ClassVar[float] = 15.0

    def __init__(self, run: Run | Any | str | os.PathLike[str]):
        super().__init__()
        self.run = _run_of(run)
        self._facts = view.Facts()
        self._static = self._over  # what is shown where the live widget was
        self._said = 0.0
        self._pulse = Pulse(self._draw, self.seconds_between_updates)
        self._printer = Pulse(self._print, self.seconds_between_lines)
        self.run.listen(self._facts.add, replay=True)
        self.run.listen(self._on_event)
        _newest[self.run] = weakref.ref(self)
        if host.current().name == "script" and not self._over:
            self._printer.poke()

    @property
    def _over(self) -> bool:
        return self.run.history.state in _OVER or self.run.state in _OVER

    @property
    def _state(self) -> str:
        """The event that ends a run comes just before its ``Run`` says so."""
        state = self.run.history.state
        return state if state in _OVER else self.run.state

    # Events, in the thread that trains: nothing slow here ---------------------------------------------------

    def _on_event(self, event: RunEvent) -> None:
        if event.kind == "started":
            self._resume()
        if event.kind in _OVER:
            # In this thread, at once: whoever waits for the run may close the notebook as soon as it is over.
            self._pulse.now()
            self._settle()
        elif (
            _newest[self.run]() is self
        ):  # an earlier monitor of the run, of a cell run again, only ends with it
            self._pulse.poke()
        if host.current().log:
            self._printer.now() if event.kind in _OVER else self._printer.poke()

    def _draw(self) -> None:
        self.refresh()
        self._announce()
        if self._root is not None:
            self._set_buttons()

    def _print(self) -> None:
        if self._shown or host.current().name == "script":
            print(view.progress_line(self.run.history), flush=True)

    def _announce(self) -> None:
        now = time.monotonic()
        if self._state == "running" and now - self._said >= self.seconds_between_announcements:
            self._said = now
            self.say(view.progress_line(self.run.history), "heard")

    def _resume(self) -> None:
        """The run trains (again): the live widget takes its place back."""
        if self._static:
            self._static = False
            self._place_live()

    def _settle(self) -> None:
        """The run is over: summary and figure take the live widget's place, for good."""
        self._static = True
        self.flush()

    # Stopping -----------------------------------------------------------------------------------------------

    def _controls(self) -> Sequence[widgets.Widget]:
        self._stop_and_save = controls.button(
            "Stop and save",
            lambda: self._stop(save=True),
            help="Ends after the current step and saves a checkpoint to go on from",
            look="primary",
        )
        self._stop_only = controls.button(
            "Stop", lambda: self._stop(save=False), help="Ends within the current step, without saving"
        )
        self._set_buttons()
        return (controls.row(self._stop_and_save, self._stop_only),)

    def _set_buttons(self) -> None:
        useless = self._state not in ("running",) or not self.run.trains_here
        self._stop_and_save.disabled = self._stop_only.disabled = useless

    def _stop(self, save: bool) -> None:
        self.run.stop(save=save)
        saving = ", then saves a checkpoint" if save else ", without saving"
        self.say(f"Stopping: the run ends after this step{saving}.", "warn")
        self._set_buttons()
        self._pulse.poke()

    # What there is to see -----------------------------------------------------------------------------------

    def _header(self) -> Markup:
        label, look = _BADGES[self._state]
        model = str(self._facts.about.get("model", "")).rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]
        return element(
            "div",
            element("h3", f"Training {model}".strip()),
            element("span", label, class_=f"sloth-badge {look}".strip()),
            class_="sloth-head",
        )

    def _view(self) -> Markup:
        history = self.run.history
        return view.joined(
            view.progress(history),
            view.tiles(history, self._facts.about.get("predicted_bytes")),
            plot.svg(view.figure(history)),
            view.notices(self._facts),
        )

    def _text(self) -> str:
        state = f"Training run, {self._state}: {view.summary(self.run.history, self._facts)}"
        return f"{state}\n{plot.text(view.figure(self.run.history))}\n  events: {self.run.path}"

    def _card(self, *more: Any) -> Markup:
        """The run in words and numbers, for a reader without a kernel."""
        places = {"Checkpoint": self._facts.checkpoint, "Events": self.run.path}
        where = [
            element("p", f"{name}: ", element("code", path), class_="quiet")
            for name, path in places.items()
            if path
        ]
        table = element("details", element("summary", "The loss as a table"), view.table(self.run.history))
        body = join(
            [
                self._header(),
                element("p", view.summary(self.run.history, self._facts)),
                *more,
                view.notices(self._facts),
            ]
        )
        card = element("div", body, table, where, class_="sloth sloth-card")
        return join([stylesheet("colours", "theme", "plot"), card])

    def _live(self) -> dict[str, Any] | None:
        if self._static or not host.current().widgets:
            return {
                "text/html": self._card(),
                "text/plain": f"{self._state}: {view.summary(self.run.history, self._facts)}",
            }
        return super()._live()

    def _snapshot(self) -> dict[str, Any]:
        if self._static or not host.current().widgets:
            return plot.bundle(view.figure(self.run.history, points=320, whole=not self._static))
        card = self._card(plot.svg(view.figure(self.run.history, points=320, hover=0)))
        return {"text/html": self._hidden(card), "text/plain": str(self)}


def _run_of(source: Any) -> Run:
    if isinstance(source, Run):
        return source
    if isinstance(source, str | os.PathLike):
        return Run.open(source)
    run = getattr(source, "run", None)
    if isinstance(run, Run):
        return run
    raise TrainingError(
        f"TrainingMonitor shows a Run, a sloth_nb trainer or the path of a run; not {type(source).__name__}."
    )
