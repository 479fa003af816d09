"""Stacked bars as SVG: parts are told apart by pattern as well as colour."""

import itertools
from typing import Any

from ._numbers import format_number, tenths
from .figures import StackedBars
from .html import Markup, element, join

__all__ = ["stacked_bars"]

_pattern_ids = itertools.count(1)
_HATCHES = (None, "M0 6L6 0", "M0 0L6 6", "M3 0V6", "M0 3H6", "M0 6L6 0M0 0L6 6", "M1 1H3V3H1Z", None)


def stacked_bars(figure: StackedBars) -> tuple[int, Markup]:
    """Height and contents: bars with their totals, the limit's line, and a legend with every part's value."""
    names = list(dict.fromkeys(segment.name for bar in figure.bars for segment in bar.segments))
    totals = [sum(segment.value for segment in bar.segments) for bar in figure.bars]
    left = 20 + 7.8 * max((len(bar.name) for bar in figure.bars), default=0)
    right = figure.width - 90
    top = 30 if figure.limit else 12
    largest = max([*totals, figure.limit[1] if figure.limit else 0, 1e-12]) * 1.02
    serial = next(_pattern_ids)

    def px(value: float) -> float:
        return left + value / largest * (right - left)

    parts: list[Any] = [_hatches(serial, len(names))]
    for row, (bar, total) in enumerate(zip(figure.bars, totals, strict=True)):
        y, start = top + row * 38, 0.0
        parts.append(
            element("text", bar.name, class_="title", x=tenths(left - 8), y=y + 18, text_anchor="end")
        )
        for segment in bar.segments:
            index = names.index(segment.name)
            where = {
                "x": tenths(px(start)),
                "y": y,
                "width": tenths(px(start + segment.value) - px(start)),
                "height": 26,
            }
            said = f"{segment.name}: {format_number(segment.value)} {figure.unit}".rstrip()
            parts.append(
                element(
                    "g",
                    element("title", said),
                    element("rect", class_="segment", style=f"fill:var(--sloth-c{index % 8})", **where),
                    element("rect", fill=f"url(#sloth-h{serial}-{index % 8})", **where)
                    if _HATCHES[index % 8]
                    else None,
                )
            )
            start += segment.value
        total_text = f"{format_number(total)} {figure.unit}".rstrip()
        end = px(total)
        if figure.limit and end - 4 <= px(figure.limit[1]) <= end + 8 + 7.5 * len(total_text):
            end = px(figure.limit[1])  # the limit's line would cross the number
        parts.append(element("text", total_text, class_="value", x=tenths(end + 8), y=y + 18))
    bottom = top + 38 * len(figure.bars)
    if figure.limit:
        name, value = figure.limit
        at = tenths(px(value))
        label = f"{name} {format_number(value)} {figure.unit}".rstrip()
        parts.append(element("path", class_="limit", d=f"M{at} {top - 8}V{bottom - 6}"))
        parts.append(
            element("text", label, x=at, y=top - 14, text_anchor="end" if px(value) > 300 else "start")
        )
    height, legend = _bar_legend(figure, names, serial, bottom + 12)
    return height, join([*parts, legend])


def _hatches(serial: int, count: int) -> Markup:
    patterns = [
        element(
            "pattern",
            element("path", d=d, stroke="#fff", stroke_width=1.2, opacity=0.55, fill="none"),
            id=f"sloth-h{serial}-{i}",
            width=6,
            height=6,
            patternUnits="userSpaceOnUse",
        )
        for i, d in enumerate(_HATCHES[:count])
        if d
    ]
    return element("defs", patterns)


def _bar_legend(figure: StackedBars, names: list[str], serial: int, y: float) -> tuple[int, Markup]:
    if len(names) == 1:  # the values stand at the bars
        return round(y), join([])
    parts, x = [], 12.0
    for i, name in enumerate(names):
        values = [sum(s.value for s in bar.segments if s.name == name) for bar in figure.bars]
        said = f"{name} {' / '.join(map(format_number, values))}"
        width = 34 + 6.5 * len(said)
        if x + width > figure.width and x > 12:
            x, y = 12.0, y + 20
        box = {"x": tenths(x), "y": tenths(y), "width": 14, "height": 12, "rx": 2}
        parts.append(element("rect", style=f"fill:var(--sloth-c{i % 8})", **box))
        if _HATCHES[i % 8]:
            parts.append(element("rect", fill=f"url(#sloth-h{serial}-{i % 8})", **box))
        parts.append(element("text", said, x=tenths(x + 20), y=tenths(y + 10)))
        x += width
    return round(y + 24), join(parts)
