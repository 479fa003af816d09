"""Which linear layers of a model get adapters."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from sloth_nb.errors import ModelError
from sloth_nb.notices import warn

__all__ = ["PROJECTIONS", "choose_targets", "holds_adapter", "last_layers", "unmatched", "unmatched_said"]

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

_VISION = ("vision", "visual", "image", "multi_modal_projector", "mm_projector", "merger")
_AUDIO = ("audio", "speech")
_ATTENTION = ("attn", "attention")

_ALSO_ADAPTABLE = (  # which peft adapts when they are named
    torch.nn.Embedding,
    torch.nn.Conv1d,
    torch.nn.Conv2d,
    torch.nn.Conv3d,
    torch.nn.MultiheadAttention,
)


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
    """The names as given, checked; or every linear layer of the parts that are switched on.

    None takes all linear layers, and ``PROJECTIONS``, being a default itself, those of its names. Other names say
    already what is wanted: a switch beside them is pointed out.

    Raises:
        ModelError: no layer of the model has such a name, or every part is switched off.
    """
    given = target_modules is not None and target_modules is not PROJECTIONS
    off = {
        "vision_layers": vision,
        "language_layers": language,
        "attention_modules": attention,
        "mlp_modules": mlp,
    }
    turned = [f"finetune_{name}=False" for name, on in off.items() if not on]
    if given and (turned or audio):
        said = ", ".join(turned + ["finetune_audio_layers=True"] * audio)
        warn(
            f"{said}: without effect beside target_modules, which says already what gets adapters. Leave "
            "target_modules out to choose by parts."
        )
    if isinstance(target_modules, str):
        return target_modules  # "all-linear", or a pattern: peft reads both
    if target_modules is not None:
        wanted = list(target_modules)
        if wanted and len(unmatched(model, wanted)) == len(wanted) and not _experts(model):
            raise ModelError(f"target_modules={wanted} names no layer of this model. {_layers_said(model)}")
        if given or not turned:
            return wanted

    def is_on(name: str) -> bool:
        part = vision if _has(name, _VISION) else audio if _has(name, _AUDIO) else language
        return part and (attention if _has(name, _ATTENTION) else mlp)

    named = [
        name for name in _linear_layers(model) if target_modules is None or _last(name) in target_modules
    ]
    chosen = {name for name in named if is_on(name)}
    if not chosen:
        raise ModelError(
            "Every part is switched off by the finetune_… arguments, so nothing would be trained."
        )
    return _shortest_names(model, chosen)


def unmatched(model: Any, names: Sequence[str]) -> list[str]:
    """Those of the names that no layer ends with which can have an adapter."""
    layers = [f".{layer}" for layer, _ in _layers(model, (*_linear(), *_ALSO_ADAPTABLE))]
    return [name for name in names if not any(layer.endswith(f".{name}") for layer in layers)]


def unmatched_said(model: Any, names: Sequence[str]) -> str:
    """A sentence about target modules without any layer that could have an adapter, and what they may have meant."""
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


def holds_adapter(model: Any) -> bool:
    """Whether adapters, or trained copies of layers, stand in the places of layers."""
    return any(_within(layer) is not layer for layer in model.modules())


def _linear_layers(model: Any) -> list[str]:
    """Names of the linear layers but the output head."""
    head = model.get_output_embeddings()
    head = None if head is None else _within(head)
    return [name for name, layer in _layers(model, _linear()) if layer is not head]


def _linear() -> tuple[type, ...]:
    """Torch's linear layer, of which bitsandbytes' are subclasses, and GPT-2's."""
    from transformers.pytorch_utils import Conv1D

    return torch.nn.Linear, Conv1D


def _layers(model: Any, kinds: tuple[type, ...]) -> Iterator[tuple[str, Any]]:
    """The layers of these kinds with their names: those of the model itself, where adapters stand in their places."""
    hidden: str | None = None
    for name, layer in model.named_modules():
        if hidden is not None and name.startswith(hidden):
            continue
        own = _within(layer)
        if own is not layer:
            hidden = f"{name}."
        if isinstance(own, kinds):
            yield name, own


def _within(layer: Any) -> Any:
    """The layer in whose place peft has put this one; itself where it hasn't."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    if isinstance(layer, BaseTunerLayer):
        return layer.get_base_layer()
    return layer.original_module if isinstance(layer, AuxiliaryTrainingWrapper) else layer


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
