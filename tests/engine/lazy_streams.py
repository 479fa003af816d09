"""CUDA's streams, played on a CPU at their laziest: what a side stream was given runs when the main stream waits for
it, and not before. New memory is NaN. Who reads what was not waited for reads NaN, or what stood there before.
"""

from collections import deque
from contextlib import contextmanager
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["lazy_streams"]


class Side:
    """A stream that runs its copies when it must."""

    def __init__(self, device=None):
        self.given, self.run = deque(), 0

    def wait_stream(self, other):
        """The main stream's work is done at once: all of it is behind."""

    def record_event(self):
        return self, self.run + len(self.given)


class Main:
    def wait_event(self, event):
        stream, until = event
        while stream.run < until:
            stream.given.popleft()()
            stream.run += 1


class _Given(TorchDispatchMode):
    """Copies go to a stream instead of being made."""

    def __init__(self, side):
        super().__init__()
        self.side = side

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is torch.ops.aten.copy_.default, func
        self.side.given.append(partial(func, *args, **(kwargs or {})))
        return args[0]


@contextmanager
def lazy_streams(monkeypatch):
    main = Main()
    with monkeypatch.context() as played:
        played.setattr(torch.cuda, "Stream", Side)
        played.setattr(torch.cuda, "current_stream", lambda device=None: main)
        played.setattr(torch.cuda, "stream", _Given)
        played.setattr(torch.cuda, "synchronize", lambda device=None: None)
        torch.use_deterministic_algorithms(True)  # fills new memory with NaN
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)
