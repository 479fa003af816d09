"""The one place that turns text into HTML. Everything is escaped unless this module made it.

Text from data sets and models is hostile: it passes through ``element`` like any other text and stays text.
"""

import html
import re
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

__all__ = ["Markup", "element", "escape", "join", "numbers_table", "refusal", "stylesheet"]

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9:-]*\Z")
_VOID = frozenset({"br", "hr", "img", "input", "wbr"})
_REFUSED = frozenset(
    {"script", "iframe", "object", "embed", "link", "meta", "base", "style", "foreignobject"}
)
_LINKS = frozenset({"href", "src", "action", "formaction", "xlink:href", "srcdoc"})
_SAFE_LINK = re.compile(r"(?:https?://|mailto:|#|\.{0,2}/|data:image/(?:png|svg\+xml);)", re.IGNORECASE)
# Control characters (all but tab and newline) and lone surrogates can't be sent to a browser as they are.
_PLAIN = re.compile(r"[A-Za-z0-9 .,:%()/_+-]*\Z")
_UNSENDABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class Markup(str):
    """HTML that is ready to be shown: made by this module, never by hand from foreign text."""

    __slots__ = ()


def escape(text: Any) -> Markup:
    """``text`` as it reads, whatever it holds; ``Markup`` passes unchanged."""
    if isinstance(text, Markup):
        return text
    if isinstance(text, str) and _PLAIN.match(text):  # most of a table's cells, at a quarter of the time
        return Markup(text)
    return Markup(html.escape(_UNSENDABLE.sub("\N{REPLACEMENT CHARACTER}", str(text)), quote=True))


def join(parts: Iterable[Any], separator: Any = "") -> Markup:
    """The parts one after another, each escaped; ``None`` is left out and lists are flattened."""
    return Markup(escape(separator).join(_flat(parts)))


def _flat(parts: Iterable[Any]) -> Iterable[str]:
    for part in parts:
        if part is None:
            continue
        if isinstance(part, Iterable) and not isinstance(part, str | bytes):
            yield from _flat(part)
        else:
            yield escape(part)


def element(name: str, *children: Any, **attributes: Any) -> Markup:
    """One element, its children and attribute values escaped.

    A trailing underscore of an attribute's name is dropped and the others become hyphens (``class_``,
    ``aria_live``); ``None`` and ``False`` leave the attribute out, ``True`` writes it bare.

    Example:
        >>> element("p", "1 < 2 ", element("b", "really"), class_="note")
        '<p class="note">1 &lt; 2 <b>really</b></p>'
    Raises:
        ValueError: an element or attribute that could run code, or a link that is neither http(s), mailto
            nor local.
    """
    if not _NAME.match(name) or name.lower() in _REFUSED:
        raise ValueError(f"<{name}> is not an element that a panel may show")
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


@lru_cache(maxsize=512, typed=True)  # a table says scope="row" once a row
def _attribute(key: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    key = key.rstrip("_").replace("_", "-")
    if not _NAME.match(key) or key.lower().startswith("on"):
        raise ValueError(f"{key!r} is not an attribute that a panel may set")
    if value is True:
        return f" {key}"
    if key.lower() in _LINKS and not _SAFE_LINK.match(str(value)):
        raise ValueError(f"{key}={str(value)[:60]!r} is not a link that a panel may show")
    return f' {key}="{escape(value)}"'


def refusal(why: str, *classes: str) -> Markup:
    """A sentence where a view would be, read out at once."""
    return element("p", why, class_=" ".join(("sloth-status", "bad", *classes)), role="alert")


def numbers_table(caption: str, header: Iterable[Any], rows: Iterable[Iterable[Any]]) -> Markup:
    """A table with a caption and headers that screen readers announce; the first column names its row."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    body = []
    for row in rows:
        first, *rest = row
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        body.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    return element(
        "table",
        element("caption", caption),
        Markup(f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody>"),
        class_="sloth-table",
    )


@cache
def stylesheet(*names: str) -> Markup:
    """Our own style sheets (``colours``, ``theme``, ``plot``) as one ``<style>``, without comments."""
    text = "".join(files(__package__).joinpath(f"{name}.css").read_text("utf-8") for name in names)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*([{};,]|(?<=:))\s*", r"\1", re.sub(r"\s+", " ", text)).replace(";}", "}")
    return Markup(f"<style>{text.strip()}</style>")
