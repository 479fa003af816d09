"""Adapters merged into their base's weights, in fp32, without touching the model they come from."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sloth_nb.errors import ExportError
from sloth_nb.models.host_embedding import HostEmbedding

__all__ = ["merged_model"]


def merged_model(model: Any, dtype: torch.dtype) -> tuple[Any, dict[str, Tensor]]:
    """An empty model (on the meta device) of the base's class, and the weights that belong into it, on the
    CPU.

    Args:
        model: a ``PeftModel`` on a plain, 4-bit or 8-bit base, or a plain model, which is then only cast.
        dtype: of the weights that are returned; merging itself is done in fp32.
    Raises:
        ExportError: an adapter with values that aren't finite, or of a kind that can't be merged into a
            quantised base.
    """
    from peft import PeftModel

    base = model.get_base_model() if isinstance(model, PeftModel) else model
    weights = {name: _cast(tensor, dtype) for name, tensor in _collect(base, "")}
    config = copy.deepcopy(base.config)
    config.use_cache = True
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    if _ties_broken(base, config, weights):
        config.tie_word_embeddings = False
    with torch.device("meta"):
        empty = type(base)._from_config(config, dtype=dtype)
    empty.generation_config = base.generation_config
    return empty, weights


def _collect(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The weights of a module under the names they have without any adapter around them."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

    if isinstance(module, BaseTunerLayer):
        yield from _named(_merged_layer(module, prefix), prefix)
    elif isinstance(module, ModulesToSaveWrapper):
        yield from _collect(module.modules_to_save[module.active_adapters[0]], prefix)
    elif isinstance(module, TrainableTokensWrapper):
        yield from _collect(module.token_adapter, prefix)
    elif isinstance(module, HostEmbedding):
        yield f"{prefix}weight", module.weight
    elif _is_quantised(module):
        yield f"{prefix}weight", _dequantised(module)
        if module.bias is not None:
            yield f"{prefix}bias", module.bias
    else:
        own = {**module._parameters, **module._buffers}
        for name, tensor in own.items():
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield prefix + name, tensor
        for name, child in module.named_children():
            yield from _collect(child, f"{prefix}{name}.")


def _merged_layer(layer: Any, prefix: str) -> dict[str, Tensor]:
    base = layer.get_base_layer()
    if _is_quantised(base):
        if any(layer.use_dora.values()):
            raise ExportError(
                f"{prefix.rstrip('.')} has a DoRA adapter on a quantised base, which can't be merged. Save "
                "the adapter, load its folder with load_in_4bit=False, and merge that."
            )
        weight = _dequantised(base).float()
        for adapter in layer.active_adapters:
            if adapter in layer.lora_A:
                weight = weight + layer.get_delta_weight(adapter).float()
        if not torch.isfinite(weight).all():
            raise ExportError(_not_finite(prefix))
        return {"weight": weight} | ({} if base.bias is None else {"bias": base.bias})
    clone = copy.deepcopy(layer).float()
    wrapped = clone
    try:
        while hasattr(wrapped, "merge"):
            wrapped.merge(safe_merge=True)
            wrapped = wrapped.base_layer
    except ValueError as error:
        raise ExportError(_not_finite(prefix)) from error
    return wrapped.state_dict()


def _named(weights: dict[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in weights.items():
        yield prefix + name, tensor


def _not_finite(prefix: str) -> str:
    return f"The adapter of {prefix.rstrip('.')} holds values that aren't finite; its training went wrong."


def _is_quantised(module: Any) -> bool:
    """Whether a layer's weight is one of bitsandbytes' 4-bit or 8-bit kinds."""
    weight = getattr(module, "weight", None)
    return hasattr(weight, "quant_state") or hasattr(weight, "SCB")


def _dequantised(module: Any) -> Tensor:
    """The weight as numbers. peft's own helper does this too, but leaves an 8-bit layer on the CPU
    unusable.
    """
    from bitsandbytes.functional import dequantize_4bit

    weight = module.weight
    if hasattr(weight, "quant_state"):
        return dequantize_4bit(weight.data, weight.quant_state)
    scale = module.state.SCB if module.state.SCB is not None else weight.SCB  # the first forward moves it
    return weight.data.float() * (scale.to(weight.device).view(-1, 1) / 127)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    tensor = tensor.detach()
    return tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)


def _ties_broken(base: Any, config: Any, weights: dict[str, Tensor]) -> bool:
    """Whether training made the head differ from the embeddings that it shared its weight with; else the
    second name of the shared weight is dropped.
    """
    if not getattr(config.get_text_config(), "tie_word_embeddings", False):
        return False
    names = dict(base.named_modules(remove_duplicate=False))
    embeddings, head = base.get_input_embeddings(), base.get_output_embeddings()
    if head is None:
        return False
    embedding_name = next(name for name, module in names.items() if module is embeddings)
    head_name = next(name for name, module in names.items() if module is head)
    embedding_key = next(key for key in weights if key == f"{_plain(embedding_name)}.weight")
    head_key = next((key for key in weights if key == f"{_plain(head_name)}.weight"), None)
    if head_key is None or torch.equal(weights[embedding_key], weights[head_key]):
        weights.pop(head_key or "", None)
        return False
    return True


def _plain(name: str) -> str:
    """The name a module has without adapters around it."""
    for part in (".base_layer", ".original_module"):
        name = name.removesuffix(part)
    head, _, _ = name.partition(".modules_to_save.")
    return head.partition(".token_adapter")[0]
