"""Options that can't be meant: a number written as text, or a batch of nothing. Each is refused in one sentence."""

import dataclasses
import numbers
import typing
from types import NoneType
from typing import Any

from sloth_nb.errors import TrainingError

__all__ = ["check_options"]

_AT_LEAST_ONE = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")


def check_options(config: Any) -> None:
    """Looks at a config's numbers, before anything is computed with them.

    Raises:
        TrainingError: text or nothing where a number belongs, or a batch size or accumulation below 1; names the
            option.
    """
    owner = type(config).__name__
    for option in dataclasses.fields(config):
        value = getattr(config, option.name, None)
        if isinstance(value, str) and _takes_a_number(option.type):
            raise TrainingError(
                f"{owner}({option.name}={value!r}): this is text, and a number is needed. Write it without quotes, or "
                f"as float(…) of what was read from a file{' (YAML takes 2e-4 for text)' if 'e' in value else ''}."
            )
        if value is None and option.name not in _AT_LEAST_ONE and option.type in (int, float, bool):
            raise TrainingError(
                f"{owner}({option.name}=None): it needs a value. Leave it out for the default, {option.default!r}."
            )
    for name in _AT_LEAST_ONE:
        value = getattr(config, name)
        if not isinstance(value, numbers.Integral) or value < 1:
            raise TrainingError(f"{owner}({name}={value!r}): it must be a whole number, 1 or more.")


def _takes_a_number(kind: Any) -> bool:
    kinds = set(typing.get_args(kind) or (kind,)) - {NoneType}
    return bool(kinds) and kinds <= {int, float}
