"""Which linear layers of a model get adapters."""

from collections.abc import Sequence
from typing import Any

import torch

from sloth_nb.errors import ModelError

__all__ = ["PROJECTIONS", "choose_targets", "last_layers", "unmatched", "unmatched_said"]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_VISION = ("vision", "visual", "image", "multi_modal_projector", "mm_projector", "merger")
_AUDIO = ("audio", "speech")
_ATTENTION = ("attn", "attention")


def choose_targets(
    model: Any,
    target_modules: Sequence[str] | str | None,
    *,
    vision: bool,
    language: bool,
    audio: bool,
    attention: bool,
    mlp: bool,
) -> list[str] | str:
    """The names as given, checked; or, for None, every linear layer of the parts that are switched on.

    Raises:
        ModelError: no layer of the model has such a name, or every part is switched off.
    """
    if isinstance(target_modules, str):
        return target_modules  # "all-linear", or a pattern: peft reads both
    if target_modules is not None:
        wanted = list(target_modules)
        if wanted and len(unmatched(model, wanted)) == len(wanted) and not _experts(model):
            raise ModelError(f"target_modules={wanted} names no layer of this model. {_layers_said(model)}")
        return wanted

    def is_on(name: str) -> bool:
        part = vision if _has(name, _VISION) else audio if _has(name, _AUDIO) else language
        return part and (attention if _has(name, _ATTENTION) else mlp)

    chosen = {name for name in _linear_layers(model) if is_on(name)}
    if not chosen:
        raise ModelError(
            "Every part is switched off by the finetune_… arguments, so nothing would be trained."
        )
    return _shortest_names(model, chosen)


def unmatched(model: Any, names: Sequence[str]) -> list[str]:
    """Those of the names that no linear layer ends with."""
    layers = [f".{layer}" for layer in _linear_layers(model, head=True)]
    return [name for name in names if not any(layer.endswith(f".{name}") for layer in layers)]


def unmatched_said(model: Any, names: Sequence[str]) -> str:
    """A sentence about target modules without any layer, and what they may have meant."""
    experts = _experts(model)
    hint = (
        f"Its experts are parameters: target_parameters={experts} adapts them."
        if experts
        else _layers_said(model)
    )
    return f"target_modules {', '.join(names)} name no layer of this model and got no adapter. {hint}"


def last_layers(model: Any, count: int | None, layers_to_transform: Any) -> Any:
    """The indices of the last ``count`` decoder layers; ``layers_to_transform`` when ``count`` is None."""
    if count is None:
        return layers_to_transform
    if layers_to_transform is not None:
        raise ModelError("finetune_last_n_layers and layers_to_transform exclude each other. Choose one.")
    total = model.config.get_text_config().num_hidden_layers
    if not 1 <= count <= total:
        raise ModelError(f"finetune_last_n_layers={count}, but the model has {total} layers.")
    return list(range(total - count, total))


def _linear_layers(model: Any, *, head: bool = False) -> list[str]:
    """Names of linear layers: torch's, bitsandbytes' (which are subclasses of it), and GPT-2's Conv1D."""
    from transformers.pytorch_utils import Conv1D

    last = None if head else model.get_output_embeddings()
    kinds = torch.nn.Linear | Conv1D
    return [name for name, layer in model.named_modules() if isinstance(layer, kinds) and layer is not last]


def _experts(model: Any) -> list[str]:
    """Names of weights that hold all experts of a layer at once, which no linear layer does."""
    stacked = [name for name, weight in model.named_parameters() if weight.ndim == 3 and "experts" in name]
    return sorted({".".join(name.split(".")[-3:]) for name in stacked})


def _layers_said(model: Any) -> str:
    return f"Its linear layers: {', '.join(sorted({_last(name) for name in _linear_layers(model)}))}."


def _shortest_names(model: Any, chosen: set[str]) -> list[str]:
    """Last names alone where no other module bears them: so an adapter's config stays readable."""
    borne_by_others = {_last(name) for name, _ in model.named_modules() if name not in chosen}
    return sorted({name if _last(name) in borne_by_others else _last(name) for name in chosen})


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _has(name: str, words: Sequence[str]) -> bool:
    return any(word in name for word in words)
