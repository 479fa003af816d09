"""Each trainer's own copy of accelerate's state, so that what other cells build can't end a run.

accelerate keeps its state in dicts that all objects of a class share, and transformers empties two of them whenever
arguments are built. A run that trains in the background would fail at its next step. Here a trainer gets dicts that
only its own objects hold; the process keeps others, which may be emptied. In a run of several processes, and on a TPU,
everything stays as accelerate has it.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType

__all__ = ["building_accelerator", "building_arguments"]

_CLASSES = (PartialState, AcceleratorState, GradientState)
_building = threading.RLock()  # who puts dicts of its own into the classes does so alone


class _Lasting(dict):
    """A trainer's own: not emptied by arguments that another thread builds while it stands in for the shared one."""

    def clear(self) -> None:
        pass


@contextlib.contextmanager
def building_arguments() -> Iterator[None]:
    """Around whatever builds training arguments: the state they hold stays theirs when others build some."""
    with _building:
        yield
        if _shares_plain_dicts():
            PartialState._shared_state = dict(PartialState._shared_state)


@contextlib.contextmanager
def building_accelerator(trainer: Any) -> Iterator[None]:
    """Around a trainer's making of its ``accelerator``, which then has a state that no other object shares."""
    state = trainer.args.distributed_state
    if state is None or state.distributed_type != DistributedType.NO or not _shares_plain_dicts():
        yield
        return
    own = (_Lasting(state.__dict__), _Lasting(), _Lasting())
    with _sharing(own):
        yield
    trainer.accelerator.prepare = _within(own, trainer.accelerator.prepare)
    with _building:  # as accelerate leaves it: the state of the newest accelerator can be asked for
        PartialState._shared_state, AcceleratorState._shared_state = dict(own[0]), dict(own[1])


def _within(own: tuple[dict, ...], prepare: Callable[..., Any]) -> Callable[..., Any]:
    """``prepare``, whose optimisers and data loaders get that state."""

    def prepare_with_own_state(*args: Any, **kwargs: Any) -> Any:
        with _sharing(own):
            return prepare(*args, **kwargs)

    return prepare_with_own_state


@contextlib.contextmanager
def _sharing(states: tuple[dict, ...]) -> Iterator[None]:
    """Inside it, new objects of accelerate's state classes share those dicts; then what they shared before."""
    with _building:
        before = [cls._shared_state for cls in _CLASSES]
        for cls, state in zip(_CLASSES, states, strict=True):
            cls._shared_state = state
        try:
            yield
        finally:
            for cls, state in zip(_CLASSES, before, strict=True):
                cls._shared_state = state


def _shares_plain_dicts() -> bool:
    return all(isinstance(vars(cls)["_shared_state"], dict) for cls in _CLASSES)
