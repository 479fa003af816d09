"""formatting_func: a user's function that writes the text of a row, or, as in older tutorials, of a batch of rows."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from sloth_nb.errors import DatasetError

__all__ = ["FormattingFunction", "formatted"]

FormattingFunction = Callable[[dict[str, Any]], str | list[str]]
Row = dict[str, Any]

_BATCH = 1000


def formatted(rows: Iterable[Row], function: FormattingFunction) -> Iterator[str]:
    """What ``function`` makes of each row; a list makes several rows of one.

    Raises:
        DatasetError: it makes anything but text, or a list from which it can't be told what the function takes.
    """
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        return
    rows, done = chain([first], rows), 0
    if not _takes_batches(function, first):
        for number, row in enumerate(rows, start=1):
            yield from _texts(function(row), f"row {number:,}")
        return
    while batch := list(islice(rows, _BATCH)):
        yield from _texts(function(_columns(batch)), f"rows {done + 1:,} to {done + len(batch):,}")
        done += len(batch)


def _texts(made: Any, where: str) -> list[str]:
    made = [made] if isinstance(made, str) else made
    if not isinstance(made, list) or not all(isinstance(text, str) for text in made):
        raise DatasetError(
            f"formatting_func made a {type(made).__name__} of {where}; it must return the row's "
            "text (or a list of texts)."
        )
    return made


def _takes_batches(function: FormattingFunction, row: Row) -> bool:
    """Whether the function is written for a batch of rows: columns in, one text for each row out.

    Given a single row it would walk through the letters of a cell. It is known by what it makes of the row once and
    twice: one text, and the same one twice.
    """
    for_row, error = _tried(function, row)
    if isinstance(for_row, str):
        return False
    once, _ = _tried(function, _columns([row]))
    twice, _ = _tried(function, _columns([row, row]))
    if not (isinstance(once, list) and len(once) == 1 and isinstance(once[0], str) and twice == once * 2):
        return False
    # A function of one row that walks through a cell's list, f"{item}" for each, does the same to a batch.
    if error is None and any(
        isinstance(cell, list | dict) and repr(cell) in once[0] for cell in row.values()
    ):
        raise DatasetError(
            "formatting_func makes a list of texts both of a row and of a batch of rows, and it can't be told which it "
            "is meant for. Return one string for each row."
        )
    return True


def _tried(function: FormattingFunction, argument: Row) -> tuple[Any, Exception | None]:
    try:
        return function(argument), None
    except Exception as error:  # whatever a user's function raises of what it isn't written for
        return None, error


def _columns(rows: list[Row]) -> dict[str, list[Any]]:
    return {name: [row.get(name) for row in rows] for name in rows[0]}
