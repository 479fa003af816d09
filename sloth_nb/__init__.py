"""sloth_nb: fine-tune language models without leaving the notebook.

Only names live here. Each loads its module when first used, so that ``import sloth_nb`` costs nothing and a
script on a server never loads a widget.
"""

from importlib import import_module
from typing import Any

from sloth_nb.lazy import load

__version__ = "0.1.0"

_HOMES = {
    "sloth_nb.models": ["FastLanguageModel", "FastModel", "is_bf16_supported", "is_bfloat16_supported"],
    "sloth_nb.data": [
        "apply_chat_template",
        "get_chat_template",
        "load_data",
        "prepare",
        "standardize_data_formats",
        "standardize_sharegpt",
        "to_sharegpt",
        "train_on_responses_only",
    ],
    "sloth_nb.training": ["Run", "SFTConfig", "SFTTrainer"],
    "sloth_nb.inference": ["generate", "stream"],
    "sloth_nb.authoring.recipe": ["make_notebook"],
    "sloth_nb_widgets": [
        "Chat",
        "DatasetPreview",
        "ModelPicker",
        "NotebookMaker",
        "TrainingMonitor",
        "VramEstimator",
        "estimate",
    ],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    return load(__name__, name, _HOME_OF.get(name))


def load_ipython_extension(shell: Any) -> None:
    """``%load_ext sloth_nb``: adds ``%sloth``."""
    import_module("sloth_nb.magics").register(shell)


def unload_ipython_extension(shell: Any) -> None:
    """``%unload_ext sloth_nb``."""
    import_module("sloth_nb.magics").unregister(shell)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
