"""DatasetPreview: what the model will read, and token by token what it will learn."""

from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets as widgets
import traitlets

from sloth_nb.data import DatasetView, template_names
from sloth_nb.data.report import DataReport
from sloth_nb.data.rows import FoundRows
from sloth_nb.errors import SlothError

from . import controls, dataset_html
from .html import Markup, element, join, stylesheet
from .panel import Panel

__all__ = ["DatasetPreview"]

PAGE = 10
OWN = "the tokenizer's own"
NONE = "—"
PARTS = ("messages", "system", "user", "context", "assistant", "text")
SAMPLE = 1000


class DatasetPreview(Panel):
    """A table of rows, and one of them as the conversation, as the templated text and as tokens.

    Example:
        >>> preview = DatasetPreview("train.jsonl", tokenizer); preview     # shows itself
        >>> print(preview.as_code())                                        # the call that prepares it like this
        >>> preview.row = 1_000; preview.show = "tokens"
    """

    heading = "What will it learn?"

    row = traitlets.Int(
        1, help="the row that is shown, counted from 1 (among those found, when a text is looked for)"
    )
    show = traitlets.Enum(("conversation", "text", "tokens", "report"), "conversation")
    ids = traitlets.Bool(False, help="show each token's id")
    find = traitlets.Unicode("", help="only rows that hold this text")
    template = traitlets.Unicode(OWN, help="a template's name, or Jinja")
    train_on = traitlets.Enum(("assistant", "last", "all"), "assistant", help="what is learnt")
    max_length = traitlets.Int(2048, help="tokens after which a row is cut")
    messages = traitlets.Unicode(NONE, help="the column of a conversation's turns")
    system = traitlets.Unicode(NONE, help="the column of system prompts")
    user = traitlets.Unicode(NONE, help="the column that asks")
    context = traitlets.Unicode(NONE, help="a column that goes with the question")
    assistant = traitlets.Unicode(NONE, help="the column that answers")
    text = traitlets.Unicode(NONE, help="the column of running text")

    def __init__(
        self,
        source: Any,
        tokenizer: Any = None,
        *,
        mapping: Mapping[str, Any] | None = None,
        **arguments: Any,
    ):
        super().__init__(**arguments)
        chosen = {part: arguments[part] for part in PARTS if part in arguments}
        self.view = DatasetView(source, tokenizer, mapping=mapping or chosen or None).but(**self._ways())
        self._found: FoundRows | None = FoundRows(self.view.rows, self.find) if self.find else None
        self._limit: int | None = SAMPLE
        self._reports: dict[tuple[Any, ...], DataReport | str] = {}
        self._filling = True
        for part, column in (self.view.schema.mapping if self.view.schema else {}).items():
            if part in PARTS:
                setattr(self, part, column)
        self._filling = False

    # The answer, for a script --------------------------------------------------------------------------

    def as_code(self) -> str:
        """The call that prepares the data as it is shown."""
        return self.view.as_code()

    def report(self) -> DataReport:
        """What ``prepare`` makes of the first 1,000 rows, or of all of them once they were counted.

        Raises:
            SlothError: nothing can be prepared, with the reason.
        """
        return self.view.report(self._limit)

    @property
    def mapping(self) -> dict[str, str]:
        """Which column plays which part."""
        return dict(self.view.schema.mapping) if self.view.schema else {}

    # The panel -----------------------------------------------------------------------------------------

    def _controls(self) -> Sequence[widgets.Widget]:
        columns = [NONE, *self.view.columns]
        help_of = {part: self.traits()[part].help for part in PARTS}
        return (
            controls.row(
                controls.text(self, "find", "Find", placeholder="rows that hold this text", live=False),
                controls.number(self, "row", "Row", 1, 10**9),
                controls.button("◂ Page", lambda: self._move(-PAGE), help="ten rows back"),
                controls.button("◂ Row", lambda: self._move(-1), help="the row before"),
                controls.button("Row ▸", lambda: self._move(1), help="the next row"),
                controls.button("Page ▸", lambda: self._move(PAGE), help="ten rows on"),
            ),
            controls.row(
                controls.choice(self, "show", "Show", self.traits()["show"].values),
                controls.choice(self, "template", "Template", self._templates()),
                controls.choice(self, "train_on", "Learn", self.traits()["train_on"].values),
                controls.number(self, "max_length", "Max length", 8, 1 << 20, 8),
                controls.checkbox(self, "ids", "Token ids"),
                controls.button("Count all rows", self._count_all, help="the report over every row"),
            ),
            controls.fold(
                "Columns",
                controls.row(
                    *(controls.choice(self, p, p.capitalize(), columns, help=help_of[p]) for p in PARTS)
                ),
                help="which column plays which part",
            ),
        )

    def _templates(self) -> list[str]:
        names = [OWN, *template_names()]
        return names if self.template in names else [self.template, *names]

    def _move(self, by: int) -> None:
        last = self._rows.known
        wanted = max(1, self.row + by)
        self.row = wanted if last is None else min(wanted, max(1, last))

    def _count_all(self) -> None:
        self._limit = None
        self.say("Counting all rows …")
        self.show = "report"
        self.refresh()
        self.say("All rows are counted.")

    @property
    def _rows(self) -> Any:
        return self._found or self.view.rows

    def _ways(self) -> dict[str, Any]:
        template = None if self.template == OWN else self.template
        return {"chat_template": template, "train_on": self.train_on, "max_length": self.max_length}

    def _changed(self, change: Any) -> None:
        if not hasattr(self, "view") or self._filling:
            return
        if change["name"] == "find":
            self._found = FoundRows(self.view.rows, self.find) if self.find else None
            self.row = 1
        elif change["name"] in PARTS:
            chosen = {part: getattr(self, part) for part in PARTS if getattr(self, part) != NONE}
            self.view = self.view.but(mapping=chosen)
        else:
            self.view = self.view.but(**self._ways())

    # What is seen --------------------------------------------------------------------------------------

    def _view(self) -> Markup:
        begin = (self.row - 1) // PAGE * PAGE
        page = self._rows.page(begin, PAGE)
        places = (
            self._found.places[begin : begin + PAGE] if self._found else list(range(begin, begin + len(page)))
        )
        at = self.row - 1 - begin
        chosen = places[at] if at < len(places) else -1
        body = dataset_html.problem(self._no_row()) if chosen < 0 else self._row_view(page[at])
        return join(
            [
                stylesheet("dataset"),
                element("p", self._summary(), class_="quiet", role="status", aria_live="polite"),
                dataset_html.rows_table(page, places, self.view.columns, chosen) if page else None,
                body,
                self._template_notes(),
                element(
                    "details", element("summary", "As code"), element("pre", element("code", self.as_code()))
                ),
            ]
        )

    def _summary(self) -> str:
        rows = self.view.rows
        count = f"{rows.known:,}" if rows.known is not None else f"about {rows.estimate():,}"
        count += " row" if rows.known == 1 else " rows"
        schema = f"{self.view.schema}" if self.view.schema else "not recognised"
        if self._found is None:
            return f"{count}; {schema}"
        more = "" if self._found.ended else "; go on for more"
        return f"{len(self._found.places):,} rows found in {self._found.looked:,} of {count}{more}; {schema}"

    def _no_row(self) -> str:
        if self._found is not None and not self._found.places:
            return f"No row among the first {self._found.looked:,} holds {self.find!r}."
        return f"There is no row {self.row:,}."

    def _row_view(self, row: dict[str, Any]) -> Markup:
        try:
            if self.show == "report":
                return self._report_view()
            if self.show == "text":
                return dataset_html.templated(self.view.rendered(row))
            if self.show == "tokens":
                found = self.view.tokens(row)
                return dataset_html.tokens(found, ids=self.ids, max_length=self.max_length)
            return self._conversation_view(row)
        except SlothError as error:
            return dataset_html.problem(str(error))

    def _conversation_view(self, row: dict[str, Any]) -> Markup:
        if self.view.schema is not None and "text" in self.view.schema.mapping:
            return dataset_html.conversation([{"role": "text", "content": self.view.rendered(row).text}], {0})
        messages = self.view.messages(row)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        learnt = {"assistant": turns, "last": turns[-1:], "all": range(len(messages))}[self.train_on]
        return dataset_html.conversation(messages, set(learnt))

    def _report_view(self) -> Markup:
        key = (self._limit, self.as_code())
        if key not in self._reports:
            try:
                self._reports[key] = self.report()
            except SlothError as error:
                self._reports[key] = str(error)
        found = self._reports[key]
        if isinstance(found, str):
            return dataset_html.problem(found)
        whole = self._limit is None or self.view.rows.known == found.rows
        scope = f"All {found.rows:,} rows" if whole else f"The first {found.rows:,} rows"
        return dataset_html.report(found, scope)

    def _template_notes(self) -> Markup | None:
        return dataset_html.findings(self.view.findings()) if self.show in ("text", "tokens") else None

    def _text(self) -> str:
        lines = [self._summary(), self.as_code()]
        try:
            row = self._rows.page(self.row - 1, 1)[0]
            if self.show == "report":
                lines.append(str(self.report()))
            elif self.show == "conversation":
                lines += [f"{m['role']}: {m['content']}" for m in self.view.messages(row)]
            else:
                lines.append(self.view.rendered(row).text)
        except (SlothError, IndexError) as error:
            lines.append(str(error) if isinstance(error, SlothError) else self._no_row())
        return "\n".join(lines)
