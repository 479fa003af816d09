"""Which floating-point type a model is loaded and trained in, by what the device truly has."""

from typing import Any

import torch

from sloth_nb.errors import ModelError
from sloth_nb.models.devices import best_device
from sloth_nb.notices import warn

__all__ = ["choose_dtype", "is_bf16_supported", "is_bfloat16_supported"]

_NAMES = {
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
    "half": torch.float16,
    "float32": torch.float32,
    "fp32": torch.float32,
    "float": torch.float32,
}


def is_bf16_supported(device: torch.device | None = None) -> bool:
    """Whether a device computes in bfloat16 itself: NVIDIA from Ampere (8.0) on, AMD, Apple, Intel, and CPUs with
    AVX-512 or newer (on ARM, with its bf16 instructions).

    ``torch.cuda.is_bf16_supported()`` also counts emulation, so it says yes on a T4, where bf16 is slow and
    unsupported by half of the kernels. On a CPU with AVX2 torch multiplies bf16 without oneDNN, five to thirty times
    slower than fp32.

    Args:
        device: the device asked about; the one that would be used when None.
    """
    device = device or best_device()
    if device.type == "cuda" and torch.version.hip is None:
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "mps":
        return torch.backends.mps.is_macos_or_newer(14, 0)
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return True


is_bfloat16_supported = is_bf16_supported


def choose_dtype(requested: Any, device: torch.device) -> torch.dtype:
    """The dtype to load in: the one asked for where the device has it, else the nearest it has, with a
    warning. A CPU without bf16 gets it where it is asked for, as half the memory may be worth the time.

    Args:
        requested: None or "auto" for the best, a torch.dtype, or its name ("bfloat16", "fp16", …).
        device: where the model will be.
    Raises:
        ModelError: not a floating-point type that models are trained in.
    """
    if requested is None or requested == "auto":
        return _best_dtype(device)
    dtype = _parse(requested)
    best = _best_dtype(device)
    if dtype is torch.bfloat16 and not is_bf16_supported(device):
        if device.type == "cpu":
            warn(
                "This CPU computes bfloat16 many times slower than float32. Leave dtype out, and float32 is used."
            )
            return dtype
        why = f"{_name_of(device)} has no bfloat16"
    elif dtype is torch.float16 and device.type in ("cpu", "mps"):
        why = f"float16 can't be trained on {_name_of(device)} (no gradient scaler)"
    else:
        return dtype
    warn(f"{why}; {best} is used.")
    return best


def _best_dtype(device: torch.device) -> torch.dtype:
    if is_bf16_supported(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


def _parse(requested: Any) -> torch.dtype:
    if isinstance(requested, str):
        requested = _NAMES.get(requested.removeprefix("torch."), requested)
    if requested not in _NAMES.values():
        raise ModelError(
            f"dtype={requested!r} is not a type that a model is loaded in. Known: None (the best this "
            "device has), bfloat16, float16, float32."
        )
    return requested


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return {"cpu": "a CPU", "mps": "Apple's MPS"}.get(device.type, str(device))
