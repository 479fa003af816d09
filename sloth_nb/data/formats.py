"""File formats: each reader yields rows or a table, decompresses on the way, and names what is broken."""

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from sloth_nb.errors import DatasetError

__all__ = [
    "COMPRESSED",
    "SUFFIXES",
    "OnError",
    "Skipped",
    "is_readable",
    "parse_row",
    "read_rows",
    "read_table",
    "refuse_wide",
    "suffix_of",
]

OnError = Literal["raise", "skip"]
COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2"}
_WIDE = (b"\xff\xfe", b"\xfe\xff")  # the marks that a UTF-16 file begins with
_HALF = re.compile(rb"\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]")  # may be half a character: a surrogate
PIECE = 1 << 20  # characters of running text that one row holds at least, when a text is longer


class Skipped(list[tuple[str, int, str]]):
    """Broken rows that were left out: (file, line, why)."""


def suffix_of(path: Path) -> tuple[str, str | None]:
    """A file's format and compression: ``.jsonl`` and ``gzip`` for rows.jsonl.gz."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        return (suffixes[-2] if len(suffixes) > 1 else ""), COMPRESSED[suffixes[-1]]
    return (suffixes[-1] if suffixes else ""), None


def is_readable(path: Path) -> bool:
    """Whether a file's name says that it can be read here."""
    suffix, compression = suffix_of(path)
    return suffix in _ROWS or (suffix in _TABLES and compression is None)


def open_bytes(path: Path) -> Any:
    """A file's bytes, decompressed. Close it."""
    import pyarrow

    compression = suffix_of(path)[1]
    return pyarrow.input_stream(str(path), compression=compression) if compression else path.open("rb")


def read_table(path: Path) -> Any | None:
    """A columnar file as an Arrow table; None when the format isn't columnar.

    Raises:
        DatasetError: the file is damaged.
    """
    reader = _TABLES.get(suffix_of(path)[0])
    if reader is None:
        return None
    try:
        return reader(path)
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} is damaged, or not what its name says ({error}).") from error


def read_rows(
    path: Path, on_error: OnError = "raise", skipped: Skipped | None = None, encoding: str = "utf-8"
) -> Iterator[dict[str, Any]]:
    """The rows of a file, one after another; nothing is held but the row at hand (a .json file: all of it).

    Args:
        skipped: broken rows are added here when ``on_error`` is ``"skip"``.
    Raises:
        DatasetError: a row is broken (with its line), or the format or the encoding isn't known.
    """
    encoding = _known(encoding)
    suffix = suffix_of(path)[0]
    reader = _ROWS.get(suffix)
    if reader is None:
        raise DatasetError(
            f"{path.name}: files that end in {suffix or 'nothing'} can't be read. "
            f"Known: {' '.join(SUFFIXES)} (and with {' '.join(COMPRESSED)})."
        )
    bad = skipped if skipped is not None else Skipped()
    try:
        refuse_wide(path, encoding)
        yield from reader(path, on_error, bad, encoding)
    except UnicodeDecodeError as error:
        raise DatasetError(_encoding(path, error)) from error
    except OSError as error:
        if suffix_of(path)[1] is None:
            raise
        raise DatasetError(
            f"{path.name} can't be decompressed ({error}). Was the download finished?"
        ) from error


def _encoding(path: Path, error: UnicodeDecodeError) -> str:
    return (
        f"{path.name} is {json_reason(error)}. Save it as {error.encoding.upper()}, or say what it is: "
        f'load_data("{path.name}", encoding="latin-1").'
    )


def _known(encoding: str) -> str:
    """An encoding by Python's own name for it: utf-16 for u16."""
    try:
        " ".encode(encoding)  # a codec that isn't of texts is refused too
    except LookupError as error:
        raise DatasetError(
            f'There is no text encoding {encoding!r}. Name one that Python knows, such as encoding="latin-1".'
        ) from error
    return codecs.lookup(encoding).name


def refuse_wide(path: Path, encoding: str = "utf-8") -> None:
    """Raises DatasetError for a file that says of itself that it is UTF-16, when it is to be read as something else."""
    with open_bytes(path) as file:
        marked = file.read(2) in _WIDE
    if marked and not _is_wide(encoding):
        raise DatasetError(
            f"{path.name} is UTF-16, as its first two bytes say, not {encoding.upper()}. Save it as UTF-8, or "
            f'say what it is: load_data("{path.name}", encoding="utf-16").'
        )


def _is_wide(encoding: str) -> bool:
    """Whether a line's end takes more than one byte."""
    return _known(encoding).startswith(("utf-16", "utf-32"))


def parse_row(raw: bytes, encoding: str = "utf-8") -> dict[str, Any]:
    """The row that one line of JSONL holds.

    Raises:
        ValueError, TypeError: it is no JSON, no text of this encoding, or no object; see ``json_reason``.
    """
    row = json.loads(raw if encoding == "utf-8" else raw.decode(encoding))
    if not isinstance(row, dict):
        raise TypeError(f"it holds {json_kind(row)}, not an object")
    if _HALF.search(raw):
        json.dumps(row, ensure_ascii=False).encode()
    return row


