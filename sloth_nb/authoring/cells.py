"""Cells and what they make: an nbformat 4.5 notebook, the same bytes whenever it is made from the same cells.

Needs neither nbformat nor Jupyter: a notebook is JSON. Cell ids are the author's names, so that a regenerated
notebook differs from the last one only where a cell does.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sloth_nb.errors import NotebookError

__all__ = ["PYTHON", "Cell", "as_notebook", "as_text", "code", "markdown", "read_cells", "save"]

PYTHON = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
# A line that begins a cell: `%%% markdown title`, `%%% code settings parameters`, `%%% code ex-1 {"nbgrader": {…}}`.
_MARK = re.compile(
    r"^%%% (?P<kind>\w+) (?P<id>\S+)(?P<tags>(?: [\w:-]+)*)(?: (?P<metadata>\{.*\}))?[ \t]*$", re.M
)


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        id: unique in its notebook; letters, digits, ``-`` and ``_``, at most 64.
        tags: Jupyter's cell tags ("parameters", "remove-input", …).
        metadata: more of the cell's metadata (``nbgrader``, ``slideshow``, …).
    """

    kind: Literal["markdown", "code"]
    id: str
    source: str
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The cell as nbformat 4.5 has it, its source in lines as in a file."""
        tags = {"tags": list(self.tags)} if self.tags else {}
        cell: dict[str, Any] = {
            "cell_type": self.kind,
            "id": self.id,
            "metadata": {**self.metadata, **tags},
            "source": self.source.splitlines(keepends=True),
        }
        if self.kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        return cell


def markdown(id: str, source: str, *, tags: Iterable[str] = (), **metadata: Any) -> Cell:
    """A cell of prose; blank lines around it are dropped."""
    return Cell("markdown", id, source.strip("\n"), tuple(tags), metadata)


def code(id: str, source: str, *, tags: Iterable[str] = (), **metadata: Any) -> Cell:
    """A cell of Python; blank lines around it are dropped."""
    return Cell("code", id, source.strip("\n"), tuple(tags), metadata)


def read_cells(text: str, where: str = "the text") -> list[Cell]:
    """Cells written one after another in a text, each under a line ``%%% kind id [tags] [{metadata}]``.

    Example:
        >>> read_cells("%%% markdown title\\n# Hello\\n%%% code add slow\\n1 + 1")
    Raises:
        NotebookError: text before the first mark, or a cell of an unknown kind.
    """
    marks = list(_MARK.finditer(text))
    if text[: marks[0].start() if marks else None].strip():
        raise NotebookError(f"{where} begins before its first cell. Begin a cell with: %%% markdown title")
    cells = []
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        source = text[mark.end() : following.start() if following else None].strip("\n")
        if mark["kind"] not in ("markdown", "code"):
            raise NotebookError(f"{where}: a cell is markdown or code, not {mark['kind']!r} ({mark['id']}).")
        metadata = json.loads(mark["metadata"] or "{}")
        cells.append(Cell(mark["kind"], mark["id"], source.rstrip(), tuple(mark["tags"].split()), metadata))
    return cells


def as_notebook(cells: Iterable[Cell], metadata: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A notebook of these cells, as JSON data; ``nbformat.from_dict`` makes its own kind of it.

    Args:
        metadata: the notebook's own; without it, that of a plain Python notebook.
    Raises:
        NotebookError: an id that nbformat doesn't take, or that two cells have.
    """
    written: dict[str, Cell] = {}
    for cell in cells:
        if not _ID.fullmatch(cell.id):
            raise NotebookError(f"{cell.id!r} is no cell id: letters, digits, - and _, at most 64 of them.")
        if cell.id in written:
            raise NotebookError(f"Two cells have the id {cell.id!r}; each needs its own.")
        written[cell.id] = cell
    return {
        "cells": [cell.as_json() for cell in written.values()],
        "metadata": dict(PYTHON if metadata is None else metadata),
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def as_text(notebook: Mapping[str, Any]) -> str:
    """The notebook's file: the very text that nbformat would write."""
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def save(text: str, path: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Writes a file in UTF-8 with plain line ends, making its folder.

    Raises:
        NotebookError: the file exists and ``force`` is not given, or it can't be written.
    """
    path = Path(path)
    if path.exists() and not force:
        raise NotebookError(
            f"{path} exists already and is left as it is. Give another name, or force=True (--force)."
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise NotebookError(f"{path} can't be written: {error.strerror}.") from error
    return path
