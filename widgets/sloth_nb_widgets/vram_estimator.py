"""VramEstimator: what a run will need, before it runs; and beside it what it needed, after."""

import threading
from collections.abc import Sequence
from typing import Any

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
    device_for,
    estimate_work,
)
from sloth_nb.memory.advice import on_every_card
from sloth_nb.memory.plan import fitted_policies

from . import controls, estimate_view
from .html import Markup, element, join
from .panel import Panel
from .plot import svg
from .shown_estimate import shown

__all__ = ["VramEstimator"]

THIS_MACHINE = "this machine"
AUTO = "auto"


class VramEstimator(Panel):
    """Controls for model, method, batch and length; a bar by kind of memory against a card's capacity.

    Example:
        >>> est = VramEstimator(model="qwen3-14b", gpu="T4"); est     # shows itself
        >>> est.estimate.total_gb                                     # the same answer a script gets
        >>> est.compare(run)                                          # the measured peak beside it
    """

    heading = "Will it fit?"

    model = traitlets.Unicode("smollm2-135m-instruct", help="catalogue name, hub id or path")
    gpu = traitlets.Unicode(THIS_MACHINE, help="a card's name")
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
        self._follow: Any = None
        self._compute()

    # The answer, for a script --------------------------------------------------------------------------

    @property
    def estimate(self) -> Estimate:
        """The present answer.

        Raises:
            SlothError: what is chosen can't be (an unknown model, …), as the panel says.
        """
        if self._estimate is None:
            raise SlothError(self._error)
        return shown(self._estimate)

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
        cards = [THIS_MACHINE, "cpu", *(card.name for card in catalog.gpus())]
        return (
            controls.row(
                controls.combobox(self, "model", "Model", names, help="type to search; any folder works too"),
                controls.choice(self, "gpu", "Card", cards),
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
        self._compute()

    def _compute(self) -> None:
        try:
            card = device_for(None if self.gpu == THIS_MACHINE else self.gpu)
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
                work = fitted_policies(work, Budget.of(card)) or work.but(policy="offload")
            self._estimate, self._error = estimate_work(work, card), ""
        except SlothError as error:
            self._estimate, self._error = None, str(error)

    def _view(self) -> Markup:
        if self._estimate is None:
            return element("p", self._error, class_="sloth-status bad", role="alert")
        answer = self._estimate
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
        return self._error if self._estimate is None else str(self._estimate)

    def _on_event(self, event: Any) -> None:
        peak = event.data.get("memory_bytes") if event.kind == "step" else None
        if peak and peak != self._measured:
            self._measured = int(peak)
            if threading.current_thread() is threading.main_thread() or self._root is not None:
                self.refresh()