def _jsonl(path: Path, on_error: OnError, skipped: Skipped, encoding: str) -> Iterator[dict[str, Any]]:
    good = 0
    with open_bytes(path) as file:
        lines: Iterable[bytes] = file if suffix_of(path)[1] is None else io.BufferedReader(file)
        if _is_wide(encoding):
            lines = (line.encode() for line in io.TextIOWrapper(file, encoding, newline="\n"))
            encoding = "utf-8"
        for number, raw in enumerate(lines, 1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            try:
                row = parse_row(raw, encoding)
            except (ValueError, TypeError) as error:
                reason = json_reason(error)
                if on_error == "raise":
                    raise DatasetError(
                        f"line {number:,} of {path.name} is not a JSON row ({reason}).\n"
                        f"  {_rows(good)} before it {'is' if good == 1 else 'are'} fine. Fix the line, or pass "
                        'on_error="skip" to leave it out (it will be counted).'
                    ) from error
                skipped.append((path.name, number, reason))
                continue
            good += 1
            yield row


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def json_kind(value: Any) -> str:
    """What a JSON value is, in words."""
    kinds = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "true or false"}
    return kinds.get(type(value), "null")


def json_reason(error: Exception) -> str:
    """Why a text is not JSON, bytes are not text, or text can't be bytes, in words."""
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[0].lower()}{error.msg[1:].removesuffix(' at')} at column {error.colno}"
    if isinstance(error, UnicodeDecodeError):
        name = error.encoding.upper()
        return f"not {name}: byte 0x{error.object[error.start]:02x} at position {error.start}"
    if isinstance(error, UnicodeEncodeError):
        return f"it holds {error.object[error.start]!a}, half of a character whose other half is missing"
    return str(error)


def _json(path: Path, on_error: OnError, skipped: Skipped, encoding: str) -> Iterator[dict[str, Any]]:
    with open_bytes(path) as file:
        text = file.read().decode(_with_mark(encoding))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # several objects, one a line: JSONL under another name
            return _jsonl(path, on_error, skipped, encoding)
        raise DatasetError(
            f"{path.name} is not JSON ({error.msg} at line {error.lineno}, column {error.colno})."
        ) from error
    return iter(_rows_in(value, path))


def _rows_in(value: Any, path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON document: a list of them, one table inside an object, or an object of columns."""
    if isinstance(value, dict):
        tables = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        if len(tables) == 1 and not {"messages", "conversations"} & set(value):
            return tables[0]
        if (
            value
            and all(isinstance(v, list) for v in value.values())
            and len({*map(len, value.values())}) == 1
        ):
            return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
        return [value]
    if not isinstance(value, list):
        raise DatasetError(f"{path.name} holds {json_kind(value)}, not a list of rows.")
    if value and all(isinstance(item, list) for item in value):
        return [{"conversations": item} for item in value]
    return value


def _with_mark(encoding: str) -> str:
    return "utf-8-sig" if encoding == "utf-8" else encoding


def _csv(path: Path, on_error: OnError, skipped: Skipped, encoding: str) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(1 << 30)
    with open_bytes(path) as file:
        text = io.TextIOWrapper(file, encoding=_with_mark(encoding), newline="")
        header = text.readline()
        reader = csv.DictReader(_after(header, text), delimiter=_delimiter(path, header))
        columns = len(reader.fieldnames or [])
        for row in reader:
            if None in row:
                why = f"more cells than the header's {columns} columns"
                if on_error == "raise":
                    raise DatasetError(
                        f"line {reader.line_num:,} of {path.name} has {why}. A comma in a text needs quotes "
                        'around it. Fix the line, or pass on_error="skip" to leave it out (and count it).'
                    )
                skipped.append((path.name, reader.line_num, why))
                continue
            yield row


def _after(first: str, rest: Any) -> Iterator[str]:
    yield first
    yield from rest


def _delimiter(path: Path, header: str) -> str:
    """The character that parts cells: a tab in .tsv; in .csv the comma, unless the header has only others."""
    if suffix_of(path)[0] in (".tsv", ".tab"):
        return "\t"
    return next((mark for mark in (",", ";", "\t", "|") if mark in header), ",")


def _text(path: Path, on_error: OnError, skipped: Skipped, encoding: str) -> Iterator[dict[str, Any]]:
    """A text as one row; a long one as several, parted at empty lines."""
    with open_bytes(path) as file:
        held: list[str] = []
        size = 0
        for line in io.TextIOWrapper(file, encoding=_with_mark(encoding)):
            held.append(line)
            size += len(line)
            if size >= PIECE and not line.strip():
                yield {"text": "".join(held).strip("\n")}
                held, size = [], 0
        if (rest := "".join(held).strip("\n")).strip():
            yield {"text": rest}


def _parquet(path: Path) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path)


def _arrow(path: Path) -> Any:
    import pyarrow

    source = pyarrow.memory_map(str(path))
    try:
        return pyarrow.ipc.open_file(source).read_all()
    except pyarrow.ArrowInvalid:
        source.seek(0)
        return pyarrow.ipc.open_stream(source).read_all()


_ROWS: dict[str, Callable[[Path, OnError, Skipped, str], Iterator[dict[str, Any]]]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".tab": _csv,
    ".txt": _text,
    ".text": _text,
    ".md": _text,
    ".markdown": _text,
}
_TABLES: dict[str, Callable[[Path], Any]] = {
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
    ".ipc": _arrow,
}
SUFFIXES = (*_ROWS, *_TABLES)
