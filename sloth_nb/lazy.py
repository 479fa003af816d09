"""Names that load their module when first used, so that importing a package costs nothing."""

import sys
from importlib import import_module
from typing import Any

from sloth_nb.interrupts import put_off

__all__ = ["load"]


def load(package: str, name: str, home: str | None) -> Any:
    """The value of ``name``, for a package's ``__getattr__``; kept in the package from then on.

    Args:
        home: the module that holds it; None when the package has no such name.
    Raises:
        AttributeError: there is no such name.
        ImportError: its module is broken. ``from package import name`` turns an AttributeError into "cannot
            import name", which would hide what is wrong inside.
    """
    if home is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    try:
        with put_off():
            value = getattr(import_module(home), name)
    except AttributeError as error:
        raise ImportError(f"{name} can't be loaded from {home}: {error}", name=name) from error
    setattr(sys.modules[package], name, value)
    return value
