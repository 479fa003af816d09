"""The one place that draws. A figure is data; it becomes SVG for every host, plotly JSON and text.

Live views put the SVG into a panel's HTML. A saved notebook keeps ``bundle(figure)``: JupyterLab draws its
plotly JSON, GitHub and nbviewer its ``image/svg+xml`` (GitHub drops SVG inside HTML, but shows an output
of that type: activeviam/atoti-notebooks#425).
"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .html import Markup, element, join, stylesheet

__all__ = ["Bar", "Chart", "Figure", "Line", "Segment", "StackedBars", "bundle", "format_number", "svg"]

PALETTE = ("#2f7fd1", "#d9730d", "#2a9d6f", "#9468d8", "#d1495b", "#7d8590", "#b08900", "#1899a8")
_INK = "#767b81"  # plotly draws one colour on light and dark: at least 4.1:1 on both

Style = Literal["line", "faint", "dashed", "dots"]
_pattern_ids = itertools.count(1)


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


def svg(figure: Figure | StackedBars, *, standalone: bool = False) -> Markup:
    """The figure as ``<svg>`` in the page's theme. ``standalone``: an image of its own, styles inside."""
    if isinstance(figure, StackedBars):
        height, body = _bars(figure)
    else:
        height, body = figure.height, join(_chart(chart, figure) for chart in figure.charts)
    ground = element("rect", class_="ground", width=figure.width, height=height) if standalone else None
    own = {"xmlns": "http://www.w3.org/2000/svg", "width": figure.width, "height": height}
    return element(
        "svg",
        stylesheet("colours", "plot") if standalone else None,
        ground,
        body,
        class_="sloth-plot",
        viewBox=f"0 0 {figure.width} {height}",
        role="img",
        aria_label=figure.label,
        **(own if standalone else {}),
    )


def bundle(figure: Figure | StackedBars) -> dict[str, Any]:
    """What a saved notebook keeps of it, for ``display(..., raw=True)``: plotly JSON, an SVG image, text."""
    from ._plotly import to_plotly

    return {
        "application/vnd.plotly.v1+json": to_plotly(figure),
        "image/svg+xml": str(svg(figure, standalone=True)),
        "text/plain": text(figure),
    }


def text(figure: Figure | StackedBars) -> str:
    """The figure in words and numbers: of each line its first, lowest, highest and last value."""
    lines = [figure.label]
    if isinstance(figure, StackedBars):
        for bar in figure.bars:
            parts = ", ".join(f"{s.name} {format_number(s.value)}" for s in bar.segments)
            total = format_number(sum(s.value for s in bar.segments))
            lines.append(f"  {bar.name}: {total} {figure.unit}".rstrip() + f" ({parts})")
        if figure.limit:
            lines.append(f"  {figure.limit[0]}: {format_number(figure.limit[1])} {figure.unit}".rstrip())
        return "\n".join(lines)
    for chart in figure.charts:
        for line in chart.lines:
            _, y = _finite(line)
            if y:
                lowest, highest = format_number(min(y)), format_number(max(y))
                first, last = format_number(y[0]), format_number(y[-1])
                name = chart.title if line.name == chart.title else f"{chart.title}, {line.name}"
                lines.append(f"  {name}: {first} → {last} (from {lowest} to {highest}, {len(y)} points)")
    return "\n".join(lines)


