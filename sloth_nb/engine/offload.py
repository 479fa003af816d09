"""Activations in pinned host memory: copied out behind the forward, fetched ahead of the backward.

One side stream copies both ways while the main stream computes. Host buffers go back to where they come from, so that
pinned memory (slow to allocate) is allocated in the first step only.
"""

from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .host_memory import Buffer, HostMemory

__all__ = ["Offloader", "Parked"]


@dataclass(eq=False)
class Parked:
    """A tensor on the host; ``arriving`` is its device copy while it comes back."""

    host: Tensor
    buffer: Buffer
    arriving: Tensor | None = None
    pieces: deque[tuple[int, torch.cuda.Event]] = field(default_factory=deque)
    """Rows up to which number come with which event, of what nobody has waited for yet."""
    waited: int = 0
    """Rows that the main stream has waited for."""


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
        self._coming: list[Parked] = []

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
        """Settles until nothing is waiting or leaving, or coming that a backward which failed had called."""
        while self._waiting or self._leaving:
            self.settle()
        for parked in list(self._coming):
            self.wait(parked)

    def forget(self) -> None:
        """Lets go of what a capture that was broken off left, whose events never come. The device must be idle."""
        self._waiting.clear()
        self._leaving.clear()
        self._coming.clear()

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

    def call(self, parked: Parked, rows: int | None = None) -> None:
        """Starts copying a tensor back to the device; in pieces of so many ``rows``, that each can be waited for."""
        if parked.arriving is not None:
            return
        parked.arriving = torch.empty_like(parked.host, device=self.device)
        self._coming.append(parked)
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        step, stop = rows or len(parked.host), 0
        for device, host in zip(parked.arriving.split(step), parked.host.split(step), strict=True):
            with torch.cuda.stream(self.stream):
                device.copy_(host, non_blocking=True)
            stop += len(host)
            parked.pieces.append((stop, self.stream.record_event()))

    def wait(self, parked: Parked, rows: int | None = None) -> None:
        """Has the main stream wait for the first ``rows`` of a tensor that was called; for all of it by default."""
        main = torch.cuda.current_stream(self.device)
        while parked.pieces and (rows is None or parked.waited < rows):
            parked.waited, event = parked.pieces.popleft()
            main.wait_event(event)
        if not parked.pieces and parked in self._coming:
            self._coming.remove(parked)
            parked.arriving = None

    def receive(self, parked: Parked) -> Tensor:
        """A called tensor on the device, to be waited for; its host buffer goes back to the pool."""
        self._give_back(parked)
        return parked.arriving

    def drop(self, parked: Parked) -> None:
        """Gives up a parked tensor whose backward never came."""
        self._give_back(parked)

    def _give_back(self, parked: Parked) -> None:
        # Whoever takes the buffer next writes it on the same side stream, after this copy.
        self.memory.give_back(parked.buffer)
