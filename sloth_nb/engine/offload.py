"""Activations in pinned host memory: copied out behind the forward, fetched ahead of the backward.

One side stream copies both ways while the main stream computes. Host buffers come from a pool and go back to it, so
that pinned memory (slow to allocate) is allocated in the first step only.
"""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from sloth_nb.errors import HardwareError
from sloth_nb.memory.machine import free_ram

__all__ = ["Offloader", "Parked", "slab_bytes"]

# Host memory is pinned so many bytes at a time: twice as fast as buffer by buffer. Registering memory of our own would
# be faster still, but a fork (a data loader's worker) copies all of that.
_SLAB_BYTES, _SLAB_BUFFERS = 512 << 20, 16
# Of a slab may be left over; and of the RAM is left to others.
_SLAB_REST, _SPARE = 1 / 8, 256 << 20


def slab_bytes(size: int) -> int:
    """How much is pinned at once for buffers of ``size`` bytes: up to 16 of them, at most an eighth of it left over.

    torch pins whole powers of two, whatever is asked for: a buffer of 1.3 GB by itself takes 2 GB of RAM.
    """
    least = 1 << (size - 1).bit_length()
    fitting = [
        slab
        for slab in (least << more for more in range(_SLAB_BUFFERS.bit_length()))
        if slab <= _SLAB_BUFFERS * size and slab % size <= _SLAB_REST * slab
    ]
    return max((slab for slab in fitting if slab <= _SLAB_BYTES), default=fitting[0])


def _slab(size: int) -> Tensor:
    """Raises HardwareError: the RAM that is free isn't enough. Pinned memory can't be swapped out, and a system that
    runs short of it ends processes without a word."""
    wanted, free = slab_bytes(size), free_ram()
    if wanted + _SPARE > free:
        raise HardwareError(
            f"Moving activations to host memory wants {wanted / 2**30:.1f} GB more RAM, and {free / 2**30:.1f} GB are "
            "free. Recompute them on the card instead (use_gradient_checkpointing=True), or take a smaller batch or "
            "shorter sequences."
        )
    return torch.empty(wanted, dtype=torch.uint8, pin_memory=True)


@dataclass
class Parked:
    """A tensor on the host; ``arriving`` is its device copy once it has been called back."""

    host: Tensor
    buffer: Tensor
    arriving: Tensor | None = None
    arrived: torch.cuda.Event | None = None


class Offloader:
    """Moves tensors of one CUDA device to the host and back."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self._free: dict[int, list[Tensor]] = {}
        self._leaving: list[tuple[Tensor, torch.cuda.Event]] = []
        self._waiting: deque[tuple[Tensor, Tensor]] = deque()
        self.pinned_bytes = 0

    def _take(self, size: int) -> Tensor:
        stack = self._free.setdefault(size, [])
        if not stack:
            slab = _slab(size)
            stack.extend(slab[: slab.numel() // size * size].split(size))
            self.pinned_bytes += slab.numel()
        return stack.pop()

    def settle(self) -> None:
        """Lets go of device tensors whose copies were started earlier; the main stream waits for them first.

        Then it starts the next piece that is waiting.
        """
        main = torch.cuda.current_stream(self.device)
        for _, done in self._leaving:
            main.wait_event(done)
        self._leaving.clear()
        if self._waiting:
            self._start(*self._waiting.popleft())

    def finish(self) -> None:
        """Settles until nothing is waiting or leaving."""
        while self._waiting or self._leaving:
            self.settle()

    def put(self, tensor: Tensor, pieces: int = 1) -> Parked:
        """Starts copying a contiguous tensor to the host. It is freed at the next ``settle``.

        With several ``pieces`` of its rows, one is copied now and one after each ``settle``: the link is then as busy
        in the layers that follow as in this one, and nobody waits for it.
        """
        buffer = self._take(tensor.numel() * tensor.element_size())
        host = buffer.view(tensor.dtype).view(tensor.shape)
        step = -(-tensor.shape[0] // pieces)
        first, *rest = zip(host.split(step), tensor.split(step), strict=True)
        self._start(*first)
        self._waiting.extend(rest)
        return Parked(host, buffer)

    def _start(self, host: Tensor, tensor: Tensor) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            host.copy_(tensor, non_blocking=True)
        self._leaving.append((tensor, self.stream.record_event()))

    def call(self, parked: Parked) -> None:
        """Starts copying a tensor back to the device."""
        if parked.arriving is not None:
            return
        parked.arriving = torch.empty_like(parked.host, device=self.device)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            parked.arriving.copy_(parked.host, non_blocking=True)
        parked.arrived = self.stream.record_event()

    def take(self, parked: Parked) -> Tensor:
        """The tensor on the device, waited for by the main stream; its host buffer goes back to the pool."""
        self.call(parked)
        torch.cuda.current_stream(self.device).wait_event(parked.arrived)
        self._give_back(parked)
        return parked.arriving

    def drop(self, parked: Parked) -> None:
        """Gives up a parked tensor whose backward never came."""
        self._give_back(parked)

    def _give_back(self, parked: Parked) -> None:
        # Whoever takes the buffer next writes it on the same side stream, after this copy.
        self._free.setdefault(parked.buffer.numel(), []).append(parked.buffer)
