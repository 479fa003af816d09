"""What a template can notice about a message's text, read from the template's syntax tree.

A text that the template can't tell from any other (it holds no string the template looks for, and no edge
that it strips) is *inert*: it is printed as it is, wherever any other inert text would be. That allows one
rendering to serve for many rows. Where anything in a template is not understood here, no text is inert.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

__all__ = ["Senses", "parse_template", "senses_of"]

# Methods that look for their argument inside a text, strip characters off its edges, or leave texts alone.
_SEEK = {
    "split", "rsplit", "startswith", "endswith", "replace", "find", "rfind", "index", "count",
    "partition", "rpartition", "removeprefix", "removesuffix",
}  # fmt: skip
_STRIP = {"strip", "lstrip", "rstrip"}
_HARMLESS_METHODS = {"items", "keys", "values", "get", "append", "update"}
_HARMLESS_FILTERS = {
    "string", "safe", "tojson", "list", "default", "d", "join", "map", "selectattr", "rejectattr", "select",
    "reject", "first", "last", "items", "dictsort", "length", "count", "indent", "reverse", "e", "escape",
    "forceescape",
}  # fmt: skip
_HARMLESS_TESTS = {
    "defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "true", "false", "boolean",
    "number", "integer", "float", "sameas", "callable", "odd", "even", "divisibleby",
}  # fmt: skip


class _Generation(Extension):
    """Lets ``{% generation %}`` blocks be parsed; their body stands for them."""

    tags = frozenset({"generation"})

    def parse(self, parser: jinja2.parser.Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def parse_template(text: str) -> nodes.Template:
    """The syntax tree of a chat template, by the rules that transformers renders it with.

    Raises:
        jinja2.TemplateSyntaxError: with the line.
    """
    extensions = [_Generation, "jinja2.ext.loopcontrols"]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    return environment.parse(text)


@dataclass
class Senses:
    """What a template notices: strings it seeks or compares with, edges it strips, lengths it asks for."""

    sought: set[str] = field(default_factory=set)
    equals: set[str] = field(default_factory=set)
    left: set[str] = field(default_factory=set)
    right: set[str] = field(default_factory=set)
    lengths: set[int] = field(default_factory=set)
    numbers: bool = False
    blind: bool = True
    reason: str = ""

    def is_inert(self, text: str) -> bool:
        """Whether the template prints ``text`` as it would any other inert text."""
        if not self.blind or not text or text[0] in self.left or text[-1] in self.right:
            return False
        if text in self.equals or len(text) in self.lengths:
            return False
        for needle in self.sought:  # a plain loop: this runs for every text of every row
            if needle in text:
                return False
        return not (self.numbers and _is_number(text))

    def give_up(self, reason: str) -> None:
        self.blind, self.reason = False, self.reason or reason


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_SPACE = {chr(i) for i in range(0x3001) if chr(i).isspace()}


def senses_of(text: str) -> Senses:
    """What the template ``text`` can notice about a message's content."""
    senses = Senses()
    try:
        tree = parse_template(text)
    except jinja2.TemplateSyntaxError as error:
        senses.give_up(f"its syntax: {error}")
        return senses
    spaces = {
        node.target.name
        for node in tree.find_all(nodes.Assign)
        if isinstance(node.target, nodes.Name)
        and "namespace" in {n.name for n in node.node.find_all(nodes.Name)}
    }
    for node in tree.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test)):
        if isinstance(node, nodes.Compare):
            _compare(node, senses, spaces)
        elif isinstance(node, nodes.Call):
            _call(node, senses)
        elif isinstance(node, nodes.Filter):
            _filter(node, senses)
        elif node.name not in _HARMLESS_TESTS:
            _by_name(node, senses)
    return senses


def _strings(node: nodes.Node) -> Iterator[str]:
    for const in (
        [node, *node.find_all(nodes.Const)] if isinstance(node, nodes.Const) else node.find_all(nodes.Const)
    ):
        if isinstance(const.value, str) and const.value:
            yield const.value


