"""Figures as data: what is to be drawn, in the words of charts. ``plot`` draws them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["PALETTE", "Bar", "Chart", "Figure", "Line", "Segment", "StackedBars"]

# The colours of ``colours.css``, --sloth-c0 and on.
PALETTE = ("#2f7fd1", "#d9730d", "#2a9d6f", "#9468d8", "#d1495b", "#7d8590", "#b08900", "#1899a8")

Style = Literal["line", "faint", "dashed", "dots"]


@dataclass(frozen=True)
class Line:
    """One series. ``style`` tells lines apart without colour; ``faint`` is raw, behind a smoothed one."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: Style = "line"
    colour: int = 0


@dataclass(frozen=True)
class Chart:
    """Lines over one pair of axes, at a place in its figure (fractions of its width and height)."""

    title: str
    lines: Sequence[Line]
    x_label: str = ""
    place: tuple[float, float, float, float] = (0, 0, 1, 1)  # left, top, width, height
    ticks: tuple[int, int] = (6, 5)  # about how many on x and y
    hover: int = 0  # columns that show their values when pointed at (SVG only; plotly has its own)


@dataclass(frozen=True)
class Figure:
    """Charts that belong together. ``label`` is what a screen reader says of it."""

    charts: Sequence[Chart]
    label: str
    width: int = 760
    height: int = 300


@dataclass(frozen=True)
class Segment:
    """A part of a bar. Parts are told apart by pattern as well as colour."""

    name: str
    value: float


@dataclass(frozen=True)
class Bar:
    name: str
    segments: Sequence[Segment]


@dataclass(frozen=True)
class StackedBars:
    """Horizontal bars of parts against an optional limit (name, value): memory by kind against a card."""

    bars: Sequence[Bar]
    label: str
    unit: str = ""
    limit: tuple[str, float] | None = None
    width: int = 760
