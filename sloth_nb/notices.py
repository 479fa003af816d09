"""One warning a surprise, pointing at the user's line and not into this package."""

import sys
import warnings
from pathlib import Path

from sloth_nb.errors import SlothWarning

__all__ = ["warn"]

_PACKAGE = str(Path(__file__).resolve().parent)
_said: set[str] = set()


def warn(message: str, *, once: str | None = None) -> None:
    """Warns with a SlothWarning that names the first caller outside sloth_nb.

    Args:
        once: a key: of all warnings with it, a process gives the first only.
    """
    if once in _said:
        return
    if once is not None:
        _said.add(once)
    level, frame = 2, sys._getframe(1)
    # Dataclasses' generated __init__ has no file of its own, and is nobody's line either.
    while frame.f_back and (
        frame.f_code.co_filename.startswith(_PACKAGE) or frame.f_code.co_filename == "<string>"
    ):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, SlothWarning, stacklevel=level)
