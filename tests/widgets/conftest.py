"""A front end without a browser: it records what panels display and send, and presses their buttons."""

import importlib
import json
from typing import Any

import ipywidgets
import pytest


class FrontEnd:
    """Every comm message of every widget, and every display, in the order they came."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.displays: dict[str, list[dict[str, Any]]] = {}

    def update(self, widget: ipywidgets.Widget, **state: Any) -> None:
        """What a browser sends when a person changes a control."""
        data = {"method": "update", "state": state, "buffer_paths": []}
        widget.comm.handle_msg({"content": {"data": data}, "buffers": []})

    def custom(self, widget: ipywidgets.Widget, event: str) -> None:
        data = {"method": "custom", "content": {"event": event}}
        widget.comm.handle_msg({"content": {"data": data}, "buffers": []})

    def click(self, widget: ipywidgets.Widget) -> None:
        self.custom(widget, "click")

    @property
    def sizes(self) -> list[int]:
        """Bytes of every comm message and display, as JSON."""
        sent = [*self.messages, *(bundle for place in self.displays.values() for bundle in place)]
        return [len(json.dumps(message, default=str)) for message in sent]


def _record_comms(monkeypatch: pytest.MonkeyPatch, front: FrontEnd) -> None:
    if ipywidgets.__version__ >= "8":
        import comm
        from comm.base_comm import BaseComm as Base
    else:  # what Colab runs
        from ipykernel.comm import Comm as Base

    class Recorded(Base):
        kernel = True  # ipywidgets 7 sends nothing without one

        def publish_msg(
            self, msg_type: str, data: Any = None, metadata: Any = None, buffers: Any = None, **keys: Any
        ) -> None:
            front.messages.append({"type": msg_type, "comm": self.comm_id, "data": data})

    if ipywidgets.__version__ >= "8":
        monkeypatch.setattr(comm, "create_comm", lambda *args, **keys: Recorded(*args, **keys))
    else:
        monkeypatch.setattr("ipywidgets.widgets.widget.Comm", Recorded)


@pytest.fixture
def front_end(monkeypatch: pytest.MonkeyPatch) -> FrontEnd:
    """A JupyterLab as far as panels can tell."""
    front = FrontEnd()
    _record_comms(monkeypatch, front)

    def display(bundle: Any, *, raw: bool, display_id: str) -> None:
        assert raw
        assert display_id not in front.displays, "an id is displayed once, then updated"
        front.displays[display_id] = [bundle]

    def update_display(bundle: Any, *, raw: bool, display_id: str) -> None:
        assert raw
        front.displays[display_id].append(bundle)

    shown = importlib.import_module("IPython.display")
    monkeypatch.setattr(shown, "display", display)
    monkeypatch.setattr(shown, "update_display", update_display)
    monkeypatch.setattr("sloth_nb_widgets.host._in_kernel", lambda: True)
    monkeypatch.setenv("SLOTH_NB_HOST", "lab")
    return front


def walk(widget: ipywidgets.Widget) -> list[ipywidgets.Widget]:
    """The widget and all below it."""
    return [widget, *(found for child in getattr(widget, "children", ()) for found in walk(child))]


@pytest.fixture
def find() -> Any:
    """find(panel, description) -> the control of that name."""

    def by_name(panel: Any, name: str) -> ipywidgets.Widget:
        named = [w for w in walk(panel.widget) if getattr(w, "description", None) == name]
        assert len(named) == 1, f"{len(named)} controls are called {name!r}"
        return named[0]

    return by_name
