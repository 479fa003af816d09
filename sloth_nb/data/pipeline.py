"""prepare: from any source to token ids and labels, with a report of what became of every row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sloth_nb.data.conversation import to_messages
from sloth_nb.data.packing import pack
from sloth_nb.data.reading import OnError, load_data
from sloth_nb.data.report import DataReport
from sloth_nb.data.schema import Schema, recognise
from sloth_nb.data.template import ChatTemplate, Rendered, TrainOn
from sloth_nb.data.tokenise import Encoded, RowEncoder
from sloth_nb.errors import DatasetError, SlothError, TemplateError

__all__ = ["Prepared", "prepare"]

BATCH = 1000
IGNORED = -100


@dataclass
class Prepared:
    """Rows ready to train on.

    ``dataset`` has ``input_ids`` and ``labels`` (lists of int32; -100 where nothing is learnt), and
    ``seq_lengths`` when packed. ``report`` says what became of every row; ``schema`` what was recognised.
    """

    dataset: Any
    report: DataReport
    schema: Schema

    def __repr__(self) -> str:
        return str(self.report)


def prepare(
    source: Any,
    tokenizer: Any,
    *,
    max_length: int | None = 2048,
    train_on: TrainOn = "assistant",
    packing: bool = False,
    mapping: Mapping[str, str] | None = None,
    on_error: OnError = "raise",
    template_kwargs: Mapping[str, Any] | None = None,
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
            ``{"messages": …}``, ``{"user": …, "assistant": …, "context": …, "system": …}`` or ``{"text":
            …}``.
        on_error: ``"skip"`` leaves out (and counts) rows that can't be read; ``"raise"`` names the first.
        template_kwargs: passed to the chat template (``{"enable_thinking": False}``).
    Raises:
        DatasetError: nothing can be read or recognised, or not one row has anything to train on.
        TemplateError: conversations were given, but the tokenizer has no template or it refuses a row.
    """
    if train_on not in ("assistant", "last", "all"):
        raise DatasetError(f'train_on is "assistant", "last" or "all", not {train_on!r}.')
    if packing and max_length is None:
        raise DatasetError("packing fills rows up to max_length: give one.")
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    dataset = load_data(source, on_error=on_error)
    schema = Schema("mapped", dict(mapping)) if mapping else recognise(dataset)
    _check_columns(schema, dataset.column_names)
    report = DataReport(rows=len(dataset), max_length=max_length, schema=str(schema))
    encoder = RowEncoder(tokenizer)
    if "text" in schema.mapping:
        reader = _TextRows(schema, encoder, tokenizer)
    else:
        reader = _ConversationRows(
            schema, encoder, ChatTemplate(tokenizer, **(template_kwargs or {})), train_on
        )
    report.mask = reader.mask
    rows: list[Encoded] = []
    for start in range(0, len(dataset), BATCH):
        batch = dataset[start : start + BATCH]
        batch_rows = [dict(zip(batch, cells, strict=True)) for cells in zip(*batch.values(), strict=True)]
        for encoded in reader.encode(batch_rows, start, on_error, report):
            _keep(encoded, rows, max_length, report)
    if not rows:
        raise DatasetError(
            f"Not one of the {report.rows:,} rows can be trained on: {report.why_dropped()}.{_advice(report)}"
        )
    report.kept = len(rows)
    return Prepared(_to_dataset(rows, packing, max_length, report), report, schema)


class _ConversationRows:
    """Rows that a chat template writes as text."""

    def __init__(self, schema: Schema, encoder: RowEncoder, template: ChatTemplate, train_on: TrainOn):
        self.schema, self.encoder, self.template, self.train_on = schema, encoder, template, train_on
        source = (
            "the template's generation markers"
            if template.has_markers
            else "differences of the template's output"
        )
        self.mask = {
            "assistant": f"every assistant turn, by {source}",
            "last": f"the last assistant turn, by {source}",
            "all": "every token",
        }[train_on]

    def encode(self, rows: list[dict], start: int, on_error: OnError, report: DataReport) -> list[Encoded]:
        texts, spans = [], []
        for number, row in enumerate(rows, start + 1):
            if (rendered := self._render(row, number, on_error, report)) is None:
                continue
            texts.append(rendered.text)
            if self.train_on == "all":
                spans.append(None)
            else:
                spans.append(rendered.spans if self.train_on == "assistant" else rendered.spans[-1:])
        return self.encoder.conversations(texts, spans)

    def _render(self, row: dict, number: int, on_error: OnError, report: DataReport) -> Rendered | None:
        try:
            messages = to_messages(row, self.schema)
            if not messages:
                report.drop("empty", f"row {number:,}")
                return None
            if self.train_on == "all":
                return Rendered(self.template.render(messages, self._tools(row)), [])
            return self.template.render_with_spans(messages, self._tools(row))
        except SlothError as error:
            reason = "refused" if isinstance(error, TemplateError) else "broken"
            if on_error == "raise":
                raise type(error)(
                    f'Row {number:,}: {error}.\n  Mend the row, or pass on_error="skip" to leave such rows '
                    "out (they will be counted)."
                ) from error
            report.drop(reason, f"row {number:,}: {error}")
            return None

    def _tools(self, row: dict) -> list | None:
        import json

        tools = row.get(self.schema.mapping.get("tools", ""))
        return (json.loads(tools) if isinstance(tools, str) else tools) or None


