"""Panel, by a small panel of the kind that a room would write."""

import pytest
import traitlets
from sloth_nb_widgets import Panel, controls, host
from sloth_nb_widgets.html import element

from sloth_nb.errors import SlothError


class Square(Panel):
    heading = "Square"
    snapshot_delay = 0.01

    side = traitlets.Int(3, help="length of a side")
    note = traitlets.Unicode("")
    _area = traitlets.Int(9)

    def _controls(self):
        return (
            controls.row(
                controls.slider(self, "side", "Side", 0, 10, help="how long"),
                controls.text(self, "note", "Note"),
            ),
        )

    def _changed(self, change):
        self._area = self.side**2

    def _view(self):
        return element("p", f"area {self._area} ", self.note)

    def _text(self):
        return f"Square: area {self._area}"


def test_a_misspelt_argument_is_refused_with_the_nearest():
    with pytest.raises(SlothError, match=r"Square has no argument 'sied'. Did you mean 'side'\?") as caught:
        Square(sied=3)
    assert isinstance(caught.value, TypeError)
    with pytest.raises(TypeError, match="It takes: note, side"):
        Square(_area=1)


def test_a_script_gets_text_and_no_display(capsys, monkeypatch):
    monkeypatch.delenv("SLOTH_NB_HOST", raising=False)
    Square(side=4)._ipython_display_()
    assert "Square: area 9" in capsys.readouterr().out


def test_a_trait_set_by_a_script_changes_model_and_text():
    square = Square()
    square.side = 5
    assert str(square) == repr(square) == "Square: area 25"


def test_a_lab_gets_the_widget_and_a_snapshot_that_the_widget_hides(front_end):
    square = Square()
    square._ipython_display_()
    live, snapshot = front_end.displays.values()
    assert live[0]["application/vnd.jupyter.widget-view+json"]["model_id"] == square.widget.model_id
    assert "area 9" in snapshot[0]["text/html"]
    name = f"sloth-snapshot-{square._uid}"
    assert f'class="sloth-snapshot {name}"' in snapshot[0]["text/html"]
    assert f".{name}{{display:none}}" in square.widget.children[0].value


def test_a_headless_kernel_gets_the_snapshot_alone(front_end, monkeypatch):
    monkeypatch.setenv("SLOTH_NB_HOST", "headless")
    Square()._ipython_display_()
    (snapshot,) = front_end.displays.values()
    assert set(snapshot[0]) == {"text/html", "text/plain"}
    assert not front_end.messages, "no widget is made that nobody can see"


def test_the_browser_moves_the_slider_and_everything_follows(front_end, find):
    square = Square()
    square._ipython_display_()
    box = find(square, "Side")
    handle = square.widget.children[2].children[0].children[1]
    front_end.update(handle, value=7)
    assert square.side == 7
    assert "area 49" in square._picture.value
    assert box.value == 7
    square.flush()
    assert "area 49" in list(front_end.displays.values())[1][-1]["text/html"]


def test_many_changes_are_one_snapshot(front_end, find):
    square = Square()
    square.snapshot_delay = 30
    square._ipython_display_()
    for side in range(10):
        front_end.update(find(square, "Side"), value=side)
    square.flush()
    assert len(list(front_end.displays.values())[1]) == 2
    square.flush()
    assert square._timer is None


def test_hostile_text_in_a_trait_stays_text(front_end):
    square = Square(note="<img src=x onerror=alert(1)>")
    square._ipython_display_()
    for html in (square._picture.value, list(front_end.displays.values())[1][0]["text/html"]):
        assert "&lt;img" in html and "<img" not in html


def test_the_status_line_is_announced(front_end):
    square = Square()
    square.say("Computing…")
    assert 'role="status" aria-live="polite"' in square.widget.children[-1].value
    square.say("No such card", "bad")
    assert 'role="alert"' in square.widget.children[-1].value


def test_every_control_has_a_name_and_only_core_widgets_are_used(front_end):
    square = Square()
    square._ipython_display_()
    opened = [m["data"]["state"] for m in front_end.messages if m["type"] == "comm_open"]
    assert {state["_model_module"] for state in opened} <= {
        "@jupyter-widgets/base",
        "@jupyter-widgets/controls",
    }
    for state in opened:
        if state["_model_name"].endswith(("SliderModel", "TextModel", "ButtonModel", "DropdownModel")):
            tooltip = state.get("tooltip") or state.get("description_tooltip")
            assert state["description"] or tooltip, state["_model_name"]


def test_a_bundle_asked_for_holds_widget_and_snapshot(front_end, monkeypatch):
    square = Square()
    assert set(square._repr_mimebundle_()) == {
        "application/vnd.jupyter.widget-view+json",
        "text/html",
        "text/plain",
    }
    monkeypatch.setenv("SLOTH_NB_HOST", "headless")
    assert set(square._repr_mimebundle_()) == {"text/html", "text/plain"}
    assert host.current().name == "headless"
