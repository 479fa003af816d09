"""Rows on demand: a page of any source without reading the whole of it, however long the file.

A JSONL file is indexed by the places of its lines, and only as far as it was looked at; a Parquet file is
read by row groups; what can only be read forwards (compressed files, CSV, streams) is read forwards.
"""

import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from sloth_nb.data.formats import json_reason, parse_row, read_rows, refuse_wide, suffix_of
from sloth_nb.data.reading import find_files, load_data

__all__ = ["FoundRows", "Rows", "open_rows"]

_CHUNK = 8 << 20
_PIECE = 256 << 10  # one line's place in so many bytes is kept: 8,000 for 2 GB


class Rows(Protocol):
    """A source of rows that can be looked into anywhere."""

    @property
    def known(self) -> int | None:
        """How many rows there are, when that is known already."""

    def estimate(self) -> int:
        """How many rows there are, or about how many."""

    def page(self, start: int, count: int) -> list[dict[str, Any]]:
        """Rows ``start`` to ``start + count``, fewer at the end."""


class DatasetRows:
    """Rows of a ``datasets.Dataset``: it is on disk or in memory, and knows its length."""

    def __init__(self, dataset: Any):
        self.dataset = dataset

    @property
    def known(self) -> int:
        return len(self.dataset)

    def estimate(self) -> int:
        return len(self.dataset)

    def page(self, start: int, count: int) -> list[dict[str, Any]]:
        batch = self.dataset[max(0, start) : max(0, start) + count]
        return [dict(zip(batch, cells, strict=True)) for cells in zip(*batch.values(), strict=True)]


class LineRows:
    """Rows of a JSONL file. A broken line becomes a row that says so, under ``BROKEN``."""

    BROKEN = "(not a row)"

    def __init__(self, path: Path):
        refuse_wide(path)
        self.path = path
        self.size = path.stat().st_size
        self._marks, self._places = [0], [0]  # some lines' numbers, and where they begin
        self._lines = 0  # whole lines seen so far
        self._read = 0  # bytes looked through so far
        self._ended = self.size == 0

    @property
    def known(self) -> int | None:
        return self._lines if self._ended else None

    def estimate(self) -> int:
        if not self._ended and not self._lines:
            self._look_further()
        return self._lines if self._ended else round(self._lines * self.size / self._read)

    def page(self, start: int, count: int) -> list[dict[str, Any]]:
        start = max(0, start)
        while not self._ended and self._lines < start + count:
            self._look_further()
        if start >= self._lines:
            return []
        with self.path.open("rb") as file:
            mark = bisect_right(self._marks, start) - 1
            file.seek(self._places[mark])
            first = start - self._marks[mark]
            lines = islice(file, first, first + count)
            return [self._row(raw, start + i) for i, raw in enumerate(lines)]

    def _row(self, raw: bytes, number: int) -> dict[str, Any]:
        if number == 0:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            return parse_row(raw)
        except (ValueError, TypeError) as error:
            return {self.BROKEN: f"line {number + 1:,}: {json_reason(error)}"}

    def _look_further(self) -> None:
        """Finds the line ends of one more chunk."""
        with self.path.open("rb") as file:
            file.seek(self._read)
            chunk = file.read(_CHUNK)
        for begin in range(0, len(chunk), _PIECE):
            if ended := chunk.count(b"\n", begin, begin + _PIECE):
                self._lines += ended
                self._marks.append(self._lines)
                self._places.append(self._read + chunk.rfind(b"\n", begin, begin + _PIECE) + 1)
        self._read += len(chunk)
        if self._read >= self.size or not chunk:
            self._ended = True
            self._lines += not chunk.endswith(b"\n")


class ParquetRows:
    """Rows of Parquet files, one row group in memory at a time."""

    def __init__(self, files: list[Path]):
        import pyarrow.parquet

        self._files = [pyarrow.parquet.ParquetFile(file) for file in files]
        self._groups = [
            (f, g, f.metadata.row_group(g).num_rows) for f in self._files for g in range(f.num_row_groups)
        ]
        self._held: tuple[int, Any] = (-1, None)

    @property
    def known(self) -> int:
        return sum(rows for _, _, rows in self._groups)

    def estimate(self) -> int:
        return self.known

    def page(self, start: int, count: int) -> list[dict[str, Any]]:
        page, begin = [], 0
        for number, (file, group, rows) in enumerate(self._groups):
            if begin < start + count and start < begin + rows:
                if self._held[0] != number:
                    self._held = (number, file.read_row_group(group))
                at = max(0, start - begin)
                page += self._held[1].slice(at, start + count - begin - at).to_pylist()
            begin += rows
        return page