class _TextRows:
    """Rows that are text already: plain, or templated by the user."""

    def __init__(self, schema: Schema, encoder: RowEncoder, tokenizer: Any):
        self.column, self.encoder = schema.mapping["text"], encoder
        self.closed: tuple[str, ...] = ()
        if getattr(tokenizer, "chat_template", None):
            try:
                end = ChatTemplate(tokenizer).end_of_turn
                self.closed = (end,) if end else ()
            except TemplateError:
                pass  # a template that can't be probed closes nothing: an EOS is added
        self.mask = "every token of the text"

    def encode(self, rows: list[dict], start: int, on_error: OnError, report: DataReport) -> list[Encoded]:
        texts = []
        for number, row in enumerate(rows, start + 1):
            text = row[self.column]
            if isinstance(text, str) and text.strip():
                texts.append(text)
            else:
                report.drop("empty", f"row {number:,}")
        return self.encoder.plain(texts, closed=self.closed)


def _check_columns(schema: Schema, names: list[str]) -> None:
    parts = {"messages", "user", "assistant", "context", "system", "text", "tools"}
    if unknown := sorted(set(schema.mapping) - parts):
        raise DatasetError(f"mapping has no part {unknown[0]!r}. Parts: {', '.join(sorted(parts))}.")
    if missing := [column for column in schema.mapping.values() if column not in names]:
        raise DatasetError(f"There is no column {missing[0]!r}. Columns: {', '.join(map(repr, names))}.")
    if not {"messages", "text"} & set(schema.mapping) and not {"user", "assistant"} <= set(schema.mapping):
        raise DatasetError('mapping needs "messages", or "text", or both "user" and "assistant".')


def _keep(encoded: Encoded, rows: list[Encoded], max_length: int | None, report: DataReport) -> None:
    """Counts one row and cuts it; leaves it out when nothing of it would be learnt."""
    trainable = np.any(encoded.labels != IGNORED)
    report.longest = max(report.longest, len(encoded.ids))
    if max_length is not None and len(encoded.ids) > max_length:
        report.truncated += 1
        encoded = Encoded(encoded.ids[:max_length], encoded.labels[:max_length], encoded.resplit)
    # The first token has nothing before it that could predict it.
    if not np.any(encoded.labels[1:] != IGNORED):
        report.drop("cut" if trainable and len(encoded.ids) == max_length else "masked")
        return
    report.resplit += encoded.resplit
    report.tokens += len(encoded.ids)
    report.trained_tokens += int(np.count_nonzero(encoded.labels != IGNORED))
    rows.append(encoded)


def _advice(report: DataReport) -> str:
    if report.dropped.get("cut", 0) * 2 >= report.rows:
        return (
            f"\n  max_length is {report.max_length:,}; the longest row has {report.longest:,} tokens. "
            "Raise max_length."
        )
    return "\n  Look at one row as the template writes it: ChatTemplate(tokenizer).render(messages)."


def _to_dataset(rows: list[Encoded], packing: bool, max_length: int | None, report: DataReport) -> Any:
    import datasets
    import pyarrow

    groups = [[i] for i in range(len(rows))]
    if packing:
        groups = pack([len(row.ids) for row in rows], max_length or 0)
        report.packs = len(groups)
        report.fill = report.tokens / (len(groups) * (max_length or 1))
    ids = np.concatenate([rows[i].ids for group in groups for i in group])
    labels = np.concatenate([rows[i].labels for group in groups for i in group])
    lengths = [[len(rows[i].ids) for i in group] for group in groups]
    if packing:
        firsts = np.concatenate([[0], np.cumsum([n for group in lengths for n in group])[:-1]])
        labels[firsts] = IGNORED
    offsets = np.concatenate([[0], np.cumsum([sum(group) for group in lengths])])
    columns = {"input_ids": _lists(ids, offsets), "labels": _lists(labels, offsets)}
    if packing:
        columns["seq_lengths"] = pyarrow.array(lengths, type=pyarrow.list_(pyarrow.int32()))
    return datasets.Dataset(pyarrow.table(columns))


def _lists(values: np.ndarray, offsets: np.ndarray) -> Any:
    import pyarrow

    kind = pyarrow.LargeListArray if len(values) > np.iinfo(np.int32).max else pyarrow.ListArray
    width = np.int64 if kind is pyarrow.LargeListArray else np.int32
    return kind.from_arrays(pyarrow.array(offsets.astype(width)), pyarrow.array(values, type=pyarrow.int32()))
