"""How an estimate looks: a bar against the card, a table by kind, what else fits, what to change.

Functions from an ``Estimate`` to ``Markup``, shared by VramEstimator and an estimate's own display.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from sloth_nb.errors import SlothError
from sloth_nb.memory import GB, Estimate
from sloth_nb.memory.advice import smallest_card

from .html import Markup, element, join, numbers_table, stylesheet
from .plot import Bar, Segment, StackedBars, svg, text

__all__ = [
    "GROUPS",
    "advice",
    "bars",
    "cards_table",
    "estimate_bundle",
    "headline",
    "kinds_table",
    "limits",
    "measured_line",
    "notes",
    "why_not",
]

# What the bar tells apart; the table has every kind.
GROUPS = {
    "Weights": ("weights",),
    "Adapters, gradients, optimiser": ("adapters", "gradients", "optimiser"),
    "Activations kept": ("activations",),
    "One layer's work": ("workspace", "attention", "dequantised"),
    "Logits and loss": ("loss",),
    "Driver, libraries, gaps": ("context", "libraries", "fragmentation"),
    "Generation": ("generation",),
}


def why_not(name: str, error: Exception) -> str:
    """Why there is no estimate of the model of this name, in a sentence."""
    return (
        str(error)
        if isinstance(error, SlothError)
        else f"{name} can't be estimated: {type(error).__name__}: {error}"
    )


def headline(estimate: Estimate) -> Markup:
    """The total, the verdict and when the memory is fullest."""
    look, verdict = ("good", "fits") if estimate.fits else ("bad", "does not fit")
    return element(
        "div",
        element("b", f"{estimate.total_gb:.2f} GB"),
        element("span", f"{verdict} {estimate.gpu.name}", class_=f"sloth-badge {look}"),
        element(
            "span", f"of {estimate.gpu.memory_gib:.1f} GB, fullest at the {estimate.moment}", class_="quiet"
        ),
        class_="sloth-head",
    )


def bars(estimate: Estimate, measured: int | None = None) -> StackedBars:
    """The stacked bar against the card's capacity, and the measured peak below it where there is one."""
    segments = [
        Segment(name, sum(estimate.kinds.get(kind, 0) for kind in kinds) / GB)
        for name, kinds in GROUPS.items()
        if any(estimate.kinds.get(kind) for kind in kinds)
    ]
    rows = [Bar("predicted", segments)]
    if measured:
        rows.append(Bar("measured", [Segment("Measured peak", measured / GB)]))
    label = (
        f"Memory of {estimate.work}: {estimate.total_gb:.2f} GB predicted, "
        f"{estimate.gpu.name} has {estimate.gpu.memory_gib:.1f} GB"
    )
    return StackedBars(rows, label, unit="GB", limit=(estimate.gpu.name, estimate.gpu.memory_gib))


def kinds_table(estimate: Estimate) -> Markup:
    """Every kind and its bytes, folded away."""
    rows = [(label, f"{size / GB:.3f}") for _, label, size in estimate.rows()]
    rows.append(("Total", f"{estimate.total_gb:.3f}"))
    if estimate.host:
        rows.append(("In the machine's RAM", f"{estimate.host / GB:.3f}"))
    table = numbers_table(f"{estimate.trainable:,} parameters are trained", ("Kind", "GB"), rows)
    return element("details", element("summary", "Every kind in numbers"), table)


def limits(longest: int, batch: int) -> Markup:
    """How far the length and the batch could go on this card."""
    return element(
        "div",
        _tile(f"{longest:,}" if longest else "none", "longest context that fits (tokens)"),
        _tile(f"{batch:,}" if batch else "none", "largest batch that fits"),
        class_="sloth-tiles",
    )


def _tile(value: str, name: str) -> Markup:
    return element("div", element("b", value), element("span", name), class_="sloth-tile")


def advice(estimate: Estimate) -> Markup | None:
    """What would make it fit, cheapest first; nothing when it fits."""
    if estimate.fits:
        return None
    changes = estimate.changes()
    if changes:
        items = [
            element(
                "li",
                change.say,
                " ",
                element("span", f"({change.cost}): ", class_="quiet"),
                _gb(change.estimate),
            )
            for change in changes
        ]
        return join([element("p", "It fits if you change:"), element("ol", items)])
    card = smallest_card(estimate.work)
    where = f"The smallest card that takes it is {card.name}." if card else "No single card takes it."
    return element("p", f"No change of settings makes it fit. {where}")


def _gb(estimate: Estimate) -> Markup:
    return element("b", f"{estimate.total_gb:.1f} GB")


def cards_table(estimates: Iterable[Estimate]) -> Markup:
    """What the same work would need on other cards, folded away."""
    rows = [
        (e.gpu.name, f"{e.gpu.memory_gib:.1f}", f"{e.total_gb:.1f}", "fits" if e.fits else "does not fit")
        for e in estimates
    ]
    table = numbers_table("The same run on other cards", ("Card", "has GB", "needs GB", ""), rows)
    return element("details", element("summary", "What would this need on another card?"), table)


def notes(estimate: Estimate) -> list[Markup]:
    """The sentences that the estimate carries."""
    return [element("p", note, class_="quiet") for note in estimate.notes]


def measured_line(estimate: Estimate, measured: int) -> Markup:
    """The measured peak beside the prediction, and by how much they differ."""
    share = 100 * (estimate.tensors / measured - 1)
    return element(
        "p",
        f"Measured: {measured / GB:.2f} GB of tensors at the peak; "
        f"predicted {estimate.tensors / GB:.2f} GB, {share:+.1f} %.",
    )


def estimate_bundle(estimate: Estimate) -> dict[str, Any]:
    """What a notebook shows of an estimate by itself: HTML that needs no script, and text."""
    figure = bars(estimate)
    parts: Sequence[Any] = (
        headline(estimate),
        element("p", str(estimate.work), class_="quiet"),
        svg(figure),
        limits(estimate.longest_context(), estimate.largest_batch()),
        advice(estimate),
        *notes(estimate),
        kinds_table(estimate),
    )
    html = element(
        "div", stylesheet("colours", "theme", "plot"), element("div", parts, class_="sloth sloth-card")
    )
    return {"text/html": str(html), "text/plain": f"{estimate}\n{text(figure)}"}
