"""Reading a config's fields so that a missing one is named."""

from collections.abc import Mapping
from typing import Any

from sloth_nb.errors import ModelError

__all__ = ["need"]


def need(config: Mapping[str, Any], field: str, where: str = "config.json", *others: str) -> int:
    """A whole number of the config, under its first name that is there.

    Raises:
        ModelError: the field is missing or not a positive whole number; says which and where.
    """
    names = (field, *others)
    name = next((name for name in names if config.get(name) is not None), None)
    if name is None:
        said = f" (or {', '.join(map(repr, others))})" if others else ""
        raise ModelError(
            f"{where} lacks {field!r}{said}, without which the model's size can't be told. "
            f"It has: {', '.join(sorted(map(str, config))) or 'nothing'}."
        )
    value = config[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1:
        raise ModelError(f"{name!r} in {where} is {value!r}; a positive whole number is needed.")
    return int(value)
