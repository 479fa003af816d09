"""From what a user hands a trainer (a source, a formatting function, options) to rows of token ids."""

from collections.abc import Callable
from typing import Any

from sloth_nb.data import prepare
from sloth_nb.errors import DatasetError, TrainingError
from sloth_nb.training.config import SFTConfig

__all__ = ["check_stream", "is_stream", "is_tokenised", "tokenised"]


def is_tokenised(dataset: Any) -> bool:
    """Whether a data set already holds token ids and labels."""
    columns = getattr(dataset, "column_names", None)
    return isinstance(columns, list) and {"input_ids", "labels"} <= set(columns)


def is_stream(dataset: Any) -> bool:
    """Whether a data set's rows come one after another, without a known end."""
    return hasattr(dataset, "__iter__") and not hasattr(dataset, "__len__")


def check_stream(dataset: Any, args: SFTConfig) -> None:
    """A stream needs an end, and each process reads it itself: nothing is cut out of a finished batch.

    Raises:
        TrainingError: ``max_steps`` is not set.
    """
    if not is_stream(dataset):
        return
    if args.max_steps <= 0:
        raise TrainingError(
            "The train_dataset is a stream, which has no length that epochs could be counted by. Set max_steps: "
            "how many optimiser steps to train for."
        )
    args.accelerator_config.dispatch_batches = False


def tokenised(
    source: Any,
    tokenizer: Any,
    args: SFTConfig,
    *,
    packing: bool,
    formatting_func: Callable[[dict[str, Any]], str | list[str]] | None = None,
) -> tuple[Any, str | None]:
    """Rows with ``input_ids`` and ``labels``, and what became of the source (None when it was tokenised).

    Raises:
        DatasetError: see ``sloth_nb.data.prepare``.
    """
    if is_tokenised(source):
        return source, None
    mapping = args.mapping
    if formatting_func is not None:
        source, mapping = _formatted(source, formatting_func), {"text": "text"}
    elif mapping is None and args.was_given("dataset_text_field"):
        field = args.dataset_text_field
        if field in (getattr(source, "column_names", None) or []):
            mapping = {"text": field}
    prepared = prepare(
        source,
        tokenizer,
        max_length=args.max_length,
        train_on=_train_on(args),
        packing=packing,
        mapping=mapping,
        on_error=args.on_error,
    )
    if is_stream(prepared.dataset):
        counted = "its rows are read, in its order, while training goes on"
        return prepared.dataset, f"a stream of {prepared.schema}; {counted}"
    return prepared.dataset, str(prepared.report)


def _train_on(args: SFTConfig) -> str:
    """Ours if it was set; TRL's two switches otherwise."""
    if not args.was_given("train_on"):
        if args.assistant_only_loss or args.completion_only_loss:
            return "assistant"
        if args.completion_only_loss is False or args.was_given("assistant_only_loss"):
            return "all"
    return args.train_on


def _formatted(source: Any, function: Callable[[dict[str, Any]], str | list[str]]) -> Any:
    """One column of text: what ``function`` made of each row; a list makes several rows of one."""
    from datasets import Dataset

    from sloth_nb.data import load_data

    texts: list[str] = []
    for number, row in enumerate(load_data(source), start=1):
        made = function(row)
        made = [made] if isinstance(made, str) else made
        if not isinstance(made, list) or not all(isinstance(text, str) for text in made):
            raise DatasetError(
                f"formatting_func made a {type(made).__name__} of row {number:,}; it must return the row's "
                "text (or a list of texts)."
            )
        texts.extend(made)
    return Dataset.from_dict({"text": texts})
