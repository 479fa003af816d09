"""VramEstimator: what a run will need, before it runs; and beside it what it needed, after."""

import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import ipywidgets as widgets
import traitlets

from sloth_nb import catalog
from sloth_nb.errors import SlothError
from sloth_nb.memory import (
    METHODS,
    OPTIMISERS,
    POLICIES,
    TASKS,
    Budget,
    Estimate,
    Work,
    estimate_work,
)
from sloth_nb.memory.advice import on_every_card
from sloth_nb.memory.plan import fitted_policies

from . import controls, estimate_view
from .cards import THIS_MACHINE, CardName, card_names, card_of
from .html import Markup, join, refusal
from .panel import Panel
from .plot import svg
from .pulse import Pulse
from .shown_estimate import shown

__all__ = ["VramEstimator"]

AUTO = "auto"


class VramEstimator(Panel):
    """Controls for model, method, batch and length; a bar by kind of memory against a card's capacity.

    Example:
        >>> est = VramEstimator(model="qwen3-14b", gpu="T4"); est     # shows itself
        >>> est.estimate.total_gb                                     # the same answer a script gets
        >>> est.compare(run)                                          # the measured peak beside it
    """

    heading = "Will it fit?"
    # A dragged slider sends sixty moves a second and waits for none: each picture shows the latest of them.
    seconds_between_pictures: ClassVar[float] = 0.03

    model = traitlets.Unicode("smollm2-135m-instruct", help="catalogue name, hub id or path")
    gpu = CardName(THIS_MACHINE, help="a card's name")
    method = traitlets.Enum(tuple(METHODS), "qlora", help="how the weights are trained")
    task = traitlets.Enum(tuple(TASKS), "sft", help="what kind of training")
    batch = traitlets.Int(2, help="sequences at a time")
    length = traitlets.Int(2048, help="tokens a sequence")
    rank = traitlets.Int(16, help="of the LoRA")
    policy = traitlets.Enum((AUTO, *POLICIES), "recompute", help="what becomes of activations")
    optimiser = traitlets.Enum(OPTIMISERS, "adamw_8bit", help="and its states")

    def __init__(self, model: str | None = None, **arguments: Any):
        if model is not None:
            arguments["model"] = model
        super().__init__(**arguments)
        self._error = ""
        self._measured: int | None = None
        self._estimate: Estimate | None = None
        self._asked_anew = True
        self._follow: Any = None
        self._computing = threading.RLock()
        self._pulse = Pulse(super()._redraw, self.seconds_between_pictures)

    # The answer, for a script --------------------------------------------------------------------------

    @property
    def estimate(self) -> Estimate:
        """The present answer.

        Raises:
            SlothError: what is chosen can't be (an unknown model, …), as the panel says.
        """
        answer = self._answer()
        if answer is None:
            raise SlothError(self._error)
        return shown(answer)

    def compare(self, run: Any) -> None:
        """Shows the peak that a run measured, now and as it goes on. Takes a ``Run``."""
        if self._follow is not None:
            self._follow()
        for event in list(run.events):
            self._on_event(event)
        self._follow = run.listen(self._on_event)
        self.refresh()

    # The panel -----------------------------------------------------------------------------------------

    def _controls(self) -> Sequence[widgets.Widget]:
        names = [info.name for info in catalog.models()]
        return (
            controls.row(
                controls.combobox(self, "model", "Model", names, help="type to search; any folder works too"),
                controls.choice(self, "gpu", "Card", card_names()),
            ),
            controls.row(
                controls.choice(self, "method", "Method", [(f"{k}: {v}", k) for k, v in METHODS.items()]),
                controls.choice(self, "task", "Task", [(f"{k}: {v}", k) for k, v in TASKS.items()]),
            ),
            controls.row(
                controls.slider(self, "batch", "Batch", 1, 64),
                controls.slider(self, "length", "Length", 64, 131072, 64, doubling=True),
                controls.slider(self, "rank", "Rank", 1, 256),
            ),
            controls.row(
                controls.choice(
                    self,
                    "policy",
                    "Activations",
                    [("auto: keep what fits", AUTO), *((k, k) for k in POLICIES)],
                    help="; ".join(f"{k}: {v}" for k, v in POLICIES.items()),
                ),
                controls.choice(self, "optimiser", "Optimiser", OPTIMISERS),
            ),
        )

    def _changed(self, change: Any) -> None:
        self._asked_anew = True

    def _redraw(self) -> None:
        self._pulse.poke()

    def _answer(self) -> Estimate | None:
        """The estimate of what is chosen now; None when that can't be, and then ``_error`` says why."""
        with self._computing:
            if self._asked_anew:
                self._asked_anew = False  # first: what changes meanwhile is asked again
                self._compute()
            return self._estimate

    def _compute(self) -> None:
        try:
            card = card_of(self.gpu)
            work = Work.of(
                self.model,
                method=self.method,
                task=self.task,
                batch=self.batch,
                length=self.length,
                rank=self.rank,
                policy="recompute" if self.policy == AUTO else self.policy,
                optimiser=self.optimiser,
            )
            if self.policy == AUTO:
                work = fitted_policies(work, Budget.of(card)) or work.but(policy=work.leanest(card))
            self._estimate, self._error = estimate_work(work, card), ""
        except Exception as error:  # else the answer before stays, as if it were this one's
            self._estimate, self._error = None, estimate_view.why_not(self.model, error)

    def _view(self) -> Markup:
        answer = self._answer()
        if answer is None:
            return refusal(self._error)
        return join(
            [
                estimate_view.headline(answer),
                svg(estimate_view.bars(answer, self._measured)),
                estimate_view.measured_line(answer, self._measured) if self._measured else None,
                estimate_view.limits(answer.longest_context(), answer.largest_batch()),
                estimate_view.advice(answer),
                estimate_view.notes(answer),
                estimate_view.kinds_table(answer),
                estimate_view.cards_table(on_every_card(answer.work, answer)),
            ]
        )

    def _text(self) -> str:
        answer = self._answer()
        return self._error if answer is None else str(answer)

    def _on_event(self, event: Any) -> None:
        peak = event.data.get("memory_bytes") if event.kind == "step" else None
        if peak and peak != self._measured:
            self._measured = int(peak)
            if threading.current_thread() is threading.main_thread() or self._root is not None:
                self.refresh()
