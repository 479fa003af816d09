"""Arguments that published notebooks pass and that mean nothing here, or can't be had: said, never swallowed.

Everything else that ``from_pretrained`` and ``get_peft_model`` take is honoured where it is read.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from sloth_nb.errors import ModelError, did_you_mean
from sloth_nb.notices import warn

__all__ = ["LOADING", "MERGING", "PEFT", "Unusual", "refuse_unknown", "settle"]


@dataclass(frozen=True)
class Unusual:
    """An argument that is not used: its default, why, and whether asking for it ends the call."""

    default: Any
    reason: str
    refused: bool = False


_NO_VLLM = "generation runs in transformers, not in vLLM"
_NO_COMPILER = "nothing is compiled or rewritten"
_NO_QAT = "quantisation-aware training isn't offered; train with adapters on load_in_4bit=True, or in 16 bits"

LOADING = {
    "fast_inference": Unusual(False, _NO_VLLM),
    "gpu_memory_utilization": Unusual(0.5, _NO_VLLM),
    "float8_kv_cache": Unusual(False, _NO_VLLM),
    "max_lora_rank": Unusual(64, _NO_VLLM),
    "disable_log_stats": Unusual(True, _NO_VLLM),
    "unsloth_tiled_mlp": Unusual(False, "the MLP isn't tiled; gradient checkpointing is what saves memory"),
    "unsloth_force_compile": Unusual(False, _NO_COMPILER),
    "qat_scheme": Unusual(None, _NO_QAT, refused=True),
    "load_in_fp8": Unusual(
        False,
        "fp8 weights can't be trained through; use load_in_8bit=True or load_in_4bit=True",
        refused=True,
    ),
}

_OWN_WAY = "files are written beside the folder first, and only as safetensors"
_NOT_COMPRESSED = "only compressed forms need it, and none is offered"

MERGING = {
    "temporary_location": Unusual("_unsloth_temporary_saved_buffers", _OWN_WAY),
    "maximum_memory_usage": Unusual(0.75, "one layer at a time is merged"),
    "save_function": Unusual(torch.save, _OWN_WAY),
    "safe_serialization": Unusual(True, "pickled weights can run code when loaded", refused=True),
    "save_peft_format": Unusual(True, "the adapter is written in peft's own form", refused=True),
    "datasets": Unusual(None, _NOT_COMPRESSED),
    "calibration_dataset": Unusual(None, _NOT_COMPRESSED),
    "num_calibration_samples": Unusual(512, _NOT_COMPRESSED),
    "max_seq_length": Unusual(2048, _NOT_COMPRESSED),
}

PEFT = {
    "temporary_location": Unusual(
        "_unsloth_temporary_saved_buffers", "nothing is moved to the disk meanwhile"
    ),
    "qat_scheme": Unusual(None, _NO_QAT, refused=True),
}


def settle(given: dict[str, Any], table: dict[str, Unusual]) -> None:
    """Refuses or warns about arguments of the table that were given another value than their default.

    Raises:
        ModelError: naming the first refused argument and the reason.
    """
    unusual = {name: row for name, row in table.items() if name in given and given[name] != row.default}
    for name, row in unusual.items():
        if row.refused:
            raise ModelError(f"{name}={given[name]!r} can't be had: {row.reason}.")
    reasons: dict[str, list[str]] = {}
    for name, row in unusual.items():
        reasons.setdefault(row.reason, []).append(f"{name}={given[name]!r}")
    if reasons:
        said = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())
        warn(f"Without effect here: {said}.")


def refuse_unknown(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises a ModelError for the first name that isn't known, with the nearest that is."""
    known = list(known)
    for name in names:
        if name in known:
            continue
        raise ModelError(f"{where} has no argument {name!r}.{did_you_mean(name, known, 0.7)}")
