"""Parameters of a notebook, as papermill has them: a tagged cell of defaults, then a cell of values."""

import ast
import copy
from collections.abc import Mapping
from typing import Any

import nbformat

from sloth_nb.errors import NotebookError, did_you_mean

__all__ = ["parameter_names", "parse_parameters", "with_parameters"]

_INJECTED = "injected-parameters"


def parse_parameters(pairs: list[str]) -> dict[str, Any]:
    """``["max_steps=2", "name=Moss"]`` → ``{"max_steps": 2, "name": "Moss"}``: Python literals, else text.

    Raises:
        NotebookError: a pair without ``=`` or whose name is none.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip().isidentifier():
            raise NotebookError(
                f"{pair!r} is no parameter. Write it as name=value, for example max_steps=20."
            )
        try:
            values[name.strip()] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[name.strip()] = text
    return values


def parameter_names(notebook: Any) -> list[str]:
    """The names that the cell tagged ``parameters`` assigns."""
    cell = _tagged(notebook)
    if cell is None:
        return []
    names = []
    for statement in ast.parse(cell.source).body:
        targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def with_parameters(notebook: Any, values: Mapping[str, Any]) -> Any:
    """A copy of the notebook with a cell that sets ``values``, after the one that holds their defaults.

    Raises:
        NotebookError: a name that the notebook has no default for.
    """
    notebook = copy.deepcopy(notebook)
    if not values:
        return notebook
    names = parameter_names(notebook)
    for name in values:
        if name not in names:
            hint = did_you_mean(name, names) or f" Its parameters: {', '.join(names) or 'none'}."
            raise NotebookError(f"The notebook has no parameter {name!r}.{hint}")
    source = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    cell = nbformat.v4.new_code_cell(source, id=_INJECTED, metadata={"tags": [_INJECTED]})
    notebook.cells.insert(notebook.cells.index(_tagged(notebook)) + 1, cell)
    return notebook


def _tagged(notebook: Any) -> Any:
    cells = (cell for cell in notebook.cells if cell.cell_type == "code")
    return next((cell for cell in cells if "parameters" in cell.metadata.get("tags", [])), None)
