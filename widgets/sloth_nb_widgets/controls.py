"""Controls bound to a panel's traits: each has a visible name and works by keyboard.

Only the classes and options that 7.7 (Colab) and 8.1 share are used here.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import ipywidgets as widgets
import traitlets

__all__ = ["button", "checkbox", "choice", "combobox", "fold", "number", "row", "slider", "text"]

_NAME_WIDTH = {"description_width": "initial"}
_TOOLTIP = "tooltip" if hasattr(widgets.DOMWidget, "tooltip") else "description_tooltip"


def slider(
    owner: traitlets.HasTraits,
    trait: str,
    label: str,
    minimum: float,
    maximum: float,
    step: float = 1,
    *,
    doubling: bool = False,
    help: str = "",
) -> widgets.Widget:
    """A named number box and a slider, both bound to the trait.

    An ``Int`` trait gives whole numbers, any other fractions. With ``doubling`` the slider moves by shares of the
    value, an eighth of the way to its double a step, so that small values of a wide range can be met too.
    """
    whole = isinstance(owner.traits()[trait], traitlets.Int)
    bounds = {"min": minimum, "max": maximum, "step": step}
    # The box has the name: ipywidgets gives a slider's handle none that a screen reader could find.
    box = (widgets.BoundedIntText if whole else widgets.BoundedFloatText)(
        description=label, style=_NAME_WIDTH, layout=widgets.Layout(width="auto"), **bounds, **_said(help)
    )
    box.add_class("sloth-number")
    if doubling:
        bounds = {"min": math.log2(minimum), "max": math.log2(maximum), "step": 0.125, "base": 2}
    kind = widgets.FloatLogSlider if doubling else widgets.IntSlider if whole else widgets.FloatSlider
    handle = kind(
        readout=False, layout=widgets.Layout(width="auto", flex="1 1 120px"), **bounds, **_said(help or label)
    )
    _bind(owner, trait, box)
    if doubling:
        to_step = (float, lambda x: int(min(max(round(x / step), 1) * step, maximum)))
        traitlets.link((owner, trait), (handle, "value"), transform=to_step)
        _answer_while_busy(handle)
    elif whole:
        _bind(owner, trait, handle)
    else:  # a browser's slider makes 0.9000000000000001 of 0.9
        traitlets.link((owner, trait), (handle, "value"), transform=(float, lambda x: float(f"{x:.9g}")))
        _answer_while_busy(handle)
    return widgets.HBox(
        [box, handle],
        layout=widgets.Layout(flex="1 1 auto", min_width="280px", max_width="440px", align_items="center"),
    )


def number(
    owner: traitlets.HasTraits,
    trait: str,
    label: str,
    minimum: float,
    maximum: float,
    step: float = 1,
    *,
    help: str = "",
) -> widgets.Widget:
    """A number box bound to the trait, kept within its bounds."""
    whole = isinstance(owner.traits()[trait], traitlets.Int)
    box = (widgets.BoundedIntText if whole else widgets.BoundedFloatText)(
        min=minimum,
        max=maximum,
        step=step,
        description=label,
        style=_NAME_WIDTH,
        layout=widgets.Layout(width="auto", max_width="220px"),
        **_said(help),
    )
    return _bind(owner, trait, box)


def choice(
    owner: traitlets.HasTraits, trait: str, label: str, options: Sequence[Any], *, help: str = ""
) -> widgets.Widget:
    """A drop-down of values, or of (name, value) pairs."""
    box = widgets.Dropdown(
        options=options,
        value=getattr(owner, trait),
        description=label,
        style=_NAME_WIDTH,
        layout=widgets.Layout(width="auto", min_width="160px"),
        **_said(help),
    )
    return _bind(owner, trait, box)


def combobox(
    owner: traitlets.HasTraits,
    trait: str,
    label: str,
    options: Iterable[str],
    *,
    placeholder: str = "",
    help: str = "",
) -> widgets.Widget:
    """A text box that proposes options while one types; any other text is taken too."""
    box = widgets.Combobox(
        options=tuple(options),
        description=label,
        placeholder=placeholder,
        ensure_option=False,
        style=_NAME_WIDTH,
        layout=widgets.Layout(width="auto", min_width="260px", flex="1 1 auto"),
        **_said(help),
    )
    return _bind(owner, trait, box)


def text(
    owner: traitlets.HasTraits,
    trait: str,
    label: str,
    *,
    placeholder: str = "",
    lines: int = 1,
    live: bool = True,
    help: str = "",
    on_enter: Callable[[], None] | None = None,
) -> widgets.Widget:
    """A text box of one or more lines. ``live``: the trait follows every key, else Enter or leaving the box.

    ``on_enter`` is called when Enter is pressed in a one-line box, after the trait has its text.
    """
    box = (widgets.Text if lines == 1 else widgets.Textarea)(
        description=label,
        placeholder=placeholder,
        continuous_update=live,
        style=_NAME_WIDTH,
        layout=widgets.Layout(width="auto", min_width="260px", flex="1 1 auto"),
        **_said(help),
    )
    if lines > 1:
        box.rows = lines
    if on_enter is not None:
        # The message behind Text.on_submit, which 8 deprecates and 7 needs.
        box.on_msg(lambda _, content, __: on_enter() if content.get("event") == "submit" else None)
    return _bind(owner, trait, box)


def checkbox(owner: traitlets.HasTraits, trait: str, label: str, *, help: str = "") -> widgets.Widget:
    """A box to tick, bound to a ``Bool`` trait."""
    box = widgets.Checkbox(
        description=label,
        indent=False,
        style=_NAME_WIDTH,
        layout=widgets.Layout(width="auto"),
        **_said(help),
    )
    return _bind(owner, trait, box)


def button(label: str, on_click: Callable[[], None], *, help: str = "", look: str = "") -> widgets.Button:
    """A button with a written name; ``look`` is ipywidgets' primary, success, info, warning or danger."""
    made = widgets.Button(
        description=label, tooltip=help or label, button_style=look, layout=widgets.Layout(width="auto")
    )
    made.on_click(lambda _: on_click())
    _answer_while_busy(made)
    return made


