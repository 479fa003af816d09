"""Data sets: reading, recognising, templating, masking, packing and collating. A leaf: it imports no other
room.

Only names live here; each loads its module when first used, so that ``import sloth_nb.data`` needs no torch.
"""

from typing import Any

from sloth_nb.lazy import load

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
    "recognising": ["recognise"],
    "schema": ["Schema"],
    "standard": ["standardise"],
    "report": ["DataReport"],
    "template": ["ChatTemplate"],
    "view": ["DatasetView"],
}
_HOME_OF = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    return load(__name__, name, _HOME_OF.get(name))


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME_OF])
