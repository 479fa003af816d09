"""SFTTrainer: TRL's, on token ids that our data room made, training in the background if wanted.

TRL prepares no data here, patches no model for good, and sends no telemetry; the loss is transformers' own.
"""

import contextlib
import inspect
import threading
from pathlib import Path
from typing import Any

import torch
import trl
from transformers import Trainer, TrainerCallback, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from sloth_nb.data import Collator
from sloth_nb.errors import TrainingError
from sloth_nb.memory import Plan
from sloth_nb.models.install import engine_of
from sloth_nb.models.occupancy import in_use
from sloth_nb.training.callbacks import EvaluationCut, NotMeasured, RunCallback
from sloth_nb.training.checkpoints import last_checkpoint, refuses_to_save, written_whole
from sloth_nb.training.compat import TRAINER_NAMES, translate
from sloth_nb.training.config import SFTConfig
from sloth_nb.training.events import RUN_FILE, RunEvent
from sloth_nb.training.explain import explained
from sloth_nb.training.follow import process_mark
from sloth_nb.training.loss import only_trained_positions, takes_positions
from sloth_nb.training.meters import Pace, forget_peaks, peak_memory_bytes
from sloth_nb.training.optimizer import separate_embeddings, usable_optimizer
from sloth_nb.training.prediction import plan_run, predicted_bytes
from sloth_nb.training.preparing import check_stream, is_tokenised, tokenised
from sloth_nb.training.replanning import Replanning
from sloth_nb.training.run import Run, stops_on_interrupt
from sloth_nb.training.setting_up import (
    adapted,
    decide_checkpointing,
    keeping_what_trl_changes,
    loaded,
    name_of,
    one_gpu,
    the_tokenizer,
)

__all__ = ["SFTTrainer"]

_ARGUMENTS = [name for name in inspect.signature(trl.SFTTrainer.__init__).parameters if name != "self"]


