"""One warning a surprise, pointing at the user's line and not into this package."""

import sys
import warnings
from pathlib import Path

from sloth_nb.errors import SlothWarning

__all__ = ["warn"]

_PACKAGE = str(Path(__file__).resolve().parent.parent)


def warn(message: str) -> None:
    """Warns with a SlothWarning that names the first caller outside sloth_nb."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, SlothWarning, stacklevel=level)
