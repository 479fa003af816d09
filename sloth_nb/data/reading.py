"""Reading: any usual source of rows becomes a ``datasets.Dataset``, and a broken one says where it breaks."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from sloth_nb.errors import DatasetError

__all__ = ["load_data"]

OnError = Literal["raise", "skip"]


def load_data(source: Any, *, on_error: OnError = "raise", split: str | None = None) -> Any:
    """The rows of ``source`` as a ``datasets.Dataset``.

    Args:
        source: a path to JSONL, JSON, CSV or Parquet; a list of dicts; a dict of columns; a
            ``datasets.Dataset``; or a ``DatasetDict`` (then ``split`` picks one).
        on_error: ``"skip"`` leaves broken lines out and warns with their number; ``"raise"`` stops at the
            first.
        split: which split of a ``DatasetDict``; with one split it may be left out.
    Raises:
        DatasetError: the source is missing, empty, broken, or of no known form.
    """
    import datasets

    if on_error not in ("raise", "skip"):
        raise DatasetError(f'on_error is "raise" or "skip", not {on_error!r}.')
    if isinstance(source, datasets.DatasetDict):
        return _pick_split(source, split)
    if isinstance(source, datasets.Dataset):
        dataset = source
    elif isinstance(source, (str, os.PathLike)):
        dataset = _read_file(Path(source), on_error)
    elif isinstance(source, Mapping):
        dataset = datasets.Dataset.from_dict(dict(source))
    elif isinstance(source, Iterable):
        dataset = rows_to_dataset(list(source), "the list")
    else:
        raise DatasetError(
            f"Can't read rows from a {type(source).__name__}. Give a path (JSONL, JSON, CSV, Parquet), "
            "a list of dicts, a dict of columns or a datasets.Dataset."
        )
    if len(dataset) == 0:
        raise DatasetError(f"{_name_of(source)} holds no rows. Training needs at least one.")
    return dataset


def _pick_split(splits: Any, split: str | None) -> Any:
    if split is None and len(splits) == 1:
        split = next(iter(splits))
    if split not in splits:
        asked = "Say which split to use" if split is None else f"There is no split {split!r}"
        raise DatasetError(f"{asked}: split= one of {', '.join(map(repr, splits))}.")
    return load_data(splits[split])


def _name_of(source: Any) -> str:
    return str(source) if isinstance(source, (str, os.PathLike)) else f"The {type(source).__name__}"


def _read_file(path: Path, on_error: OnError) -> Any:
    import datasets

    if not path.exists():
        near = (
            sorted(p.name for p in path.parent.glob("*") if p.is_file())[:5] if path.parent.is_dir() else []
        )
        beside = (
            f" Files beside it: {', '.join(near)}."
            if near
            else f" The folder {path.parent} "
            + ("is empty." if path.parent.is_dir() else "does not exist either.")
        )
        raise DatasetError(f"There is no file {path}.{beside}")
    if path.stat().st_size == 0:
        raise DatasetError(f"{path} is empty (0 bytes). Was the download or export finished?")
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return rows_to_dataset(list(read_jsonl(path, on_error)), str(path))
    if suffix == ".json":
        return rows_to_dataset(_read_json(path, on_error), str(path))
    if suffix == ".csv":
        return rows_to_dataset(_read_csv(path), str(path))
    if suffix == ".parquet":
        import pyarrow.parquet

        try:
            return datasets.Dataset(pyarrow.parquet.read_table(path))
        except (OSError, ValueError) as error:
            raise DatasetError(f"{path} is not a readable Parquet file ({error}).") from error
    raise DatasetError(
        f"{path.name}: files that end in {suffix or 'nothing'} can't be read. "
        "Known: .jsonl .json .csv .parquet"
    )


def read_jsonl(path: Path, on_error: OnError = "raise") -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, one a line; blank lines are passed over.

    Raises:
        DatasetError: with the line's number, when a line is not UTF-8, not JSON or not an object.
    """
    good, bad = 0, []
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            try:
                row = json.loads(raw)
                if not isinstance(row, dict):
                    raise TypeError(f"it holds {_json_kind(row)}, not an object")
            except (ValueError, TypeError) as error:
                reason = _json_reason(error)
                if on_error == "raise":
                    raise DatasetError(
                        f"line {number:,} of {path.name} is not a JSON row ({reason}).\n"
                        f"  {good:,} rows before it are fine. Fix the line, or pass "
                        'on_error="skip" to leave it out (it will be counted).'
                    ) from error
                bad.append((number, reason))
                continue
            good += 1
            yield row
    if bad:
        warn_skipped(path, bad)


