"""Patterns: one text from several columns, such as ``{question}[[\\n\\nContext: {context}]]``."""

import re
from typing import Any

from sloth_nb.errors import DatasetError

__all__ = ["is_pattern", "merge_columns", "pattern_columns"]

_COLUMN = re.compile(r"\{([^{}]+?)(\?)?\}")


def is_pattern(text: str) -> bool:
    """Whether a mapping's value is a pattern rather than a column's name."""
    return bool(_COLUMN.search(text))


def pattern_columns(pattern: str) -> list[str]:
    """The columns that a pattern names."""
    return [match[1] for match in _COLUMN.finditer(pattern)]


def merge_columns(pattern: str, row: dict[str, Any]) -> str:
    """One text from several columns.

    ``{name}`` is a column's text. ``[[ … {name} … ]]`` and a line with ``{name?}`` are left out when that column is
    empty in this row.

    Raises:
        DatasetError: the pattern names a column that the row lacks.
    """
    pieces = re.split(r"\[\[(.*?)\]\]", _lines_as_blocks(pattern), flags=re.DOTALL)
    # Every other piece is a block: re.split gives what lies between them, and them.
    return "".join(_fill(piece, row, optional=bool(i % 2)) for i, piece in enumerate(pieces))


def _lines_as_blocks(pattern: str) -> str:
    """The pattern with every line that has an optional column as a block, its line break inside."""
    blocks = []
    for number, line in enumerate(pattern.split("\n")):
        broken = "\n" + line if number else line
        asks = any(match[2] for match in _COLUMN.finditer(line))
        blocks.append(f"[[{broken}]]" if asks and "[[" not in line and "]]" not in line else broken)
    return "".join(blocks)


def _fill(text: str, row: dict[str, Any], *, optional: bool) -> str:
    empty = False

    def cell(match: re.Match[str]) -> str:
        nonlocal empty
        if match[1] not in row:
            raise DatasetError(
                f"the pattern names a column {match[1]!r}; columns: {', '.join(map(repr, row))}"
            )
        value = "" if row[match[1]] is None else str(row[match[1]])
        empty |= not value.strip()
        return value

    filled = _COLUMN.sub(cell, text)
    return "" if optional and empty else filled
