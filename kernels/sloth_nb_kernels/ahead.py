"""Kernels compiled before they are first launched, in threads of their own, so that a first step finds them ready.

What to compile comes from a rehearsal: the code that will launch the kernels runs on fake tensors within
``launch.pretend(..., launches=[])``, which notes the launches.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from .launch import HAS_TRITON, INTERPRETED

__all__ = ["compile_ahead", "finish_compiling", "variant"]

_MOST_THREADS = 4
_under_way: list[Future] = []


def variant(kernel: Any, args: Sequence[Any], meta: dict[str, Any]) -> tuple:
    """What Triton compiles anew for: dtypes, and of whole numbers whether they are 1 or multiples of 16."""
    return (kernel, *map(_kind, args), *sorted(meta.items()))


def _kind(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.dtype
    if isinstance(value, int) and not isinstance(value, bool):
        wide = "i64" if abs(value) >= 2**31 else "i32"
        return 1 if value == 1 else f"{wide}/16" if value % 16 == 0 else wide
    return type(value)


def compile_ahead(
    launches: Sequence[tuple[Any, Sequence[Any], dict[str, Any]]], device: torch.device
) -> list[Future]:
    """Starts compiling each variant among the launches for a CUDA device, and loads it there.

    Pointers are taken to be aligned to 16 bytes, as allocations are. A kernel that can't be compiled says so when it
    is launched. One thread takes all variants of one kernel: Triton keeps state by kernel.
    """
    if not HAS_TRITON or INTERPRETED:
        return []
    by_kernel: dict[Any, dict[tuple, tuple[list[Any], dict[str, Any]]]] = {}
    for kernel, args, meta in launches:
        plain = [value.dtype if isinstance(value, Tensor) else value for value in args]
        by_kernel.setdefault(kernel, {})[variant(kernel, args, meta)] = plain, meta
    pool = ThreadPoolExecutor(max(1, min(_MOST_THREADS, os.cpu_count() or 1)), "sloth-nb-compile")
    tasks = [
        pool.submit(_compile, kernel, list(found.values()), device) for kernel, found in by_kernel.items()
    ]
    pool.shutdown(wait=False)
    _under_way.extend(tasks)
    return tasks


def finish_compiling() -> None:
    """Waits for what ``compile_ahead`` started: a kernel that is loaded while a graph is captured spoils it."""
    while _under_way:
        _under_way.pop().result()


def _compile(kernel: Any, variants: list[tuple[list[Any], dict[str, Any]]], device: torch.device) -> None:
    with torch.cuda.device(device):
        for args, meta in variants:
            with suppress(Exception):
                compiled = kernel.warmup(*args, grid=(1,), **meta)
                getattr(compiled, "run", None)  # makes the launcher and loads the kernel
