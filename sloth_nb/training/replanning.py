"""When a plan was too optimistic: a micro-step that ran out of memory is run once more, planned for less."""

from typing import Any

import torch

from sloth_nb.models.planning import auto_plan_of
from sloth_nb.training.events import RunEvent
from sloth_nb.training.run import Run

__all__ = ["Replanning"]


class Replanning:
    """Of one run: at most one second plan.

    A micro-step can be repeated only where it is the first of its step: it may have left a part of its gradients,
    which are thrown away, and nobody else's may be among them.
    """

    def __init__(self, model: Any, run: Run):
        self._model, self._run = model, run
        self._planner = auto_plan_of(model)
        self._left = 0 if self._planner is None or self._planner.largest is None else 1
        self._trained = [p for p in model.parameters() if p.requires_grad] if self._left else []
        self._first = False

    def before_step(self) -> None:
        """Remembers whether the micro-step that comes is the first of its step."""
        if self._left:
            self._first = all(p.grad is None for p in self._trained)

    @property
    def possible(self) -> bool:
        return self._left > 0 and self._first

    def again(self, step: int, said: str) -> None:
        """Gives back what the failed micro-step held, plans for less, and says so in the run.

        Raises:
            HardwareError: nothing fits in less.
        """
        assert self._planner is not None
        self._left = 0
        self._model.zero_grad(set_to_none=True)
        before = self._planner.room
        made = self._planner.tighten()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        share = round(100 * self._planner.room / before)
        message = (
            f"The plan was too optimistic: {said.rstrip('.')}. Planned again for {share} % of the room, and the step "
            f"is repeated: {made.summary() if made else self._planner}."
        )
        self._run.emit(RunEvent("warning", step, data={"message": message}))
