"""The notebook's face: panels of core ipywidgets, HTML and plots that work on every Jupyter host.

Each is a view of a plain-Python object that a script can use alone. Loaded only when a name is asked for.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "panel": ["Panel"],
    "model_picker": ["ModelPicker"],
    "vram_estimator": ["VramEstimator"],
    "host": ["Host"],
    "chat": ["Chat"],
    "dataset_preview": ["DatasetPreview"],
    "training_monitor": ["TrainingMonitor"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'sloth_nb_widgets' has no attribute {name!r}")
    value = getattr(import_module(f"sloth_nb_widgets.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
