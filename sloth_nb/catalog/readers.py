"""From a config.json to a Shape, for every architecture that the catalogue knows and those like them.

Decoders that say their sizes in the usual words are read by one function; a few others have their own. What
can't be read is refused with the reason rather than guessed.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sloth_nb.catalog.fields import need
from sloth_nb.catalog.shape import Block, Linear, Shape
from sloth_nb.catalog.towers import MIMI_LINEAR, MIMI_PARAMETERS, projector, vision_tower
from sloth_nb.catalog.towers import Tower as _Tower
from sloth_nb.errors import ModelError

__all__ = ["read_shape"]

_TIED = {"gemma", "gemma2", "gemma3", "gemma3_text", "cohere", "cohere2"}
_QK_NORM = {"qwen3", "qwen3_moe", "gemma3_text", "olmo3"}
_POST_NORMS = {"gemma2", "gemma3_text"}
_QKV_BIAS = {"qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl"}
_FUSED = {"phi3", "phi4"}


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The shape that a parsed config.json describes.

    Raises:
        ModelError: a field is missing (says which), or the architecture is one that this can't read.
    """
    if not isinstance(config, Mapping):
        raise ModelError(f"A config is a JSON object; this is a {type(config).__name__}.")
    kind = str(config.get("model_type", ""))
    if kind == "whisper":
        return _whisper(config)
    if kind == "csm":
        return _csm(config)
    if kind == "mllama":
        return _with_tower(config, _mllama_text(_text(config)))
    if isinstance(config.get("text_config"), Mapping):
        shape = _decoder(_text(config))
        return _with_tower(config, shape) if isinstance(config.get("vision_config"), Mapping) else shape
    return _decoder(config)


def _text(config: Mapping[str, Any]) -> dict[str, Any]:
    text = dict(config["text_config"])
    text.setdefault("tie_word_embeddings", config.get("tie_word_embeddings"))
    return text


def _with_tower(config: Mapping[str, Any], text: Shape) -> Shape:
    towers = (vision_tower(config["vision_config"]), projector(config, text.hidden))
    return replace(text, model_type=str(config.get("model_type", text.model_type)), towers=towers)


def _decoder(config: Mapping[str, Any]) -> Shape:
    kind = str(config.get("model_type", ""))
    if config.get("kv_lora_rank"):
        raise ModelError(
            f"{kind!r} has latent attention (kv_lora_rank), which the memory model can't read yet."
        )
    if config.get("layers_block_type") or config.get("mamba_d_state") or config.get("linear_num_value_heads"):
        raise ModelError(
            f"{kind!r} mixes attention with state-space layers, which the memory model can't read yet."
        )
    hidden, layers = need(config, "hidden_size"), need(config, "num_hidden_layers")
    vocab = need(config, "vocab_size")
    dense = _dense_block(config, kind, hidden)
    blocks = _mixture(config, kind, dense, layers) or (replace(dense, count=layers),)
    tied = config.get("tie_word_embeddings")
    return Shape(
        model_type=kind,
        hidden=hidden,
        vocab=vocab,
        tied=kind in _TIED if tied is None else bool(tied),
        context=need(config, "max_position_embeddings") if "max_position_embeddings" in config else 0,
        blocks=blocks,
        embedding_parameters=vocab * hidden,
        head_parameters=vocab * hidden,
        extra_parameters=hidden,
    )


def _dense_block(config: Mapping[str, Any], kind: str, hidden: int) -> Block:
    heads = need(config, "num_attention_heads")
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or hidden // heads
    ffn = config.get("intermediate_size_mlp") or need(config, "intermediate_size")
    q, kv = heads * head_dim, kv_heads * head_dim
    qkv_bias = bool(config.get("attention_bias", kind in _QKV_BIAS))
    out_bias = qkv_bias and kind not in _QKV_BIAS
    attention = [
        Linear("q_proj", hidden, q, qkv_bias),
        Linear("k_proj", hidden, kv, qkv_bias),
        Linear("v_proj", hidden, kv, qkv_bias),
    ]
    mlp = [Linear("gate_proj", hidden, ffn), Linear("up_proj", hidden, ffn)]
    if kind in _FUSED:
        attention, mlp = [Linear("qkv_proj", hidden, q + 2 * kv)], [Linear("gate_up_proj", hidden, 2 * ffn)]
    qk_norm, post_norms = kind in _QK_NORM, kind in _POST_NORMS
    return Block(
        count=1,
        kind="decoder",
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=ffn,
        linears=(*attention, Linear("o_proj", q, hidden, out_bias), *mlp, Linear("down_proj", ffn, hidden)),
        norm_parameters=hidden * (4 if post_norms else 2) + (2 * head_dim if qk_norm else 0),
        qk_norm=qk_norm,
        post_norms=post_norms,
    )


