"""Figures as SVG, plotly JSON and text."""

import json
import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sloth_nb_widgets import plot
from sloth_nb_widgets._numbers import nice_ticks, thin
from sloth_nb_widgets.plot import Bar, Chart, Figure, Line, Segment, StackedBars, bundle, format_number, svg

SVG = "{http://www.w3.org/2000/svg}"


def figure(n=500, **keys):
    x = list(range(n))
    y = [2 + math.sin(i / 9) for i in x]
    lines = [Line("train", x, y, "faint"), Line("held out", x[::50], y[::50], "dots", 1)]
    return Figure([Chart("Loss", lines, x_label="step", **keys)], "Loss of a run")


def parsed(drawing):
    return ElementTree.fromstring(svg(drawing, standalone=True))


def test_a_figure_is_well_formed_and_named():
    root = parsed(figure(hover=20))
    assert root.get("role") == "img" and root.get("aria-label") == "Loss of a run"
    texts = [node.text for node in root.iter(f"{SVG}text")]
    assert {"Loss", "train", "held out", "step", "0", "400"} <= set(texts)
    assert len([node for node in root.iter(f"{SVG}rect") if node.get("class") == "hit"]) == 20


def test_lines_are_told_apart_without_colour():
    paths = [node.get("class") for node in parsed(figure()).iter(f"{SVG}path")]
    assert "line faint" in paths
    assert any(True for _ in parsed(figure()).iter(f"{SVG}circle"))


def test_a_hundred_thousand_points_are_as_small_as_a_thousand():
    assert len(svg(figure(100_000))) < 30_000
    drawn, spike = figure(100_000), 0.0
    drawn.charts[0].lines[0].y[50_123] = 40.0
    for node in parsed(drawn).iter(f"{SVG}text"):
        if node.text and node.text.isdigit():
            spike = max(spike, float(node.text))
    assert spike >= 40, "a single outlier is still there"


def test_thinning_keeps_ends_and_extremes():
    x = [float(i) for i in range(10_000)]
    y = [math.sin(i / 7) for i in x]
    y[1234] = 9.0
    thin_x, thin_y = thin(x, y, 100)
    assert len(thin_x) <= 400
    assert thin_x == sorted(thin_x) and thin_x[0] == 0 and thin_x[-1] == 9999
    assert max(thin_y) == 9.0 and min(thin_y) == min(y)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), max_size=60))
def test_any_numbers_can_be_drawn(values):
    drawing = Figure([Chart("a", [Line("b", list(range(len(values))), values, "dots")], hover=3)], "c")
    assert "nan" not in ElementTree.tostring(parsed(drawing), "unicode").lower().replace("finance", "")
    made = bundle(drawing)
    assert json.loads(json.dumps(made, allow_nan=False)) == made


@given(
    st.floats(-1e6, 1e6),
    st.floats(1e-6, 1e6),
    st.integers(1, 12),
)
def test_ticks_lie_inside_and_are_about_as_many(low, width, about):
    ticks = nice_ticks(low, low + width, about)
    slack = width * 1e-6 + abs(low) * 1e-14
    assert all(low - slack <= tick <= low + width + slack for tick in ticks)
    assert len(ticks) <= about + 2


def test_an_empty_chart_says_so():
    assert "nothing yet" in svg(Figure([Chart("Loss", [Line("train", [], [])])], "Loss"))


def test_hostile_names_stay_text_in_every_form():
    evil = "<script>alert(1)</script>"
    drawing = Figure([Chart(evil, [Line(evil, [1, 2], [1, 2]), Line("b", [1], [2])])], evil)
    made = bundle(drawing)
    assert "<script" not in made["image/svg+xml"]
    assert "<script" not in json.dumps(made["application/vnd.plotly.v1+json"]["data"])
    bars = StackedBars([Bar(evil, [Segment(evil, 1.0)])], evil, evil, (evil, 2.0))
    assert "<script" not in svg(bars, standalone=True)


def test_plotly_itself_accepts_the_json():
    graph_objects = pytest.importorskip("plotly.graph_objects")
    for drawing in (figure(), memory()):
        spec = bundle(drawing)["application/vnd.plotly.v1+json"]
        graph_objects.Figure(data=spec["data"], layout=spec["layout"])


def memory():
    parts = [Segment("weights", 9.0), Segment("activations", 4.0), Segment("nothing", 0.0)]
    return StackedBars([Bar("Qwen3-14B", parts)], "Memory", "GB", ("T4", 15.0))


def test_bars_show_totals_parts_and_the_limit():
    root = parsed(memory())
    said = " | ".join(node.text or "" for node in root.iter() if node.text)
    assert "13 GB" in said and "T4 15 GB" in said and "activations: 4 GB" in said
    fills = [
        node.get("fill") for node in root.iter(f"{SVG}rect") if (node.get("fill") or "").startswith("url")
    ]
    assert fills, "parts differ by pattern too"


def test_text_holds_the_numbers():
    said = plot.text(figure())
    assert said.splitlines()[0] == "Loss of a run"
    assert "Loss, train: 2 → " in said and "500 points" in said
    assert "weights 9" in plot.text(memory())


@pytest.mark.parametrize(
    ("value", "written"),
    [(0, "0"), (0.0002, "2e-4"), (2e-05, "2e-5"), (0.5, "0.5"), (1.2345, "1.23"), (999.9, "1,000"),
     (1234, "1,234"), (12_345, "12.3k"), (1_234_567, "1.23M"), (-3.0, "-3"), (100, "100"),
     (float("nan"), "–"), (1500, "1,500"), (999_999, "1000k"), (20_000, "20k")],
)  # fmt: skip
def test_numbers_are_written_as_people_do(value, written):
    assert format_number(value) == written
