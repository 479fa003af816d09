"""Panel: what every widget of ours is. A thin face over a plain-Python model, on whatever host there is.

On a host with widgets a panel is controls plus HTML, and a hidden snapshot beside it that stays in the saved
notebook; where nobody watches (nbclient, papermill) the snapshot alone; in a script, text.
"""

import itertools
import secrets
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import ipywidgets as widgets
import traitlets

from sloth_nb.errors import SlothError, did_you_mean

from . import host
from .html import Markup, element, join, stylesheet

__all__ = ["Panel", "PanelArgumentError"]

_WIDGET = "application/vnd.jupyter.widget-view+json"
_ids = itertools.count(1)
_SESSION = secrets.token_hex(4)  # display ids of two kernels must differ in one saved notebook


class PanelArgumentError(SlothError, TypeError):
    """A keyword argument that a panel does not have, or a value of one that it can't show."""


class Panel(traitlets.HasTraits):
    """Base of all panels. A subclass declares its traits first and writes four short methods.

    - ``_controls()``: the ipywidgets above the view (see ``controls``), built once, when first shown.
    - ``_view()``: what there is to see, as ``Markup`` of ``html.element``; called after a trait has changed.
    - ``_text()``: the same in plain text, complete: what a screen reader, a log or a diff gets.
    - ``_changed(change)``: optional; recompute from the model before the view is drawn.

    ``refresh()`` draws anew, ``say(...)`` sets the status line (announced by screen readers). Both may be
    called from any thread. Constructor arguments are the traits' names; a misspelt one is refused with the
    nearest right one.
    """

    heading: ClassVar[str] = ""
    snapshot_delay: ClassVar[float] = 1.0  # seconds that changes are gathered before the saved copy follows

    def __init__(self, **arguments: Any):
        known = self._argument_names()
        for name in arguments:
            if name not in known:
                raise PanelArgumentError(_unknown(type(self).__name__, name, known))
        super().__init__(**arguments)
        self._uid = f"{_SESSION}-{next(_ids)}"
        self._shown: list[str] = []  # suffixes of the display ids of every place that shows this panel
        self._lock = threading.RLock()
        self._sending = threading.RLock()  # a snapshot made earlier must not arrive later
        self._timer: threading.Timer | None = None
        self._status = ("", "")
        self._root: widgets.Widget | None = None
        self.observe(self._on_trait, names=sorted(known))

    @classmethod
    def _argument_names(cls) -> list[str]:
        """The traits that a caller may pass: all but those that start with an underscore."""
        return [name for name in cls.class_trait_names() if not name.startswith("_")]

    # What a subclass writes -------------------------------------------------------------------------------

    def _controls(self) -> Sequence[widgets.Widget]:
        return ()

    def _view(self) -> Markup:
        raise NotImplementedError

    def _text(self) -> str:
        raise NotImplementedError

    def _changed(self, change: Any) -> None:
        """A trait has a new value; the view is drawn after this."""

    def _snapshot(self) -> dict[str, Any]:
        """What the saved notebook keeps: a bundle that reads without a kernel, a script or a style."""
        body = element("div", self._header(), self._view(), class_="sloth sloth-card")
        return {
            "text/html": self._hidden(join([stylesheet("colours", "theme", "plot"), body])),
            "text/plain": str(self),
        }

    def _hidden(self, body: Markup) -> Markup:
        """The body of a snapshot, which nobody sees while this panel's widget is on the page."""
        return element("div", body, class_=f"sloth-snapshot sloth-snapshot-{self._uid}")

    # What a subclass calls --------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Draws the view anew, in every place that shows it."""
        if self._root is not None:
            self._title.value = self._header() or ""
            self._redraw()
        self._snapshot_soon()

    def _redraw(self) -> None:
        self._picture.value = self._view()

    def say(self, message: str, look: str = "") -> None:
        """Sets the status line. ``look``: empty, ``warn``, ``bad`` (said at once) or ``heard`` (not seen)."""
        self._status = (message, look)
        if self._root is not None:
            self._status_line.value = self._status_html()

    @property
    def widget(self) -> widgets.Widget:
        """The panel as an ipywidget, to be put into another layout."""
        with self._lock:
            if self._root is None:
                self._root = self._build()
            return self._root

    # How it shows itself ----------------------------------------------------------------------------------

    def __str__(self) -> str:
        return self._text()

    def __repr__(self) -> str:
        return self._text()

    def _ipython_display_(self) -> None:
        if not host.current().displays:
            print(self)
            return
        with self._sending:
            place = f"{self._uid}-{len(self._shown)}"
            if (live := self._live()) is not None:
                _show(live, f"sloth-live-{place}")
            _show(self._snapshot(), f"sloth-snapshot-{place}")
            self._shown.append(place)

    def _live(self) -> dict[str, Any] | None:
        """What stands above the snapshot: the widget, on hosts that draw it."""
        return self._live_bundle() if host.current().widgets else None

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """For callers that ask for a bundle: the widget where it can live, and the snapshot."""
        snapshot = self._snapshot()
        return {**self._live_bundle(), **snapshot} if host.current().widgets else snapshot

    def _live_bundle(self) -> dict[str, Any]:
        view = {"version_major": 2, "version_minor": 0, "model_id": self.widget.model_id}
        name = self.heading or type(self).__name__
        return {
            _WIDGET: view,
            "text/plain": f"{name}: controls are shown while the notebook runs",
        }

    def _build(self) -> widgets.Widget:
        # While this widget lives on the page, the snapshot beside it is hidden by this one rule.
        hide = Markup(f"<style>.sloth-snapshot-{self._uid}{{display:none}}</style>")
        styles = widgets.HTML(join([stylesheet("colours", "theme", "plot"), hide]))
        styles.layout.display = "none"  # a style sheet applies all the same
        self._title = widgets.HTML(self._header() or "")
        self._status_line = widgets.HTML(self._status_html())
        controls = tuple(self._controls())
        root = widgets.VBox(
            [styles, self._title, *controls, *self._body(), self._status_line],
            layout=widgets.Layout(overflow="visible", margin="4px 0", width="auto", max_width="1000px"),
        )
        root.add_class("sloth")
        root.add_class("sloth-panel")
        return root

    def _body(self) -> Sequence[widgets.Widget]:
        """The widgets below the controls; a subclass with more than one view has its own."""
        self._picture = widgets.HTML(self._view())
        return (self._picture,)

    def _header(self) -> Markup | None:
        return element("h3", self.heading) if self.heading else None

    def _status_html(self) -> Markup:
        message, look = self._status
        role = {"role": "alert"} if look == "bad" else {"role": "status", "aria_live": "polite"}
        return element("div", message, class_=f"sloth-status {look}".strip(), **role)

    def _on_trait(self, change: Any) -> None:
        self._changed(change)
        self.refresh()

    # The copy in the saved notebook -----------------------------------------------------------------------

    def _snapshot_soon(self) -> None:
        """Sends the snapshot after ``snapshot_delay``: a dragged slider must not send a hundred."""
        with self._lock:
            if not self._shown or self._timer is not None:
                return
            self._timer = threading.Timer(self.snapshot_delay, self.flush)
            self._timer.daemon = True
            self._timer.start()

    def flush(self) -> None:
        """Sends the snapshot now."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        with self._sending:
            if not self._shown:
                return
            snapshot, live = self._snapshot(), self._live()
            for place in self._shown:
                if live is not None and _WIDGET not in live:
                    _show(live, f"sloth-live-{place}", again=True)
                _show(snapshot, f"sloth-snapshot-{place}", again=True)

    def _place_live(self) -> None:
        """Puts the widget back where something static took its place."""
        with self._sending:
            for place in self._shown:
                _show(self._live_bundle(), f"sloth-live-{place}", again=True)
        self._snapshot_soon()


def _show(bundle: dict[str, Any], display_id: str, *, again: bool = False) -> None:
    from IPython.display import display, update_display

    (update_display if again else display)(bundle, raw=True, display_id=display_id)


def _unknown(panel: str, name: str, known: Sequence[str]) -> str:
    hint = did_you_mean(name, known, 0.5)
    return f"{panel} has no argument {name!r}.{hint} It takes: {', '.join(sorted(known))}."
