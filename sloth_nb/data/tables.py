"""From rows of any shape to one Arrow table: every key kept, free objects kept whole, mixed types named."""

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from sloth_nb.data.formats import json_kind, json_reason
from sloth_nb.errors import DatasetError

__all__ = [
    "NOT_MADE",
    "check_names",
    "columns_to_dataset",
    "concat_tables",
    "frozen",
    "rows_to_dataset",
    "rows_to_table",
]

BATCH = 10_000

# Their values are objects of free shape. Arrow would give every row the union of all rows' keys (filled with
# nulls), which changes what a template prints: they are kept as JSON text and parsed when a row is used.
FREE_FORM = {"tools", "functions", "arguments", "parameters"}

# What a conversion ends in, where a column can't be made. Arrow's and Unicode's own errors are among them.
NOT_MADE = (TypeError, ValueError, OverflowError, NotImplementedError)


def rows_to_dataset(rows: Iterable[Any], where: str) -> Any:
    """A Dataset of dicts whose columns are the union of all rows' keys (None where a row lacks one).

    Raises:
        DatasetError: a row is no dict, or a column mixes types (names the row and the column).
    """
    import datasets

    return datasets.Dataset(rows_to_table(rows, where))


def columns_to_dataset(columns: Mapping[str, Any], where: str) -> Any:
    """A Dataset of whole columns: lists of texts and numbers or of objects of any shape, or typed arrays.

    Raises:
        DatasetError: columns of different lengths, or one that mixes types or can't be written (names it).
    """
    import datasets
    import pyarrow

    lengths = {name: len(cells) for name, cells in columns.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name!r} {length:,}" for name, length in lengths.items())
        raise DatasetError(f"the columns of {where} have different numbers of rows: {found}.")
    arrays = {name: _array(name, cells, where, 0) for name, cells in columns.items()}
    return datasets.Dataset(pyarrow.table(arrays))


def rows_to_table(rows: Iterable[Any], where: str) -> Any:
    """Like ``rows_to_dataset``, as an Arrow table. Rows are taken in batches; only the table is whole."""
    import pyarrow

    tables, done = [], 0
    source = iter(rows)
    while batch := list(islice(source, BATCH)):
        tables.append(_batch(batch, where, done))
        done += len(batch)
    return concat_tables(tables, where) if tables else pyarrow.table({})


def _batch(rows: list[Any], where: str, before: int) -> Any:
    import pyarrow

    names: dict[str, None] = {}
    for number, row in enumerate(rows, before + 1):
        if not isinstance(row, dict):
            raise DatasetError(f"row {number:,} of {where} is {json_kind(row)}, not a dict of columns.")
        names.update(dict.fromkeys(row))
    check_names(names, where)
    columns = {name: [row.get(name) for row in rows] for name in names}
    return pyarrow.table({name: _array(name, cells, where, before) for name, cells in columns.items()})


def check_names(names: Iterable[Any], where: str) -> None:
    """Raises DatasetError for a column's name that is no text that can be written, or that comes twice."""
    seen = set()
    for name in names:
        if not isinstance(name, str) or "\0" in name or not _can_be_written(name):
            raise DatasetError(
                f"{where} has a column named {name!r}; a column's name is text, without NUL or half characters. "
                "Rename it."
            )
        if name in seen:
            raise DatasetError(
                f"{where} has several columns named {name!r}. Rename all but one, or drop them."
            )
        seen.add(name)


def frozen(name: str, cells: Any) -> Any:
    """A column's cells with the objects of free shape in them as JSON text; typed arrays, which hold none, as given."""
    typed = str(getattr(cells, "dtype", "object")) != "object"
    return cells if typed else [_freeze(cell, name) for cell in cells]


def _freeze(value: Any, key: str | None = None) -> Any:
    if key in FREE_FORM and isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return {k: _freeze(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_freeze(v) for v in value]
    return value


def _array(name: str, cells: Any, where: str, before: int) -> Any:
    import pyarrow

    try:
        cells = frozen(name, cells)
        return pyarrow.array(cells)
    except UnicodeEncodeError as error:
        raise DatasetError(_half(name, cells, where, before, error)) from error
    except NOT_MADE as error:
        if all(cell is None or isinstance(cell, (dict, list)) for cell in cells):
            return _as_json(name, cells, where, before)
        raise DatasetError(_mixed(name, cells, where, before, error)) from error


def _as_json(name: str, cells: list[Any], where: str, before: int) -> Any:
    """Objects of different shapes (texts beside lists of parts, say) as JSON text, which loses nothing of them."""
    try:
        texts = [None if cell is None else json.dumps(cell, ensure_ascii=False) for cell in cells]
    except NOT_MADE as error:
        raise DatasetError(_mixed(name, cells, where, before, error)) from error
    return _array(name, texts, where, before)


def _half(name: str, cells: Any, where: str, before: int, error: UnicodeEncodeError) -> str:
    """What to say of a column of which some text can't be written as UTF-8."""
    numbers = (n for n, cell in enumerate(cells, before + 1) if not _can_be_written(cell))
    return f"row {next(numbers):,} of {where}, column {name!r}: {json_reason(error)}. Mend the row, or leave it out."


def _can_be_written(cell: Any) -> bool:
    import pyarrow

    try:
        pyarrow.array([cell])
    except UnicodeEncodeError:
        return False
    except NOT_MADE:
        pass
    return True


def _mixed(name: str, cells: Any, where: str, before: int, error: Exception) -> str:
    kinds: dict[str, int] = {}
    for number, value in enumerate(cells, before + 1):
        if value is not None:
            kinds.setdefault(type(value).__name__, number)
    if len(kinds) > 1:
        found = ", ".join(f"{kind} (first in row {number:,})" for kind, number in kinds.items())
        return f"column {name!r} of {where} mixes types: {found}. Make them one type."
    return (
        f"column {name!r} of {where} holds {', '.join(kinds)}, which can't be kept ({error}). "
        "Make it texts, numbers, or lists and dicts of them."
    )


def concat_tables(tables: list[Any], where: str) -> Any:
    """Tables one after another; columns that some lack are filled with None.

    Raises:
        DatasetError: a column has types that can't be one, with both.
    """
    import pyarrow

    try:
        return pyarrow.concat_tables(tables, promote_options="permissive")
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        return pyarrow.concat_tables(list(_made_alike(tables, where)), promote_options="permissive")


def _made_alike(tables: list[Any], where: str) -> Iterator[Any]:
    """The tables with columns as JSON text where some hold objects and others already such text."""
    import pyarrow

    types: dict[str, set[Any]] = {}
    for table in tables:
        for entry in table.schema:
            types.setdefault(entry.name, set()).add(entry.type)
    for table in tables:
        for name in table.column_names:
            found = types[name] - {pyarrow.null()}
            objects = {t for t in found if pyarrow.types.is_nested(t)}
            texts = {t for t in found if pyarrow.types.is_string(t) or pyarrow.types.is_large_string(t)}
            if len(found) > 1 and not objects and not _numeric(found):
                kinds = " and ".join(sorted(map(str, found)))
                raise DatasetError(f"column {name!r} of {where} mixes types: {kinds}. Make them one type.")
            if (
                objects
                and len(found) > 1
                and found == objects | texts
                and table.schema.field(name).type in objects
            ):
                cells = _as_json(name, table.column(name).to_pylist(), where, 0)
                table = table.set_column(table.column_names.index(name), name, cells)
        yield table


def _numeric(types: set[Any]) -> bool:
    import pyarrow

    return all(pyarrow.types.is_integer(t) or pyarrow.types.is_floating(t) for t in types)
