"""Pinned host memory in slabs that are carved in order, so that what one batch took serves the next of any size."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sloth_nb.errors import HardwareError
from sloth_nb.memory.machine import free_ram

__all__ = ["Buffer", "HostMemory", "pinned"]

# As much again as there is already is pinned at once, within these; or as much as one tensor takes.
_LEAST, _MOST = 64 << 20, 512 << 20
# Slabs end where a huge page does; tensors begin where a copy engine likes it.
_PAGE, _LINE = 2 << 20, 512
# Of the RAM is left to others.
_SPARE = 256 << 20


class _Region(mmap.mmap):
    """Memory of this process, page-locked for CUDA until nothing refers to it."""

    address = 0

    def lock(self, address: int) -> bool:
        if int(torch.cuda.cudart().cudaHostRegister(address, len(self), 0)) == 0:
            self.address = address
        return self.address != 0

    def __del__(self) -> None:
        if self.address:
            with suppress(Exception):  # at the interpreter's end there may be no torch any more
                for device in range(torch.cuda.device_count()):  # whoever still copies to it, or from it
                    torch.cuda.synchronize(device)
                torch.cuda.cudart().cudaHostUnregister(self.address)


def pinned(size: int) -> Tensor:
    """(size,) uint8 in page-locked host memory, of exactly that size, and given back with its last view.

    Several times faster than the driver's own allocation: all cores touch the pages, huge ones where the system has
    them, before they are locked. A fork (a data loader's worker) doesn't get them, as copying them would take as long.
    """
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    region = _Region(-1, size, **private)
    for advice in ("MADV_DONTFORK", "MADV_HUGEPAGE"):
        with suppress(AttributeError, OSError):  # where the system knows it
            region.madvise(getattr(mmap, advice))
    memory = torch.frombuffer(region, dtype=torch.uint8).zero_()
    if region.lock(memory.data_ptr()):
        return memory
    with suppress(RuntimeError):  # the first launch after it would tell of the refusal, as its own
        torch.ones(1, device="cuda")
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


@dataclass
class _Slab:
    """Taken up to ``used``, by so many buffers that are out."""

    memory: Tensor
    used: int = 0
    out: int = 0

    @property
    def size(self) -> int:
        return self.memory.numel()


@dataclass(frozen=True)
class Buffer:
    """Bytes of a slab, (size,) uint8, until they are given back."""

    memory: Tensor
    slab: _Slab
    start: int


@dataclass
class HostMemory:
    """Buffers of pinned memory.

    A slab is carved from its beginning to its end and starts afresh when all of its buffers are back: activations
    come and go in layers, last in, first out. With ``fixed`` no slab is ever given up, as a captured graph goes on
    using the addresses that it has seen.
    """

    fixed: bool = False
    pin: Callable[[int], Tensor] = pinned
    slabs: list[_Slab] = field(default_factory=list)

    @property
    def pinned_bytes(self) -> int:
        return sum(slab.size for slab in self.slabs)

    def take(self, size: int) -> Buffer:
        """A buffer of ``size`` bytes.

        Raises:
            HardwareError: the RAM that is free isn't enough. Pinned memory can't be swapped out, and a system that
                runs short of it ends processes without a word.
        """
        slab = next((s for s in self.slabs if s.size - s.used >= size), None) or self._add(size)
        start = slab.used
        slab.used = min(slab.size, start + -(-size // _LINE) * _LINE)
        slab.out += 1
        return Buffer(slab.memory[start : start + size], slab, start)

    def give_back(self, buffer: Buffer) -> None:
        """The buffer may be taken again at once."""
        slab = buffer.slab
        slab.out -= 1
        if not slab.out:
            slab.used = 0
        elif buffer.start + -(-buffer.memory.numel() // _LINE) * _LINE >= slab.used:
            slab.used = buffer.start

    def adopt(self, other: HostMemory) -> None:
        """Takes over the slabs of ``other`` that nothing lies in."""
        self.slabs += [slab for slab in other.slabs if not slab.out]
        other.slabs = [slab for slab in other.slabs if slab.out]

    def _add(self, size: int) -> _Slab:
        if not self.fixed:  # longer batches have come: what is too small for them would only fill up the RAM
            self.slabs = [slab for slab in self.slabs if slab.out or slab.size >= size]
        wanted = max(_LEAST, min(_MOST, self.pinned_bytes), -(-size // _PAGE) * _PAGE)
        free = free_ram()
        if wanted + _SPARE > free:
            raise HardwareError(
                f"Moving activations to host memory wants {wanted / 2**30:.1f} GB more RAM, and {free / 2**30:.1f} GB "
                "are free. Recompute them on the card instead (use_gradient_checkpointing=True), or take a smaller "
                "batch or shorter sequences."
            )
        slab = _Slab(self.pin(wanted))
        self.slabs.append(slab)
        return slab