class SFTTrainer(trl.SFTTrainer):
    """Supervised fine-tuning: ``trl.SFTTrainer``, with older names, exact masks, and a run to watch.

    Takes TRL's arguments, and those of older tutorials (``tokenizer=``, ``max_seq_length=``, ``packing=`` …),
    each of which is answered with one warning. ``train_dataset`` may be anything that ``sloth_nb.load_data``
    reads. Of conversations only the assistant's tokens are learnt unless ``SFTConfig(train_on="all")`` says
    otherwise; what became of every row is printed. ``train_dataset`` then holds ``input_ids`` and ``labels``,
    which ``train_on_responses_only`` can mask again.

    Example:
        >>> trainer = SFTTrainer(model, SFTConfig(max_steps=60), train_dataset="talks.jsonl")
        >>> run = trainer.start()      # in the background; trainer.train() blocks
        >>> run.wait()
        'finished'

    Raises:
        TrainingError: an argument that doesn't exist, or nothing to train.
        DatasetError: data that can't be read, recognised or learnt from.
    """

    def __init__(self, *positional: Any, **given: Any):
        given |= dict(zip(_ARGUMENTS, positional, strict=False))
        here, moved = translate("SFTTrainer", given, _ARGUMENTS, TRAINER_NAMES)
        model, source = here.pop("model", None), here.pop("train_dataset", None)
        if model is None or source is None:
            raise TrainingError(f"SFTTrainer needs {'a model' if model is None else 'a train_dataset'}.")
        args = SFTConfig.of(here.pop("args", None), **moved)
        set_seed(args.seed)
        if isinstance(model, str):
            model, here["processing_class"] = loaded(model, args, here)
        tokenizer = here["processing_class"] = the_tokenizer(here.get("processing_class"), model)
        if args.max_length is not None and not args.was_given("max_length"):
            args.max_length = getattr(model, "max_seq_length", None) or args.max_length
        one_gpu(args)
        usable_optimizer(args)
        model = adapted(model, here.pop("peft_config", None))
        decide_checkpointing(model, args)

        # Rows first: a mistake in the data is worth knowing before anything is moved to a GPU.
        self._formatting_func = here.pop("formatting_func", None)
        self._tokenizer = tokenizer
        train_dataset, report = self._tokenised(source, args, args.packing)
        check_stream(train_dataset, args)
        evaluated = self._evaluated(here.pop("eval_dataset", None), args)
        self.data_report = report
        collator = here.pop("data_collator", None) or Collator(
            tokenizer.pad_token_id,
            padding_free=args.packing or args.padding_free,
            pad_to_multiple_of=args.pad_to_multiple_of,
        )
        with keeping_what_trl_changes(model, args):
            super().__init__(
                model=model,
                args=args,
                train_dataset=train_dataset,
                eval_dataset=evaluated,
                data_collator=collator,
                **here,
            )
        self.padding_free = args.packing or args.padding_free
        self._focuses = takes_positions(self.model)
        self._plan: Plan | None = None
        self._predicted: int | None = None
        self._pace = Pace()
        self._aside: Path | None = None
        self._tokens = torch.zeros((), dtype=torch.long, device=args.device)
        self.run = Run(Path(args.output_dir) / RUN_FILE)
        self._replanning = Replanning(self.model, self.run)
        self._run_callback = RunCallback(self.run, self._describe, self._measure)
        self.add_callback(self._run_callback)
        if report:
            print(report)

    # -- training --------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train here and now. The first interrupt (■, Ctrl-C) saves and ends it; the second interrupts.

        Args:
            resume_from_checkpoint: True goes on from the newest whole checkpoint in ``output_dir``, a path
                from that one: the next loss is the one that an uninterrupted run would have had.

        Returns:
            ``TrainOutput``.

        Raises:
            TrainingError: no such checkpoint; a checkpoint that can't be written.
            HardwareError: out of memory; or, for a model with ``plan="auto"``, not enough of it, before the first step.
        """
        self.run.begin()
        with stops_on_interrupt(self.run):
            return self._train(resume_from_checkpoint, *args, **kwargs)

    def start(self, resume_from_checkpoint: str | bool | None = None) -> Run:
        """Train in a background thread and return at once, so that the notebook stays usable.

        Progress is shown by ``TrainingMonitor(run)``; ``run.stop()``, ``run.wait()`` and ``run.result()`` do
        the rest. Arguments as in ``train``.
        """
        self.run.begin()
        for callback in _progress_bars():
            self.remove_callback(callback)

        def work() -> None:
            if self.args.device.type == "cuda":
                torch.cuda.set_device(self.args.device)  # each thread has its own current device
            with contextlib.suppress(BaseException):  # kept in the run, which wait() and result() raise from
                self._train(resume_from_checkpoint)

        threading.Thread(target=work, name="sloth-nb-train", daemon=True).start()
        return self.run

    def _train(self, resume_from_checkpoint: str | bool | None, *args: Any, **kwargs: Any) -> Any:
        """Train within a run that has begun, and end it in whichever way it goes."""
        self._resumed_from = None
        try:
            if resume_from_checkpoint:
                resume_from_checkpoint = str(last_checkpoint(resume_from_checkpoint, self.args.output_dir))
                self._resumed_from = resume_from_checkpoint
            self._foresee()
            with in_use(self.model, "training"):  # answers from other threads are refused meanwhile
                output = super().train(resume_from_checkpoint or None, *args, **kwargs)
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

    # -- loss ------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over the trained tokens of the whole accumulated batch, as transformers computes it.

        With the engine nothing here waits for the device; without it, once, for the number of trained positions.
        ``loss_type="dft"`` is TRL's.
        """
        if self.model.training:
            self._tokens += _real_tokens(inputs)
        if self.args.loss_type == "dft":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = {**inputs, "use_cache": False}
        needs_logits = return_outputs or self.label_smoother is not None or self.compute_loss_func is not None
        # The engine makes no logits at all, and takes labels as they are.
        if self._focuses and not needs_logits and engine_of(self.model) is None:
            inputs = only_trained_positions(inputs)
        return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)

    @staticmethod
    def get_optimizer_cls_and_kwargs(*args: Any, **kwargs: Any) -> tuple[type, dict[str, Any]]:
        """As transformers chooses it; bitsandbytes' AdamW in the form that doesn't wait after every parameter."""
        cls, options = trl.SFTTrainer.get_optimizer_cls_and_kwargs(*args, **kwargs)
        if cls.__module__.startswith("bitsandbytes."):
            from sloth_nb.engine.optim import without_waiting

            cls = without_waiting(cls)
        return cls, options

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers makes it; embeddings that are trained whole may have a learning rate of their own."""
        new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if new and self.args.embedding_learning_rate is not None:
            separate_embeddings(optimizer, self.model, self.args.embedding_learning_rate)
        return optimizer

    # -- evaluating and saving -------------------------------------------------------------------------------

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss on held-out rows: those the trainer was given, or any that ``load_data`` reads."""
        if eval_dataset is not None and not (isinstance(eval_dataset, str) and self._names(eval_dataset)):
            eval_dataset = self._evaluated(eval_dataset, self.args)
        with self._pace.paused():
            try:
                return super().evaluate(eval_dataset, *args, **kwargs)
            except EvaluationCut:
                return NotMeasured()

    def _names(self, name: str) -> bool:
        return isinstance(self.eval_dataset, dict) and name in self.eval_dataset

    def _tokenised(self, source: Any, args: SFTConfig, packing: bool) -> tuple[Any, str | None]:
        return tokenised(
            source, self._tokenizer, args, packing=packing, formatting_func=self._formatting_func
        )

    def _evaluated(self, source: Any, args: SFTConfig) -> Any:
        packing = args.packing if args.eval_packing is None else args.eval_packing
        if source is None or is_tokenised(source):
            return source
        if isinstance(source, dict):
            return {name: self._tokenised(part, args, packing)[0] for name, part in source.items()}
        return self._tokenised(source, args, packing)[0]

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._aside) if self._aside is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint that is whole or not there; older ones stay as they were until it is."""
        folder, step = Path(self._get_output_dir(trial)), self.state.global_step
        with self._pace.paused(), refuses_to_save(folder, step):
            if self.args.world_size > 1 or self.args.push_to_hub:  # others use the same folder meanwhile
                super()._save_checkpoint(model, trial)
                return
            name = f"{PREFIX_CHECKPOINT_DIR}-{step}"
            with written_whole(folder, name) as self._aside:
                try:
                    super()._save_checkpoint(model, trial)
                    self._name_best(folder, name)
                finally:
                    self._aside = None
            rotate_checkpoints(
                output_dir=str(folder),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def _name_best(self, folder: Path, name: str) -> None:
        """If this checkpoint is the best so far, its state shall name its final place."""
        if self.state.best_model_checkpoint == str(self._aside / name):
            self.state.best_model_checkpoint = str(folder / name)
            self.state.save_to_json(str(self._aside / name / "trainer_state.json"))

    def _send_telemetry(self) -> None:
        """Nothing about anyone's training leaves the machine."""


# Editors complete by the signature; it is TRL's.
SFTTrainer.__init__.__signature__ = inspect.signature(trl.SFTTrainer.__init__)  # type: ignore[attr-defined]


def _real_tokens(inputs: dict[str, Any]) -> torch.Tensor | int:
    mask = inputs.get("attention_mask")
    return inputs["input_ids"].numel() if mask is None else mask.sum()


def _progress_bars() -> list[type[TrainerCallback]]:
    """Bars that print: from a thread they would land in whichever cell runs at that moment."""
    from transformers.utils.notebook import NotebookProgressCallback

    return [ProgressCallback, PrinterCallback, NotebookProgressCallback]
