"""Where a kernel runs and how it is launched: the one place that knows about devices, Triton and its
interpreter.

Every operation asks ``runs_triton(x)`` and otherwise computes in plain torch. The package imports without
Triton and without a GPU; under ``TRITON_INTERPRET=1`` the kernels run on the CPU, for the tests.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "HAS_TRITON",
    "INTERPRETED",
    "capability",
    "launch",
    "next_power_of_2",
    "on_gpu",
    "pretend",
    "pretending",
    "programs",
    "runs_triton",
    "tl",
    "triton",
]


class _Absent:
    """Stands in for triton so that the kernels' sources still parse; no kernel is ever launched through
    it."""

    @staticmethod
    def jit(fn: Any) -> Any:
        return fn

    @staticmethod
    def constexpr(value: Any) -> Any:
        return value


try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ImportError:
    triton = tl = _Absent()
    HAS_TRITON = False

# Triton reads this when a kernel is decorated, so it is fixed from here on.
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "0").lower() in (
    "1",
    "true",
    "on",
    "yes",
    "y",
)


class _Pretended(NamedTuple):
    capability: tuple[int, int]
    processors: int
    launches: list[tuple[Any, tuple, dict[str, Any]]] | None


_pretended: ContextVar[_Pretended | None] = ContextVar("pretended", default=None)


@contextmanager
def pretend(
    capability: tuple[int, int],
    processors: int = 108,
    launches: list[tuple[Any, tuple, dict[str, Any]]] | None = None,
) -> Iterator[None]:
    """Within it, in this thread only, tensors count as a GPU's and kernels are not launched.

    For dry runs on fake tensors: every buffer is made as on a card of this capability, nothing is computed.
    ``launches``, when given, receives what would have been launched: (kernel, arguments, options).
    """
    token = _pretended.set(_Pretended(capability, processors, launches))
    try:
        yield
    finally:
        _pretended.reset(token)


def pretending() -> bool:
    """Whether this thread is in a dry run, where only buffers count and products need not be made."""
    return _pretended.get() is not None


def on_gpu(x: Tensor) -> bool:
    """Whether ``x`` is on a CUDA device, or pretended to be."""
    return x.is_cuda or _pretended.get() is not None


def capability(x: Tensor) -> tuple[int, int]:
    """Compute capability of the device of ``x``, or of the pretended one."""
    card = _pretended.get()
    return torch.cuda.get_device_capability(x.device) if card is None else card.capability


@functools.cache
def _usable(index: int) -> bool:
    return HAS_TRITON and torch.version.hip is None and torch.cuda.get_device_capability(index) >= (7, 0)


def runs_triton(x: Tensor) -> bool:
    """Whether operations on ``x`` use the Triton kernels: on CUDA (7.0 or newer), or anywhere when
    interpreted.

    float64 never does: the kernels compute in float32, and a caller who asks for more gets more.
    """
    if x.dtype is torch.float64:
        return False
    if (card := _pretended.get()) is not None:
        return card.capability >= (7, 0)
    return INTERPRETED or (x.is_cuda and _usable(x.device.index))


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
    """Start ``kernel`` on the device of its first argument; an empty grid starts nothing."""
    if 0 in grid:
        return
    if (card := _pretended.get()) is not None:
        if card.launches is not None:
            card.launches.append((kernel, args, meta))
        return
    device = args[0].device
    if INTERPRETED or device.index == torch.cuda.current_device():
        kernel[grid](*args, **meta)
    else:
        with torch.cuda.device(device):
            kernel[grid](*args, **meta)


@functools.cache
def _processors(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def programs(x: Tensor, tiles: int) -> int:
    """How many programs share ``tiles`` when each keeps a running sum: enough to fill the device, no more."""
    if (card := _pretended.get()) is not None:
        return max(1, min(tiles, 4 * card.processors))
    return max(1, min(tiles, 4 if INTERPRETED else 4 * _processors(x.device.index)))


def next_power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def row_tile(n: int) -> dict[str, int]:
    """Block shape and warps for whole rows of ``n``: narrow rows share a program, a wide one has it alone."""
    block = next_power_of_2(n)
    return {
        "ROWS": max(1, min(16, 2048 // block)),
        "BLOCK": block,
        "num_warps": max(4, min(16, block // 1024)),
    }
