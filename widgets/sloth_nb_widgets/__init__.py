"""The notebook's face: panels of core ipywidgets, HTML and plots that work on every Jupyter host.

Each is a view of a plain-Python object that a script can use alone. Loaded only when a name is asked for.
"""

from typing import Any

from sloth_nb.lazy import load

_HOMES = {
    "panel": ["Panel"],
    "model_picker": ["ModelPicker"],
    "vram_estimator": ["VramEstimator"],
    "shown_estimate": ["estimate"],
    "host": ["Host"],
    "chat": ["Chat"],
    "dataset_preview": ["DatasetPreview"],
    "notebook_maker": ["NotebookMaker"],
    "training_monitor": ["TrainingMonitor"],
}
_HOME_OF = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    return load(__name__, name, _HOME_OF.get(name))


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
