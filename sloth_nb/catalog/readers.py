"""From a config.json to a Shape, for every architecture that the catalogue knows and those like them.

Decoders that say their sizes in the usual words are read by one function; a few others have their own. What
can't be read is refused with the reason rather than guessed.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sloth_nb.catalog.architectures import (
    POST_NORMS,
    QK_NORM,
    QKV_BIAS,
    TEXT_KINDS,
    TIED,
    TIED_WHOLES,
    UNGATED,
    Ungated,
    check,
)
from sloth_nb.catalog.fields import MOST_LAYERS, entries, flag, maybe, need, word
from sloth_nb.catalog.qwen_towers import QWEN_TOWERS, qwen_tower
from sloth_nb.catalog.shape import Block, Linear, Shape
from sloth_nb.catalog.towers import MIMI_LINEAR, MIMI_PARAMETERS, projector, vision_tower
from sloth_nb.catalog.towers import Tower as _Tower
from sloth_nb.errors import ModelError

__all__ = ["read_shape", "text_config"]

_FUSED = {"phi3", "phi4"}


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The shape that a parsed config.json describes.

    Raises:
        ModelError: a field is missing (says which), or the architecture is one that this can't read.
    """
    if not isinstance(config, Mapping):
        raise ModelError(f"A config is a JSON object; this is a {type(config).__name__}.")
    kind = word(config, "model_type")
    if kind == "whisper":
        return _whisper(config)
    if kind == "csm":
        return _csm(config)
    if kind == "mllama_text_model":
        return _mllama_text(config)
    if isinstance(config.get("audio_config"), Mapping):
        raise ModelError(
            f"{kind!r} hears with an encoder (audio_config) that the memory model can't read yet."
        )
    text = _text(config) if isinstance(config.get("text_config"), Mapping) else config
    shape = _mllama_text(text) if kind == "mllama" else _decoder(text)
    return _with_tower(config, shape) if isinstance(config.get("vision_config"), Mapping) else shape


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of the language model within one that also sees, by itself, as transformers loads it alone."""
    text = dict(config["text_config"])
    text["model_type"] = text.get("model_type") or TEXT_KINDS.get(word(config, "model_type"))
    return text


def _text(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same within the whole, whose word on tied embeddings counts, as it does in transformers."""
    tied = flag(config, "tie_word_embeddings", word(config, "model_type") in TIED_WHOLES)
    return {**text_config(config), "tie_word_embeddings": tied}


def _with_tower(config: Mapping[str, Any], text: Shape) -> Shape:
    kind, vision = word(config, "model_type") or text.model_type, config["vision_config"]
    if kind in QWEN_TOWERS:
        return replace(text, model_type=kind, towers=(qwen_tower(vision, kind),))
    towers = (vision_tower(vision), projector(config, text.hidden))
    return replace(text, model_type=kind, towers=towers)


def _decoder(config: Mapping[str, Any]) -> Shape:
    kind = word(config, "model_type")
    check(config, kind)
    hidden, layers = need(config, "hidden_size"), need(config, "num_hidden_layers", most=MOST_LAYERS)
    vocab = need(config, "vocab_size")
    plain = UNGATED.get(kind)
    if plain:
        blocks: tuple[Block, ...] = (replace(_ungated_block(config, plain, hidden), count=layers),)
    else:
        dense = _dense_block(config, kind, hidden)
        blocks = _mixture(config, kind, dense, layers) or (replace(dense, count=layers),)
    return Shape(
        model_type=kind,
        hidden=hidden,
        vocab=vocab,
        tied=flag(config, "tie_word_embeddings", kind in TIED),
        context=maybe(config, "max_position_embeddings", 0, least=0),
        blocks=blocks,
        embedding_parameters=vocab * hidden,
        head_parameters=vocab * hidden,
        extra_parameters=hidden * (2 if plain and plain.norm_bias else 1)
        + (vocab if plain and plain.head_bias else 0),
    )


