"""An estimate as HTML: a bar of what takes what against the card, a table, what would fit, what to change.

Plain elements and inline styles: the same in a saved notebook and on every host, and no script.
Colours are read well on light and dark, and every number is in the table too.
"""

from html import escape

from sloth_nb.memory.advice import smallest_card
from sloth_nb.memory.estimate import GB, Estimate

__all__ = ["COLOURS", "bar_html", "changes_html", "estimate_html", "table_html"]

# One a kind, apart in hue and lightness; grey for what can't be helped.
COLOURS = {
    "context": "#8a8f98",
    "libraries": "#aeb3bb",
    "weights": "#3b6fb6",
    "adapters": "#6ea4e0",
    "optimiser": "#7b58b5",
    "gradients": "#b08be0",
    "activations": "#2f9e77",
    "workspace": "#7cc9a6",
    "attention": "#c2b23a",
    "dequantised": "#d98a2b",
    "loss": "#c8553d",
    "generation": "#d67ba8",
    "fragmentation": "#c9ccd1",
}


def estimate_html(estimate: Estimate) -> str:
    """The whole view of one estimate."""
    work = escape(str(estimate.work))
    verdict = "fits" if estimate.fits else "does not fit"
    head = (
        f"<div><b>{estimate.total_gb:.2f} GB</b> at the {escape(estimate.moment)}: "
        f"{verdict} {escape(estimate.gpu.name)} ({estimate.gpu.memory_gib:.1f} GB)</div><div>{work}</div>"
    )
    parts = [head, bar_html(estimate), table_html(estimate)]
    if estimate.fits:
        parts.append(
            f"<div>Longest context that fits: {estimate.longest_context():,} tokens. "
            f"Largest batch: {estimate.largest_batch():,}.</div>"
        )
    else:
        parts.append(changes_html(estimate))
    parts += [f"<div style='opacity:.8'>{escape(note)}</div>" for note in estimate.notes]
    return f"<div style='line-height:1.6;max-width:56em'>{''.join(parts)}</div>"


def changes_html(estimate: Estimate) -> str:
    """What to change so that it fits, or which card it takes."""
    changes = estimate.changes()
    if changes:
        items = "".join(f"<li>{escape(str(change))}</li>" for change in changes)
        return f"<div>It fits if you:</div><ol style='margin:0 0 0 1.5em'>{items}</ol>"
    card = smallest_card(estimate.work)
    where = f"the smallest card that takes it is {card.name}" if card else "no single card takes it"
    return f"<div>No change of settings makes it fit; {escape(where)}.</div>"


def bar_html(estimate: Estimate) -> str:
    """The stacked bar, as wide as the card or the need, whichever is more; a mark where the card ends."""
    whole = max(estimate.total, estimate.gpu.memory)
    pieces = "".join(
        f"<div title='{escape(label)}: {size / GB:.2f} GB' "
        f"style='width:{100 * size / whole:.3f}%;background:{COLOURS[kind]}'></div>"
        for kind, label, size in estimate.rows()
    )
    end = 100 * estimate.gpu.memory / whole
    text = f"{estimate.total_gb:.2f} of {estimate.gpu.memory_gib:.1f} GB on {estimate.gpu.name}"
    return (
        f"<div role='img' aria-label='{escape(text)}' style='position:relative;display:flex;height:1.6em;"
        "margin:.4em 0;border:1px solid currentColor;border-radius:3px;overflow:hidden'>"
        f"{pieces}<div style='position:absolute;left:calc({end:.3f}% - 2px);top:0;bottom:0;width:2px;"
        "background:currentColor'></div></div>"
    )


def table_html(estimate: Estimate) -> str:
    """Every kind with its colour and size."""
    rows = "".join(
        f"<tr><td style='text-align:left'><span style='display:inline-block;width:.8em;height:.8em;"
        f"background:{COLOURS[kind]};margin-right:.5em'></span>{escape(label)}</td>"
        f"<td style='text-align:right'>{size / GB:.2f} GB</td></tr>"
        for kind, label, size in estimate.rows()
    )
    if estimate.host:
        rows += (
            "<tr><td style='text-align:left'>In host memory</td>"
            f"<td style='text-align:right'>{estimate.host / GB:.2f} GB</td></tr>"
        )
    return f"<table style='border-collapse:collapse'>{rows}</table>"
