"""Pictures in one call, for lessons and quick looks: bars, curves and the pieces of a text.

Each returns a ``Picture``, which shows itself in a notebook and prints as words and numbers elsewhere.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sloth_nb.data.tokenise import Token

from . import dataset_html
from .html import Markup, element, join, stylesheet
from .plot import Bar, Chart, Figure, Line, Segment, StackedBars, bundle

__all__ = ["Picture", "bars", "curves", "pieces"]

_STYLES = ("line", "dashed", "dots")


@dataclass(frozen=True)
class Picture:
    """Something to look at: the bundle that a notebook keeps, and the same in words."""

    shown: Mapping[str, Any]

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return dict(self.shown)

    def __str__(self) -> str:
        return str(self.shown["text/plain"])

    __repr__ = __str__


def bars(
    heading: str,
    values: Mapping[str, float | Mapping[str, float]],
    *,
    unit: str = "",
    limit: tuple[str, float] | None = None,
) -> Picture:
    """A bar for each name, of one value or of parts: ``bars("Memory", {"LoRA": {"weights": 0.3}}, unit="GB")``.

    Args:
        heading: what a screen reader says of it.
        values: name → value, or name → {part → value}.
        limit: (name, value) of a line that the bars are held against.
    """
    drawn = [
        Bar(name, [Segment(part, float(v)) for part, v in _parts(value).items()])
        for name, value in values.items()
    ]
    return Picture(bundle(StackedBars(drawn, heading, unit=unit, limit=limit)))


def _parts(value: float | Mapping[str, float]) -> Mapping[str, float]:
    return value if isinstance(value, Mapping) else {"": value}


def curves(
    heading: str,
    lines: Mapping[str, Sequence[float] | tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str = "",
) -> Picture:
    """Lines over one pair of axes. A line is its values, from 1 on, or (x, y)."""
    drawn = []
    for number, (name, line) in enumerate(lines.items()):
        x, y = line if isinstance(line, tuple) else (range(1, len(line) + 1), line)
        style = _STYLES[number % len(_STYLES)]
        drawn.append(Line(name, [float(v) for v in x], [float(v) for v in y], style, number))
    figure = Figure([Chart(heading, drawn, x_label=x_label, hover=60)], heading, height=260)
    return Picture(bundle(figure))


def pieces(tokenizer: Any, ids: Sequence[int], *, learnt: Sequence[bool] | None = None) -> Picture:
    """The tokens of a text, each in its own box with its number above; those that are learnt are marked.

    Args:
        tokenizer: knows what a number stands for.
        ids: the tokens' numbers.
        learnt: which of them are trained; None marks none.
    """
    marks = [False] * len(ids) if learnt is None else list(learnt)
    found = [Token(int(i), tokenizer.decode([int(i)]), bool(m)) for i, m in zip(ids, marks, strict=True)]
    plain = " ".join(f"{dataset_html.visible(t.text)}({t.id}){'*' if t.trained else ''}" for t in found)
    body = dataset_html.tokens(found, ids=True, max_length=None) if learnt else _boxes(found)
    html = join([stylesheet("colours", "theme", "dataset"), element("div", body, class_="sloth sloth-card")])
    said = "  (* is learnt)" if learnt else ""
    return Picture({"text/html": str(html), "text/plain": f"{len(found)} tokens: {plain}{said}"})


def _boxes(found: Sequence[Token]) -> Markup:
    boxes = dataset_html.boxes(found, ids=True)
    return join(
        [element("p", f"{len(found)} tokens"), element("div", boxes, class_="sloth-written sloth-tokens")]
    )
