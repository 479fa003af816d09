"""Reading: any usual source of rows becomes a ``datasets.Dataset``, and a broken one says where it breaks."""

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sloth_nb.data.formats import COMPRESSED, SUFFIXES, OnError, Skipped, is_readable, read_rows, read_table
from sloth_nb.data.tables import (
    NOT_MADE,
    check_names,
    columns_to_dataset,
    concat_tables,
    frozen,
    rows_to_dataset,
    rows_to_table,
)
from sloth_nb.errors import DatasetError
from sloth_nb.interrupts import told
from sloth_nb.notices import warn

__all__ = ["Split", "find_files", "load_data"]

Split = str | Callable[[list[str]], str] | None

_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval", "held_out")


@told("Interrupted while the data was read: none is kept. The source is as it was.")
def load_data(
    source: Any, *, on_error: OnError = "raise", split: Split = None, encoding: str = "utf-8"
) -> Any:
    """The rows of ``source`` as a ``datasets.Dataset`` (a streaming one passes through).

    Args:
        source: a path to JSONL, JSON, CSV, TSV, Parquet, Arrow, text or Markdown, plain or compressed (gz,
            zst, bz2); a folder of such files, a glob, a URL or a hub id; a list of dicts or a dict of
            columns; a pandas or polars frame or an Arrow table; a ``datasets.Dataset``, ``DatasetDict`` or
            ``IterableDataset``.
        on_error: ``"skip"`` leaves broken lines out and warns with their number; ``"raise"`` stops at the
            first.
        split: which split of a ``DatasetDict``, a folder or a hub data set, or a function that chooses among
            the names of several; with one split it may be left out.
        encoding: of text files.
    Raises:
        DatasetError: the source is missing, empty, broken, or of no known form.
    """
    import datasets

    if on_error not in ("raise", "skip"):
        raise DatasetError(f'on_error is "raise" or "skip", not {on_error!r}.')
    if isinstance(source, (datasets.DatasetDict, datasets.IterableDatasetDict)):
        return load_data(source[_chosen(list(source), split)])
    if isinstance(source, datasets.IterableDataset):
        return source
    if isinstance(source, datasets.Dataset):
        dataset = source
    elif isinstance(source, (str, os.PathLike)):
        dataset = _read_path(str(source), on_error, split, encoding)
    elif (frame := _from_frame(source)) is not None:
        dataset = frame
    elif isinstance(source, Mapping):
        dataset = _from_columns(source)
    elif isinstance(source, Iterable):
        dataset = rows_to_dataset(source, "the list")
    else:
        raise DatasetError(
            f"Can't read rows from a {type(source).__name__}. Give a path, a list of dicts, a dict of "
            "columns, a data frame or a datasets.Dataset."
        )
    if len(dataset) == 0:
        raise DatasetError(f"{_name_of(source)} holds no rows. Training needs at least one.")
    return dataset


def _chosen(splits: list[str], split: Split) -> str:
    if callable(split):
        split = split(splits) if len(splits) > 1 else None
    if split is None and len(splits) == 1:
        return splits[0]
    if split not in splits:
        if not splits:
            raise DatasetError(f"There is no split {split!r}: none is named here. Leave split= out.")
        asked = "Say which split to use" if split is None else f"There is no split {split!r}"
        example = f"load_data(…, split={splits[0]!r})"
        raise DatasetError(f"{asked} ({example}): split= one of {', '.join(map(repr, splits))}.")
    return split


def _name_of(source: Any) -> str:
    return str(source) if isinstance(source, (str, os.PathLike)) else f"The {type(source).__name__}"


def _from_columns(source: Mapping[Any, Any]) -> Any:
    """A Dataset of a dict of columns, by ``datasets``' own rules; what these refuse is named, or kept as JSON text."""
    import datasets

    for name, cells in source.items():
        if isinstance(cells, (str, bytes, Mapping)) or not isinstance(cells, Iterable):
            raise DatasetError(
                f"Column {name!r} of the dict is a {type(cells).__name__}, not a list with a cell for each row."
            )
    check_names(map(str, source), "the dict")
    columns = {
        str(name): cells if hasattr(cells, "__len__") else list(cells) for name, cells in source.items()
    }
    try:
        return datasets.Dataset.from_dict({name: frozen(name, cells) for name, cells in columns.items()})
    except NOT_MADE:
        return columns_to_dataset({name: list(cells) for name, cells in columns.items()}, "the dict")


def _from_pandas(frame: Any) -> Any:
    check_names(map(str, frame.columns), "the DataFrame")
    columns = {
        str(name): cells.astype(object).where(cells.notna(), None) if cells.dtype.kind == "O" else cells
        for name, cells in frame.items()
    }
    return columns_to_dataset(columns, "the DataFrame")


def _from_frame(source: Any) -> Any | None:
    """A Dataset of a pandas or polars frame or an Arrow table; None for anything else. Imports neither."""
    import datasets

    package, name = type(source).__module__.partition(".")[0], type(source).__name__
    if (package, name) == ("pandas", "DataFrame"):
        return _from_pandas(source)
    if (package, name) == ("polars", "DataFrame"):
        return datasets.Dataset(source.to_arrow())
    if (package, name) == ("polars", "LazyFrame"):
        return datasets.Dataset(source.collect().to_arrow())
    return datasets.Dataset(source) if (package, name) == ("pyarrow", "Table") else None


