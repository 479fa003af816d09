"""Small data sets shipped with the package, written for it: for the quickstart, classrooms and tests."""

from importlib.resources import as_file, files
from typing import Any

from sloth_nb.errors import DatasetError

__all__ = ["example", "example_names"]

_SPLITS = ("train", "held_out")


def example_names() -> list[str]:
    """The names that ``example`` knows."""
    return sorted(
        {entry.name.split(".")[0] for entry in files(__package__).iterdir() if entry.name.endswith(".jsonl")}
    )


def example(name: str = "quickstart", split: str | None = None) -> Any:
    """A shipped data set: (train, held_out) as ``datasets.Dataset``s, or one of them by ``split``.

    ``quickstart`` teaches a model to be Moss, a sloth with a manner ("Slowly now. … No hurry.") and nine
    facts that no other model knows. Its held-out rows ask for the same facts in other words and
    for the manner on new questions; their ``check`` column lists what a right answer contains.

    Raises:
        DatasetError: no data set has that name, or no split.
    """
    from sloth_nb.data.reading import load_data

    if name not in example_names():
        raise DatasetError(f"There is no example data set {name!r}. Known: {', '.join(example_names())}.")
    if split is not None and split not in _SPLITS:
        raise DatasetError(f"{name} has the splits train and held_out, not {split!r}.")
    read = []
    for part in [split] if split else _SPLITS:
        with as_file(files(__package__) / f"{name}.{part}.jsonl") as path:
            read.append(load_data(path))
    return read[0] if split else tuple(read)
