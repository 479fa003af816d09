"""4-bit and 8-bit loading through bitsandbytes: whether it can be had here, how, and one trap of it."""

import importlib.util
import logging
from typing import Any

import torch

from sloth_nb.errors import ModelError
from sloth_nb.notices import warn

__all__ = ["choose_quantization", "keep_trainable"]


def _matters(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Failed to load CPU gemm_4bit_forward")


# On CPUs with AVX512-BF16 bitsandbytes looks for a downloaded kernel when imported, and reports that there is none.
# It would serve the inference layout that keep_trainable forbids: its lack changes nothing here.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_matters)


def choose_quantization(
    *, load_in_4bit: bool, load_in_8bit: bool, device: torch.device, dtype: torch.dtype
) -> Any | None:
    """transformers' ``BitsAndBytesConfig``, or None for plain weights.

    4-bit is NF4 with double quantisation, computed in ``dtype``. Where bitsandbytes is missing or doesn't
    run, the model is loaded in ``dtype`` instead and one warning says so: published notebooks ask for 4-bit
    by default.
    """
    if not (load_in_4bit or load_in_8bit):
        return None
    if missing := _why_not(device):
        bits = 4 if load_in_4bit else 8
        name = str(dtype).removeprefix("torch.")
        warn(
            f"load_in_{bits}bit=True, but {missing}: the weights are loaded in {name} instead, which needs "
            f"{4 if bits == 4 else 2} times their memory. load_in_{bits}bit=False says so without this "
            "warning."
        )
        return None
    from transformers import BitsAndBytesConfig

    if load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _why_not(device: torch.device) -> str | None:
    if device.type == "mps":
        return "bitsandbytes doesn't train on Apple's MPS"
    if importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed (pip install bitsandbytes)"
    try:
        import bitsandbytes  # noqa: F401
    except Exception as error:  # a broken native library raises what it likes
        return f"bitsandbytes can't be loaded ({type(error).__name__}: {error})"
    return None


def keep_trainable(model: torch.nn.Module) -> None:
    """Forbids bitsandbytes to repack 4-bit weights on the CPU, for as long as the model lives.

    On CPUs with AVX512-BF16 the first forward without gradients rewrites a Linear4bit's weight into a layout
    that
    only inference reads: a later backward then silently has no input gradient (bitsandbytes 0.50). One
    held-out evaluation or one chat turn between two training steps would be enough.

    Raises:
        ModelError: a weight was already repacked, by a forward before this call.
    """
    for name, module in model.named_modules():
        if not hasattr(module, "support_avx512bf16_for_cpu"):
            continue
        if getattr(module.weight.quant_state, "packing_format_for_cpu", False):
            raise ModelError(
                f"{name} was repacked for inference on the CPU and can't be trained any more. Load the "
                "model again with from_pretrained."
            )
        module.support_avx512bf16_for_cpu = False