class StreamRows:
    """Rows that can only be read forwards. Going back starts over; the last ``keep`` rows are held."""

    def __init__(self, begin: Callable[[], Iterable[dict[str, Any]]], keep: int = 2000):
        self._begin, self._keep = begin, keep
        self._known: int | None = None
        self._restart()

    def _restart(self) -> None:
        self._rows: Iterator[dict[str, Any]] = iter(self._begin())
        self._held: list[dict[str, Any]] = []
        self._from = 0

    @property
    def known(self) -> int | None:
        return self._known

    def estimate(self) -> int:
        return self._known if self._known is not None else self._from + len(self._held)

    def page(self, start: int, count: int) -> list[dict[str, Any]]:
        start = max(0, start)
        if start < self._from:
            self._restart()
        while self._from + len(self._held) < start + count:
            more = list(islice(self._rows, self._keep))
            self._held += more
            if not more:
                self._known = self._from + len(self._held)
                break
            if (spare := min(len(self._held) - self._keep, start - self._from)) > 0:
                self._held, self._from = self._held[spare:], self._from + spare
        return self._held[start - self._from : start - self._from + count]


class FoundRows:
    """The rows of a source that hold a text somewhere, looked for as they are asked for.

    Args:
        seconds: how long one call may look; what was not reached is looked for by the next.
    """

    def __init__(self, rows: Rows, text: str, seconds: float = 1.0):
        self.rows, self.text, self.seconds = rows, text.casefold(), seconds
        self.places: list[int] = []  # the numbers of the rows found, in the source
        self.looked = 0
        self.ended = False

    @property
    def known(self) -> int | None:
        return len(self.places) if self.ended else None

    def estimate(self) -> int:
        return len(self.places)

    def page(self, start: int, count: int) -> list[dict[str, Any]]:
        until = time.monotonic() + self.seconds
        while not self.ended and len(self.places) < start + count and time.monotonic() < until:
            page = self.rows.page(self.looked, 500)
            self.places += [self.looked + i for i, row in enumerate(page) if _holds(row, self.text)]
            self.looked += len(page)
            self.ended = len(page) < 500
        return [self.rows.page(place, 1)[0] for place in self.places[max(0, start) : max(0, start) + count]]


def _holds(value: Any, text: str) -> bool:
    if isinstance(value, str):
        return text in value.casefold()
    if isinstance(value, dict):
        return any(_holds(inner, text) for inner in value.values())
    if isinstance(value, (list, tuple)):
        return any(_holds(inner, text) for inner in value)
    return value is not None and text in str(value).casefold()


def open_rows(source: Any) -> Rows:
    """Any source that ``load_data`` takes, as rows on demand. Long files are not read to be opened.

    Raises:
        DatasetError: the source is missing, empty or of no known form.
    """
    import datasets

    if isinstance(source, datasets.IterableDataset):
        return StreamRows(lambda: source)
    if not isinstance(source, (str, os.PathLike)) or "://" in str(source):
        return _loaded(source)
    path = Path(source).expanduser()
    if path.is_dir() and (path / "dataset_info.json").exists():
        return _loaded(source)
    if not path.exists() and not any(mark in str(path) for mark in "*?["):
        return _loaded(source)
    files = find_files(path)
    kinds = {suffix_of(file) for file in files}
    if kinds == {(".parquet", None)}:
        return ParquetRows(files)
    if len(files) == 1 and kinds <= {(".jsonl", None), (".ndjson", None)}:
        return LineRows(files[0])
    if kinds & {(".arrow", None), (".feather", None), (".ipc", None), (".json", None), (".parquet", None)}:
        return _loaded(source)
    return StreamRows(lambda: (row for file in files for row in read_rows(file, "skip")))


def _loaded(source: Any) -> Rows:
    import datasets

    loaded = load_data(source)
    return StreamRows(lambda: loaded) if isinstance(loaded, datasets.IterableDataset) else DatasetRows(loaded)
