"""SFTTrainer: TRL's, on token ids that our data room made, training in the background if wanted.

TRL prepares no data here, patches no model for good, and sends no telemetry; the loss is transformers' own.
"""

import inspect
from typing import Any

import trl
from transformers import Trainer, set_seed

from sloth_nb.data import Collator
from sloth_nb.data.reading import Split
from sloth_nb.errors import TrainingError
from sloth_nb.models.report import engine_of
from sloth_nb.training.checkpoints import WholeCheckpoints
from sloth_nb.training.compat import TRAINER_NAMES, translate
from sloth_nb.training.config import SFTConfig
from sloth_nb.training.loss import only_trained_positions, takes_positions
from sloth_nb.training.optimizer import separate_embeddings, usable_optimizer
from sloth_nb.training.preparing import check_stream, is_tokenised, to_train_on, tokenised
from sloth_nb.training.setting_up import (
    adapted,
    decide_checkpointing,
    keeping_what_trl_changes,
    loaded,
    one_gpu,
    the_collator,
    the_tokenizer,
)
from sloth_nb.training.watched import WatchedTrainer

__all__ = ["SFTTrainer"]

_ARGUMENTS = [name for name in inspect.signature(trl.SFTTrainer.__init__).parameters if name != "self"]


class SFTTrainer(WatchedTrainer, WholeCheckpoints, trl.SFTTrainer):
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
        train_dataset, report = self._tokenised(source, args, args.packing, to_train_on)
        check_stream(train_dataset, args)
        evaluated = self._evaluated(here.pop("eval_dataset", None), args)
        self.data_report = report
        collator = the_collator(here.pop("data_collator", None), tokenizer, args)
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
        if report:
            print(report)

    # -- loss ------------------------------------------------------------------------------------------------

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean over the trained tokens of the whole accumulated batch, as transformers computes it.

        With the engine nothing here waits for the device; without it, once, for the number of trained positions.
        ``loss_type="dft"`` is TRL's.
        """
        if self.model.training:
            self.count_tokens(inputs)
        if self.args.loss_type == "dft":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = {**inputs, "use_cache": False}
        needs_logits = return_outputs or self.label_smoother is not None or self.compute_loss_func is not None
        engine = engine_of(self.model)
        if engine is not None and isinstance(self.data_collator, Collator):
            # It pads on the right and never learns a pad: a causal model needs no mask then, and nobody has to look
            # at it, which would wait for the device.
            inputs.pop("attention_mask", None)
        # The engine makes no logits at all, and takes labels as they are.
        if self._focuses and not needs_logits and engine is None:
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

    # -- evaluating ------------------------------------------------------------------------------------------

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Loss on held-out rows: those the trainer was given, or any that ``load_data`` reads."""
        if eval_dataset is not None and not (isinstance(eval_dataset, str) and self._names(eval_dataset)):
            eval_dataset = self._evaluated(eval_dataset, self.args)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def _names(self, name: str) -> bool:
        return isinstance(self.eval_dataset, dict) and name in self.eval_dataset

    def _tokenised(
        self, source: Any, args: SFTConfig, packing: bool, split: Split = None
    ) -> tuple[Any, str | None]:
        return tokenised(
            source,
            self._tokenizer,
            args,
            packing=packing,
            formatting_func=self._formatting_func,
            split=split,
        )

    def _evaluated(self, source: Any, args: SFTConfig) -> Any:
        packing = args.packing if args.eval_packing is None else args.eval_packing
        if source is None or is_tokenised(source):
            return source
        if isinstance(source, dict):
            return {name: self._tokenised(part, args, packing)[0] for name, part in source.items()}
        return self._tokenised(source, args, packing)[0]

    def _send_telemetry(self) -> None:
        """Nothing about anyone's training leaves the machine."""


# Editors complete by the signature; it is TRL's.
SFTTrainer.__init__.__signature__ = inspect.signature(trl.SFTTrainer.__init__)  # type: ignore[attr-defined]
