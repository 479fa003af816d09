"""Reading a config's fields, so that one that is missing or holds nonsense is named."""

import reprlib
from collections.abc import Mapping
from typing import Any

from sloth_nb.errors import ModelError

__all__ = ["MOST_LAYERS", "entries", "flag", "maybe", "need", "word"]

# No model has a size above this, or as many layers: what says so is a mistake, or meant to fill the memory.
MOST, MOST_LAYERS = 10**9, 10**4


def need(
    config: Mapping[str, Any], field: str, where: str = "config.json", *others: str, most: int = MOST
) -> int:
    """A whole number of the config, under its first name that is there.

    Raises:
        ModelError: the field is missing, or not a whole number from 1 to ``most``; says which and where.
    """
    names = (field, *others)
    name = next((name for name in names if config.get(name) is not None), None)
    if name is None:
        said = f" (or {', '.join(map(repr, others))})" if others else ""
        raise ModelError(
            f"{where} lacks {field!r}{said}, without which the model's size can't be told. "
            f"It has: {', '.join(sorted(map(str, config))) or 'nothing'}."
        )
    return _whole(config[name], name, where, 1, most)


def maybe(
    config: Mapping[str, Any], field: str, default: int, where: str = "config.json", *, least: int = 1
) -> int:
    """A whole number that a config may leave out, or leave null.

    Raises:
        ModelError: it is there and not a whole number of at least ``least``; says which and where.
    """
    value = config.get(field)
    return default if value is None else _whole(value, field, where, least, MOST)


def flag(config: Mapping[str, Any], field: str, default: bool, where: str = "config.json") -> bool:
    """A true or false that a config may leave out, or leave null.

    Raises:
        ModelError: it is there and something else, the word "false" for one.
    """
    value = config.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ModelError(f"{field!r} in {where} is {_said(value)}; true or false is needed.")
    return value


def word(config: Mapping[str, Any], field: str, where: str = "config.json") -> str:
    """A word that a config may leave out, or leave null, which is "" then.

    Raises:
        ModelError: it is there and no text.
    """
    value = config.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ModelError(f"{field!r} in {where} is {_said(value)}; a word is needed.")
    return value


def entries(config: Mapping[str, Any], field: str, most: int, where: str = "config.json") -> int:
    """How many different layers a list names that a config may leave out, or leave null.

    Raises:
        ModelError: it is there and no list of layers below ``most``.
    """
    value = config.get(field)
    if value is None:
        return 0
    if not isinstance(value, list | tuple) or not all(type(x) is int and 0 <= x < most for x in value):
        raise ModelError(
            f"{field!r} in {where} is {_said(value)}; a list of layers from 0 to {most - 1} is needed."
        )
    return len(set(value))


def _whole(value: Any, name: str, where: str, least: int, most: int) -> int:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # The limits first: NaN is within none, and an int of thousands of digits fits no float.
    if not is_number or not least <= value <= most or value != int(value):
        wanted = "a positive whole number" if least == 1 else "a whole number"
        limit = f" of at most {most:,}" if is_number and value > most else ""
        raise ModelError(f"{name!r} in {where} is {_said(value)}; {wanted}{limit} is needed.")
    return int(value)


class _Short(reprlib.Repr):
    """A value as a sentence can hold it: the start of a long one, and no number that Python won't print."""

    def repr_int(self, x: int, level: int) -> str:
        return "an enormous number" if x.bit_length() > 200 else super().repr_int(x, level)


_said = _Short().repr
