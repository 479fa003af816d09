"""A step that waits for kernel launches is captured once and replayed: two CUDA graphs, one each way.

All captured shapes share their memory, so that several take no more than the largest: between a forward and its
backward no other is replayed. Gradients are written into buffers of their own and are handed out as they lie there,
without a copy; a second backward before the optimiser (accumulation) first moves the earlier ones out of the way.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol

import torch
from sloth_nb_kernels.once import once
from torch import Tensor, nn

from sloth_nb.errors import HardwareError

from .device import unreserved
from .grads import buffers_for
from .offload import Offloader

__all__ = ["Form", "ManualStep", "Replay", "Replays"]

# Calls after which a shape that no longer comes counts half.
_HALF_LIFE = 512


class ManualStep(Protocol):
    """A forward and backward without autograd. The backward writes the gradients where the step was told to."""

    offloader: Offloader | None

    def forward(self, inputs: dict[str, Tensor]) -> Tensor: ...

    def backward(self, dloss: Tensor) -> None: ...


@lru_cache(maxsize=16)
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@contextmanager
def _quietly_on(stream: torch.cuda.Stream) -> Iterator[None]:
    """On a stream, without autograd or autocast: the step does all that itself."""
    with torch.cuda.stream(stream), torch.no_grad(), torch.autocast("cuda", enabled=False):
        yield


class _NoRoom(Exception):
    """The graphs' memory, which is nobody else's, would leave too little for a step that is not captured: the last
    batch of an epoch, say."""


class _Pending:
    """Alive as long as a replayed forward may still get its backward."""


class Replay:
    """One captured shape; ``taken`` is the memory, in bytes, that its step takes beside what is there anyway."""

    def __init__(self, step: ManualStep, inputs: dict[str, Tensor], shared: "_Shared"):
        self.inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        self.shared = shared
        self._step = step  # what the graphs read, and the host memory they write to, lives as long as they do
        self._capture(step)

    def _capture(self, step: ManualStep) -> None:
        device = self.inputs["input_ids"].device
        # One stream for all captures: cuBLAS keeps a workspace of 32 MB for every stream it has seen.
        main, side = torch.cuda.current_stream(device), _capture_stream(device)
        # What earlier steps left cached belongs to the main stream; given back, or the warm-up takes as much again.
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        side.wait_stream(main)
        before = torch.cuda.memory_reserved(device)
        try:
            with _quietly_on(side):
                # Once as usual: kernels are compiled, libraries make their handles, pinned buffers come into being.
                self._dloss = torch.ones_like(step.forward(self.inputs))
                step.backward(self._dloss)
        finally:
            main.wait_stream(side)
        torch.cuda.synchronize(device)
        self.taken = torch.cuda.memory_reserved(device) - before
        torch.cuda.empty_cache()
        if 2 * self.taken > unreserved(device):
            raise _NoRoom
        self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Other threads (a data loader's that pins, a cell while a run trains in the background) may go on.
        options = {"pool": self.shared.pool, "stream": side, "capture_error_mode": "thread_local"}
        with _quietly_on(side):  # and back to the stream before, which a capture that fails does not see to
            with torch.cuda.graph(self._forward, **options):
                self._loss = step.forward(self.inputs)
            with torch.cuda.graph(self._backward, **options):
                step.backward(self._dloss)

    @property
    def tokens(self) -> int:
        return self.inputs["input_ids"].numel()

    def run(self, inputs: dict[str, Tensor]) -> Tensor:
        """The loss, differentiable in the parameters."""
        for name, tensor in inputs.items():
            self.inputs[name].copy_(tensor, non_blocking=True)
        # Launched first: autograd looks at hundreds of parameters, while the device is at work.
        return _Step.apply(self, self.forward(), *self.shared.parameters)

    def forward(self) -> tuple[_Pending, Tensor]:
        """The loss, and what says until when its backward may come."""
        pending = _Pending()
        self.shared.pending = weakref.ref(pending)
        self._forward.replay()
        return pending, self._loss.clone()

    def backward(self, dloss: Tensor) -> list[Tensor]:
        self.shared.move_held()
        self._dloss.copy_(dloss)
        self._backward.replay()
        self.shared.pending = None
        return self.shared.views()


class _Shared:
    """What all captured shapes use: one buffer a parameter for its gradient, and the graphs' pool of memory."""

    def __init__(self, parameters: list[nn.Parameter]):
        self.parameters = parameters
        self.buffers = buffers_for(parameters)
        self.pool = torch.cuda.graph_pool_handle()
        self.pending: weakref.ref | None = None

    @property
    def busy(self) -> bool:
        """A forward was replayed whose backward may still come: another one now would overwrite its activations."""
        return self.pending is not None and self.pending() is not None

    def move_held(self) -> None:
        """Gradients that a parameter still holds in its buffer are copied away before the buffer is written."""
        for parameter, buffer in zip(self.parameters, self.buffers, strict=True):
            held = parameter.grad
            if held is not None and held.data_ptr() == buffer.data_ptr():
                parameter.grad = held.clone()

    def views(self) -> list[Tensor]:
        """A new view each, which autograd may keep as .grad without copying it."""
        return [buffer.view_as(buffer) for buffer in self.buffers]


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, replay: Replay, made: tuple[_Pending, Tensor], *parameters: nn.Parameter) -> Tensor:
        ctx.replay, (ctx.pending, loss) = replay, made
        return loss

    @staticmethod
    @once
    def backward(ctx: Any, dloss: Tensor) -> Any:
        if ctx.pending is None:
            raise RuntimeError("backward ran a second time through one forward: run the forward again")
        ctx.pending = None
        return None, None, *ctx.replay.backward(dloss)


