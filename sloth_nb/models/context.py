"""How many tokens a model takes, and stretching its rotary positions when more are asked for."""

import copy
import json
import math
from pathlib import Path
from typing import Any

from sloth_nb.errors import ModelError
from sloth_nb.notices import warn

__all__ = [
    "POSITIONS_FILE",
    "apply_context",
    "context_of",
    "positions_of",
    "read_positions",
    "write_positions",
]

POSITIONS_FILE = "sloth_nb_positions.json"

# Types whose factor simply multiplies; longrope has one factor a frequency instead.
_SCALABLE = ("default", "linear", "dynamic", "yarn", "llama3")


def context_of(config: Any) -> int | None:
    """Tokens that the text model was made for, or None when its config doesn't say."""
    text = config.get_text_config()
    return getattr(text, "max_position_embeddings", None)


def apply_context(config: Any, max_seq_length: int | None, rope_scaling: dict[str, Any] | None) -> int | None:
    """Writes the asked-for context into a config that no model was built from yet.

    Args:
        config: a transformers config; changed in place.
        max_seq_length: tokens of the longest sequence, or None for the model's own context.
        rope_scaling: rotary settings to use instead of any automatic ones, as in transformers' config.
    Returns:
        The longest sequence the model will take; None when neither the config nor the caller says.
    Raises:
        ModelError: not a positive length, or positions that can't be stretched without a ``rope_scaling``.
    """
    if max_seq_length is not None and (not isinstance(max_seq_length, int) or max_seq_length < 1):
        raise ModelError(f"max_seq_length={max_seq_length!r} is not a number of tokens.")
    text = config.get_text_config()
    own = context_of(config)
    if rope_scaling is not None:
        _set_rope(text, rope_scaling)
    if own is None or max_seq_length is None or max_seq_length <= own:
        return max_seq_length or own
    if rope_scaling is None:
        if not getattr(text, "rope_parameters", None):
            warn(
                f"max_seq_length={max_seq_length:,}, but this model has {own:,} learned positions, which "
                f"can't be stretched; {own:,} is used."
            )
            return own
        ratio = max_seq_length / own
        text.rope_parameters = _stretched(text.rope_parameters, ratio, own)
        warn(
            f"max_seq_length={max_seq_length:,} is longer than the model's {own:,}: its rotary positions "
            f"(RoPE) are scaled by {ratio:g}, {_how(text.rope_parameters)}. Fine-tune on long texts before "
            "relying on it, or choose another way with rope_scaling={'rope_type': 'yarn', 'factor': …}."
        )
    text.max_position_embeddings = max_seq_length
    return max_seq_length


def positions_of(config: Any) -> dict[str, Any]:
    """The part of a config that says where a token stands."""
    text = config.get_text_config()
    names = ("rope_parameters", "max_position_embeddings")
    return {
        name: copy.deepcopy(getattr(text, name)) for name in names if getattr(text, name, None) is not None
    }


def write_positions(positions: dict[str, Any] | None, folder: Path) -> None:
    """Beside an adapter that was trained on a stretched base: its own files say nothing about that."""
    if positions:
        (folder / POSITIONS_FILE).write_text(json.dumps(positions, indent=2), encoding="utf-8")


def read_positions(config: Any, file: Path | None) -> None:
    """Stretches a base's config as it was when the adapter with this file beside it was trained, if it was."""
    if file is not None:
        try:
            positions = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{file} can't be read: {error}") from error
        for name, value in positions.items():
            setattr(config.get_text_config(), name, value)


def _set_rope(text: Any, rope_scaling: dict[str, Any]) -> None:
    if not getattr(text, "rope_parameters", None):
        raise ModelError("rope_scaling was given, but this model has no rotary positions to scale.")
    if not isinstance(rope_scaling, dict) or not ({"rope_type", "type"} & set(rope_scaling)):
        raise ModelError(
            f"rope_scaling={rope_scaling!r} has no rope_type. Example: {{'rope_type': 'yarn', 'factor': "
            "4.0}."
        )
    scaling = dict(rope_scaling)
    scaling["rope_type"] = scaling.pop("type", scaling.get("rope_type"))
    before = copy.deepcopy(text.rope_parameters)
    for rope in _each_rope(before):
        theta = rope.get("rope_theta")
        rope.clear()
        rope |= {"rope_theta": theta, **scaling}
    text.rope_parameters = before
    try:
        text.standardize_rope_params()
        text.validate_rope()
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(f"rope_scaling={rope_scaling!r} can't be used: {error}") from error


def _stretched(parameters: dict[str, Any], ratio: float, own: int) -> dict[str, Any]:
    parameters = copy.deepcopy(parameters)
    for rope in _each_rope(parameters):
        kind = rope.get("rope_type", "default")
        if kind not in _SCALABLE:
            raise ModelError(
                f"The model takes {own:,} tokens with RoPE of type {kind!r}, which can't be stretched by a "
                f"factor. Use max_seq_length={own}, or pass rope_scaling."
            )
        rope["factor"] = rope.get("factor", 1.0) * ratio
        if kind == "default":
            rope["rope_type"] = "linear"
        elif kind in ("yarn", "llama3"):
            rope.setdefault("original_max_position_embeddings", own)
    return parameters


def _each_rope(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """The rotary settings; where layers differ, those of the layers that see the whole context."""
    if not any(isinstance(value, dict) for value in parameters.values()):
        return [parameters]
    return [
        rope for kind, rope in parameters.items() if isinstance(rope, dict) and not kind.startswith("sliding")
    ]


def _how(parameters: dict[str, Any]) -> str:
    rope = _each_rope(parameters)[0]
    factor = rope["factor"]
    shown = f"{factor:g}" if math.isclose(factor, float(f"{factor:g}")) else f"{factor}"
    return f"type {rope['rope_type']!r} with factor {shown}"
