"""prepare: from any source to token ids and labels, with a report of what became of every row."""

import json
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import datasets

from sloth_nb.data.assemble import Assembly
from sloth_nb.data.block import Block
from sloth_nb.data.columns import columns_of, sample_of
from sloth_nb.data.encoders import RowReader, reader_for
from sloth_nb.data.formats import OnError
from sloth_nb.data.named import resolve
from sloth_nb.data.reading import load_data
from sloth_nb.data.recognising import recognise
from sloth_nb.data.report import DataReport
from sloth_nb.data.schema import Schema, mapped
from sloth_nb.data.template import TrainOn
from sloth_nb.errors import DatasetError
from sloth_nb.interrupts import told

__all__ = ["Prepared", "prepare"]

BATCH = 2000  # rows that are encoded at once: enough for all cores, about 30 MB
AHEAD = 2  # batches that the tokenizer works on while the next one is written


@dataclass
class Prepared:
    """Rows ready to train on.

    ``dataset`` has ``input_ids`` and ``labels`` (lists of int32; -100 where nothing is learnt), and
    ``seq_lengths`` when packed; of a streaming source it is streaming too, and the report counts while it
    is read. ``report`` says what became of every row; ``schema`` what was recognised.
    """

    dataset: Any
    report: DataReport
    schema: Schema

    def __repr__(self) -> str:
        return str(self.report)


@told("Interrupted while the rows were prepared: none is kept. The source is as it was.")
def prepare(
    source: Any,
    tokenizer: Any,
    *,
    max_length: int | None = 2048,
    train_on: TrainOn = "assistant",
    packing: bool = False,
    mapping: Mapping[str, Any] | Schema | None = None,
    on_error: OnError = "raise",
    chat_template: str | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
    long_text: Literal["cut", "part"] = "cut",
) -> Prepared:
    """Reads, recognises, templates, tokenises, masks and (if asked) packs a data set.

    Args:
        source: whatever ``load_data`` takes.
        tokenizer: the model's tokenizer, or a processor that holds one.
        max_length: rows are cut to so many tokens; packs are filled to it. None leaves rows whole.
        train_on: ``"assistant"`` every assistant turn, ``"last"`` only the last one, ``"all"`` every token.
            Text columns are trained whole (``train_on_responses_only`` masks them later).
        packing: put several rows into one of ``max_length`` tokens.
        mapping: which column plays which part, when it can't be told:
            ``{"messages": …}``, ``{"user": …, "assistant": …, "context": …, "system": …}`` or ``{"text": …}``.
            A value may be a pattern of several columns: ``"{question}[[\\n\\n{context}]]"``. Speakers with unusual
            names are told by ``"roles": {"Dr. Moss": "assistant", …}``.
        on_error: ``"skip"`` leaves out (and counts) rows that can't be read; ``"raise"`` names the first.
        chat_template: a template's name or Jinja, for this call only; None takes the tokenizer's own.
        template_kwargs: passed to the chat template (``{"enable_thinking": False}``).
        long_text: what becomes of running text longer than ``max_length``: ``"cut"`` (as TRL does) or
            ``"part"`` into several rows.
    Raises:
        DatasetError: nothing can be read or recognised, or not one row has anything to train on.
        TemplateError: conversations were given, but the tokenizer has no template or it refuses a row.
    """
    if train_on not in ("assistant", "last", "all"):
        raise DatasetError(f'train_on is "assistant", "last" or "all", not {train_on!r}.')
    if long_text not in ("cut", "part"):
        raise DatasetError(f'long_text is "cut" or "part", not {long_text!r}.')
    if max_length is None and (packing or long_text == "part"):
        raise DatasetError("Packing and parting fill rows up to max_length: give one.")
    dataset = load_data(source, on_error=on_error)
    schema = mapped(mapping, columns_of(dataset)) if mapping else recognise(dataset, task="sft")
    if schema.kind in _ELSEWHERE:
        raise DatasetError(f"This is {schema}.\n  {_ELSEWHERE[schema.kind]}{_chosen_ones(dataset, schema)}")
    report = DataReport(max_length=max_length, schema=str(schema))
    window = max_length if long_text == "part" else None
    inner = text_tokenizer(tokenizer)
    kwargs: dict[str, Any] = dict(template_kwargs or {})
    if chat_template:
        kwargs["chat_template"] = resolve(chat_template, inner)
    reader = reader_for(schema, inner, train_on, on_error, report, kwargs, window)
    report.mask = reader.mask
    if isinstance(dataset, datasets.IterableDataset):
        return Prepared(_streamed(dataset, reader, max_length, packing), report, schema)
    rows = Assembly(max_length, report)
    for block in _encoded(dataset, reader):
        rows.add(block)
    _refuse_nothing(report)
    return Prepared(rows.dataset(packing=packing), report, schema)


