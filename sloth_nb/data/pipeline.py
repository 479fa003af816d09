"""prepare: from any source to token ids and labels, with a report of what became of every row."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sloth_nb.data.assemble import Assembly
from sloth_nb.data.conversation import message_reader, read_tools
from sloth_nb.data.reading import OnError, load_data
from sloth_nb.data.report import DataReport
from sloth_nb.data.schema import Schema, mapped, recognise
from sloth_nb.data.skeleton import FastTemplate
from sloth_nb.data.template import ChatTemplate, Rendered, TrainOn
from sloth_nb.data.tokenise import IGNORED, Encoded, RowEncoder
from sloth_nb.errors import DatasetError, SlothError, TemplateError

__all__ = ["Prepared", "prepare"]

BATCH = 4000  # rows that are encoded at once: enough for all cores, about 60 MB


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
    mapping: Mapping[str, Any] | Schema | None = None,
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
    schema = mapped(mapping, dataset.column_names) if mapping else recognise(dataset, task="sft")
    if schema.kind in _ELSEWHERE:
        raise DatasetError(f"This is {schema}.\n  {_ELSEWHERE[schema.kind]}")
    report = DataReport(rows=len(dataset), max_length=max_length, schema=str(schema))
    encoder = RowEncoder(tokenizer)
    if schema.kind == "tokenised":
        reader = _TokenRows(schema)
    elif "text" in schema.mapping:
        reader = _TextRows(schema, encoder, tokenizer)
    else:
        reader = _ConversationRows(
            schema, encoder, ChatTemplate(tokenizer, **(template_kwargs or {})), train_on
        )
    report.mask = reader.mask
    rows = Assembly(max_length, report)
    for start in range(0, len(dataset), BATCH):
        batch = dataset[start : start + BATCH]
        batch_rows = [dict(zip(batch, cells, strict=True)) for cells in zip(*batch.values(), strict=True)]
        rows.add(reader.encode(batch_rows, start, on_error, report))
    if not len(rows):
        raise DatasetError(
            f"Not one of the {report.rows:,} rows can be trained on: {report.why_dropped()}.{_advice(report)}"
        )
    return Prepared(rows.dataset(packing=packing), report, schema)


class _ConversationRows:
    """Rows that a chat template writes as text."""

    def __init__(self, schema: Schema, encoder: RowEncoder, template: ChatTemplate, train_on: TrainOn):
        self.schema, self.encoder, self.train_on = schema, encoder, train_on
        self.template = FastTemplate(template)
        self.read, self.tools = message_reader(schema), schema.mapping.get("tools")
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
        rendered = (self._render(row, number, on_error, report) for number, row in enumerate(rows, start + 1))
        return self.encoder.conversations([row for row in rendered if row is not None])

    def _render(self, row: dict, number: int, on_error: OnError, report: DataReport) -> Rendered | None:
        try:
            messages = self.read(row)
            if not messages:
                report.drop("empty", f"row {number:,}")
                return None
            rendered = self.template.render_with_spans(
                messages, read_tools(row.get(self.tools)) if self.tools else None
            )
            if self.train_on == "assistant":
                return rendered
            everything = [(0, len(rendered.text))]
            return Rendered(rendered.text, rendered.spans[-1:] if self.train_on == "last" else everything)
        except SlothError as error:
            reason = "refused" if isinstance(error, TemplateError) else "broken"
            if on_error == "raise":
                raise type(error)(
                    f'Row {number:,}: {error}.\n  Mend the row, or pass on_error="skip" to leave such rows '
                    "out (they will be counted)."
                ) from error
            report.drop(reason, f"row {number:,}: {error}")
            return None


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


class _TokenRows:
    """Rows that are token ids already, with labels or trained whole."""

    def __init__(self, schema: Schema):
        self.labels = schema.mapping.get("labels")
        self.mask = "what its labels say" if self.labels else "every token"

    def encode(self, rows: list[dict], start: int, on_error: OnError, report: DataReport) -> list[Encoded]:
        return [Encoded(row["input_ids"], self._ranges(row)) for row in rows]

    def _ranges(self, row: dict) -> list[tuple[int, int]]:
        if self.labels is None:
            return [(0, len(row["input_ids"]))]
        ranges, at = [], 0
        for kept, group in groupby(row[self.labels], key=lambda label: label != IGNORED):
            n = sum(1 for _ in group)
            if kept:
                ranges.append((at, at + n))
            at += n
        return ranges


_ELSEWHERE = {
    "preference": "prepare() trains on answers; pairs of them are for DPOTrainer and its kin. To train on "
    'the chosen ones, say so: mapping={"user": "…", "assistant": "chosen"}.',
    "kto": 'prepare() trains on every answer, liked or not. Use KTOTrainer, or say mapping={"user": "…", …}.',
    "prompt_only": "Nobody answers, so there is nothing to learn from: prompts alone are for GRPOTrainer.",
    "vision": "prepare() reads text; pictures need the model's processor and a collator that reads them.",
    "audio": "prepare() reads text; sounds need the model's processor and a collator that reads them.",
}


def _advice(report: DataReport) -> str:
    if report.dropped.get("cut", 0) * 2 >= report.rows:
        return (
            f"\n  max_length is {report.max_length:,}; the longest row has {report.longest:,} tokens. "
            "Raise max_length."
        )
    return "\n  Look at one row as the template writes it: ChatTemplate(tokenizer).render(messages)."
