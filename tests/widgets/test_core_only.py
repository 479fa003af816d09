"""Kaggle serves no third-party widget code, Colab only from afar: every panel is made of core ipywidgets."""

import types

import pytest
import sloth_nb_widgets
from sloth_nb_widgets import Panel

from sloth_nb.training.events import RUN_FILE
from sloth_nb.training.run import Run

CORE = {"@jupyter-widgets/base", "@jupyter-widgets/controls", "@jupyter-widgets/output"}


def arguments(name, tmp_path):
    """What a panel needs to be made; most need nothing."""
    if name == "TrainingMonitor":
        return (Run(tmp_path / RUN_FILE),)
    if name == "Chat":
        return (types.SimpleNamespace(disable_adapter=lambda: None), "tokenizer")
    if name == "DatasetPreview":
        return ([{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}],)
    return ()


PANELS = [name for name in sloth_nb_widgets.__all__ if name not in ("Host", "Panel", "estimate")]


@pytest.mark.parametrize("name", PANELS)
def test_a_panel_uses_core_widgets_only(name, front_end, tmp_path):
    kind = getattr(sloth_nb_widgets, name)
    assert issubclass(kind, Panel)
    kind(*arguments(name, tmp_path))._ipython_display_()
    opened = [message["data"]["state"] for message in front_end.messages if message["type"] == "comm_open"]
    assert len(opened) > 5
    assert {state["_model_module"] for state in opened} <= CORE
    assert {state["_view_module"] for state in opened if state.get("_view_module")} <= CORE
