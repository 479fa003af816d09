"""Encoders of whole rows, one for each kind: conversations, prompts continued, running text, token ids.

Each takes rows as dicts and gives a ``Block`` of encoded ones, counting in the report what becomes of the
rest. It does so in two steps, of which the second is the tokenizer's and may run in another thread.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from sloth_nb.data.block import Block
from sloth_nb.data.conversation import message_reader, read_tools, row_text
from sloth_nb.data.formats import OnError
from sloth_nb.data.hearing import Hearing
from sloth_nb.data.lint import ending_trouble
from sloth_nb.data.mistral import MistralEncoder
from sloth_nb.data.quality import RowChecks
from sloth_nb.data.report import DataReport
from sloth_nb.data.schema import Schema
from sloth_nb.data.skeleton import FastTemplate
from sloth_nb.data.template import ChatTemplate, Rendered, TrainOn
from sloth_nb.data.tokenise import IGNORED, Encoded, RowEncoder
from sloth_nb.errors import SlothError, TemplateError
from sloth_nb.notices import warn

__all__ = ["RowReader", "reader_for"]


class RowReader(ABC):
    """Rows in, encoded rows out: ``encode(write(rows, before))``.

    ``write`` counts in the report, batch after batch; ``encode`` may run in any thread. ``mask`` says in a clause
    what is trained.
    """

    mask: str

    def __init__(self, on_error: OnError, report: DataReport, encoder: RowEncoder | None = None):
        self.on_error, self.report = on_error, report
        self.can_write = encoder.can_write if encoder else None
        self.lost = encoder.lost_ascii if encoder else ""
        if self.lost:
            report.notes.append(_loses(self.lost))
            warn(f"Data: {report.notes[-1]}.")
        self.checks = RowChecks(report, self.can_write, suspect=bool(self.lost))

    def restart(self) -> None:
        """Forgets what was counted, for rows that are read again."""
        self.report.clear()
        self.checks = RowChecks(self.report, self.can_write, suspect=bool(self.lost))

    @abstractmethod
    def write(self, rows: list[dict[str, Any]], before: int) -> list[Any]:
        """What is to be encoded of a batch that ``before`` rows came before."""

    @abstractmethod
    def encode(self, written: list[Any]) -> Block:
        """A written batch as tokens."""

    def failed(self, number: int, error: SlothError) -> None:
        """Counts a row that can't be read, or stops at it.

        Raises:
            SlothError: of the same class, with the row's number, unless broken rows are to be left out.
        """
        if self.on_error == "raise":
            raise type(error)(
                f'Row {number:,}: {error}.\n  Mend the row, or pass on_error="skip" to leave such rows out '
                "(they will be counted)."
            ) from error
        self.report.drop(
            "refused" if isinstance(error, TemplateError) else "broken", f"row {number:,}: {error}"
        )


def _loses(characters: str) -> str:
    names = {" ": "spaces", "\n": "line breaks", "\t": "tabs"}
    said = [name for c, name in names.items() if c in characters] + [c for c in characters if c not in names]
    return (
        f"the tokenizer loses {', '.join(said[:5])}{' and more' if len(said) > 5 else ''}: it is damaged, or "
        "this transformers builds it wrongly (some GGUF files). Load the model's own tokenizer.json"
    )


def reader_for(
    schema: Schema,
    tokenizer: Any,
    train_on: TrainOn,
    on_error: OnError,
    report: DataReport,
    template_kwargs: Mapping[str, Any],
    window: int | None,
) -> RowReader:
    """The encoder for rows of this kind.

    Args:
        window: long texts are parted into so many tokens; None leaves them to be cut.
    Raises:
        TemplateError: conversations need a template that the tokenizer lacks, or it is not a fast one.
    """
    if schema.kind == "tokenised":
        return TokenRows(schema, on_error, report)
    if hasattr(tokenizer, "mode") and not hasattr(tokenizer, "is_fast"):
        return MistralRows(schema, tokenizer, train_on, on_error, report)
    encoder = RowEncoder(tokenizer)
    if "text" in schema.mapping:
        return TextRows(schema, encoder, tokenizer, on_error, report, window)
    templated = template_kwargs.get("chat_template") or getattr(tokenizer, "chat_template", None)
    if schema.kind == "prompt_completion" and not templated:
        return ContinuedRows(schema, encoder, tokenizer, train_on, on_error, report)
    return ConversationRows(
        schema, encoder, ChatTemplate(tokenizer, **template_kwargs), train_on, on_error, report
    )


class ConversationRows(RowReader):
    """Rows that a chat template writes as text."""

    def __init__(
        self,
        schema: Schema,
        encoder: RowEncoder,
        template: ChatTemplate,
        train_on: TrainOn,
        on_error: OnError,
        report: DataReport,
    ):
        super().__init__(on_error, report, encoder)
        self.encoder, self.hearing, self.train_on = encoder, Hearing(template), train_on
        self.template = FastTemplate(template)
        report.notes += ending_trouble(template)
        self.read, self.tools = message_reader(schema), schema.mapping.get("tools")
        how = "generation markers" if template.has_markers else "differences of the template's output"
        self.mask = {
            "assistant": f"every assistant turn, by {how}",
            "last": f"the last assistant turn, by {how}",
            "all": "every token",
        }[train_on]

    def write(self, rows: list[dict[str, Any]], before: int) -> list[Rendered]:
        rendered = (self._render(row, number) for number, row in enumerate(rows, before + 1))
        return [row for row in rendered if row is not None]

    def encode(self, written: list[Rendered]) -> Block:
        return Block.of(self.encoder.conversations(written))

    def _render(self, row: dict[str, Any], number: int) -> Rendered | None:
        try:
            messages = self.read(row)
            if not messages:
                self.report.drop("empty", f"row {number:,}")
                return None
            tools = read_tools(row.get(self.tools)) if self.tools else None
            rendered = self.template.render_with_spans(messages, tools)
        except SlothError as error:
            self.failed(number, error)
            return None
        self.checks.see(number, rendered.text, messages)
        for part in self.hearing.unsaid(messages, tools):
            self.report.unsaid[part] = self.report.unsaid.get(part, 0) + 1
        if self.train_on == "assistant":
            return rendered
        whole = [(0, len(rendered.text))]
        return Rendered(rendered.text, rendered.spans[-1:] if self.train_on == "last" else whole)


class ContinuedRows(RowReader):
    """Prompts and what follows them, for a tokenizer without a template: joined, then an EOS."""

    def __init__(
        self,
        schema: Schema,
        encoder: RowEncoder,
        tokenizer: Any,
        train_on: TrainOn,
        on_error: OnError,
        report: DataReport,
    ):
        super().__init__(on_error, report, encoder)
        self.encoder, self.train_on = encoder, train_on
        self.read = message_reader(schema)
        self.bos = tokenizer.bos_token if encoder.adds_bos else ""
        self.eos = tokenizer.eos_token or ""
        self.mask = (
            "every token"
            if train_on == "all"
            else "the completion (no template: prompt and completion joined)"
        )

    def write(self, rows: list[dict[str, Any]], before: int) -> list[Rendered]:
        rendered = []
        for number, row in enumerate(rows, before + 1):
            try:
                *asked, answer = self.read(row)
            except SlothError as error:
                self.failed(number, error)
                continue
            prompt = self.bos + "".join(message["content"] for message in asked)
            text = prompt + answer["content"] + self.eos
            self.checks.see(number, text)
            rendered.append(Rendered(text, [(0 if self.train_on == "all" else len(prompt), len(text))]))
        return rendered

    def encode(self, written: list[Rendered]) -> Block:
        return Block.of(self.encoder.conversations(written))


class TextRows(RowReader):
    """Rows that are text already: plain, or templated by the user."""

    def __init__(
        self,
        schema: Schema,
        encoder: RowEncoder,
        tokenizer: Any,
        on_error: OnError,
        report: DataReport,
        window: int | None,
    ):
        super().__init__(on_error, report, encoder)
        if encoder.eos_id is None:
            report.notes.append("the tokenizer has no EOS: nothing will say where a text ends")
        self.column, self.encoder, self.window = schema.mapping["text"], encoder, window
        self.closed: tuple[str, ...] = ()
        if getattr(tokenizer, "chat_template", None):
            try:
                end = ChatTemplate(tokenizer).end_of_turn
                self.closed = (end,) if end else ()
            except TemplateError:
                pass  # a template that can't be probed closes nothing: an EOS is added
        self.mask = "every token of the text"

    def write(self, rows: list[dict[str, Any]], before: int) -> list[str]:
        texts = []
        for number, row in enumerate(rows, before + 1):
            text = row_text(row, self.column)
            if isinstance(text, str) and text.strip():
                texts.append(text)
                self.checks.see(number, text)
            else:
                self.report.drop("empty", f"row {number:,}")
        return texts

    def encode(self, written: list[str]) -> Block:
        rows = self.encoder.plain(written, closed=self.closed)
        if self.window is None:
            return Block.of(rows)
        parts = [list(_parted(row, self.window)) for row in rows]
        block = Block.of(part for several in parts for part in several)
        several = [len(part) for part in parts if len(part) > 1]
        block.parted, block.pieces = len(several), sum(several)
        return block


def _parted(row: Encoded, size: int) -> Iterator[Encoded]:
    for at in range(0, len(row.ids), size):
        ids = row.ids[at : at + size]
        yield Encoded(ids, [(0, len(ids))])


class TokenRows(RowReader):
    """Rows that are token ids already, with labels or trained whole."""

    def __init__(self, schema: Schema, on_error: OnError, report: DataReport):
        super().__init__(on_error, report)
        self.labels = schema.mapping.get("labels")
        self.mask = "what its labels say" if self.labels else "every token"

    def write(self, rows: list[dict[str, Any]], before: int) -> list[dict[str, Any]]:
        return rows

    def encode(self, written: list[dict[str, Any]]) -> Block:
        return Block.of(Encoded(row["input_ids"], self._ranges(row)) for row in written)

    def _ranges(self, row: dict[str, Any]) -> list[tuple[int, int]]:
        if self.labels is None:
            return [(0, len(row["input_ids"]))]
        ranges, at = [], 0
        for kept, group in groupby(row[self.labels], key=lambda label: label != IGNORED):
            n = sum(1 for _ in group)
            if kept:
                ranges.append((at, at + n))
            at += n
        return ranges


class MistralRows(RowReader):
    """Conversations for mistral-common's own tokenizer, which writes ids without any text between."""

    def __init__(
        self, schema: Schema, tokenizer: Any, train_on: TrainOn, on_error: OnError, report: DataReport
    ):
        super().__init__(on_error, report)
        if "text" in schema.mapping:
            raise TemplateError(
                "mistral-common's tokenizer writes conversations, not text. Load a tokenizer.json."
            )
        self.encoder, self.train_on = MistralEncoder(tokenizer), train_on
        self.read, self.tools = message_reader(schema), schema.mapping.get("tools")
        which = {"assistant": "every assistant turn", "last": "the last assistant turn", "all": "every token"}
        self.mask = which[train_on] + ", by mistral-common's control tokens" * (train_on != "all")

    def write(self, rows: list[dict[str, Any]], before: int) -> list[Encoded]:
        encoded = []
        for number, row in enumerate(rows, before + 1):
            try:
                tools = read_tools(row.get(self.tools)) if self.tools else None
                one = self.encoder.conversation(self.read(row), tools)
            except SlothError as error:
                self.failed(number, error)
                continue
            if self.train_on == "last":
                one.trained = one.trained[-1:]
            elif self.train_on == "all":
                one.trained = [(0, len(one.ids))]
            encoded.append(one)
        return encoded

    def encode(self, written: list[Encoded]) -> Block:
        return Block.of(written)