def _heads(config: Mapping[str, Any], hidden: int) -> tuple[int, int, int]:
    """Heads of the queries, of keys and values, and the width of one."""
    heads = need(config, "num_attention_heads")
    kv_heads = maybe(config, "num_key_value_heads", heads)
    head_dim = maybe(config, "head_dim", hidden // heads)
    if kv_heads > heads or not head_dim:
        beside = f"num_key_value_heads {kv_heads:,}" if head_dim else f"hidden_size {hidden:,}"
        raise ModelError(
            f"'num_attention_heads' in config.json is {heads:,}, which can't be beside {beside}."
        )
    return heads, kv_heads, head_dim


def _layer(hidden: int, heads: tuple[int, int, int], **more: Any) -> Block:
    """One decoder layer with what ``_heads`` says."""
    count, kv_heads, head_dim = heads
    return Block(1, "decoder", hidden, count, kv_heads, head_dim, **more)


def _dense_block(config: Mapping[str, Any], kind: str, hidden: int) -> Block:
    heads, kv_heads, head_dim = _heads(config, hidden)
    ffn = maybe(config, "intermediate_size_mlp", 0, least=0) or need(config, "intermediate_size")
    q, kv = heads * head_dim, kv_heads * head_dim
    qkv_bias = flag(config, "attention_bias", kind in QKV_BIAS)
    out_bias = qkv_bias and kind not in QKV_BIAS
    attention = [
        Linear("q_proj", hidden, q, qkv_bias),
        Linear("k_proj", hidden, kv, qkv_bias),
        Linear("v_proj", hidden, kv, qkv_bias),
    ]
    mlp = [Linear("gate_proj", hidden, ffn), Linear("up_proj", hidden, ffn)]
    if kind in _FUSED:
        attention, mlp = [Linear("qkv_proj", hidden, q + 2 * kv)], [Linear("gate_up_proj", hidden, 2 * ffn)]
    qk_norm, post_norms = kind in QK_NORM, kind in POST_NORMS
    return _layer(
        hidden,
        (heads, kv_heads, head_dim),
        ffn=ffn,
        linears=(*attention, Linear("o_proj", q, hidden, out_bias), *mlp, Linear("down_proj", ffn, hidden)),
        norm_parameters=hidden * (4 if post_norms else 2) + (2 * head_dim if qk_norm else 0),
        qk_norm=qk_norm,
        post_norms=post_norms,
    )


def _ungated_block(config: Mapping[str, Any], plain: Ungated, hidden: int) -> Block:
    heads, kv_heads, head_dim = _heads(config, hidden)
    if plain.qkv:  # one matrix of three equal parts
        kv_heads = heads
    ffn, q, kv = need(config, "intermediate_size"), heads * head_dim, kv_heads * head_dim
    biased, mlp_biased = flag(config, *plain.attention_bias), flag(config, *plain.mlp_bias)
    outputs = {plain.qkv: q + 2 * kv} if plain.qkv else {"q_proj": q, "k_proj": kv, "v_proj": kv}
    return _layer(
        hidden,
        (heads, kv_heads, head_dim),
        ffn=ffn,
        linears=(
            *(Linear(name, hidden, width, biased) for name, width in outputs.items()),
            Linear(plain.out, q, hidden, biased),
            Linear(plain.up, hidden, ffn, mlp_biased),
            Linear(plain.down, ffn, hidden, mlp_biased),
        ),
        norm_parameters=plain.norms * hidden * (2 if plain.norm_bias else 1),
        gated=False,
    )


def _mixture(config: Mapping[str, Any], kind: str, dense: Block, layers: int) -> tuple[Block, ...]:
    """The blocks of a mixture of experts; some layers may stay dense. Empty when there are no experts."""
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    experts = next((count for name in names if (count := maybe(config, name, 0, least=0))), 0)
    if not experts:
        return ()
    expert_ffn = maybe(config, "moe_intermediate_size", 0, least=0) or need(config, "intermediate_size")
    shared = maybe(config, "shared_expert_intermediate_size", 0, least=0)
    if kind == "llama4_text":
        shared = shared or expert_ffn
    steps = (maybe(config, name, 0, least=0) for name in ("interleave_moe_layer_step", "decoder_sparse_step"))
    step = next(filter(None, steps), 1)
    mixed = max(0, layers // step - entries(config, "mlp_only_layers", layers))
    if not mixed:
        return ()
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
    crossing = entries(config, "cross_attention_layers", block.count)
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
    mels = maybe(config, "num_mel_bins", 80)
    sources, context = maybe(config, "max_source_positions", 1500), maybe(config, "max_target_positions", 448)

    def attention(prefix: str = "") -> list[Linear]:
        names = (("q_proj", True), ("k_proj", False), ("v_proj", True), ("out_proj", True))
        return [Linear(prefix + name, hidden, hidden, bias) for name, bias in names]

    def block(side: str, kind: str, linears: list[Linear], norms: int, positions: int) -> Block:
        heads, ffn = need(config, f"{side}_attention_heads"), need(config, f"{side}_ffn_dim")
        mlp = (Linear("fc1", hidden, ffn, True), Linear("fc2", ffn, hidden, True))
        return Block(
            count=need(config, f"{side}_layers", most=MOST_LAYERS),
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
        learnt_positions=True,
    )


def _csm(config: Mapping[str, Any]) -> Shape:
    """CSM: a Llama over text and books of audio codes, a small Llama over the books, and the Mimi codec."""
    hidden, codes = need(config, "hidden_size"), need(config, "vocab_size")
    books, text = need(config, "num_codebooks"), need(config, "text_vocab_size")
    depth_config = config.get("depth_decoder_config")
    if not isinstance(depth_config, Mapping):
        raise ModelError("config.json of a csm lacks the object 'depth_decoder_config', its second decoder.")
    backbone = _decoder({**config, "model_type": "llama"})
    depth = _decoder({**depth_config, "model_type": "llama"})
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
