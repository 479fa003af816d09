"""Encoders beside the language model, counted from their own part of a config.

The known ones are exact; any other vision config is read as a plain ViT, which is within a few percent.
"""

from collections.abc import Mapping
from typing import Any

from sloth_nb.catalog.fields import MOST_LAYERS, maybe, need, word
from sloth_nb.catalog.shape import Tower

__all__ = ["MIMI_PARAMETERS", "projector", "vision_tower"]

# The codec that CSM speaks through: counted from transformers' own MimiModel with its default config.
MIMI_PARAMETERS = 79_308_609
MIMI_LINEAR = 50_331_648
_WHERE = "vision_config"


def vision_tower(config: Mapping[str, Any]) -> Tower:
    """The vision encoder of a ``vision_config``."""
    kind = word(config, "model_type", _WHERE) or "vit"
    hidden = need(config, "hidden_size", _WHERE)
    ffn = need(config, "intermediate_size", _WHERE)
    layers = need(config, "num_hidden_layers", _WHERE, most=MOST_LAYERS)
    patch, image = _side(config, "patch_size", 14), _side(config, "image_size", 224)
    channels = maybe(config, "num_channels", 3, _WHERE)
    positions = (image // patch) ** 2
    attention, mlp = 4 * hidden * hidden, 2 * hidden * ffn
    patches = channels * patch * patch * hidden
    global_layers = maybe(config, "num_global_layers", 0, _WHERE, least=0)
    layers += global_layers

    if kind == "pixtral":  # gated, no biases, RMS norms, rotary positions
        linear = layers * (attention + 3 * hidden * ffn)
        total = linear + layers * 2 * hidden + patches + hidden
    elif (
        kind == "mllama_vision_model"
    ):  # no attention biases, gated learned positions per tile and aspect ratio
        aspects, tiles, seen = 9, maybe(config, "max_num_tiles", 4, _WHERE), positions + 1
        linear = layers * (attention + mlp)
        total = linear + layers * (ffn + hidden + 4 * hidden) + patches + 4 * hidden + hidden
        total += seen * hidden + aspects * tiles * seen * hidden + 1  # gated_positional_embedding
        total += 2 * (aspects * tiles * hidden + 1)  # before and after the tiles, each with its gate
        total += 2 * global_layers  # two gates a global layer
        positions = seen * tiles
    elif kind == "llama4_vision_model":  # biases, a class token, pixel shuffle into a two-layer adapter
        ratio = 4  # pixel_shuffle_ratio 0.5 folds four patches into one
        inner, out = (maybe(config, f"projector_{side}_dim", 4096, _WHERE) for side in ("input", "output"))
        adapter = hidden * ratio * inner + inner * out
        linear = layers * (attention + mlp) + adapter + patches
        total = linear + layers * (4 * hidden + ffn + hidden + 4 * hidden)
        total += (positions + 1) * hidden + hidden + 4 * hidden
    else:  # SigLIP, CLIP and plain ViTs: biases everywhere, learned positions, LayerNorms
        linear = layers * (attention + mlp)
        total = linear + layers * (4 * hidden + ffn + hidden + 4 * hidden)
        total += patches + hidden + positions * hidden + 2 * hidden
    return Tower(kind, total, linear, hidden, layers, ffn, positions)


def projector(config: Mapping[str, Any], text_hidden: int) -> Tower:
    """What carries a vision tower's features into the language model, by the outer config's model type."""
    kind, vision = word(config, "model_type"), config["vision_config"]
    width = need(vision, "hidden_size", _WHERE)
    if kind == "gemma3":  # one bare matrix and a norm
        return Tower("projector", width * text_hidden + width, 0)
    if kind == "mllama":
        out = maybe(vision, "vision_output_dim", 7680, _WHERE)
        return Tower("projector", out * text_hidden + text_hidden, out * text_hidden)
    if kind == "llama4":
        out = maybe(vision, "vision_output_dim", 4096, _WHERE)
        return Tower("projector", out * text_hidden, out * text_hidden)
    if kind == "mistral3":
        merged = width * maybe(config, "spatial_merge_size", 2) ** 2
        linear = merged * width + width * text_hidden + text_hidden * text_hidden
        return Tower("projector", linear + width, linear)
    linear = width * text_hidden + text_hidden * text_hidden  # LLaVA's two layers
    return Tower("projector", linear + 2 * text_hidden, linear)


def _side(config: Mapping[str, Any], field: str, default: int) -> int:
    """Pixels of a square's side, which some configs give as height and width."""
    value = config.get(field)
    if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
        return maybe({field: value[0]}, field, default, _WHERE)
    return maybe(config, field, default, _WHERE)
