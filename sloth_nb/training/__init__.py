"""Trainers (TRL's, subclassed), runs that don't block the notebook, and their stream of events."""

from importlib import import_module
from typing import Any

_HOME_OF = {
    "EventLog": "events",
    "History": "history",
    "RUN_FILE": "events",
    "RunEvent": "events",
    "SFTConfig": "config",
    "SFTTrainer": "trainer",
    "Run": "run",
    "read_events": "events",
}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
