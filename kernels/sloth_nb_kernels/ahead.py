"""Kernels compiled before they are first launched, so that a first step finds them in Triton's cache on disk.

What to compile comes from a rehearsal: the code that will launch the kernels runs on fake tensors within
``launch.pretend(..., launches=[])``, which notes the launches. Compiling is Python for the most part, so that it goes
on in a process of its own, which needs no card and takes none of its memory:

python -m sloth_nb_kernels.ahead < request               what it is asked for, ``request`` says
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from threading import Thread
from typing import Any

from torch import Tensor

from .launch import triton

__all__ = [
    "ask",
    "begin_compiling",
    "compile_for",
    "finish_compiling",
    "request",
    "take_fingerprint",
    "variant",
]

_MOST_THREADS = 4
_UNDER_WAY: list[subprocess.Popen] = []
# Kernel, arguments (a tensor's dtype in its place), options.
Variants = dict[Any, list[tuple[list[Any], dict[str, Any]]]]


def begin_compiling() -> subprocess.Popen | None:
    """Starts the process that compiles: it imports what it needs, and waits to be asked. None: it can't be started, as
    where Python runs within another program."""
    if not sys.executable:
        return None
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "sloth_nb_kernels.ahead"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
            start_new_session=True,  # an interrupt is not meant for it
        )
    except OSError:
        return None


def ask(process: subprocess.Popen, asked: bytes) -> None:
    """Hands a ``request`` to the process that compiles; of nothing, b"", it ends."""
    with suppress(OSError), process.stdin as told:  # it may have ended
        told.write(asked)
    _UNDER_WAY.append(process)


def finish_compiling(seconds: float = 30.0) -> None:
    """Waits for the processes that were asked to compile, so that no kernel is compiled twice at the same time."""
    while _UNDER_WAY:
        with suppress(subprocess.TimeoutExpired):
            _UNDER_WAY.pop().wait(seconds)


def take_fingerprint() -> Thread | None:
    """Has Triton hash itself, in a thread: every kernel's place on disk begins with that, and the first launch of a
    process would wait half a second for it. None where Triton does it in a way that isn't known here."""
    try:
        from triton.runtime.cache import triton_key
    except ImportError:
        return None
    thread = Thread(target=triton_key, daemon=True)
    thread.start()
    return thread


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


def request(
    launches: Sequence[tuple[Any, Sequence[Any], dict[str, Any]]], capability: tuple[int, int]
) -> bytes:
    """What the process that compiles reads: each variant among the launches, for a card of this compute capability."""
    found: dict[tuple, tuple] = {}
    for kernel, args, meta in launches:
        plain = [value.dtype if isinstance(value, Tensor) else value for value in args]
        found[variant(kernel, args, meta)] = kernel.__module__, kernel.__name__, plain, meta
    return pickle.dumps((list(found.values()), capability))


def compile_for(variants: Variants, capability: tuple[int, int]) -> None:
    """Compiles them for a card of this compute capability.

    Pointers are taken to be aligned to 16 bytes, as allocations are. A kernel that can't be compiled says so when it
    is launched. From here on Triton takes this process to have such a card: nothing can be launched in it.
    """
    from triton.runtime import driver

    driver.set_active(_Elsewhere(capability))
    # One thread takes all variants of one kernel: Triton keeps state by kernel.
    with ThreadPoolExecutor(max(1, min(_MOST_THREADS, os.cpu_count() or 1))) as pool:
        list(pool.map(_compile, variants, variants.values()))


def _compile(kernel: Any, variants: list[tuple[list[Any], dict[str, Any]]]) -> None:
    for args, meta in variants:
        with suppress(Exception):
            compiled = kernel.warmup(*args, grid=(1,), **meta)
            getattr(compiled, "run", None)  # makes what starts it, too, and then fails to load it


class _Elsewhere:
    """What Triton asks of a driver when it compiles, answered for a card that isn't there."""

    def __init__(self, capability: tuple[int, int]):
        from triton.backends.nvidia.driver import CudaLauncher

        self.launcher_cls = CudaLauncher
        major, minor = capability
        self._target = triton.backends.compiler.GPUTarget("cuda", 10 * major + minor, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def main() -> None:
    """Compiles what standard input asks for."""
    if not (asked := sys.stdin.buffer.read()):
        return
    found, capability = pickle.loads(asked)
    variants: Variants = {}
    for module, name, args, meta in found:
        variants.setdefault(getattr(import_module(module), name), []).append((args, meta))
    compile_for(variants, capability)


if __name__ == "__main__":
    main()
