"""From a lesson's Markdown to its parts: prose, code, exercises and their checks.

A code fence opens with ```` ```python NAME words… ````. NAME is the cell's id; the words are

- ``parameters``: the cell whose names ``sloth-nb run -p`` may set;
- ``exercise``: what a student fills in; the solution stands between nbgrader's marks;
- ``check=2``: the cell that checks the exercise before it, worth two points, locked;
- ``wrong``: an answer that the check of exercise NAME must refuse. For the tests; not in the notebook;
- ``slide=skip``: another slide type than the usual one.

Prose becomes one cell between two fences, and a new one at each heading.
"""

import re
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import Literal

from sloth_nb.errors import NotebookError

__all__ = ["BEGIN", "END", "Lesson", "Part", "lesson", "lessons", "read"]

BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
SLIDES = ("slide", "subslide", "fragment", "-", "skip", "notes")
Kind = Literal["prose", "code", "parameters", "exercise", "check"]

_FENCE = re.compile(r"```python(?:[ ]+(?P<words>[^\n]*))?\n(?P<source>.*?)\n```[ ]*(?:\n|\Z)", re.DOTALL)
_HEADING = re.compile(r"^#{1,2} ", re.MULTILINE)
_NAME = re.compile(r"[a-z][a-z0-9-]{0,50}\Z")


@dataclass(frozen=True)
class Part:
    """One cell to be. ``points`` is for checks alone."""

    id: str
    kind: Kind
    source: str
    slide: str
    points: int = 0


@dataclass(frozen=True)
class Lesson:
    """A lesson: its file's name without ending, its title, its cells, and wrong answers by exercise."""

    name: str
    title: str
    parts: tuple[Part, ...]
    wrong: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def exercises(self) -> list[tuple[Part, Part]]:
        """Each exercise and the check that follows it."""
        found = [part for part in self.parts if part.kind in ("exercise", "check")]
        return list(zip(found[::2], found[1::2], strict=True))

    @property
    def points(self) -> int:
        """What all its exercises are worth."""
        return sum(part.points for part in self.parts)


@cache
def lessons() -> tuple[Lesson, ...]:
    """All lessons, in their order."""
    found = sorted(
        (file for file in files(__package__).iterdir() if file.name.endswith(".md")), key=lambda f: f.name
    )
    return tuple(read(file.read_text("utf-8"), file.name.removesuffix(".md")) for file in found)


def lesson(which: int | str) -> Lesson:
    """A lesson by its number (from 1) or its name.

    Raises:
        NotebookError: there is none.
    """
    for number, found in enumerate(lessons(), 1):
        if str(which) in (str(number), found.name):
            return found
    known = "".join(f"\n  {found.title}" for found in lessons())
    raise NotebookError(f"There is no lesson {which!r}. The course has {len(lessons())}:{known}")


def read(text: str, name: str) -> Lesson:
    """A lesson from its Markdown.

    Raises:
        NotebookError: an unknown word at a fence, an id that occurs twice, an exercise without check or marks.
    """
    parts: list[Part] = []
    wrong: dict[str, list[str]] = {}
    at = 0
    for fence in _FENCE.finditer(text):
        before, at = text[at : fence.start()], fence.end()
        cell, points, words = _fence(fence["words"] or "", name)
        if "wrong" in words:
            parts += _prose(before, f"{cell}-text")
            wrong.setdefault(cell, []).append(fence["source"])
            continue
        parts += _prose(before, f"{cell}-text")
        kind: Kind = next(
            (k for k in ("parameters", "exercise") if k in words), "check" if points else "code"
        )
        slide = words.get("slide", "skip" if kind in ("parameters", "check") else "-")
        parts.append(Part(cell, kind, fence["source"], slide, points))
    parts += _prose(text[at:], "end")
    _check(parts, wrong, name)
    title = parts[0].source.splitlines()[0].removeprefix("# ")
    return Lesson(name, title, tuple(parts), {cell: tuple(found) for cell, found in wrong.items()})


def _fence(words: str, name: str) -> tuple[str, int, dict[str, str]]:
    cell, *rest = words.split() or [""]
    found = {word.partition("=")[0]: word.partition("=")[2] for word in rest}
    if not _NAME.match(cell):
        raise NotebookError(
            f"{name}.md: a code fence needs a name, such as ```python first-look; got {words!r}."
        )
    for word in found:
        if word not in ("parameters", "exercise", "check", "wrong", "slide"):
            raise NotebookError(f"{name}.md, cell {cell}: a code fence knows no word {word!r}.")
    if found.get("slide", "-") not in SLIDES:
        raise NotebookError(
            f"{name}.md, cell {cell}: {found['slide']!r} is no slide type ({', '.join(SLIDES)})."
        )
    if "check" in found and not found["check"].isdecimal():
        raise NotebookError(f"{name}.md, cell {cell}: check= takes the points, such as check=2.")
    return cell, int(found.get("check", 0)), found


def _prose(text: str, cell: str) -> list[Part]:
    """Cut at headings; the last piece, which stands before a code cell, has that cell's name."""
    starts = [match.start() for match in _HEADING.finditer(text)]
    edges = sorted({0, *starts, len(text)})
    pieces = [text[a:b].strip() for a, b in pairwise(edges)]
    pieces = [piece for piece in pieces if piece]
    return [
        Part(
            cell if number == len(pieces) else f"{cell}-{len(pieces) - number}",
            "prose",
            piece,
            "slide" if _HEADING.match(piece) else "subslide",
        )
        for number, piece in enumerate(pieces, 1)
    ]


def _check(parts: list[Part], wrong: dict[str, list[str]], name: str) -> None:
    ids = [part.id for part in parts]
    for cell in ids:
        if ids.count(cell) > 1:
            raise NotebookError(f"{name}.md: two cells are named {cell!r}.")
    if not parts or not parts[0].source.startswith("# "):
        raise NotebookError(f"{name}.md: a lesson begins with its title, '# …'.")
    graded = [part for part in parts if part.kind in ("exercise", "check")]
    for part, kind in zip(graded, ("exercise", "check") * len(graded), strict=False):
        if part.kind != kind:
            raise NotebookError(f"{name}.md, cell {part.id}: each exercise is followed by its own check.")
        if kind == "exercise" and not part.source.count(BEGIN) == part.source.count(END) == 1:
            raise NotebookError(f"{name}.md, cell {part.id}: the solution stands between {BEGIN} and {END}.")
    if len(graded) % 2:
        raise NotebookError(f"{name}.md, cell {graded[-1].id}: this exercise has no check.")
    for cell in wrong:
        if cell not in {part.id for part in graded if part.kind == "exercise"}:
            raise NotebookError(f"{name}.md: a wrong answer to {cell!r}, which is no exercise.")
