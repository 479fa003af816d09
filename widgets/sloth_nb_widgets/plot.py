"""The one place that draws. A figure is data; it becomes SVG for every host, plotly JSON and text.

Live views put the SVG into a panel's HTML. A saved notebook keeps ``bundle(figure)``: JupyterLab draws its
plotly JSON, GitHub and nbviewer its ``image/svg+xml`` (GitHub drops SVG inside HTML, but shows an output
of that type: activeviam/atoti-notebooks#425).
"""

from typing import Any

from ._line_charts import line_chart
from ._numbers import finite, format_number
from ._plotly import to_plotly
from ._stacked_bars import stacked_bars
from .figures import Bar, Chart, Figure, Line, Segment, StackedBars
from .html import Markup, element, join, stylesheet

__all__ = [
    "Bar",
    "Chart",
    "Figure",
    "Line",
    "Segment",
    "StackedBars",
    "bundle",
    "format_number",
    "svg",
    "text",
]


def svg(figure: Figure | StackedBars, *, standalone: bool = False) -> Markup:
    """The figure as ``<svg>`` in the page's theme. ``standalone``: an image of its own, styles inside."""
    if isinstance(figure, StackedBars):
        height, body = stacked_bars(figure)
    else:
        height, body = figure.height, join(line_chart(chart, figure) for chart in figure.charts)
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
            named = [s for s in bar.segments if s.name]
            parts = ", ".join(f"{s.name} {format_number(s.value)}" for s in named)
            total = format_number(sum(s.value for s in bar.segments))
            lines.append(f"  {bar.name}: {total} {figure.unit}".rstrip() + (f" ({parts})" if named else ""))
        if figure.limit:
            lines.append(f"  {figure.limit[0]}: {format_number(figure.limit[1])} {figure.unit}".rstrip())
        return "\n".join(lines)
    for chart in figure.charts:
        for line in chart.lines:
            _, y = finite(line)
            if y:
                lowest, highest = format_number(min(y)), format_number(max(y))
                first, last = format_number(y[0]), format_number(y[-1])
                name = chart.title if line.name == chart.title else f"{chart.title}, {line.name}"
                lines.append(f"  {name}: {first} → {last} (from {lowest} to {highest}, {len(y)} points)")
    return "\n".join(lines)
