"""Looking a model up: by catalogue name or hub id, by its config, or by words typed into a search box."""

import json
import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from sloth_nb.catalog.fields import word
from sloth_nb.catalog.info import ModelInfo, TrainingDefaults, load_models
from sloth_nb.catalog.readers import read_shape
from sloth_nb.errors import ModelError

__all__ = ["find", "from_config", "known", "models", "no_such_model", "search"]


def models() -> tuple[ModelInfo, ...]:
    """Every model of the catalogue."""
    return load_models()


@lru_cache(maxsize=1)
def _index() -> dict[str, ModelInfo]:
    """Every name that means one model, in lower case. The first to claim a name keeps it."""
    index: dict[str, ModelInfo] = {}
    for info in load_models():
        index.setdefault(info.name.lower(), info)
    for info in load_models():
        for name in (*info.ids.values(), *info.aliases):
            index.setdefault(name.lower(), info)
            index.setdefault(name.lower().rsplit("/", 1)[-1], info)
    return index


def known(name: str) -> ModelInfo | None:
    """The entry of a catalogue name or hub id, or None."""
    return _index().get(str(name).strip().lower())


def find(name: str) -> ModelInfo:
    """The entry of a catalogue name (``qwen3-14b``) or a hub id (``Qwen/Qwen3-14B``), in any case.

    Raises:
        ModelError: no such model; names the nearest ones.
    """
    info = known(name)
    if info is None:
        raise ModelError(no_such_model(name))
    return info


def no_such_model(name: str, asking: str = "catalog.from_hub(name), which asks the hub") -> str:
    """The sentence for a name that means nothing here. ``asking``: what the caller can do to ask the hub."""
    near = nearest(name)
    hint = f"Nearest: {', '.join(near)}." if near else "models() lists them all."
    return (
        f"No model named {name!r} in the catalogue. {hint} Any other model works by its folder or "
        f"config.json, or by {asking}."
    )


def nearest(name: str, count: int = 3) -> list[str]:
    """The catalogue names most like this one."""
    wanted = str(name).strip().lower().rsplit("/", 1)[-1]
    names = {info.name: info for info in load_models()}
    close = get_close_matches(wanted, names, n=count, cutoff=0.5)
    close += [other for other in names if wanted and wanted in other and other not in close]
    return close[:count]


def search(
    query: str = "",
    entries: Iterable[ModelInfo] | None = None,
    *,
    family: str | None = None,
    modality: str | None = None,
    licence: str | None = None,
    task: str | None = None,
    kind: str | None = None,
    gated: bool | None = None,
    min_parameters: float = 0,
    max_parameters: float = float("inf"),
) -> list[ModelInfo]:
    """Entries whose name, title, publisher, hub id, licence and modality hold every word of the query.

    A whole hub id, the 4-bit one too, finds its one entry.
    """
    words, exact = query.lower().split(), known(query)
    found = []
    for info in load_models() if entries is None else entries:
        if not min_parameters <= info.parameters <= max_parameters:
            continue
        if (family and info.family != family) or (modality and info.modality != modality):
            continue
        if (licence and info.licence != licence) or (task and task not in info.tasks):
            continue
        if (kind and info.kind != kind) or (gated is not None and info.gated != gated):
            continue
        if words and info is not exact:
            text = _searchable(info)
            if not all(_holds(text, word) for word in words):
                continue
        found.append(info)
    return found


def _searchable(info: ModelInfo) -> str:
    """What the search looks in. The 4-bit id is left out: its "4bit" would answer every "4b"."""
    words = (
        info.name,
        info.title,
        info.publisher,
        info.size,
        info.licence,
        info.modality,
        info.kind,
        info.hub_id,
    )
    return f" {' '.join(words)} ".lower()


def _holds(text: str, word: str) -> bool:
    """Numbers must begin a word (``4b`` is not in ``27.4b``); letters may stand anywhere."""
    if not word[0].isdigit():
        return word in text
    return any(mark + word in text for mark in " -_/v")


def from_config(config: str | os.PathLike[str] | Mapping[str, Any], name: str | None = None) -> ModelInfo:
    """An entry for any model, from its config.json: a path to it or to its folder, or the parsed object.

    Licence, gating and template aren't in a config, and say so.

    Raises:
        ModelError: no such file, not JSON, or a field is missing (names it).
    """
    where = None
    if not isinstance(config, Mapping):
        where = Path(config)
        config = _read(where)
        name = name or (where.parent if where.name.endswith(".json") else where).resolve().name
    shape = read_shape(config)
    kind = word(config, "model_type")
    modality = {"whisper": "speech→text", "csm": "text→speech"}.get(
        kind, "text+image" if shape.towers else "text"
    )
    return ModelInfo(
        name=name or (word(config, "_name_or_path") or kind or "model"),
        family=kind or "unknown",
        title=kind or "unknown",
        publisher="unknown",
        parameters=shape.parameters,
        ids={"16bit": str(where.parent if where and where.name.endswith(".json") else where)}
        if where
        else {},
        licence="unknown: see the model's own page",
        gated=False,
        context=shape.context,
        template=None,
        modality=modality,
        kind="unknown",
        tasks=("sft",),
        training=TrainingDefaults(),
        config=dict(config),
        source=f"its own config ({where})" if where else "its own config",
    )


def _read(path: Path) -> Mapping[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"There is no {file}. A model's folder holds a config.json; give its path."
        ) from None
    except json.JSONDecodeError as error:
        raise ModelError(
            f"{file} is not JSON (line {error.lineno}, column {error.colno}: {error.msg})."
        ) from None
    except RecursionError:
        raise ModelError(f"{file} can't be read: its objects stand too deep within each other.") from None
    except (OSError, ValueError) as error:  # not UTF-8, or a number of thousands of digits
        raise ModelError(f"{file} can't be read: {error}.") from None
    if not isinstance(config, Mapping):
        raise ModelError(f"{file} holds a {type(config).__name__}; a config is a JSON object.")
    return config
