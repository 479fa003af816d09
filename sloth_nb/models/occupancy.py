"""Who is using a model right now: training and answering at once would spoil both, so the second is refused.

Answering switches dropout, adapters and caches for its own time; a training step in the middle of that would
silently train something else.
"""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from sloth_nb.errors import TrainingError

__all__ = ["Use", "in_use"]

Use = Literal["training", "answering"]


@dataclass
class _Occupancy:
    """Of one model."""

    answering: threading.Lock = field(default_factory=threading.Lock)
    trainer: int | None = None  # the thread that trains


_OF_MODEL: "weakref.WeakKeyDictionary[Any, _Occupancy]" = weakref.WeakKeyDictionary()
_GUARD = threading.Lock()


@contextmanager
def in_use(model: Any, use: Use, *, on_behalf_of: int | None = None) -> Iterator[None]:
    """Marks a model as used, for the time of a ``with``.

    Two answers to one model wait for each other. The thread that trains may also answer in between, as an
    evaluation does.

    Args:
        on_behalf_of: the thread that asked, where another does the work.
    Raises:
        TrainingError: the model is being trained by another thread; or, for "training", it is answering.
    """
    occupancy = _occupancy_of(model)
    me = on_behalf_of or threading.get_ident()
    if use == "training":
        with _GUARD:
            if occupancy.trainer is not None:
                raise TrainingError("This model is already being trained. Stop that run or wait for its end.")
            if occupancy.answering.locked():
                raise TrainingError(
                    "This model is answering right now. Stop the answer, then start the training."
                )
            occupancy.trainer = me
        try:
            yield
        finally:
            occupancy.trainer = None
        return
    _refuse_while_trained(occupancy, me)
    with occupancy.answering:
        _refuse_while_trained(occupancy, me)  # it may have begun while this answer waited
        yield


def _refuse_while_trained(occupancy: _Occupancy, me: int) -> None:
    if occupancy.trainer not in (None, me):
        raise TrainingError(
            "This model is being trained and can't answer meanwhile. Stop the run or wait for its end; the "
            "monitor shows the time left."
        )


def _occupancy_of(model: Any) -> _Occupancy:
    get_base_model = getattr(
        model, "get_base_model", None
    )  # the same model, with and without adapters around it
    base = get_base_model() if get_base_model else model
    with _GUARD:
        return _OF_MODEL.setdefault(base, _Occupancy())
