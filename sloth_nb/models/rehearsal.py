"""A model's first step, rehearsed on fake tensors before its weights are read: the kernels that it will launch are
compiled by a process of its own meanwhile, not one after the other in the first step.
"""

from __future__ import annotations

import hashlib
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from sloth_nb_kernels import AdamW8bitStep, Moments, Rates
from sloth_nb_kernels.adamw_8bit import BLOCK
from sloth_nb_kernels.ahead import ask, begin_compiling, request, take_fingerprint
from sloth_nb_kernels.launch import HAS_TRITON, INTERPRETED, pretend

import sloth_nb
from sloth_nb.errors import SlothError

__all__ = ["Rehearsal", "step_launches"]

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
    from sloth_nb.memory.fake_kernels import MendedFakes
    from sloth_nb.memory.fake_model import fake_model
    from sloth_nb.models.install import install

    text = config.get_text_config()
    launches: list[tuple[Any, tuple, dict[str, Any]]] = []
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    with pretend(capability, launches=launches), fakes, MendedFakes():
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


class Rehearsal:
    """The process that compiles. It imports what it needs while this one does, then waits to be told.

    Only where there is a CUDA device, and where the same hasn't been compiled already. Nothing depends on it: a kernel
    that it didn't make is compiled when it is launched.
    """

    def __init__(self, *asked: object):
        """``asked``: what makes the step, as the user said it, so that it is known before any config is read."""
        self._process: subprocess.Popen | None = None
        self._launches = HAS_TRITON and not INTERPRETED and torch.cuda.is_available()
        if not self._launches:
            return
        self._done = _mark(asked)
        with suppress(OSError):  # a folder that can't be read
            if self._done.exists():
                return
        self._process = begin_compiling()

    def __enter__(self) -> Rehearsal:
        return self

    def of(self, config: Any, *, method: str, dtype: torch.dtype, device: torch.device) -> None:
        """Has what a training step of this model will launch on the device compiled."""
        if self._process is None or device.type != "cuda":
            return
        capability = torch.cuda.get_device_capability(device)
        try:
            launches = step_launches(config, method=method, dtype=dtype, capability=capability)
        except Exception:  # what can't be rehearsed can still be trained
            return
        process, self._process = self._process, None
        ask(process, request(launches, capability))
        with suppress(OSError):  # a folder that can't be written to: the next time will ask again
            self._done.parent.mkdir(parents=True, exist_ok=True)
            self._done.touch()

    def __exit__(self, failed: object, *_: object) -> None:
        if self._process is not None:
            ask(self._process, b"")
        if self._launches and failed is None:  # the weights come next: this process mostly waits for them
            take_fingerprint()


def _mark(asked: tuple[object, ...]) -> Path:
    """A file beside Triton's that says that these kernels are, or will be, among them; it goes when they do."""
    import triton

    versions = sloth_nb.__version__, torch.__version__, triton.__version__
    said = repr((asked, versions, torch.cuda.get_device_capability()))
    return Path(triton.knobs.cache.dir) / f"sloth_nb-{hashlib.sha256(said.encode()).hexdigest()[:16]}"
