"""Which linear layers of a model get adapters."""

from collections.abc import Sequence
from typing import Any

import torch

from sloth_nb.errors import ModelError

__all__ = ["PROJECTIONS", "choose_targets", "last_layers"]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_VISION = ("vision", "visual", "image", "multi_modal_projector", "mm_projector", "merger")
_AUDIO = ("audio", "speech")
_ATTENTION = ("attn", "attention")


def choose_targets(
    model: torch.nn.Module,
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
    linear = _linear_layers(model)
    if target_modules is not None:
        wanted = list(target_modules)
        known = {part for name in linear for part in (name, name.rpartition(".")[2])}
        suffixes = {name for name in wanted if any(layer.endswith(f".{name}") for layer in linear)}
        if wanted and not any(name in known or name in suffixes for name in wanted):
            kinds = sorted({name.rpartition(".")[2] for name in linear} - {"lm_head"})
            raise ModelError(
                f"target_modules={wanted} names no layer of this model. Its linear layers: "
                f"{', '.join(kinds)}."
            )
        return wanted

    def is_on(name: str) -> bool:
        part = vision if _has(name, _VISION) else audio if _has(name, _AUDIO) else language
        return part and (attention if _has(name, _ATTENTION) else mlp)

    head = model.get_output_embeddings()  # type: ignore[operator]
    chosen = [name for name, module in linear.items() if module is not head and is_on(name)]
    if not chosen:
        raise ModelError(
            "Every part is switched off by the finetune_… arguments, so nothing would be trained."
        )
    return chosen


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


def _linear_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """Linear layers by name: torch's, bitsandbytes' (which are subclasses of it), and GPT-2's Conv1D."""
    from transformers.pytorch_utils import Conv1D

    return {
        name: layer for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear | Conv1D)
    }


def _has(name: str, words: Sequence[str]) -> bool:
    return any(word in name for word in words)