def _mixture(config: Mapping[str, Any], kind: str, dense: Block, layers: int) -> tuple[Block, ...]:
    """The blocks of a mixture of experts; some layers may stay dense. Empty when there are no experts."""
    experts = config.get("num_experts") or config.get("num_local_experts") or config.get("n_routed_experts")
    if not experts:
        return ()
    expert_ffn = config.get("moe_intermediate_size") or need(config, "intermediate_size")
    shared = config.get("shared_expert_intermediate_size") or (expert_ffn if kind == "llama4_text" else 0)
    step = config.get("interleave_moe_layer_step") or config.get("decoder_sparse_step") or 1
    mixed = layers // step - len(config.get("mlp_only_layers") or ())
    attention = tuple(
        linear for linear in dense.linears if linear.name in ("q_proj", "k_proj", "v_proj", "o_proj")
    )
    extra = [Linear("router", dense.hidden, experts)]
    if shared:
        extra += [Linear("gate_proj", dense.hidden, shared), Linear("up_proj", dense.hidden, shared)]
        extra += [Linear("down_proj", shared, dense.hidden)]
    mixture = replace(
        dense,
        count=mixed,
        ffn=shared,
        linears=attention + tuple(extra),
        experts=experts,
        experts_per_token=need(config, "num_experts_per_tok"),
        expert_ffn=expert_ffn,
    )
    if mixed == layers:
        return (mixture,)
    return (replace(dense, count=layers - mixed), mixture)


def _mllama_text(config: Mapping[str, Any]) -> Shape:
    """Llama 3.2 Vision: every fifth layer attends to the picture; eight rows of the embedding are its own."""
    plain = _decoder({**config, "model_type": "llama"})
    block = plain.blocks[0]
    crossing = len(config.get("cross_attention_layers") or ())
    # A cross layer has q and k norms over the head and two scalar gates beside the usual norms.
    cross = replace(
        block,
        count=crossing,
        kind="cross",
        qk_norm=True,
        norm_parameters=2 * plain.hidden + 2 * block.head_dim + 2,
    )
    return replace(
        plain,
        blocks=(replace(block, count=block.count - crossing), cross),
        embedding_parameters=(plain.vocab + 8) * plain.hidden,
    )


def _whisper(config: Mapping[str, Any]) -> Shape:
    """Whisper: an encoder over 1500 frames and a decoder that also attends to it. k_proj has no bias."""
    hidden, vocab = need(config, "d_model"), need(config, "vocab_size")
    mels = config.get("num_mel_bins", 80)
    sources, context = config.get("max_source_positions", 1500), config.get("max_target_positions", 448)

    def attention(prefix: str = "") -> list[Linear]:
        names = (("q_proj", True), ("k_proj", False), ("v_proj", True), ("out_proj", True))
        return [Linear(prefix + name, hidden, hidden, bias) for name, bias in names]

    def block(side: str, kind: str, linears: list[Linear], norms: int, positions: int) -> Block:
        heads, ffn = need(config, f"{side}_attention_heads"), need(config, f"{side}_ffn_dim")
        mlp = (Linear("fc1", hidden, ffn, True), Linear("fc2", ffn, hidden, True))
        return Block(
            count=need(config, f"{side}_layers"),
            kind=kind,
            hidden=hidden,
            heads=heads,
            kv_heads=heads,
            head_dim=hidden // heads,
            ffn=ffn,
            linears=(*linears, *mlp),
            norm_parameters=norms * 2 * hidden,
            gated=False,
            positions=positions,
        )

    return Shape(
        model_type="whisper",
        hidden=hidden,
        vocab=vocab,
        tied=True,
        context=context,
        blocks=(
            block("encoder", "encoder", attention(), 2, sources),
            block("decoder", "decoder", attention() + attention("encoder_attn."), 3, 0),
        ),
        embedding_parameters=(vocab + context + sources) * hidden,
        head_parameters=vocab * hidden,
        extra_parameters=3 * mels * hidden + hidden + 3 * hidden * hidden + hidden + 4 * hidden,
    )


def _csm(config: Mapping[str, Any]) -> Shape:
    """CSM: a Llama over text and books of audio codes, a small Llama over the books, and the Mimi codec."""
    hidden, codes = need(config, "hidden_size"), need(config, "vocab_size")
    books, text = need(config, "num_codebooks"), need(config, "text_vocab_size")
    depth_config = {**config.get("depth_decoder_config", {}), "model_type": "llama"}
    backbone = _decoder({**config, "model_type": "llama"})
    depth = _decoder(depth_config)
    small = depth.hidden
    # The depth decoder embeds with the backbone's table; its heads are one matrix a book but the first.
    bridge, heads = hidden * small, (books - 1) * small * codes
    return replace(
        backbone,
        model_type="csm",
        tied=False,
        blocks=(*backbone.blocks, replace(depth.blocks[0], kind="depth")),
        towers=(_Tower("codec", MIMI_PARAMETERS, MIMI_LINEAR),),
        embedding_parameters=text * hidden + books * codes * hidden,
        head_parameters=codes * hidden,
        extra_parameters=hidden + small + bridge + heads,
        extra_linear_weights=bridge,
    )
