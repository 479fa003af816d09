"""Which decoders the readers know, by model_type: how each differs from a Llama, and which can't be read.

Each was compared with what transformers 5.23 builds: parameters within 1 %.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sloth_nb.catalog.fields import word
from sloth_nb.errors import ModelError

__all__ = [
    "POST_NORMS",
    "QKV_BIAS",
    "QK_NORM",
    "TEXT_KINDS",
    "TIED",
    "TIED_WHOLES",
    "UNGATED",
    "Ungated",
    "check",
]

# What a config leaves out that its class takes for granted.
TIED = frozenset(
    (
        *("cohere", "cohere2", "cohere2_moe", "ernie4_5", "gemma", "gemma2", "gemma3", "gemma3_text"),
        *("granite_swa", "smollm3", "starcoder2", "vaultgemma"),
    )
)
# The same of models that also see.
TIED_WHOLES = frozenset(("aya_vision", "gemma3", "got_ocr2", "internvl", "mistral3", "paligemma"))
QK_NORM = frozenset(("qwen3", "qwen3_moe", "qwen3_vl_text", "qwen3_vl_moe_text", "gemma3_text", "olmo3"))
POST_NORMS = frozenset(("gemma2", "gemma3_text"))
QKV_BIAS = frozenset(("qwen2", "qwen2_moe", "qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text"))

# The language model within a model that also sees, where its config doesn't say.
TEXT_KINDS = {
    "gemma3": "gemma3_text",
    "llama4": "llama4_text",
    "mistral3": "mistral",
    "qwen2_vl": "qwen2_vl_text",
    "qwen2_5_vl": "qwen2_5_vl_text",
    "qwen3_vl": "qwen3_vl_text",
    "qwen3_vl_moe": "qwen3_vl_moe_text",
}

_LIKE_LLAMA = frozenset(
    (
        *TIED - {"starcoder2"},
        *QK_NORM,
        *QKV_BIAS,
        *("bitnet", "cwm", "diffllama", "emu3", "exaone4", "flex_olmo", "glm", "glm4", "gpt_oss", "granite"),
        *("granitemoe", "granitemoeshared", "helium", "hyperclovax", "internlm3", "llama", "llama4_text"),
        *("minimax_m2", "ministral3", "mistral", "mixtral", "mllama_text_model", "olmo", "olmo2", "olmoe"),
        *("phi3", "phi4", "phimoe", "seed_oss", "stablelm"),
    )
)


@dataclass(frozen=True)
class Ungated:
    """A decoder whose MLP has no gate: two matrices, not three.

    Attributes:
        out, up, down: the linear layers' names in the model's own code; ``qkv`` where those three are one.
        attention_bias, mlp_bias: the config's field that says so ("" when none does), and what holds without it.
        norms: in a layer; ``norm_bias`` when they are LayerNorms.
    """

    out: str
    up: str
    down: str
    qkv: str = ""
    attention_bias: tuple[str, bool] = ("attention_bias", False)
    mlp_bias: tuple[str, bool] = ("mlp_bias", False)
    norms: int = 2
    norm_bias: bool = True
    head_bias: bool = False


UNGATED = {
    "arcee": Ungated("o_proj", "up_proj", "down_proj", norm_bias=False),
    "gpt_neox": Ungated(
        "dense",
        "dense_h_to_4h",
        "dense_4h_to_h",
        qkv="query_key_value",
        attention_bias=("attention_bias", True),
        mlp_bias=("", True),
    ),
    "nemotron": Ungated("o_proj", "up_proj", "down_proj"),
    "phi": Ungated(
        "dense",
        "fc1",
        "fc2",
        attention_bias=("", True),
        mlp_bias=("", True),
        norms=1,
        head_bias=True,
    ),
    "starcoder2": Ungated(
        "o_proj", "c_fc", "c_proj", attention_bias=("use_bias", True), mlp_bias=("use_bias", True)
    ),
}

_ENCODERS = frozenset(
    (
        *("albert", "bert", "big_bird", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2"),
        *("distilbert", "electra", "ernie", "esm", "eurobert", "funnel", "longformer", "megatron-bert"),
        *("mobilebert", "modernbert", "mpnet", "nomic_bert", "roberta", "roberta-prelayernorm", "roformer"),
        *("squeezebert", "xlm-roberta", "xlm-roberta-xl", "xmod"),
    )
)
# They have the words of a Llama's config and are built otherwise.
_OTHERWISE = frozenset(
    (
        *("beam", "doge", "falcon_mamba", "hrm_text", "inkling_text", "jetmoe", "laguna", "mamba", "mamba2"),
        *("mimo_v2_flash", "minimax", "minimax_m3_vl_text", "moshi", "muse_spark_text", "phi4_multimodal"),
        *("step3p5", "zaya"),
    )
)
# Mixtures whose first layers are dense, or that say their experts in other words.
_OTHER_MIXTURES = (
    *("first_k_dense_replace", "num_dense_layers", "n_shared_experts", "num_shared_experts"),
    *("moe_num_experts", "moe_num_shared_experts"),
)


def check(config: Mapping[str, Any], kind: str) -> None:
    """Lets pass what the readers can read: what is known, and what says that its MLP is a Llama's.

    Raises:
        ModelError: another architecture; with what tells it apart.
    """
    if kind in _ENCODERS:
        raise ModelError(f"{kind!r} is an encoder, which writes no text; the memory model reads decoders.")
    if config.get("kv_lora_rank"):
        raise ModelError(
            f"{kind!r} has latent attention (kv_lora_rank), which the memory model can't read yet."
        )
    if config.get("layers_block_type") or config.get("mamba_d_state") or config.get("linear_num_value_heads"):
        raise ModelError(
            f"{kind!r} mixes attention with state-space layers, which the memory model can't read yet."
        )
    if kind in _LIKE_LLAMA or kind in UNGATED:
        return
    mixture = next((field for field in _OTHER_MIXTURES if config.get(field)), None)
    if mixture:
        raise ModelError(
            f"{kind!r} is a mixture of experts of its own kind ({mixture}), which the memory model can't read yet."
        )
    activation = word(config, "hidden_act")
    if kind in _OTHERWISE or config.get("is_encoder_decoder") or not _as_a_llamas(activation, kind):
        raise ModelError(
            f"{kind!r} is an architecture that the memory model doesn't know (activation {activation!r:.40}), and "
            "its size would be a guess."
        )


def _as_a_llamas(activation: str, kind: str) -> bool:
    """Whether an MLP of an unknown kind has a gate: where the activation is SiLU. Without a kind it is a Llama."""
    return activation in ("silu", "swish") or not (activation or kind)
