"""One entry from whatever names a model: the catalogue, a folder, a config, or the hub's cache."""

import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sloth_nb.catalog.find import from_config, known, no_such_model
from sloth_nb.catalog.hub import cached_config
from sloth_nb.catalog.info import ModelInfo
from sloth_nb.errors import ModelError

__all__ = ["here", "resolve"]


def resolve(model: str | os.PathLike[str] | Mapping[str, Any] | ModelInfo) -> ModelInfo:
    """An entry from whatever names a model: an entry, a catalogue name, a hub id, a folder, a config.

    Never asks the network: a hub id that the catalogue doesn't list is looked for in the hub's cache only.
    ``catalog.from_hub`` asks, when it is asked to.

    Raises:
        ModelError: nothing by that name here; names the nearest.
    """
    found = here(model)
    if found is None:
        raise ModelError(no_such_model(str(model)))
    return found


def here(model: str | os.PathLike[str] | Mapping[str, Any] | ModelInfo) -> ModelInfo | None:
    """As ``resolve``, but None for a name that means nothing on this machine, and may mean something on the hub.

    Raises:
        ModelError: no name at all, a path that leads nowhere, or a config that can't be read.
    """
    if isinstance(model, ModelInfo):
        return model
    if isinstance(model, Mapping):
        return from_config(model)
    if not isinstance(model, (str, os.PathLike)):
        raise ModelError(
            f'A model is named by a text, a folder or a config; this is {model!r}. Try "qwen3-14b", say.'
        )
    name = str(model)
    if not name.strip():
        raise ModelError("No model is named. Give a catalogue name (qwen3-14b), a hub id, or a folder.")
    info = known(name)
    if info is not None:
        return info
    try:
        path = Path(model).expanduser()
        if path.exists():
            return from_config(path)
        file = cached_config(name)
    except (OSError, RuntimeError) as error:  # longer than a name may be; ~ of somebody unknown
        why = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise ModelError(f"{reprlib.repr(name)} can't be looked for: {why}.") from None
    if file is None and _is_a_path(model):
        raise ModelError(
            f"There is no folder or file {name!r}. Give the folder that holds the model's config.json."
        )
    return from_config(file, name=name.rpartition("/")[2]) if file else None


def _is_a_path(model: str | os.PathLike[str]) -> bool:
    """Whether it can mean nothing else: a hub id has one slash, in its middle, and a catalogue name none."""
    name = str(model)
    begins = name.startswith(("/", "./", "../", "~"))
    return (
        begins
        or not isinstance(model, str)
        or "\\" in name
        or name.count("/") > 1
        or name.endswith(("/", ".json"))
    )
