"""The callback between transformers' trainer and our run: it emits events, and ends a run that shall stop."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from sloth_nb.training.events import RunEvent
from sloth_nb.training.run import Run

__all__ = ["EvaluationCut", "NotMeasured", "RunCallback", "numbers"]

_SUMMARY = "train_runtime"  # only in the log that closes a training


def numbers(logs: dict[str, Any]) -> dict[str, float | int]:
    """The plain numbers among what a trainer logs."""
    plain = {}
    for name, value in logs.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            plain[name] = value
        elif hasattr(value, "item") and getattr(value, "size", 0) == 1:
            plain[name] = value.item()
    return plain


class EvaluationCut(Exception):
    """An evaluation within a training breaks off here, because the run shall stop."""


class NotMeasured(dict):
    """Metrics of an evaluation that was cut off: whichever is asked for is not a number."""

    def __missing__(self, name: str) -> float:
        return float("nan")


class RunCallback(TrainerCallback):
    """Turns what happens in a trainer into events of its run, and obeys the run's stop request.

    Args:
        run: where events go and requests come from.
        describe: what a ``started`` event says beyond the trainer's own arguments.
        measure: what is added to a ``step`` event.
    """

    def __init__(
        self, run: Run, describe: Callable[[], dict[str, Any]], measure: Callable[[], dict[str, Any]]
    ):
        self.run, self.describe, self.measure = run, describe, measure
        self.saved_at: tuple[int, str] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saved_at = None
        about = {
            "max_steps": state.max_steps,
            "epochs": state.num_train_epochs,
            "batch_size": args.per_device_train_batch_size,
            "gradient_accumulation_steps": args.gradient_accumulation_steps,
            "output_dir": str(args.output_dir),
            **self.describe(),
        }
        self._emit("started", state, {name: value for name, value in about.items() if value is not None})

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if not logs or _SUMMARY in logs or any(name.startswith("eval_") for name in logs):
            return
        data = numbers(logs)
        if state.epoch is not None:
            data["epoch"] = round(state.epoch, 4)
        self._emit("step", state, data | self.measure())
        loss = data.get("loss")
        if loss is not None and not math.isfinite(loss):
            message = (
                f"The loss at step {state.global_step} is {loss}. Lower the learning rate, or look for rows "
                "without a single trained token."
            )
            self._emit("warning", state, {"message": message})

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        self._emit("eval", state, numbers(metrics or {}))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        path = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        self.saved_at = (state.global_step, str(path))
        self._emit("checkpoint", state, {"path": str(path)})

    # A stop with a checkpoint waits for the end of the step, because half of an accumulated batch can't be
    # resumed; a stop without one takes effect between two micro-batches.

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        request = self.run.stop_request
        if request is not None and not request.save:
            control.should_training_stop = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        request = self.run.stop_request
        if request is not None and state.global_step < state.max_steps:
            control.should_training_stop = control.should_log = True
            control.should_evaluate = False
            control.should_save = request.save

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        request = self.run.stop_request
        if request is not None and self.run.state == "stopping" and state.global_step < state.max_steps:
            control.should_training_stop = True
            control.should_save = request.save and state.global_step > 0
            raise EvaluationCut

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An epoch cut short by a stop is not evaluated, nor saved a second time."""
        if self.run.stop_request is not None and state.global_step < state.max_steps:
            control.should_evaluate = control.should_save = False

    def _emit(self, kind: Any, state: Any, data: dict[str, Any]) -> None:
        if state.is_world_process_zero:
            self.run.emit(RunEvent(kind, state.global_step, data=data))
