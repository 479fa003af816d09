"""The vision encoders of Qwen's models that see, counted from their own words: depth, embed_dim, a merger."""

from collections.abc import Mapping
from typing import Any

from sloth_nb.catalog.fields import MOST_LAYERS, entries, maybe, need
from sloth_nb.catalog.shape import Tower

__all__ = ["QWEN_TOWERS", "qwen_tower"]

QWEN_TOWERS = frozenset(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"))
_WHERE = "vision_config"


def qwen_tower(config: Mapping[str, Any], kind: str) -> Tower:
    """The encoder of a ``vision_config`` with what merges its patches, for a model_type of ``QWEN_TOWERS``.

    Raises:
        ModelError: a field is missing or no size; says which.
    """
    depth = need(config, "depth", _WHERE, most=MOST_LAYERS)
    patch, merge = maybe(config, "patch_size", 14, _WHERE), maybe(config, "spatial_merge_size", 2, _WHERE)
    frames = maybe(config, "temporal_patch_size", 2, _WHERE)
    channels = maybe(config, "in_channels", maybe(config, "in_chans", 3, _WHERE), _WHERE)
    if kind == "qwen2_vl":
        hidden, out = need(config, "embed_dim", _WHERE), need(config, "hidden_size", _WHERE)
        ffn = hidden * maybe(config, "mlp_ratio", 4, _WHERE)
    else:
        hidden, out = need(config, "hidden_size", _WHERE), need(config, "out_hidden_size", _WHERE)
        ffn = need(config, "intermediate_size", _WHERE)
    gated = kind == "qwen2_5_vl"  # and with RMS norms, which have no biases
    norm = hidden if gated else 2 * hidden
    layer = 4 * hidden * hidden + (3 if gated else 2) * hidden * ffn
    biases = 4 * hidden + (2 if gated else 1) * ffn + hidden + 2 * norm
    wide = hidden * merge**2
    merger, merger_biases = wide * wide + wide * out, wide + out
    linear = depth * layer + merger
    total = linear + depth * biases + merger_biases + norm + channels * frames * patch**2 * hidden
    if kind.startswith("qwen3"):  # learned positions, a bias of the patches, and mergers between the layers
        total += hidden + maybe(config, "num_position_embeddings", 2304, _WHERE) * hidden
        between = entries(config, "deepstack_visual_indexes", MOST_LAYERS, _WHERE)
        linear += between * merger
        total += between * (merger + merger_biases + 2 * wide)
    return Tower(f"{kind}_vision", total, linear, hidden, depth, ffn)