def format_number(value: float, digits: int = 3) -> str:
    """A number as people write it: 0.0002 → 2e-4, 1234567 → 1.23M, 0.5 → 0.5."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return _trim(f"{value / (limit if unit != 'k' else 1e3):.{digits}g}") + unit
    if size >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return _trim(f"{value:.{digits}g}")


def _trim(number: str) -> str:
    if "e" in number:
        number = f"{float(number):.0f}"
    return number.rstrip("0").rstrip(".") if "." in number else number


# Line charts ----------------------------------------------------------------------------------------------


def _chart(chart: Chart, figure: Figure) -> Markup:
    left, top, width, height = (
        chart.place[0] * figure.width,
        chart.place[1] * figure.height,
        chart.place[2] * figure.width,
        chart.place[3] * figure.height,
    )
    x0, x1 = left + 46, left + width - 10
    y0, y1 = top + height - (30 if chart.x_label else 18), top + 28
    points = [(line, *_finite(line)) for line in chart.lines]
    xs = [x for _, x, _ in points if x]
    ys = [y for _, _, y in points if y]
    title = element("text", chart.title, class_="title", x=_c(left + 8), y=_c(top + 14))
    if not xs:
        nothing = element(
            "text", "nothing yet", x=_c((x0 + x1) / 2), y=_c((y0 + y1) / 2), text_anchor="middle"
        )
        return element("g", title, nothing)
    x_low, x_high = _span(min(map(min, xs)), max(map(max, xs)))
    y_low, y_high = _padded(min(map(min, ys)), max(map(max, ys)))

    def px(x: float) -> float:
        return x0 + (x - x_low) / (x_high - x_low) * (x1 - x0)

    def py(y: float) -> float:
        return y0 + (y - y_low) / (y_high - y_low) * (y1 - y0)

    parts = [title, _axes(chart, (x0, x1, y0, y1), (x_low, x_high, y_low, y_high), px, py)]
    for line, x, y in points:
        if x:
            x, y = _thin(x, y, int(x1 - x0) // 2)
            parts.append(_draw(line, [px(v) for v in x], [py(v) for v in y]))
    parts.append(_legend(chart, left + 8 + 7.2 * len(chart.title) + 14, top + 14))
    if chart.hover:
        parts.append(_hover(chart, points, (x0, x1, y0, y1), (x_low, x_high)))
    return element("g", parts)


def _axes(chart: Chart, box: tuple[float, ...], span: tuple[float, ...], px: Any, py: Any) -> Markup:
    x0, x1, y0, _ = box
    x_low, x_high, y_low, y_high = span
    y_ticks, x_ticks = nice_ticks(y_low, y_high, chart.ticks[1]), nice_ticks(x_low, x_high, chart.ticks[0])
    grid = "".join(f"M{_c(x0)} {_c(py(tick))}H{_c(x1)}" for tick in y_ticks)
    labels = [
        element("text", format_number(tick, 4), x=_c(x0 - 6), y=_c(py(tick) + 3.5), text_anchor="end")
        for tick in y_ticks
    ]
    labels += [
        element("text", format_number(tick, 4), x=_c(px(tick)), y=_c(y0 + 14), text_anchor="middle")
        for tick in x_ticks
    ]
    if chart.x_label:
        labels.append(element("text", chart.x_label, x=_c(x1), y=_c(y0 + 27), text_anchor="end"))
    return join(
        [
            element("path", class_="grid", d=grid) if grid else None,
            element("path", class_="axis", d=f"M{_c(x0)} {_c(y0)}H{_c(x1)}"),
            labels,
        ]
    )


def _draw(line: Line, x: list[float], y: list[float]) -> Markup:
    colour = f"var(--sloth-c{line.colour % len(PALETTE)})"
    dots = None
    if line.style == "dots" or len(x) == 1:
        # Every dot of a long series would be a smear: the line stays, with dots on some points and the last.
        every = max(1, len(x) // 60)
        chosen = [*range(0, len(x) - 1, every), len(x) - 1]
        dots = [
            element("circle", class_="dot", cx=_c(x[i]), cy=_c(y[i]), r=3, style=f"fill:{colour}")
            for i in chosen
        ]
    look = {"faint": " faint", "dashed": " dashed"}.get(
        line.style, " thin" if len(x) > 2 * (x[-1] - x[0]) else ""
    )
    return join([element("path", class_=f"line{look}", d=_path(x, y), style=f"stroke:{colour}"), dots])


def _legend(chart: Chart, x: float, y: float) -> Markup | None:
    if len(chart.lines) < 2:
        return None
    parts = []
    for line in chart.lines:
        parts.append(_draw(Line(line.name, (), (), line.style, line.colour), [x, x + 18], [y - 4, y - 4]))
        parts.append(element("text", line.name, x=_c(x + 24), y=_c(y)))
        x += 24 + 6.4 * len(line.name) + 18
    return join(parts)


def _hover(chart: Chart, points: list[Any], box: tuple[float, ...], span: tuple[float, float]) -> Markup:
    """Transparent columns whose browser tooltip says the values there: hovering without a script."""
    x0, x1, y0, y1 = box
    width = (x1 - x0) / chart.hover
    columns = []
    for i in range(chart.hover):
        middle = span[0] + (i + 0.5) / chart.hover * (span[1] - span[0])
        said = [f"{chart.x_label or 'x'} {format_number(middle, 6)}"]
        said += [f"{line.name} {format_number(_at(x, y, middle), 4)}" for line, x, y in points if x]
        columns.append(
            element(
                "rect",
                element("title", "\n".join(said)),
                class_="hit",
                x=_c(x0 + i * width),
                y=_c(y1),
                width=_c(width),
                height=_c(y0 - y1),
            )
        )
    return join(columns)


def _at(x: list[float], y: list[float], where: float) -> float:
    """The value at the last point not right of ``where``, or the first."""
    import bisect

    return y[max(0, bisect.bisect_right(x, where) - 1)]


# Stacked bars ---------------------------------------------------------------------------------------------

_HATCHES = (None, "M0 6L6 0", "M0 0L6 6", "M3 0V6", "M0 3H6", "M0 6L6 0M0 0L6 6", "M1 1H3V3H1Z", None)


def _bars(figure: StackedBars) -> tuple[int, Markup]:
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
        parts.append(element("text", bar.name, class_="title", x=_c(left - 8), y=y + 18, text_anchor="end"))
        for segment in bar.segments:
            index = names.index(segment.name)
            where = {
                "x": _c(px(start)),
                "y": y,
                "width": _c(px(start + segment.value) - px(start)),
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
        parts.append(element("text", total_text, class_="value", x=_c(px(total) + 8), y=y + 18))
    bottom = top + 38 * len(figure.bars)
    if figure.limit:
        name, value = figure.limit
        at = _c(px(value))
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
    parts, x = [], 12.0
    for i, name in enumerate(names):
        values = [sum(s.value for s in bar.segments if s.name == name) for bar in figure.bars]
        said = f"{name} {' / '.join(map(format_number, values))}"
        width = 34 + 6.5 * len(said)
        if x + width > figure.width and x > 12:
            x, y = 12.0, y + 20
        box = {"x": _c(x), "y": _c(y), "width": 14, "height": 12, "rx": 2}
        parts.append(element("rect", style=f"fill:var(--sloth-c{i % 8})", **box))
        if _HATCHES[i % 8]:
            parts.append(element("rect", fill=f"url(#sloth-h{serial}-{i % 8})", **box))
        parts.append(element("text", said, x=_c(x + 20), y=_c(y + 10)))
        x += width
    return round(y + 24), join(parts)


# Numbers --------------------------------------------------------------------------------------------------


def nice_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) between two values, about so many."""
    raw = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _finite(line: Line) -> tuple[list[float], list[float]]:
    pairs = [(float(x), float(y)) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _span(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _padded(low: float, high: float) -> tuple[float, float]:
    """A little air around; down to zero where the values are near it, and some height for a flat line."""
    if high == low:
        air = abs(high) * 0.1 or 1.0
        return low - air, high + air
    air = (high - low) * 0.06
    return (0.0 if 0 <= low < (high - low) * 0.3 else low - air), high + air


def _thin(x: list[float], y: list[float], columns: int) -> tuple[list[float], list[float]]:
    """At most first, lowest, highest and last of each column: what is drawn looks the same."""
    if len(x) <= 2 * columns:
        return x, y
    low, high = x[0], x[-1]
    kept: list[int] = []
    start = 0
    for column in range(columns):
        edge = low + (high - low) * (column + 1) / columns
        end = start
        while end < len(x) and (x[end] <= edge or column == columns - 1):
            end += 1
        if end > start:
            members = range(start, end)
            kept += sorted({start, min(members, key=y.__getitem__), max(members, key=y.__getitem__), end - 1})
        start = end
    return [x[i] for i in kept], [y[i] for i in kept]


def _path(x: Iterable[float], y: Iterable[float]) -> str:
    """Relative moves in tenths of a pixel: a third of the bytes of absolute ones."""
    written, at = [], (0, 0)
    for px, py in zip(x, y, strict=True):
        here = (round(px * 10), round(py * 10))
        dx, dy = here[0] - at[0], here[1] - at[1]
        written.append(f"{'l' if written else 'M'}{_tenths(dx)}{'' if dy < 0 else ' '}{_tenths(dy)}")
        at = here
    return "".join(written)


def _tenths(value: int) -> str:
    whole, rest = divmod(abs(value), 10)
    sign = "-" if value < 0 else ""
    if not rest:
        return f"{sign}{whole}"
    return f"{sign}{whole or ''}.{rest}"


def _c(value: float) -> str:
    return _tenths(round(value * 10))
