"""Rendering many conversations fast: one rendering for each shape of conversation, filled in for every row.

Two conversations with the same roles whose texts are all inert (see ``inert``) are written alike but for
these texts. So the template runs once for their shape, with marks for texts; every other row is a join of
strings. Rows with anything else in them (tools, parts, thoughts, a string the template looks for) run
through the template.
"""

from dataclasses import dataclass

from sloth_nb.data.inert import Senses, senses_of
from sloth_nb.data.template import ChatTemplate, Rendered
from sloth_nb.errors import TemplateError

__all__ = ["FastTemplate"]

# Each mark holds what escaping, joining or upper-casing would change, and no character of it is white space.
_MARK = "\ue0f2{}\"\\'<&>aßÉ{}\ue0f3"
_SHAPES = 256


@dataclass(frozen=True)
class _Skeleton:
    """Literals around the slots, and each span's edges as (literal characters before it, slots before it)."""

    literals: list[str]
    slots: list[int]
    spans: list[tuple[int, int, int, int]]

    def fill(self, contents: list[str]) -> Rendered:
        pieces = [self.literals[0]]
        lengths = [0]
        total = 0
        for slot, literal in zip(self.slots, self.literals[1:], strict=True):
            text = contents[slot]
            pieces.append(text)
            pieces.append(literal)
            total += len(text)
            lengths.append(total)
        spans = [(a + lengths[i], b + lengths[j]) for a, i, b, j in self.spans]
        return Rendered("".join(pieces), spans)


class FastTemplate:
    """A ChatTemplate that gives the same texts and spans, faster. ``rendered`` counts real renderings."""

    def __init__(self, template: ChatTemplate):
        self.template = template
        self.senses: Senses = senses_of(template.text)
        self.rendered = 0
        self._skeletons: dict[tuple[str, ...], _Skeleton | None] = {}

    def render_with_spans(self, messages: list[dict], tools: list | None = None) -> Rendered:
        """See ``ChatTemplate.render_with_spans``."""
        if not tools and self._all_inert(messages):
            shape = tuple([message["role"] for message in messages])
            if shape not in self._skeletons and len(self._skeletons) < _SHAPES:
                self._skeletons[shape] = self._skeleton(messages)
            if skeleton := self._skeletons.get(shape):
                return skeleton.fill([message["content"] for message in messages])
        self.rendered += 1
        return self.template.render_with_spans(messages, tools)

    def _all_inert(self, messages: list[dict]) -> bool:
        inert = self.senses.is_inert
        for message in messages:
            if (
                len(message) != 2
                or not isinstance(content := message.get("content"), str)
                or not inert(content)
            ):
                return False
        return True

    def _skeleton(self, messages: list[dict]) -> _Skeleton | None:
        """The skeleton of these messages' shape; None when the marks are changed or the row disagrees."""
        marks = [_MARK.format(i, i) for i in range(len(messages))]
        if not all(map(self.senses.is_inert, marks)):
            return None
        marked = [{"role": m["role"], "content": mark} for m, mark in zip(messages, marks, strict=True)]
        try:
            rendered = self.template.render_with_spans(marked)
            skeleton = _cut(rendered, marks)
            real = self.template.render_with_spans(messages)
        except TemplateError:
            return None
        self.rendered += 2
        return skeleton if skeleton and skeleton.fill([m["content"] for m in messages]) == real else None


def _cut(rendered: Rendered, marks: list[str]) -> _Skeleton | None:
    literals, slots, places = [], [], []
    at = 0
    while True:
        found = [(rendered.text.find(mark, at), slot) for slot, mark in enumerate(marks)]
        found = [(place, slot) for place, slot in found if place >= 0]
        if not found:
            break
        place, slot = min(found)
        literals.append(rendered.text[at:place])
        slots.append(slot)
        at = place + len(marks[slot])
        places.append((place, at))
    literals.append(rendered.text[at:])
    if any("\ue0f2" in literal or "\ue0f3" in literal for literal in literals):
        return None
    spans = []
    for start, end in rendered.spans:
        edges: list[int] = []
        for edge in (start, end):
            if any(a < edge < b for a, b in places):
                return None
            before = [b - a for a, b in places if b <= edge]
            edges += [edge - sum(before), len(before)]
        spans.append((edges[0], edges[1], edges[2], edges[3]))
    return _Skeleton(literals, slots, spans)