def text_tokenizer(tokenizer: Any) -> Any:
    """The tokenizer itself, or the one inside a processor."""
    inner = getattr(tokenizer, "tokenizer", None)
    return inner if hasattr(inner, "chat_template") else tokenizer


def _batches(dataset: Any) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Rows in batches, each with the number of rows before it."""
    if isinstance(dataset, datasets.IterableDataset):
        rows, before = iter(dataset), 0
        while batch := list(islice(rows, BATCH)):
            yield before, batch
            before += len(batch)
        return
    for before in range(0, len(dataset), BATCH):
        columns = dataset[before : before + BATCH]
        yield (
            before,
            [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)],
        )


def _encoded(dataset: Any, reader: RowReader) -> Iterator[Block]:
    """The batches of a data set, encoded, in order.

    The tokenizer needs no interpreter lock: while it works on some batches, the next one is written here.
    """
    with ThreadPoolExecutor(AHEAD, thread_name_prefix="sloth_nb-encode") as pool:
        waiting: deque[Future[Block]] = deque()
        for before, batch in _batches(dataset):
            reader.report.rows += len(batch)
            waiting.append(pool.submit(reader.encode, reader.write(batch, before)))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _streamed(dataset: Any, reader: RowReader, max_length: int | None, packing: bool) -> Any:
    """A streaming data set of prepared rows; packs are filled from one batch at a time."""

    def rows() -> Iterator[dict[str, list[int]]]:
        reader.restart()
        for before, batch in _batches(dataset):
            reader.report.rows += len(batch)
            part = Assembly(max_length, reader.report)
            part.add(reader.encode(reader.write(batch, before)))
            if len(part):
                yield from part.dataset(packing=packing)
        _refuse_nothing(reader.report)

    tokens = datasets.Sequence(datasets.Value("int32"))
    names = ("input_ids", "labels", "seq_lengths")[: 2 + packing]
    return datasets.IterableDataset.from_generator(
        rows, features=datasets.Features(dict.fromkeys(names, tokens))
    )


def _refuse_nothing(report: DataReport) -> None:
    if report.kept:
        return
    advice = "\n  Look at one row as the template writes it: ChatTemplate(tokenizer).render(messages)."
    if report.dropped.get("cut", 0) * 2 >= report.rows:
        advice = (
            f"\n  max_length is {report.max_length:,}; the longest row has {report.longest:,} tokens. "
            "Raise max_length."
        )
    raise DatasetError(
        f"Not one of the {report.rows:,} rows can be trained on: {report.why_dropped()}.{advice}"
    )


def _chosen_ones(dataset: Any, schema: Schema) -> str:
    """How to train on the better answers of a preference data set all the same."""
    if not (chosen := schema.mapping.get("chosen")):
        return ""
    prompt = schema.mapping.get("prompt")
    value = next((row[chosen] for row in sample_of(dataset, 20) if row.get(chosen)), "")
    if not isinstance(value, str):
        mapping = {"messages": chosen}
    elif prompt:
        mapping = {"user": prompt, "assistant": chosen}
    else:
        mapping = {"text": chosen}
    return f" To train on the chosen ones, say so: mapping={json.dumps(mapping, ensure_ascii=False)}."


_ELSEWHERE = {
    "preference": "prepare() trains on answers; pairs of them are for DPOTrainer and its kin.",
    "kto": 'prepare() trains on every answer, liked or not. Use KTOTrainer, or say mapping={"user": "…", …}.',
    "prompt_only": "Nobody answers, so there is nothing to learn from: prompts alone are for GRPOTrainer.",
    "vision": "prepare() reads text: training on pictures is not in sloth_nb yet. It needs the model's processor and "
    "a collator that reads them, as TRL's own SFTTrainer has.",
    "audio": "prepare() reads text: training on sounds is not in sloth_nb yet. It needs the model's processor and a "
    "collator that reads them.",
}