def warn_skipped(path: Path, bad: list[tuple[int, str]]) -> None:
    import warnings

    from sloth_nb.errors import SlothWarning

    shown = "; ".join(f"line {number:,}: {reason}" for number, reason in bad[:5])
    more = f"; and {len(bad) - 5:,} more" if len(bad) > 5 else ""
    warnings.warn(
        f"{path.name}: {len(bad):,} broken lines left out ({shown}{more}).", SlothWarning, stacklevel=3
    )


def _json_kind(value: Any) -> str:
    kinds = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "true or false"}
    return kinds.get(type(value), "null")


def _json_reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg[0].lower()}{error.msg[1:]} at column {error.pos + 1}"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: byte 0x{error.object[error.start]:02x} at position {error.start}"
    return str(error)


def _read_json(path: Path, on_error: OnError) -> list[dict[str, Any]]:
    raw = path.read_bytes()
    try:
        value = json.loads(raw)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # several objects, one a line: JSONL under another name
            return list(read_jsonl(path, on_error))
        raise DatasetError(
            f"{path.name} is not JSON ({error.msg} at line {error.lineno}, column {error.colno})."
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path.name} is {_json_reason(error)}. Save it as UTF-8.") from error
    if isinstance(value, dict):
        tables = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        if len(tables) == 1:  # {"version": …, "data": [rows]}
            return tables[0]
        if value and all(isinstance(v, list) for v in value.values()):
            return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
        return [value]
    if not isinstance(value, list):
        raise DatasetError(f"{path.name} holds {_json_kind(value)}, not a list of rows.")
    return value


def _read_csv(path: Path) -> list[dict[str, Any]]:
    import csv

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = []
            for row in reader:
                if None in row:
                    raise DatasetError(
                        f"line {reader.line_num:,} of {path.name} has more cells than the header's "
                        f"{len(reader.fieldnames or [])} columns. A comma in a text needs quotes around it."
                    )
                rows.append(row)
            return rows
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path.name} is {_json_reason(error)}. Save it as UTF-8.") from error


# Their values are objects of free shape. Arrow would give every row the union of all rows' keys (filled with
# nulls), which changes what a template prints: they are kept as JSON text and parsed when a row is used.
FREE_FORM = {"tools", "functions", "arguments", "parameters"}


def _freeze(value: Any, key: str | None = None) -> Any:
    if key in FREE_FORM and isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return {k: _freeze(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_freeze(v) for v in value]
    return value


def rows_to_dataset(rows: list[Any], where: str) -> Any:
    """A Dataset of dicts whose columns are the union of all rows' keys (None where a row lacks one).

    Raises:
        DatasetError: a row is no dict, or a column mixes types (names the row and the column).
    """
    import datasets
    import pyarrow

    names: dict[str, None] = {}
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DatasetError(f"row {number:,} of {where} is {_json_kind(row)}, not a dict of columns.")
        names.update(dict.fromkeys(row))
    columns = {name: [_freeze(row.get(name), name) for row in rows] for name in names}
    return datasets.Dataset(
        pyarrow.table({name: _array(name, cells, where) for name, cells in columns.items()})
    )


def _array(name: str, cells: list[Any], where: str) -> Any:
    import pyarrow

    try:
        return pyarrow.array(cells)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError, OverflowError) as error:
        if all(cell is None or isinstance(cell, (dict, list)) for cell in cells):
            # Objects of different shapes (texts beside lists of parts, say): JSON text loses nothing of them.
            return pyarrow.array([None if c is None else json.dumps(c, ensure_ascii=False) for c in cells])
        raise DatasetError(_mixed(name, cells, where, error)) from error


def _mixed(name: str, values: list[Any], where: str, error: Exception) -> str:
    kinds: dict[str, int] = {}
    for number, value in enumerate(values, 1):
        if value is not None:
            kinds.setdefault(type(value).__name__, number)
    if len(kinds) > 1:
        found = ", ".join(f"{kind} (first in row {number:,})" for kind, number in kinds.items())
        return f"column {name!r} of {where} mixes types: {found}. Make them one type."
    return f"column {name!r} of {where} has rows of different shapes ({error})."