def _compare(node: nodes.Compare, senses: Senses, spaces: set[str]) -> None:
    left = node.expr
    for operand in node.ops:
        right = operand.expr
        if operand.op in ("in", "notin"):
            if isinstance(left, nodes.Const):
                senses.sought.update(_strings(left))
            elif isinstance(right, (nodes.List, nodes.Tuple)):
                senses.equals.update(_strings(right))
            elif not _is_plain(left, spaces):
                senses.give_up("it looks for one text in another")
        elif operand.op in ("eq", "ne"):
            senses.equals.update(_strings(left))
            senses.equals.update(_strings(right))
            senses.lengths.update(_length(left, right))
            if not (_is_plain(left, spaces) or _is_plain(right, spaces)):
                senses.give_up("it compares two texts")
        elif _length(left, right) - {0, 1}:
            senses.give_up("it compares lengths")
        left = right


def _is_plain(node: nodes.Node, spaces: set[str]) -> bool:
    """Whether this can't be a message's text, so that comparing with it tells no text from another.

    The messages that this is asked for have a role and a content: any other key of theirs is undefined.
    """
    if isinstance(
        node, (nodes.Const, nodes.Compare, nodes.Test, nodes.Not, nodes.And, nodes.Or, nodes.BinExpr)
    ):
        return True
    if isinstance(node, nodes.Filter):
        inner = node.node
        made_number = (
            node.name == "string" and isinstance(inner, nodes.Name) and inner.name.startswith("parsed_")
        )
        return node.name in ("length", "count", "int", "float") or made_number
    name = _name_of(node)
    if isinstance(node, nodes.Name) or (isinstance(node, nodes.Getattr) and _name_of(node.node) in spaces):
        return any(word in name for word in ("role", "index", "idx"))
    return bool(name) and name not in ("content", "text")


def _name_of(node: nodes.Node) -> str:
    """``x`` for the variable x, ``b`` for a.b and a["b"], else ""."""
    if isinstance(node, nodes.Getitem):
        return str(node.arg.value) if isinstance(node.arg, nodes.Const) else ""
    return node.attr if isinstance(node, nodes.Getattr) else getattr(node, "name", "")


def _length(left: nodes.Node, right: nodes.Node) -> set[int]:
    """The number that a length is compared with, if this is such a comparison."""
    sides = (left, right)
    if not any(isinstance(side, nodes.Filter) and side.name in ("length", "count") for side in sides):
        return set()
    return {side.value for side in sides if isinstance(side, nodes.Const) and isinstance(side.value, int)}


def _call(node: nodes.Call, senses: Senses) -> None:
    if not isinstance(node.node, nodes.Getattr):
        return  # a function or a macro: macros are read where they are defined, functions see no text
    name = node.node.attr
    if name in _SEEK:
        if not node.args or not all(isinstance(a, nodes.Const) for a in node.args):
            senses.give_up(f"it calls .{name}() with a computed argument")
        senses.sought.update(s for a in node.args[:1] for s in _strings(a))
    elif name in _STRIP:
        _strip(node, name, senses)
    elif name not in _HARMLESS_METHODS:
        senses.give_up(f"it calls .{name}()")


def _strip(node: nodes.Call, name: str, senses: Senses) -> None:
    if node.args and not isinstance(node.args[0], nodes.Const):
        senses.give_up(f"it calls .{name}() with a computed argument")
        return
    edges = set(node.args[0].value) if node.args else _SPACE
    if name != "rstrip":
        senses.left |= edges
    if name != "lstrip":
        senses.right |= edges


def _filter(node: nodes.Filter, senses: Senses) -> None:
    if node.name == "trim":
        senses.left |= _SPACE
        senses.right |= _SPACE
    elif node.name in ("int", "float"):
        senses.numbers = True
    elif node.name == "replace":
        senses.sought.update(s for a in node.args[:1] for s in _strings(a))
    elif node.name not in _HARMLESS_FILTERS:
        senses.give_up(f"it uses the filter {node.name}")


def _by_name(node: nodes.Test, senses: Senses) -> None:
    if node.name in ("equalto", "eq", "ne", "in"):
        for argument in node.args:
            senses.equals.update(_strings(argument))
    else:
        senses.give_up(f"it uses the test {node.name}")
