"""Line charts as SVG."""

from typing import Any

from ._numbers import finite, format_number, nice_ticks, padded, path, span, tenths, thin, value_at
from .figures import PALETTE, Chart, Figure, Line
from .html import Markup, element, join

__all__ = ["line_chart"]


def line_chart(chart: Chart, figure: Figure) -> Markup:
    left, top, width, height = (
        chart.place[0] * figure.width,
        chart.place[1] * figure.height,
        chart.place[2] * figure.width,
        chart.place[3] * figure.height,
    )
    x0, x1 = left + 46, left + width - 10
    y0, y1 = top + height - (30 if chart.x_label else 18), top + 28
    points = [(line, *finite(line)) for line in chart.lines]
    xs = [x for _, x, _ in points if x]
    ys = [y for _, _, y in points if y]
    title = element("text", chart.title, class_="title", x=tenths(left + 8), y=tenths(top + 14))
    if not xs:
        nothing = element(
            "text", "nothing yet", x=tenths((x0 + x1) / 2), y=tenths((y0 + y1) / 2), text_anchor="middle"
        )
        return element("g", title, nothing)
    x_low, x_high = span(min(map(min, xs)), max(map(max, xs)))
    y_low, y_high = padded(min(map(min, ys)), max(map(max, ys)))

    def px(x: float) -> float:
        return x0 + (x - x_low) / (x_high - x_low) * (x1 - x0)

    def py(y: float) -> float:
        return y0 + (y - y_low) / (y_high - y_low) * (y1 - y0)

    parts = [title, _axes(chart, (x0, x1, y0, y1), (x_low, x_high, y_low, y_high), px, py)]
    for line, x, y in points:
        if x:
            x, y = thin(x, y, int(x1 - x0) // 2)
            parts.append(_draw(line, [px(v) for v in x], [py(v) for v in y]))
    parts.append(_legend(chart, left + 8 + 7.2 * len(chart.title) + 14, top + 14))
    if chart.hover:
        parts.append(_hover(chart, points, (x0, x1, y0, y1), (x_low, x_high)))
    return element("g", parts)


def _axes(chart: Chart, box: tuple[float, ...], spans: tuple[float, ...], px: Any, py: Any) -> Markup:
    x0, x1, y0, _ = box
    x_low, x_high, y_low, y_high = spans
    y_ticks, x_ticks = nice_ticks(y_low, y_high, chart.ticks[1]), nice_ticks(x_low, x_high, chart.ticks[0])
    grid = "".join(f"M{tenths(x0)} {tenths(py(tick))}H{tenths(x1)}" for tick in y_ticks)
    labels = [
        element("text", format_number(tick, 4), x=tenths(x0 - 6), y=tenths(py(tick) + 3.5), text_anchor="end")
        for tick in y_ticks
    ]
    labels += [
        element("text", format_number(tick, 4), x=tenths(px(tick)), y=tenths(y0 + 14), text_anchor="middle")
        for tick in x_ticks
    ]
    if chart.x_label:
        labels.append(element("text", chart.x_label, x=tenths(x1), y=tenths(y0 + 27), text_anchor="end"))
    return join(
        [
            element("path", class_="grid", d=grid) if grid else None,
            element("path", class_="axis", d=f"M{tenths(x0)} {tenths(y0)}H{tenths(x1)}"),
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
            element("circle", class_="dot", cx=tenths(x[i]), cy=tenths(y[i]), r=3, style=f"fill:{colour}")
            for i in chosen
        ]
    look = {"faint": " faint", "dashed": " dashed"}.get(
        line.style, " thin" if len(x) > 2 * (x[-1] - x[0]) else ""
    )
    return join([element("path", class_=f"line{look}", d=path(x, y), style=f"stroke:{colour}"), dots])


def _legend(chart: Chart, x: float, y: float) -> Markup | None:
    if len(chart.lines) < 2:
        return None
    parts = []
    for line in chart.lines:
        parts.append(_draw(Line(line.name, (), (), line.style, line.colour), [x, x + 18], [y - 4, y - 4]))
        parts.append(element("text", line.name, x=tenths(x + 24), y=tenths(y)))
        x += 24 + 6.4 * len(line.name) + 18
    return join(parts)


def _hover(chart: Chart, points: list[Any], box: tuple[float, ...], spans: tuple[float, float]) -> Markup:
    """Transparent columns whose browser tooltip says the values there: hovering without a script."""
    x0, x1, y0, y1 = box
    width = (x1 - x0) / chart.hover
    columns = []
    for i in range(chart.hover):
        middle = spans[0] + (i + 0.5) / chart.hover * (spans[1] - spans[0])
        said = [f"{chart.x_label or 'x'} {format_number(middle, 6)}"]
        said += [f"{line.name} {format_number(value_at(x, y, middle), 4)}" for line, x, y in points if x]
        columns.append(
            element(
                "rect",
                element("title", "\n".join(said)),
                class_="hit",
                x=tenths(x0 + i * width),
                y=tenths(y1),
                width=tenths(width),
                height=tenths(y0 - y1),
            )
        )
    return join(columns)
