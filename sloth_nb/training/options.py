"""Options that can't be meant: text where a number or a bool belongs, a batch of nothing. Each is refused aloud."""

import dataclasses
import numbers
import re
import typing
from types import NoneType
from typing import Any

from sloth_nb.errors import TrainingError

__all__ = ["check_options"]

_AT_LEAST_ONE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")


def check_options(config: Any) -> None:
    """Looks at a config's numbers and bools, before anything is computed with them.

    Raises:
        TrainingError: text or nothing where a number or a bool belongs, or a batch size or accumulation below 1;
            names the option.
    """
    owner = type(config).__name__
    for name in _AT_LEAST_ONE:
        value = getattr(config, name)
        if not isinstance(value, str) and (not isinstance(value, numbers.Integral) or value < 1):
            raise TrainingError(f"{owner}({name}={value!r}): it must be a whole number, 1 or more.")
    for option in dataclasses.fields(config):
        value = getattr(config, option.name, None)
        kinds = _kinds_of(option.type)
        if isinstance(value, str) and kinds <= {int, float, bool}:
            raise TrainingError(
                f"{owner}({option.name}={value!r}): this is text, and {_instead_of(value, kinds)}"
            )
        if value is None and option.type in (int, float, bool):
            raise TrainingError(
                f"{owner}({option.name}=None): it needs a value. Leave it out for the default, {option.default!r}."
            )


def _kinds_of(annotation: Any) -> set[Any]:
    return set(typing.get_args(annotation) or (annotation,)) - {NoneType}


def _instead_of(text: str, kinds: set[Any]) -> str:
    if bool in kinds:
        return "True or False is needed. Write it without quotes."
    number = "float" if float in kinds else "int"
    yaml = " (YAML takes 2e-4 for text)" if re.fullmatch(r"[\d.]+e[-+]?\d+", text, re.IGNORECASE) else ""
    return (
        f"a number is needed. Write it without quotes, or as {number}(…) of what was read from a file{yaml}."
    )
