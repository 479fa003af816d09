"""What can go wrong by a user's doing, said in one clear sentence: what, where, and what to do now.

One class a kind of trouble, all under ``SlothError``. In a notebook the sentence stands alone, without a
traceback: IPython asks the exception itself how to show it.
"""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "DatasetError",
    "ExportError",
    "HardwareError",
    "Interrupted",
    "ModelError",
    "NotebookError",
    "SlothError",
    "SlothWarning",
    "TemplateError",
    "TrainingError",
    "did_you_mean",
]


class SlothError(Exception):
    """Base of every error that a user can cause and mend."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class Interrupted(KeyboardInterrupt):
    """The user's own interrupt, with a sentence of what became of the work. Not an error to be mended."""

    def _render_traceback_(self) -> list[str]:
        return [f"{type(self).__name__}: {self}"]


class DatasetError(SlothError):
    """A data set that can't be read, recognised or trained on."""


class TemplateError(SlothError):
    """A chat template that is missing, fails, or can't say what it is asked to."""


class ModelError(SlothError):
    """A model or adapter that can't be found, loaded, prepared or saved."""


class TrainingError(SlothError):
    """A training run that can't start, go on or be resumed."""


class HardwareError(SlothError):
    """Something that this machine's devices or memory can't do."""


class ExportError(SlothError):
    """A model that can't be written in the form asked for."""


class NotebookError(SlothError):
    """A notebook or recipe that can't be made."""


class SlothWarning(UserWarning):
    """Something was done differently than asked, or will surprise; the message says what to do."""


def did_you_mean(name: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`` Did you mean 'max_seq_length'?`` for a sentence to end with; empty when no known name is near."""
    near = get_close_matches(str(name), list(known), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""
