"""A model on fake tensors as loading would leave it: weights in the method's format, adapters around them.

Stand-ins for bitsandbytes' layers and peft's have all that the engine looks at and nothing else, because the real
ones call into libraries that need real memory.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from sloth_nb.catalog import ModelInfo
from sloth_nb.errors import ModelError
from sloth_nb.memory.work import Work

__all__ = ["decoder_layers", "fake_model", "layer_kinds", "text_config"]


def text_config(info: ModelInfo) -> Any:
    """transformers' config of the language model alone.

    Raises:
        ModelError: transformers can't read the config, or it is no causal language model.
    """
    config = dict(info.config)
    kind = config.pop("model_type", "")
    try:
        made = transformers.CONFIG_MAPPING[kind](**config)
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(f"transformers can't read the config of {info.name}: {error}.") from None
    text = made.get_text_config()
    if type(text) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{info.name} is not a causal language model; the dry run has no step for it yet.")
    return text


def layer_kinds(config: Any) -> tuple[str, ...]:
    """What tells one decoder layer from another of the same model."""
    kinds = getattr(config, "layer_types", None) or ("full_attention",) * config.num_hidden_layers
    return tuple(kinds)


def fake_model(
    work: Work, config: Any, layers: Sequence[int], dtype: torch.dtype = torch.bfloat16
) -> nn.Module:
    """The model with only these of its decoder layers. Call it under a FakeTensorMode."""
    config = copy.deepcopy(config)
    kinds = layer_kinds(config)
    config.num_hidden_layers = len(layers)
    if getattr(config, "layer_types", None):
        config.layer_types = [kinds[i] for i in layers]
    try:
        from transformers.initialization import no_init_weights

        with no_init_weights():
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    except ValueError as error:
        raise ModelError(f"transformers can't build {work.model.name}: {error}.") from None
    model.tie_weights()  # part of the initialisation that was left out
    model.config.use_cache = False
    model.train()
    if work.lora:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for layer in decoder_layers(model):
            _adapt(layer, work)
    return model


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    return model.get_decoder().layers


def _adapt(layer: nn.Module, work: Work) -> None:
    named = {linear.name for _, linear in work.model.shape.adapted(work.targets)}
    for path, module in list(layer.named_modules()):
        if isinstance(module, nn.Linear):
            where, _, name = path.rpartition(".")
            base = _stored(module, work.method)
            setattr(layer.get_submodule(where), name, Lora(base, work.rank) if name in named else base)


def _stored(linear: nn.Linear, method: str) -> nn.Module:
    if method == "qlora":
        return Linear4bit(linear)
    return Linear8bitLt(linear) if method == "lora-8bit" else linear


class _State:
    """Named fields, as bitsandbytes' quantisation states have them."""

    def __init__(self, **fields: Any):
        self.__dict__.update(fields)


class Linear4bit(nn.Module):
    """bitsandbytes' NF4 layer with double quantisation."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        count = linear.weight.numel()
        blocks = -(-count // 64)
        self.weight = nn.Parameter(torch.empty(-(-count // 2), 1, dtype=torch.uint8), requires_grad=False)
        nested = _State(
            absmax=torch.empty(-(-blocks // 256)), code=torch.empty(256), blocksize=256, state2=None
        )
        self.weight.quant_state = _State(
            quant_type="nf4",
            shape=linear.weight.shape,
            dtype=torch.bfloat16,
            blocksize=64,
            absmax=torch.empty(blocks, dtype=torch.uint8),
            code=torch.empty(16),
            offset=torch.empty(()),
            state2=nested,
        )


class Linear8bitLt(nn.Module):
    """bitsandbytes' int8 layer."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias
        self.weight = nn.Parameter(torch.empty(linear.weight.shape, dtype=torch.int8), requires_grad=False)
        self.state = _State(SCB=torch.empty(linear.out_features))


class Lora(nn.Module):
    """peft's LoRA around a layer; A and B are fp32, as peft makes them over a 16-bit or quantised base."""

    def __init__(self, base: nn.Module, rank: int):
        super().__init__()
        self.base_layer = base
        a, b = (nn.Module() for _ in range(2))
        a.weight = nn.Parameter(torch.empty(rank, base.in_features))
        b.weight = nn.Parameter(torch.empty(base.out_features, rank))
        a.bias = b.bias = None
        self.lora_A, self.lora_B = nn.ModuleDict({"default": a}), nn.ModuleDict({"default": b})
        self.lora_dropout = nn.ModuleDict({"default": nn.Identity()})
        self.scaling, self.active_adapters = {"default": 1.0}, ["default"]
        self.disable_adapters = self.merged = False


class FakeOffloader:
    """In the offloader's place: what goes to the host leaves the count, what comes back is made anew."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self._leaving: list[tuple[int, Tensor]] = []
        """Tensors, and after how many more settlings all of their pieces have left."""

    def settle(self) -> None:
        self._leaving = [(left - 1, tensor) for left, tensor in self._leaving if left > 1]

    def finish(self) -> None:
        self._leaving.clear()

    def put(self, tensor: Tensor, pieces: int = 1) -> Any:
        from sloth_nb.engine.offload import Parked

        parked = Parked(None, None)
        parked.like = tensor.shape, tensor.dtype
        self._leaving.append((pieces, tensor))
        return parked

    def call(self, parked: Any, rows: int | None = None) -> None:
        if parked.arriving is None:
            shape, dtype = parked.like
            parked.arriving = torch.empty(shape, dtype=dtype)

    def wait(self, parked: Any, rows: int | None = None) -> None:
        parked.arriving = None

    def receive(self, parked: Any) -> Tensor:
        return parked.arriving

    def drop(self, parked: Any) -> None:
        """Nothing is held."""
