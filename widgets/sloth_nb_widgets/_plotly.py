"""A figure as plotly JSON, written by hand: no plotly in the kernel, and only what its reader draws."""

from typing import Any

from .figures import PALETTE, Chart, Figure, StackedBars

__all__ = ["to_plotly"]

_INK = "#767b81"  # one colour on light and dark: at least 4.1:1 on both
_CLEAR = "rgba(0,0,0,0)"  # the page's own ground shows through, light or dark
_GRID = "rgba(128,128,128,0.22)"
_PATTERNS = ("", "/", "\\", "|", "-", "x", ".", "+")


def to_plotly(figure: Figure | StackedBars) -> dict[str, Any]:
    """``{"data", "layout", "config"}`` for the mime type ``application/vnd.plotly.v1+json``.

    Not ``responsive``: plotly 7 then loses its height when JupyterLab changes its theme.
    """
    data, layout = _bars(figure) if isinstance(figure, StackedBars) else _charts(figure)
    layout |= {
        "paper_bgcolor": _CLEAR,
        "plot_bgcolor": _CLEAR,
        "font": {"color": _INK, "size": 11},
        "hovermode": "x unified" if isinstance(figure, Figure) else "closest",
        "hoverlabel": {"font": {"color": "#1f2328"}, "bgcolor": "#fffffff2"},
        "meta": {"label": figure.label},
    }
    return {"data": data, "layout": layout, "config": {"displaylogo": False}}


def _charts(figure: Figure) -> tuple[list[Any], dict[str, Any]]:
    data: list[Any] = []
    titles: list[Any] = []
    layout: dict[str, Any] = {
        "height": figure.height,
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "legend": {"orientation": "h", "x": 0.1, "y": 1, "yanchor": "top", "bgcolor": _CLEAR},
        "annotations": titles,
    }
    for number, chart in enumerate(figure.charts, 1):
        suffix = "" if number == 1 else str(number)
        x, y = _domains(chart, figure)
        axis = {"gridcolor": _GRID, "linecolor": _GRID, "zeroline": False, "automargin": False}
        layout[f"xaxis{suffix}"] = {
            **axis, "domain": x, "anchor": f"y{suffix}", "showgrid": False, "showline": True,
            "nticks": chart.ticks[0] + 1, "title": {"text": chart.x_label, "standoff": 4},
        }  # fmt: skip
        layout[f"yaxis{suffix}"] = {
            **axis, "domain": y, "anchor": f"x{suffix}", "nticks": chart.ticks[1] + 1, "exponentformat": "e",
        }  # fmt: skip
        titles.append(
            {
                "text": f"<b>{_plain(chart.title)}</b>", "showarrow": False, "xref": "paper", "yref": "paper",
                "x": chart.place[0] + 0.01, "y": 1 - chart.place[1], "xanchor": "left", "yanchor": "top",
            }
        )  # fmt: skip
        for line in chart.lines:
            data.append(_trace(line, suffix, legend=number == 1 and len(chart.lines) > 1))
    return data, layout


def _trace(line: Any, suffix: str, legend: bool) -> dict[str, Any]:
    colour = PALETTE[line.colour % len(PALETTE)]
    faint = line.style == "faint"
    return {
        "type": "scatter",
        "name": _plain(line.name),
        "mode": "lines+markers" if line.style == "dots" or len(line.x) == 1 else "lines",
        "x": [_short(value) for value in line.x],
        "y": [_short(value) for value in line.y],
        "xaxis": f"x{suffix}",
        "yaxis": f"y{suffix}",
        "line": {
            "color": colour,
            "width": 1 if faint else 2,
            "dash": "dash" if line.style == "dashed" else "solid",
        },
        "opacity": 0.4 if faint else 1,
        "showlegend": legend,
    }


def _bars(figure: StackedBars) -> tuple[list[Any], dict[str, Any]]:
    names = list(dict.fromkeys(segment.name for bar in figure.bars for segment in bar.segments))
    rows = [_plain(bar.name) for bar in figure.bars]
    data = []
    for i, name in enumerate(names):
        values = [sum(s.value for s in bar.segments if s.name == name) for bar in figure.bars]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": _plain(name),
                "y": rows,
                "x": [_short(value) for value in values],
                "marker": {
                    "color": PALETTE[i % len(PALETTE)],
                    # Without bgcolor plotly draws white strokes on nothing.
                    "pattern": {
                        "shape": _PATTERNS[i % len(_PATTERNS)],
                        "bgcolor": PALETTE[i % len(PALETTE)],
                        "fgcolor": "#fff",
                        "fgopacity": 0.6,
                    },
                },
                "hovertemplate": f"{_plain(name)}: %{{x}} {_plain(figure.unit)}<extra></extra>",
            }
        )
    layout: dict[str, Any] = {
        "barmode": "stack",
        "height": 110 + 42 * len(rows),
        "margin": {"l": 10, "r": 20, "t": 34, "b": 60},
        "xaxis": {"gridcolor": _GRID, "title": {"text": _plain(figure.unit)}, "rangemode": "tozero"},
        "yaxis": {"automargin": True, "autorange": "reversed"},
        "legend": {"orientation": "h", "y": -0.35},
    }
    if figure.limit:
        name, value = figure.limit
        line = {"color": PALETTE[4], "dash": "dash", "width": 2}
        layout["shapes"] = [
            {"type": "line", "x0": value, "x1": value, "y0": 0, "y1": 1, "yref": "paper", "line": line}
        ]
        layout["annotations"] = [
            {
                "x": value,
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "showarrow": False,
                "text": _plain(name),
            }
        ]
    return data, layout


def _domains(chart: Chart, figure: Figure) -> tuple[list[float], list[float]]:
    left, top, width, height = chart.place
    x = [left + 46 / figure.width, left + width - 10 / figure.width]
    y = [1 - top - height + (34 if chart.x_label else 20) / figure.height, 1 - top - 26 / figure.height]
    return [_short(v) for v in x], [_short(v) for v in y]


def _plain(text: str) -> str:
    """Plotly reads a few tags in texts; foreign text must not be one."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _short(value: float) -> float | int | None:
    """Five digits draw the same line in half the bytes; a gap where there is no number (JSON has no NaN)."""
    value = float(value)
    if value != value or value in (float("inf"), float("-inf")):
        return None
    if value == int(value) and abs(value) < 1e15:
        return int(value)
    return float(f"{value:.5g}")
