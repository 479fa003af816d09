"""A trainer whose runs are watched: begun, foreseen, planned, stopped and told of, whatever it trains for.

It knows nothing of data or losses; a method's trainer (``SFTTrainer``) puts it before TRL's among its bases.
"""

import contextlib
import threading
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from sloth_nb.memory import Plan
from sloth_nb.models.occupancy import in_use
from sloth_nb.models.releasing import give_back_freed_memory
from sloth_nb.models.report import engine_of
from sloth_nb.training.callbacks import EvaluationCut, NotMeasured, RunCallback
from sloth_nb.training.events import RUN_FILE, RunEvent
from sloth_nb.training.explain import explained
from sloth_nb.training.follow import process_mark
from sloth_nb.training.meters import Pace, forget_peaks, peak_memory_bytes
from sloth_nb.training.one_walk import OneWalk
from sloth_nb.training.own_state import building_accelerator
from sloth_nb.training.prediction import plan_run, predicted_bytes
from sloth_nb.training.replanning import Replanning
from sloth_nb.training.resuming import check_resumable, last_checkpoint, tell_of_older_ones
from sloth_nb.training.run import Run, stops_on_interrupt
from sloth_nb.training.setting_up import name_of

__all__ = ["WatchedTrainer"]


class WatchedTrainer(Trainer):
    """A base for trainers: ``train()`` blocks, ``start()`` doesn't, and ``run`` tells of both.

    What trains calls ``count_tokens`` with each micro-batch.
    """

    data_report: str | None = None  # what became of the rows, if whoever prepared them says so

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._plan: Plan | None = None
        self._predicted: int | None = None
        self._resumed_from: str | None = None
        self._pace = Pace()
        self._tokens = torch.zeros((), dtype=torch.long, device=self.args.device)
        self.run = Run(Path(self.args.output_dir) / RUN_FILE)
        self._replanning = Replanning(self.model, self.run)
        self._walk = OneWalk(self.model)
        self._run_callback = RunCallback(self.run, self._describe, self._measure)
        self.add_callback(self._run_callback)

    def create_accelerator_and_postprocess(self) -> None:
        """As transformers does it; what other cells build later leaves this trainer's state alone."""
        with building_accelerator(self):
            super().create_accelerator_and_postprocess()

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train here and now. The first interrupt (■, Ctrl-C) saves and ends it; the second interrupts.

        Args:
            resume_from_checkpoint: True goes on from the newest whole checkpoint of the last run in
                ``output_dir``, a path from that one: the next loss is the one that an uninterrupted run would
                have had.

        Returns:
            ``TrainOutput``.

        Raises:
            TrainingError: no such checkpoint, or one that this run can't go on from; a checkpoint that can't be
                written; another run is training into ``output_dir``.
            HardwareError: out of memory; or, for a model with ``plan="auto"``, not enough of it, before the first step.
        """
        checkpoint = self._begin(resume_from_checkpoint)
        with stops_on_interrupt(self.run):
            return self._train(checkpoint, *args, **kwargs)

    def start(self, resume_from_checkpoint: str | bool | None = None) -> Run:
        """Train in a background thread and return at once, so that the notebook stays usable.

        Progress is shown by ``TrainingMonitor(run)``; ``run.stop()``, ``run.wait()`` and ``run.result()`` do
        the rest. Arguments as in ``train``.
        """
        checkpoint = self._begin(resume_from_checkpoint)
        for callback in _progress_bars():
            self.remove_callback(callback)

        def work() -> None:
            if self.args.device.type == "cuda":
                torch.cuda.set_device(self.args.device)  # each thread has its own current device
            with contextlib.suppress(BaseException):  # kept in the run, which wait() and result() raise from
                self._train(checkpoint)

        threading.Thread(target=work, name="sloth-nb-train", daemon=True).start()
        return self.run

    def _begin(self, resume_from_checkpoint: str | bool | None) -> str | None:
        """Begins the run, and gives the checkpoint that it goes on from, if it was asked to.

        What can't be gone on from is refused first, so that the past run's file stays as it was.
        """
        self.run.check_free()
        checkpoint = None
        if resume_from_checkpoint:
            path = last_checkpoint(resume_from_checkpoint, self.args.output_dir)
            check_resumable(path, self.args, self.model)
            checkpoint = str(path)
        elif self.is_world_process_zero():
            tell_of_older_ones(self.args.output_dir, self.args.save_total_limit)
        self.run.begin()
        return checkpoint

    def _train(self, checkpoint: str | None, *args: Any, **kwargs: Any) -> Any:
        """Train within a run that has begun, and end it in whichever way it goes."""
        self._resumed_from = checkpoint
        try:
            self._foresee()
            self._walk = OneWalk(self.model)
            # Answers from other threads are refused meanwhile.
            with in_use(self.model, "training"), self._walk.answering():
                output = super().train(checkpoint, *args, **kwargs)
        except BaseException as error:
            said = explained(error, self.state.global_step)
            if isinstance(error, KeyboardInterrupt):
                self._last_word("stopped", {"reason": "interrupted at once", "saved": None})
            else:
                self._last_word("failed", {"message": str(said) or type(said).__name__})
            self.run.end("stopped" if isinstance(error, KeyboardInterrupt) else "failed", error=said)
            if said is error:
                raise
            raise said from error
        finally:
            if self.args.device.type == "cpu":
                if (engine := engine_of(self.model)) is not None:
                    engine.release()
                give_back_freed_memory()
        request = self.run.stop_request
        if request is not None and self.state.global_step < self.state.max_steps:
            at, path = self._run_callback.saved_at or (None, None)
            saved = path if at == self.state.global_step else None
            self._last_word("stopped", {"reason": request.reason, "saved": saved})
            self.run.end("stopped", output)
        else:
            tokens = int(self._tokens)
            summary = {
                "loss": output.training_loss,
                "seconds": round(output.metrics["train_runtime"], 3),
                "tokens": tokens,
                "tokens_per_second": round(self._pace.overall(tokens), 2),
                "memory_bytes": peak_memory_bytes(self.args.device),
            }
            if self._predicted is not None:
                summary["predicted_bytes"] = self._predicted
            self._last_word("finished", summary)
            self.run.end("finished", output)
        return output

    def _foresee(self) -> None:
        """Plans the run where that was asked for, and says what it should take.

        Raises:
            HardwareError: a plan was asked for, and nothing fits.
        """
        rows = self.train_dataset
        self._plan = plan_run(self.model, self.args, rows, self.optimizer)
        self._predicted = predicted_bytes(self.model, self.args, rows)
        self._replanning = Replanning(self.model, self.run)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One micro-step; tried once more with a tighter plan when the first one was too optimistic."""
        self._replanning.before_step()
        try:
            return super().training_step(model, inputs, *args, **kwargs)
        except torch.OutOfMemoryError as error:
            if not self._replanning.possible:
                raise
            said = str(error).splitlines()[0]
        # Out of the except clause, whose traceback holds the tensors of the step that failed.
        self._replanning.again(self.state.global_step, said)
        if self.model.training:
            self._tokens -= _real_tokens(inputs)
        self._predicted = predicted_bytes(self.model, self.args, self.train_dataset)
        return super().training_step(model, inputs, *args, **kwargs)

    def _clip_grad_norm(self, model: Any) -> Any:
        """As transformers does it, of the parameters that have a gradient instead of all that there are."""
        if self.accelerator.distributed_type is not DistributedType.NO or model is not self._walk.model:
            return super()._clip_grad_norm(model)
        return self.accelerator.clip_grad_norm_(self._walk.with_gradient(), self.args.max_grad_norm)

    def _last_word(self, kind: Any, data: dict[str, Any]) -> None:
        if self.is_world_process_zero():
            self.run.emit(RunEvent(kind, self.state.global_step, data=data))

    def _describe(self) -> dict[str, Any]:
        """What the run's ``started`` event says; the clock begins here."""
        self._tokens.fill_(self.state.num_input_tokens_seen)
        self._pace.begin(int(self._tokens))
        forget_peaks(self.args.device)  # of loading, which are not this run's
        return {
            "model": name_of(self.model),
            "trainable_parameters": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            "resumed_from": self._resumed_from,
            "predicted_bytes": self._predicted,
            "plan": None if self._plan is None else self._plan.summary(),
            "report": self.data_report,
            **process_mark(),
        }

    def _measure(self) -> dict[str, Any]:
        """What a ``step`` event says beyond what the trainer logs."""
        tokens = int(self._tokens)
        self.state.num_input_tokens_seen = tokens  # kept in checkpoints, so that a resumed run counts on
        return {
            "tokens": tokens,
            "tokens_per_second": round(self._pace.since_last(tokens), 2),
            "memory_bytes": peak_memory_bytes(self.args.device),
        }

    def count_tokens(self, inputs: dict[str, Any]) -> None:
        """Adds a micro-batch's real tokens to the run's, without waiting for the device."""
        self._tokens += _real_tokens(inputs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the next trainer does it; its time is not training's, and a run that shall stop cuts it short."""
        with self._pace.paused():
            try:
                return super().evaluate(*args, **kwargs)
            except EvaluationCut:
                return NotMeasured()

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._pace.paused():
            super()._save_checkpoint(*args, **kwargs)


def _real_tokens(inputs: dict[str, Any]) -> torch.Tensor | int:
    mask = inputs.get("attention_mask")
    return inputs["input_ids"].numel() if mask is None else mask.sum()


def _progress_bars() -> list[type[TrainerCallback]]:
    """Bars that print: from a thread they would land in whichever cell runs at that moment."""
    from transformers.utils.notebook import NotebookProgressCallback

    return [ProgressCallback, PrinterCallback, NotebookProgressCallback]
