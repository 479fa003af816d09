"""One entry from whatever names a model: the catalogue, a folder, a config, or the hub's cache."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sloth_nb.catalog.find import find, from_config, known
from sloth_nb.catalog.hub import cached_config
from sloth_nb.catalog.info import ModelInfo
from sloth_nb.errors import ModelError

__all__ = ["resolve"]


def resolve(model: str | os.PathLike[str] | Mapping[str, Any] | ModelInfo) -> ModelInfo:
    """An entry from whatever names a model: an entry, a catalogue name, a hub id, a folder, a config.

    Never asks the network: a hub id that the catalogue doesn't list is looked for in the hub's cache only.
    ``catalog.from_hub`` asks, when it is asked to.

    Raises:
        ModelError: nothing by that name here; names the nearest.
    """
    if isinstance(model, ModelInfo):
        return model
    if isinstance(model, Mapping):
        return from_config(model)
    if not str(model).strip():
        raise ModelError("No model is named. Give a catalogue name (qwen3-14b), a hub id, or a folder.")
    info = known(str(model))
    if info is not None:
        return info
    path = Path(model)
    if path.exists():
        return from_config(path)
    file = cached_config(str(model))
    return from_config(file, name=str(model).rpartition("/")[2]) if file else find(str(model))
