"""DatasetView: a data set looked at row by row, as it is, as the template writes it, and as tokens.

What the DatasetPreview widget shows, for scripts too. It reads the rows it is asked for and no others.
"""

import copy
import os
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from sloth_nb.data.columns import columns_of, sample_of
from sloth_nb.data.conversation import message_reader, read_tools, row_text
from sloth_nb.data.lint import Finding, lint
from sloth_nb.data.named import resolve
from sloth_nb.data.pipeline import prepare, text_tokenizer
from sloth_nb.data.recognising import recognise
from sloth_nb.data.report import DataReport
from sloth_nb.data.rows import Rows, open_rows
from sloth_nb.data.schema import Schema, mapped
from sloth_nb.data.tables import rows_to_dataset
from sloth_nb.data.template import ChatTemplate, Rendered, TrainOn
from sloth_nb.data.tokenise import RowEncoder, Token
from sloth_nb.errors import DatasetError, TemplateError

__all__ = ["DatasetView"]


class DatasetView:
    """One data set, one tokenizer, one way to read and to mask.

    Args:
        source: whatever ``load_data`` takes; a long file is not read to be opened.
        tokenizer: None shows rows and conversations, but no text and no tokens.
        mapping: see ``prepare``; None recognises.
        chat_template: a template's name or Jinja; None takes the tokenizer's own.
    Raises:
        DatasetError: the source is missing, empty or of no known form (not: unrecognised columns, see ``problem``).
    """

    def __init__(
        self,
        source: Any,
        tokenizer: Any = None,
        *,
        mapping: Mapping[str, Any] | Schema | None = None,
        chat_template: str | None = None,
        train_on: TrainOn = "assistant",
        max_length: int | None = 2048,
        template_kwargs: Mapping[str, Any] | None = None,
    ):
        self.source = source
        self.tokenizer = text_tokenizer(tokenizer)
        self.rows: Rows = open_rows(source)
        self.columns = columns_of(getattr(self.rows, "dataset", self.rows))
        self.chat_template, self.train_on, self.max_length = chat_template, train_on, max_length
        self.template_kwargs = dict(template_kwargs or {})
        self.problem = ""
        self.schema: Schema | None = None
        self.by_hand = mapping is not None
        try:
            self.schema = mapped(mapping, self.columns) if mapping is not None else self.recognised
        except DatasetError as error:
            self.problem = str(error)

    def but(self, **changes: Any) -> "DatasetView":
        """The same rows looked at in another way: ``mapping``, ``chat_template``, ``train_on``, ``max_length``."""
        other = copy.copy(self)
        other.__dict__.pop("template", None)
        mapping = changes.pop("mapping", None)
        other.__dict__.update(changes)
        if mapping is not None:
            other.by_hand, other.problem = True, ""
            try:
                other.schema = mapped(mapping, self.columns)
            except DatasetError as error:
                other.schema, other.problem = None, str(error)
        return other

    @cached_property
    def recognised(self) -> Schema:
        """What the data looks like by itself.

        Raises:
            DatasetError: no known form.
        """
        return recognise(getattr(self.rows, "dataset", self.rows), task="sft")

    @cached_property
    def template(self) -> ChatTemplate:
        """The template in use.

        Raises:
            TemplateError: there is no tokenizer, or it has no template.
        """
        if self.tokenizer is None:
            raise TemplateError(
                "Text and tokens need the model's tokenizer: DatasetPreview(source, tokenizer)."
            )
        given = resolve(self.chat_template, self.tokenizer) if self.chat_template else None
        return ChatTemplate(self.tokenizer, chat_template=given, **self.template_kwargs)

    @cached_property
    def encoder(self) -> RowEncoder:
        return RowEncoder(self.tokenizer)

    def row(self, index: int) -> dict[str, Any]:
        """One row, as it is.

        Raises:
            DatasetError: there is no such row.
        """
        page = self.rows.page(index, 1)
        if not page:
            raise DatasetError(f"There is no row {index + 1:,}; the last is {self.rows.estimate():,}.")
        return page[0]

    def messages(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A row as a conversation.

        Raises:
            DatasetError: the data is no conversations, or this row can't be read as one.
        """
        if self.schema is None:
            raise DatasetError(self.problem)
        if not {"messages", "completion", "assistant"} & set(self.schema.mapping) or self.schema.kind in (
            "vision",
            "audio",
        ):
            raise DatasetError(f"These rows are no conversations but {self.schema.kind}.")
        return message_reader(self.schema)(row)

    def rendered(self, row: Mapping[str, Any]) -> Rendered:
        """A row as the template writes it, with the spans that are trained.

        Raises:
            SlothError: there is no template, or it or the row can't be read.
        """
        if self.schema is not None and "text" in self.schema.mapping:
            text = row_text(row, self.schema.mapping["text"])
            return Rendered(text, [(0, len(text))])
        messages, template = self.messages(row), self.template
        tools = self.schema.mapping.get("tools") if self.schema else None
        rendered = template.render_with_spans(messages, read_tools(row.get(tools)) if tools else None)
        if self.train_on == "all":
            return Rendered(rendered.text, [(0, len(rendered.text))])
        return Rendered(rendered.text, rendered.spans[-1:]) if self.train_on == "last" else rendered

    def tokens(self, row: Mapping[str, Any]) -> list[Token]:
        """A row's tokens; those after ``max_length`` would be cut off.

        Raises:
            SlothError: see ``rendered``; or the tokenizer is not a fast one.
        """
        rendered = self.rendered(row)
        if self.tokenizer is None:
            raise TemplateError("Tokens need the model's tokenizer: DatasetPreview(source, tokenizer).")
        if self.schema is not None and "text" in self.schema.mapping:
            return self.encoder.explain_plain(rendered.text)
        return self.encoder.explain(rendered)

    def findings(self) -> list[Finding]:
        """What there is to say about the template; [] without one."""
        if self.tokenizer is None or (self.schema is not None and "text" in self.schema.mapping):
            return []
        try:
            return lint(self.template)
        except TemplateError as error:
            return [Finding("error", str(error))]

    def report(self, limit: int | None = 1000) -> DataReport:
        """What ``prepare`` would make of the first ``limit`` rows (None: of all of them).

        Raises:
            SlothError: nothing can be prepared.
        """
        if self.schema is None:
            raise DatasetError(self.problem)
        if self.tokenizer is None:
            raise TemplateError(
                "Counting tokens needs the model's tokenizer: DatasetPreview(source, tokenizer)."
            )
        source = (
            self.source if limit is None else rows_to_dataset(sample_of(self.rows, limit), "the first rows")
        )
        return prepare(
            source,
            self.tokenizer,
            mapping=self.schema,
            on_error="skip",
            chat_template=self.chat_template,
            train_on=self.train_on,
            max_length=self.max_length,
            template_kwargs=self.template_kwargs,
        ).report

    def as_code(self) -> str:
        """The call that prepares the data as it is shown here."""
        named = isinstance(self.source, (str, os.PathLike))
        arguments = [repr(str(self.source)) if named else "data", "tokenizer"]
        if self.by_hand and self.schema is not None:
            arguments.append(f"mapping={self.schema.as_code()}")
        defaults = {"chat_template": None, "train_on": "assistant", "max_length": 2048}
        arguments += [f"{k}={getattr(self, k)!r}" for k, v in defaults.items() if getattr(self, k) != v]
        if self.template_kwargs:
            arguments.append(f"template_kwargs={self.template_kwargs!r}")
        return f"prepare({', '.join(arguments)})"
