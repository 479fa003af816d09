"""What a decoder layer does, declaratively: one engine layer reads a ``LayerSpec`` and serves many families.

A family is one small function below. What a spec can't say is not guessed: ``spec_for`` answers with the reason,
the layer keeps its own modules, and the report says so.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

__all__ = ["Activation", "LayerSpec", "Unsupported", "families", "spec_for"]

Activation = Literal["silu", "gelu", "gelu_tanh"]

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


class Unsupported(Exception):
    """A layer that no spec describes; the message is the reason that the report prints."""


@dataclass(frozen=True)
class LayerSpec:
    """A pre-norm decoder layer: x → x + attention(norm(x)), then y → y + mlp(norm(y)).

    Module names are relative to the layer. ``qkv`` and ``gate_up`` list the projections whose outputs stand side
    by side: three (or two) separate ones, or a single fused one.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    activation: Activation
    eps: float
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    output: str = "self_attn.o_proj"
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    down: str = "mlp.down_proj"
    zero_centred: bool = False
    """RMSNorm scales by 1 + weight, in fp32 (Gemma)."""
    attention_norm: str = "input_layernorm"
    attention_post_norm: str | None = None
    mlp_norm: str = "post_attention_layernorm"
    mlp_post_norm: str | None = None
    query_norm: str | None = None
    key_norm: str | None = None
    window: int | None = None
    """Sliding window: a token sees itself and the window - 1 tokens before it."""
    softcap: float | None = None
    """Attention scores become softcap * tanh(score / softcap) (Gemma 2)."""
    rope_kind: str | None = None
    """Which of the model's rotary embeddings, where it has several (Gemma 3's layer types)."""


def _common(config: Any) -> dict[str, Any]:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    name = getattr(config, "hidden_activation", None) or config.hidden_act
    if name not in _ACTIVATIONS:
        raise Unsupported(f"activation {name!r} has no hand-written backward")
    return {
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": head_dim,
        "scale": head_dim**-0.5,
        "activation": _ACTIVATIONS[name],
        "eps": config.rms_norm_eps,
    }


def _window_of(config: Any, index: int) -> int | None:
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if kinds is None:
        return window
    return window if kinds[index] == "sliding_attention" else None


def _llama(layer: nn.Module, config: Any, index: int) -> LayerSpec:
    return LayerSpec(**_common(config))


def _mistral(layer: nn.Module, config: Any, index: int) -> LayerSpec:
    return LayerSpec(**_common(config), window=config.sliding_window)


def _qwen2(layer: nn.Module, config: Any, index: int) -> LayerSpec:
    return LayerSpec(**_common(config), window=_window_of(config, index))


def _qwen3(layer: nn.Module, config: Any, index: int) -> LayerSpec:
    return LayerSpec(
        **_common(config),
        window=_window_of(config, index),
        query_norm="self_attn.q_norm",
        key_norm="self_attn.k_norm",
    )


def _phi3(layer: nn.Module, config: Any, index: int) -> LayerSpec:
    if getattr(config, "resid_pdrop", 0.0):
        raise Unsupported(f"resid_pdrop is {config.resid_pdrop}; dropout on the residual has no fast path")
    return LayerSpec(
        **_common(config),
        qkv=("self_attn.qkv_proj",),
        gate_up=("mlp.gate_up_proj",),
        window=_window_of(config, index),
    )


_SANDWICH = {
    "zero_centred": True,
    "attention_post_norm": "post_attention_layernorm",
    "mlp_norm": "pre_feedforward_layernorm",
    "mlp_post_norm": "post_feedforward_layernorm",
}


def _gemma2(layer: nn.Module, config: Any, index: int) -> LayerSpec:
    common = _common(config) | {"scale": config.query_pre_attn_scalar**-0.5}
    return LayerSpec(
        **common, **_SANDWICH, window=_window_of(config, index), softcap=config.attn_logit_softcapping
    )


def _gemma3(layer: nn.Module, config: Any, index: int) -> LayerSpec:
    if getattr(config, "use_bidirectional_attention", False):
        raise Unsupported("bidirectional attention has no fast path")
    common = _common(config) | {"scale": config.query_pre_attn_scalar**-0.5}
    return LayerSpec(
        **common,
        **_SANDWICH,
        window=_window_of(config, index),
        query_norm="self_attn.q_norm",
        key_norm="self_attn.k_norm",
        rope_kind=config.layer_types[index],
    )


_FAMILIES: dict[str, Callable[[nn.Module, Any, int], LayerSpec]] = {
    "LlamaDecoderLayer": _llama,
    "MistralDecoderLayer": _mistral,
    "Qwen2DecoderLayer": _qwen2,
    "Qwen3DecoderLayer": _qwen3,
    "Gemma2DecoderLayer": _gemma2,
    "Gemma3DecoderLayer": _gemma3,
    "Phi3DecoderLayer": _phi3,
}


def families() -> list[str]:
    """The decoder layer classes of transformers that the engine runs."""
    return sorted(_FAMILIES)


def spec_for(layer: nn.Module, config: Any, index: int) -> LayerSpec:
    """The spec of one decoder layer.

    Raises:
        Unsupported: with the reason, when no spec describes this layer exactly.
    """
    # FSDP and friends subclass the layer; the family is the class it came from.
    for cls in type(layer).__mro__:
        if cls.__name__ in _FAMILIES:
            if type(layer).forward is not cls.forward:
                raise Unsupported(f"{type(layer).__name__} has another forward than {cls.__name__}")
            if getattr(config, "attention_dropout", 0.0) and layer.training:
                raise Unsupported(f"attention_dropout is {config.attention_dropout}")
            return _FAMILIES[cls.__name__](layer, config, index)
    raise Unsupported(
        f"{type(layer).__name__} is not one of the families with a spec: {', '.join(families())}"
    )
