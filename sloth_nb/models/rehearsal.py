"""A model's first step, rehearsed on fake tensors before its weights are read: the kernels that it will launch are
compiled in the background meanwhile, not one after the other in the first step.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import torch
from sloth_nb_kernels import AdamW8bitStep, Moments, Rates
from sloth_nb_kernels.adamw_8bit import BLOCK
from sloth_nb_kernels.ahead import compile_ahead
from sloth_nb_kernels.launch import HAS_TRITON, pretend

from sloth_nb.errors import SlothError

__all__ = ["rehearse", "step_launches"]

# Whatever the batch, its rows are most often a multiple of 16, which is all that a kernel is compiled for.
_LENGTH, _RANK, _LAYERS = 2048, 16, 2


def step_launches(
    config: Any, *, method: str, dtype: torch.dtype, capability: tuple[int, int]
) -> list[tuple[Any, tuple, dict[str, Any]]]:
    """(kernel, arguments, options) of every launch of a training step with this config, on fake tensors.

    Empty when the engine doesn't run the model.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    from sloth_nb.catalog import from_config
    from sloth_nb.memory import Work
    from sloth_nb.memory.fake_model import fake_model
    from sloth_nb.models.install import install

    text = config.get_text_config()
    launches: list[tuple[Any, tuple, dict[str, Any]]] = []
    with pretend(capability, launches=launches), FakeTensorMode(allow_non_fake_inputs=True):
        try:
            work = Work(from_config(text.to_dict(), "this model"), method=method, rank=_RANK)
            model = fake_model(work, text, range(min(_LAYERS, text.num_hidden_layers)), dtype)
        except SlothError:  # nothing that the catalogue or the dry run knows
            return []
        if install(model, "recompute", cuda_graphs=False).engine is None:
            return []
        ids = torch.zeros(1, _LENGTH, dtype=torch.int64)
        model(input_ids=ids, labels=ids).loss.backward()
        _step([p for p in model.parameters() if p.grad is not None])
    return launches


def _step(parameters: list[Any]) -> None:
    """One of the 8-bit optimiser, which nearly everybody takes."""
    moments = []
    for parameter in parameters:
        codes, absmax = (
            torch.empty(parameter.shape, dtype=torch.uint8),
            torch.empty(-(-parameter.numel() // BLOCK)),
        )
        moments.append(Moments(parameter.detach(), parameter.grad, codes, codes, absmax, absmax))
    levels = torch.empty(256)
    AdamW8bitStep()(moments, (levels, levels), Rates(1e-4, (0.9, 0.999), 1e-8, 0.0, 1))


def rehearse(config: Any, *, method: str, dtype: torch.dtype, device: torch.device) -> list[Future]:
    """Starts compiling what a training step of this model will launch on a CUDA device; elsewhere does nothing."""
    if device.type != "cuda" or not HAS_TRITON:
        return []
    card = torch.cuda.get_device_capability(device)
    try:
        launches = step_launches(config, method=method, dtype=dtype, capability=card)
    except Exception:  # a model that can't be rehearsed can still be trained; its kernels are compiled then
        return []
    return compile_ahead(launches, device)
