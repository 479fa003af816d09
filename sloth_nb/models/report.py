"""What the engine replaced on a model, what it left and why, and the way back."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from ..engine.spec import Unsupported

if TYPE_CHECKING:
    from ..engine.causal import CausalEngine

__all__ = ["Report", "causal_of", "engine_of", "report_of"]


@dataclass
class Report:
    """Printed, it says what runs where. ``undo()`` gives the model its own forwards back."""

    model: str
    engine: CausalEngine | None = None
    left: str | None = None
    """Why the whole model was left as it was, when it was."""
    plan: object | None = None
    """What decides how activations are held, when that was left to a plan; its str says what it decided."""
    undo_steps: list[Callable[[], None]] = field(default_factory=list)

    def __reduce__(self) -> tuple:
        # Goes along with a copied or pickled model, which runs plain.
        return Report, (self.model, None, "this model is a copy; install the engine on it anew")

    def attach(self, causal: nn.Module) -> None:
        """From now on ``report_of`` finds this one on the model; no state dict holds it."""
        causal.__dict__["_sloth_report"] = self

    @property
    def installed(self) -> bool:
        return self.engine is not None and bool(self.undo_steps)

    def undo(self) -> None:
        """Restores the model's own forwards, and gives back what the engine held from step to step.

        Parameters were never moved, so nothing else has to be restored.
        """
        for step in self.undo_steps:
            step()
        self.undo_steps = []
        if self.engine is not None:
            self.engine.release()

    def rows(self) -> list[tuple[str, str]]:
        """(part, what runs there)."""
        if self.engine is None:
            plan = [] if self.plan is None else [("activations kept", str(self.plan))]
            return [("everything", f"transformers' own modules: {self.left}"), *plan]
        if not self.installed:
            return [("everything", "transformers' own modules: the engine was taken off again")]
        engine = self.engine
        try:
            layers = engine.layers()
        except Unsupported as reason:
            return [("everything", f"transformers' own modules, as the model stands now: {reason}")]
        first = layers[0]
        rows = [
            (f"{len(layers)} decoder layers", "forward and backward by hand"),
            ("projections", _projections(layers)),
            ("norms", "zero-centred RMSNorm" if first.spec.zero_centred else "RMSNorm"),
            ("activation", first.spec.activation),
            ("activations kept", _checkpointing(engine.settings.checkpointing)),
            ("loss", _loss(engine)),
        ]
        rows += [
            (f"{count} call{'s' if count > 1 else ''} left to the model", reason)
            for reason, count in engine.left_to_model.items()
        ]
        return rows

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(part) for part, _ in rows)
        return "\n".join(
            [f"sloth_nb engine on {self.model}", *(f"  {part:<{width}}  {what}" for part, what in rows)]
        )

    def _repr_html_(self) -> str:
        body = "".join(
            f"<tr><th style='text-align:left'>{html.escape(part)}</th><td style='text-align:left'>{html.escape(what)}"
            "</td></tr>"
            for part, what in self.rows()
        )
        return f"<table><caption>sloth_nb engine on {html.escape(self.model)}</caption>{body}</table>"


def causal_of(model: nn.Module) -> nn.Module:
    """The causal language model inside its adapters, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def report_of(model: nn.Module) -> Report | None:
    """The report of the last installation on a model (or on the one inside its adapters), or None."""
    return getattr(causal_of(model), "_sloth_report", None)


def engine_of(model: nn.Module) -> CausalEngine | None:
    """The engine installed on a model, or None."""
    report = report_of(model)
    return report.engine if report is not None and report.installed else None


def _projections(layers: list) -> str:
    kinds: dict[str, int] = {}
    for layer in layers:
        for group in layer.groups:
            for p in group.projections:
                name = f"LoRA over {p.kind}" if p.rank else p.kind
                kinds[name] = kinds.get(name, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in kinds.items())


def _checkpointing(chosen: object) -> str:
    if chosen is False or chosen is None:
        return "all of them: nothing is recomputed"
    if chosen is True:
        return "each layer's input and attention; the rest is recomputed"
    if chosen in ("sloth", "unsloth"):
        return "chosen for each batch: what pays is moved to the host or kept, the rest recomputed"
    if isinstance(chosen, list):
        return f"layer by layer: {', '.join(dict.fromkeys(str(c) for c in chosen))}"
    return str(chosen)


def _loss(engine: CausalEngine) -> str:
    from ..engine.batching import NotForEngine

    try:
        engine.head()
    except NotForEngine as reason:
        return f"the model's own, with logits: {reason}"
    if engine.held_logits.held:
        return "fused with the output head, in chunks, in memory that is kept for the next step"
    return "fused with the output head, in chunks; logits are never held"
