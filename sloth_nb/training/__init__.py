"""Trainers (TRL's, subclassed), runs that don't block the notebook, and their stream of events."""

from typing import Any

from sloth_nb.lazy import load

_HOMES = {
    "config": ["SFTConfig"],
    "events": ["EventLog", "RUN_FILE", "RunEvent", "read_events"],
    "history": ["History"],
    "run": ["Run"],
    "trainer": ["SFTTrainer"],
}
_HOME_OF = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    return load(__name__, name, _HOME_OF.get(name))