def _answer_while_busy(made: widgets.Widget) -> None:
    """Lets a control act while a cell runs, where the front end speaks over a subshell (JupyterLab 4.4).

    ipykernel 7.4 would hold it back until the cell ends, because a cell sent the widget's last change.
    """
    if hasattr(made.comm, "_reply_subshell_for"):
        made.comm._reply_subshell_for = lambda data, default: default


def fold(label: str, *children: widgets.Widget, help: str = "") -> widgets.Box:
    """Controls behind a button that shows and hides them (an ``Accordion`` can't be opened by keyboard)."""
    inside = widgets.VBox(children, layout=widgets.Layout(display="none", overflow="visible"))
    toggle = widgets.ToggleButton(
        description=label,
        tooltip=help or label,
        layout=widgets.Layout(width="auto", align_self="flex-start"),
    )
    toggle.observe(
        lambda change: setattr(inside.layout, "display", "flex" if change["new"] else "none"), names="value"
    )
    _answer_while_busy(toggle)
    return widgets.VBox([toggle, inside], layout=widgets.Layout(overflow="visible"))


def row(*children: widgets.Widget) -> widgets.Box:
    """Controls beside each other, wrapping where the page is narrow."""
    return widgets.HBox(
        children,
        layout=widgets.Layout(
            flex_flow="row wrap", align_items="center", overflow="visible", grid_gap="0 14px"
        ),
    )


def _said(help: str) -> dict[str, str]:
    return {_TOOLTIP: help} if help else {}


def _bind(owner: traitlets.HasTraits, trait: str, box: widgets.Widget) -> widgets.Widget:
    traitlets.link((owner, trait), (box, "value"))
    _answer_while_busy(box)
    return box
