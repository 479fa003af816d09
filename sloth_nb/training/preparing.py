"""From what a user hands a trainer (a source, a formatting function, options) to rows of token ids."""

from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from sloth_nb.data import load_data, prepare
from sloth_nb.data.columns import columns_of
from sloth_nb.data.reading import Split
from sloth_nb.errors import DatasetError, TrainingError
from sloth_nb.training.config import SFTConfig
from sloth_nb.training.formatting import FormattingFunction, formatted

__all__ = ["check_stream", "is_stream", "is_tokenised", "to_train_on", "tokenised"]

_DATA_SETS = (Dataset, DatasetDict, IterableDataset, IterableDatasetDict)
_DEFAULT_TEXT_FIELD = "text"  # TRL's dataset_text_field where nobody names one


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
    formatting_func: FormattingFunction | None = None,
    split: Split = None,
) -> tuple[Any, str | None]:
    """Rows with ``input_ids`` and ``labels``, and what became of the source (None of a data set that was tokenised).

    Of a source in several splits ``split`` names or chooses one, as in ``sloth_nb.load_data``.

    Raises:
        DatasetError: see ``sloth_nb.data.prepare``.
    """
    rows, mapping = load_data(source, on_error=args.on_error, split=split), args.mapping
    # A data set of token ids is what somebody prepared. Ids in a list or a file are cut and packed as texts are.
    if is_tokenised(rows) and isinstance(source, _DATA_SETS):
        return rows, None
    if formatting_func is not None:
        rows, mapping = Dataset.from_dict({"text": list(formatted(rows, formatting_func))}), {"text": "text"}
    elif mapping is None:
        mapping = _text_column(rows, args)
    prepared = prepare(
        rows,
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


def to_train_on(splits: list[str]) -> str:
    """Of a data set's splits the one to train on; says which are left out.

    Raises:
        DatasetError: none of them is named for training.
    """
    if "train" not in splits:
        raise DatasetError(
            f"This data set has the splits {', '.join(map(repr, splits))}. Pass the one to train on, such as "
            f"train_dataset=dataset[{splits[0]!r}], or load_data(…, split={splits[0]!r}) of a folder or a name."
        )
    others = ", ".join(repr(name) for name in splits if name != "train")
    print(f"Of the data set's splits 'train' is trained on; left out: {others}.")
    return "train"


def _train_on(args: SFTConfig) -> str:
    """Ours if it was set; TRL's two switches otherwise."""
    if not args.was_given("train_on"):
        if args.assistant_only_loss or args.completion_only_loss:
            return "assistant"
        if args.completion_only_loss is False or args.was_given("assistant_only_loss"):
            return "all"
    return args.train_on


def _text_column(rows: Any, args: SFTConfig) -> dict[str, str] | None:
    """The mapping that ``dataset_text_field`` means, where it was given.

    Raises:
        DatasetError: there is no such column.
    """
    field = args.dataset_text_field
    if not args.was_given("dataset_text_field"):
        return None
    columns = columns_of(rows)
    if field in columns:
        return {"text": field}
    # The default is often written out beside data that has no text column, such as conversations.
    if field == _DEFAULT_TEXT_FIELD or "input_ids" in columns:
        return None
    raise DatasetError(
        f"There is no column {field!r}, which dataset_text_field names. Columns: {', '.join(map(repr, columns))}."
    )
