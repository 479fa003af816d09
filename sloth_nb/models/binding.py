"""The methods that tutorials call on the model itself, bound on this one instance."""

from collections.abc import Callable
from functools import partial
from typing import Any

from sloth_nb.models import modes, saving

__all__ = ["bind_methods"]

_LATER = (
    "save_pretrained_gguf",
    "push_to_hub_gguf",
    "save_pretrained_ggml",
    "push_to_hub_ggml",
    "save_pretrained_torchao",
)
_METHODS: dict[str, Callable[..., Any]] = {
    "for_inference": modes.for_inference,
    "for_training": modes.for_training,
    "save_pretrained": saving.save_pretrained,
    "save_pretrained_merged": saving.save_pretrained_merged,
    "push_to_hub_merged": saving.push_to_hub_merged,
    **{name: partial(saving.refuse_export, name) for name in _LATER},
}


def bind_methods(model: Any) -> None:
    """Binds them; on a model wrapped in adapters once more, so that they act on the whole.

    As partials, which a copied or pickled model takes along, bound to the copy.
    """
    for name, function in _METHODS.items():
        setattr(model, name, partial(function, model))