class Form(NamedTuple):
    """A shape in which a step can be captured: what tells it from others, the inputs, and what makes the step."""

    key: Any
    inputs: dict[str, Tensor]
    make_step: Callable[[list[Tensor]], ManualStep]


class Replays:
    """Captures a shape once it has come ``after`` times, and keeps the ``most`` that come most often.

    A capture costs as much as several steps, so that a shape takes another's place only when it comes twice as often.
    A step may have two forms: its own shape, and a longer one that serves others, too.
    """

    def __init__(self, after: int = 3, most: int = 8):
        self.after, self.most = after, most
        self.disabled_because: str | None = None
        self._calls = 0
        self._seen: dict[Any, int] = {}
        self._without_room: set[Any] = set()
        self._captured: dict[Any, Replay] = {}
        self._shared: _Shared | None = None

    def __len__(self) -> int:
        return len(self._captured)

    def ready(self, forms: Sequence[Form]) -> Callable[[], Tensor] | None:
        """What replays the step, in the first of its forms that is captured; None while a forward waits for its
        backward."""
        if self._shared is not None and self._shared.busy:
            return None
        form = next((form for form in forms if form.key in self._captured), None)
        return None if form is None else partial(self._captured[form.key].run, form.inputs)

    def get(self, parameters: list[nn.Parameter], forms: Sequence[Form]) -> Callable[[], Tensor] | None:
        """The same, captured now if it is due. Counts the step."""
        if self._shared is not None and self._shared.busy:
            return None
        self.count(forms)
        own, longer = forms[0], forms[-1]
        # The step's own shape, where most of the steps that the longer one would do for have it.
        form = own if 2 * self._seen[own.key] > self._seen.get(longer.key, 0) else longer
        if self._is_due(form.key):
            self._add(form, parameters)
            if form is not longer:  # which has the others left
                self._seen[longer.key] -= self._seen[own.key]
        return self.ready(forms)

    def count(self, forms: Sequence[Form]) -> None:
        """A step came that any of these would do for; the longer one isn't wanted where there is the step's own."""
        self._calls += 1
        if self._calls % _HALF_LIFE == 0:  # what came long ago counts less, and at last is forgotten
            self._seen = {key: count // 2 for key, count in self._seen.items() if count > 1}
        for form in forms[:1] if forms[0].key in self._captured else forms:
            self._seen[form.key] = self._seen.get(form.key, 0) + 1

    def _is_due(self, key: Any) -> bool:
        if key in self._captured or key in self._without_room or self._seen[key] < self.after:
            return False
        if self.disabled_because is not None:
            return False
        return len(self._captured) < self.most or self._seen[key] > 2 * self._seen.get(self._rarest(), 0)

    def _rarest(self) -> Any:
        return min(self._captured, key=lambda key: self._seen.get(key, 0))

    def _add(self, form: Form, parameters: list[nn.Parameter]) -> None:
        if self._shared is None or list(map(id, self._shared.parameters)) != list(map(id, parameters)):
            self._captured.clear()
            self._shared = _Shared(parameters)
        self._shared.move_held()
        while len(self._captured) >= self.most:
            self._captured.pop(self._rarest())
        try:
            self._captured[form.key] = Replay(form.make_step(self._shared.buffers), form.inputs, self._shared)
        except (_NoRoom, HardwareError, RuntimeError) as error:
            # The end of a capture that was broken off fails as well, and that is what comes here then.
            first = _first_of(error)
            if isinstance(first, KeyboardInterrupt):
                raise first from None
            if isinstance(first, _NoRoom | HardwareError | torch.OutOfMemoryError):
                self._without_room.add(form.key)
            else:
                self.disabled_because = f"capturing a CUDA graph failed: {str(first).partition(chr(10))[0]}"
        finally:
            if not self._captured:
                self._shared = None

    def give_way(self, tokens: int, device: torch.device) -> None:
        """Forgets what is captured where its memory may be wanted by a step of so many tokens that isn't."""
        if not self._captured or self._shared is None or self._shared.busy:
            return
        captured = self._captured.values()
        wanted = max(tokens * replay.taken // replay.tokens for replay in captured)
        held = max(replay.taken for replay in captured)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device) - held
        if wanted > unreserved(device) + max(0, cached):
            self._without_room.update(self._captured)
            self._captured.clear()
            self._shared = None

    def clear(self) -> None:
        """Forgets all captured shapes and gives their memory back."""
        self._captured.clear()
        self._seen.clear()
        self._without_room.clear()
        self._shared = None


def _first_of(error: BaseException) -> BaseException:
    """What happened first, where an exception came while another was on its way."""
    while error.__context__ is not None:
        error = error.__context__
    return error
