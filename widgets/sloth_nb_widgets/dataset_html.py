"""How a data set looks: a page of rows, one row as a conversation, as text and as tokens, and the report.

Functions from rows, messages and tokens to ``Markup``. All of it is foreign text and stays text.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from sloth_nb.data.lint import Finding
from sloth_nb.data.report import DataReport
from sloth_nb.data.template import Rendered
from sloth_nb.data.tokenise import Token

from .html import Markup, element, join, numbers_table, refusal

__all__ = ["boxes", "conversation", "findings", "problem", "report", "rows_table", "templated", "tokens"]

CELL = 90  # characters of a cell that the table shows
MOST = 4000  # tokens, or turns' characters by the ten, that one row shows
_SIGNS = {" ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍"}
_UNSEEN = re.compile("[\x00-\x09\x0a-\x1f\x7f-\xa0\xad\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]| ")
LEARNT_FROM, LEARNT_TO = "⟦", "⟧"


def rows_table(
    page: Sequence[Mapping[str, Any]], places: Sequence[int], columns: Sequence[str], chosen: int
) -> Markup:
    """A page of rows; the chosen one is marked by a sign and a ground."""
    head = element(
        "tr", element("th", "row", scope="col"), [element("th", name, scope="col") for name in columns]
    )
    body = []
    for row, place in zip(page, places, strict=True):
        here = place == chosen
        number = element("th", ("▶ " if here else ""), f"{place + 1:,}", scope="row")
        cells = [element("td", short(row.get(name)), class_="sloth-cell") for name in columns]
        if extra := [name for name in row if name not in columns]:
            cells.append(element("td", f"{extra[0]}: {short(row[extra[0]])}", class_="sloth-cell"))
        body.append(
            element("tr", number, cells, class_="chosen" if here else None, aria_current=here and "true")
        )
    table = element("table", element("thead", head), element("tbody", body), class_="sloth-table sloth-rows")
    return element("div", table, class_="sloth-scroll", tabindex="0", role="region", aria_label="Rows")


def short(value: Any) -> str:
    """A cell in a line."""
    if value is None:
        return "—"
    if isinstance(value, str):
        text = value
    elif isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        said = next((str(v) for k in ("content", "value", "text") if (v := value[0].get(k))), "")
        text = f"{len(value)} turns: {said}"
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text[: 4 * CELL].split())
    return text if len(text) <= CELL else text[: CELL - 1] + "…"


def conversation(messages: Iterable[Mapping[str, Any]], learnt: set[int]) -> Markup:
    """Who says what. ``learnt``: the numbers of the turns that are trained."""
    return element("div", [_turn(m, i in learnt) for i, m in enumerate(messages)], class_="sloth-talk")


def _turn(message: Mapping[str, Any], learnt: bool) -> Markup:
    badge = element("span", "learnt", class_="sloth-badge good") if learnt else None
    parts: list[Any] = []
    if thought := message.get("reasoning_content"):
        parts.append(element("div", element("b", "thinks: "), _long(str(thought)), class_="quiet sloth-said"))
    content = message.get("content")
    for part in content if isinstance(content, list) else [content]:
        if part:
            parts.append(element("div", _long(_part(part)), class_="sloth-said"))
    for call in message.get("tool_calls") or ():
        parts.append(
            element("pre", "calls ", json.dumps(call.get("function", call), ensure_ascii=False, indent=1))
        )
    if not parts:
        parts.append(element("div", "(nothing)", class_="quiet sloth-said"))
    who = element("p", element("b", str(message.get("role"))), " ", badge)
    return element(
        "div", who, parts, class_="sloth-turn" + (" sloth-asked" if not learnt else " sloth-learnt")
    )


def _part(part: Any) -> str:
    if not isinstance(part, Mapping):
        return str(part)
    return (
        str(part["text"])
        if part.get("type", "text") == "text" and "text" in part
        else f"[{part.get('type')}]"
    )


def _long(text: str) -> str:
    most = 10 * MOST
    return text if len(text) <= most else f"{text[:most]}… ({len(text) - most:,} more characters)"


def templated(row: Rendered) -> Markup:
    """The text as the template writes it; what is learnt is framed, underlined and bold."""
    pieces: list[Any] = []
    at = 0
    for start, end in row.spans:
        pieces.append(element("span", _long(row.text[at:start])))
        pieces.append(_framed([_long(row.text[start:end])]))
        at = end
    pieces.append(element("span", _long(row.text[at:])))
    return join([_legend(), element("div", pieces, class_="sloth-written")])


def _framed(children: Any) -> Markup:
    """What is learnt, told apart by signs and strokes, not by colour alone."""
    signs = [element("span", sign, class_="sloth-edge") for sign in (LEARNT_FROM, LEARNT_TO)]
    return element("mark", signs[0], children, signs[1], class_="sloth-learnt")


def _legend() -> Markup:
    return element(
        "p",
        _framed("between these signs, underlined"),
        " is learnt; the rest is only read.",
        class_="quiet",
    )


def tokens(found: Sequence[Token], *, ids: bool, max_length: int | None) -> Markup:
    """Every token in its own box, with its id above when asked; the learnt ones framed and underlined."""
    cut = len(found) if max_length is None else min(len(found), max_length)
    shown = found[: min(cut, MOST)]
    pieces: list[Any] = []
    for learnt, group in groupby(shown, key=lambda token: token.trained):
        drawn = boxes(list(group), ids=ids)
        pieces.append(_framed(drawn) if learnt else element("span", drawn))
    count = sum(token.trained for token in found[:cut])
    said = f"{cut:,} tokens, {count:,} of them learnt"
    if cut < len(found):
        said += f"; {len(found) - cut:,} more are beyond max_length and would be cut off"
    if len(shown) < cut:
        said += f"; the first {len(shown):,} are shown"
    return join([_legend(), element("p", said), element("div", pieces, class_="sloth-written sloth-tokens")])


def boxes(found: Sequence[Token], *, ids: bool) -> list[Markup]:
    """Each token in its own box, with its id above when asked."""
    return [_token(token, ids) for token in found]


def _token(token: Token, ids: bool) -> Markup:
    box = element("span", visible(token.text), class_="sloth-token", title=f"id {token.id}")
    whole = element("ruby", box, element("rt", str(token.id))) if ids else box
    # After the box a line may be broken, and is where the text's own line ends.
    return join([whole, "\n" if token.text.endswith("\n") else element("wbr")])


def visible(text: str) -> str:
    """A token's text with a sign for what can't be seen: spaces, line ends, marks of direction."""
    if not text:
        return "…"  # a later part of a character, or a token that stands for no text
    return _UNSEEN.sub(lambda m: _SIGNS.get(m[0]) or f"⟨U+{ord(m[0]):04X}⟩", text)


def report(found: DataReport, scope: str) -> Markup:
    """The table of what the rows became, and how long they are."""
    table = element(
        "table",
        element("caption", scope),
        element(
            "tbody",
            [element("tr", element("th", a, scope="row"), element("td", b)) for a, b in found.lines()],
        ),
        class_="sloth-table sloth-report",
    )
    bars = found.histogram()
    most = max((n for *_, n in bars), default=1)
    rows = [(f"{a:,} to {b - 1:,}", f"{n:,}", _bar(n / most)) for a, b, n in bars]
    return join([table, numbers_table("Tokens in a row, before cutting", ("tokens", "rows", ""), rows)])


def _bar(share: float) -> Markup:
    return element("div", element("div", style=f"width:{share:.0%}"), class_="sloth-bar", style="width:180px")


def findings(found: Iterable[Finding]) -> Markup | None:
    """What the lint says of the template, the notes folded away."""
    told = list(found)
    loud = [f for f in told if f.level != "note"]
    quiet = [f for f in told if f.level == "note"]
    items = [
        element("li", element("b", f"{f.level}: "), f.message, class_="bad" if f.level == "error" else "warn")
        for f in loud
    ]
    notes = (
        element("details", element("summary", f"{len(quiet)} notes on the template"), _list(quiet))
        if quiet
        else None
    )
    return join([element("ul", items, class_="sloth-notices") if items else None, notes]) or None


def _list(found: Iterable[Finding]) -> Markup:
    return element("ul", [element("li", finding.message) for finding in found])


def problem(text: str) -> Markup:
    """A sentence where a view would be."""
    return refusal(text, "sloth-said")
