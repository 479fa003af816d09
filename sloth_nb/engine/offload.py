"""Activations in pinned host memory: copied out behind the forward, fetched ahead of the backward.

One side stream copies both ways while the main stream computes. Host buffers go back to where they come from, so that
pinned memory (slow to allocate) is allocated in the first step only.
"""

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from .host_memory import Buffer, HostMemory

__all__ = ["Offloader", "Parked"]


@dataclass
class Parked:
    """A tensor on the host; ``arriving`` is its device copy once it has been called back."""

    host: Tensor
    buffer: Buffer
    arriving: Tensor | None = None
    arrived: torch.cuda.Event | None = None


class Offloader:
    """Moves tensors of one CUDA device to the host and back.

    ``captured``: within graphs, which go on writing to the host memory that they were captured with.
    """

    def __init__(self, device: torch.device, captured: bool = False):
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.memory = HostMemory(fixed=captured)
        self._leaving: list[tuple[Tensor, torch.cuda.Event]] = []
        self._waiting: deque[tuple[Tensor, Tensor]] = deque()

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
        buffer = self.memory.take(tensor.numel() * tensor.element_size())
        host = buffer.memory.view(tensor.dtype).view(tensor.shape)
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
        self.memory.give_back(parked.buffer)
