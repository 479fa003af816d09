"""Data sets: reading, recognising, templating, masking, packing and collating. A leaf: it imports no other
room.

Only names live here; each loads its module when first used, so that ``import sloth_nb.data`` needs no torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "collate": ["Collator"],
    "conversation": ["to_messages"],
    "dropin": [
        "get_chat_template",
        "standardize_data_formats",
        "standardize_sharegpt",
        "train_on_responses_only",
    ],
    "lint": ["Finding", "lint_template"],
    "merge": ["apply_chat_template", "to_sharegpt"],
    "named": ["template_names"],
    "examples": ["arithmetic_reward", "example", "example_names"],
    "pipeline": ["Prepared", "prepare"],
    "reading": ["load_data"],
    "rows": ["Rows", "open_rows"],
    "schema": ["Schema", "recognise"],
    "standard": ["standardise"],
    "report": ["DataReport"],
    "template": ["ChatTemplate"],
    "view": ["DatasetView"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'sloth_nb.data' has no attribute {name!r}")
    value = getattr(import_module(f"sloth_nb.data.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