def _read_path(source: str, on_error: OnError, split: Split, encoding: str) -> Any:
    import datasets

    if re.match(r"https?://", source):
        return _from_url(source, on_error, encoding)
    path = Path(source).expanduser()
    if path.is_dir() and (path / "dataset_info.json").exists() | (path / "dataset_dict.json").exists():
        return load_data(datasets.load_from_disk(str(path)), split=split)
    if not path.exists() and re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not path.suffix:
        return _from_hub(source, split)
    return _read_files(find_files(path, split), on_error, encoding)


def find_files(path: Path, split: Split = None) -> list[Path]:
    """The files that a path means: itself, those in a folder, or those that match a glob.

    Raises:
        DatasetError: there are none, an empty one, or a folder of several splits with none chosen.
    """
    if path.is_dir():
        files = _in_folder(path, split)
    elif not path.exists() and any(mark in str(path) for mark in "*?["):
        base = Path(path.anchor) if path.anchor else Path()
        files = sorted(f for f in base.glob(str(path.relative_to(path.anchor))) if f.is_file())
        if not files:
            raise DatasetError(f"No file matches {path}.")
    elif not path.exists():
        raise DatasetError(f"There is no file {path}.{_beside(path)}")
    else:
        files = [path]
    if empty := [f for f in files if f.stat().st_size == 0]:
        raise DatasetError(f"{empty[0]} is empty (0 bytes). Was the download or export finished?")
    return files


def _in_folder(folder: Path, split: Split) -> list[Path]:
    inside = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))
    files = [f for f in inside if is_readable(f)]
    if not files:
        known = " ".join((*SUFFIXES, *COMPRESSED))
        raise DatasetError(f"The folder {folder} holds no data file. Known endings: {known}.")
    splits = {file: _split_of(str(file.relative_to(folder))) for file in files}
    named = sorted({s for s in splits.values() if s})
    if len(named) > 1 or isinstance(split, str):
        chosen = _chosen(named, split)
        files = [f for f in files if splits[f] == chosen]
    ignored = sorted({f.suffix or f.name for f in inside if not is_readable(f)} - {".md", ".py"})
    if ignored:
        warn(f"{folder}: files left out that hold no rows ({', '.join(ignored)}).")
    readme = [f for f in files if f.name.lower() == "readme.md"]
    return [f for f in files if f not in readme] if len(files) > len(readme) else files


def _split_of(name: str) -> str | None:
    """The split that a file's name speaks of: train for data/train-00000.parquet."""
    return next((s for s in _SPLITS if re.search(rf"(^|[^a-z]){s}([^a-z]|$)", name.lower())), None)


def _beside(path: Path) -> str:
    if not path.parent.is_dir():
        return f" The folder {path.parent} does not exist either."
    near = sorted(p.name for p in path.parent.glob("*") if p.is_file())[:5]
    return f" Files beside it: {', '.join(near)}." if near else f" The folder {path.parent} is empty."


def _read_files(files: list[Path], on_error: OnError, encoding: str) -> Any:
    import datasets

    skipped = Skipped()
    tables = []
    for file in files:
        table = read_table(file)
        tables.append(
            rows_to_table(read_rows(file, on_error, skipped, encoding), str(file)) if table is None else table
        )
    if skipped:
        shown = "; ".join(f"line {line:,}: {why}" for _, line, why in skipped[:5])
        more = f"; and {len(skipped) - 5:,} more" if len(skipped) > 5 else ""
        warn(f"{skipped[0][0]}: {len(skipped):,} broken lines left out ({shown}{more}).")
    where = str(files[0].parent if len(files) > 1 else files[0])
    return datasets.Dataset(tables[0] if len(tables) == 1 else concat_tables(tables, where))


def _from_url(url: str, on_error: OnError, encoding: str) -> Any:
    import shutil
    import tempfile
    from urllib.error import URLError
    from urllib.parse import unquote, urlparse
    from urllib.request import urlopen

    name = Path(unquote(urlparse(url).path)).name or "download"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        file = Path(folder) / name
        try:
            with urlopen(url, timeout=30) as answer, file.open("wb") as copy:
                shutil.copyfileobj(answer, copy)
        except (URLError, OSError, ValueError) as error:
            raise DatasetError(f"{url} can't be fetched ({getattr(error, 'reason', error)}).") from error
        return _read_files(find_files(file), on_error, encoding)


def _from_hub(name: str, split: Split) -> Any:
    import datasets

    try:
        return load_data(datasets.load_dataset(name), split=split)
    except DatasetError:
        raise
    except Exception as error:  # whatever the hub's client raises: offline, gated, not found, a script
        raise DatasetError(
            f"{name} is neither a file here nor a data set that the hub gives ({str(error).splitlines()[0]})."
        ) from error
