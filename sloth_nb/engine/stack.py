"""The decoder layers as one step of autograd: a forward that tapes what the policy holds, a backward by hand."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from sloth_nb_kernels.once import once
from torch import Tensor, nn

from .grads import Grads
from .layer import Layer
from .offload import Offloader, Parked
from .policy import NAMES, LayerPolicy
from .tape import Batch, Tape

__all__ = ["Segment", "Stack"]

# What only the MLP's backward reads, which begins when the first tile of it is there.
_BY_TILES = ("middle", "gate_up")


@dataclass
class Stack:
    """Layers with a policy each.

    ``segments`` cuts the stack into steps of autograd: one for adapters, one a layer when whole weights are trained,
    so that their gradients are added into ``.grad`` layer by layer and never exist twice.
    """

    layers: list[Layer]
    policies: list[LayerPolicy]
    offloader: Offloader | None = None
    per_layer: bool = False

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        """(batch, length, hidden) → the same, before the model's last norm."""
        shape = hidden.shape
        x = hidden.reshape(-1, shape[-1])
        if not torch.is_grad_enabled():
            for layer in self.layers:
                x = layer.forward(x, batch, Tape())
            return x.view(shape)
        step = 1 if self.per_layer else len(self.layers)
        for start in range(0, len(self.layers), step):
            segment = Segment(self, batch, range(start, min(start + step, len(self.layers))))
            x = _Run.apply(x, segment, *segment.parameters)
        return x.view(shape)


@dataclass
class Segment:
    """A run of layers in one pass, with their tapes."""

    stack: Stack
    batch: Batch
    span: range
    into: list[Tensor] | None = None
    """Where the parameters' gradients go; new tensors when not given."""
    parameters: list[nn.Parameter] = field(init=False)
    tapes: dict[int, Tape] = field(default_factory=dict)
    spent: bool = False

    def __post_init__(self) -> None:
        self.parameters = [p for i in self.span for p in self.stack.layers[i].parameters()]

    def forward(self, x: Tensor) -> Tensor:
        if self.stack.offloader:
            # What a forward that failed left behind goes before its host buffers are used again.
            self.stack.offloader.finish()
        for i in self.span:
            tape = Tape()
            x = self.stack.layers[i].forward(x, self.batch, tape, self.stack.policies[i].held)
            self._hold(i, tape)
        if self.stack.offloader:
            self.stack.offloader.finish()
        return x

    def grad_buffer(self, tokens: int, like: Tensor) -> Tensor:
        """(tokens, hidden + room), for the gradient that goes down through the layers."""
        room = max((self.stack.layers[i].room for i in self.span), default=0)
        return like.new_empty(tokens, like.shape[-1] + room)

    def backward(self, dx: Tensor, need_input: bool) -> tuple[Tensor | None, list[Tensor | None]]:
        """The output's gradient, in the first columns of a ``grad_buffer`` → the input's there, the parameters'."""
        if self.spent:
            raise RuntimeError(
                "backward ran a second time through the same forward: the engine frees what the first one used. "
                "Run the forward again."
            )
        self.spent = True
        grads = Grads(self.parameters, self.into)
        for i in reversed(self.span):
            tape = self.tapes[i]  # until the layer is done: what is parked goes back even if it fails
            self._take(tape, self._first(i))
            self._call(tape, NAMES)
            # What is wide takes long, so that it sets out now; the rest when attention's own memory is free again.
            if ahead := self._comes_early(i - 1):
                self._call(self.tapes[i - 1], self._first(i - 1))
            last = i == self.span.start
            dx = self.stack.layers[i].backward(
                dx, self.batch, tape, grads, need_input=need_input or not last,
                passed=partial(self._passed, i, tape, ahead),
            )  # fmt: skip
            del self.tapes[i], tape
        hidden = self.stack.layers[self.span.start].width
        return (dx[:, :hidden] if need_input else None), grads.result()

    def _passed(self, i: int, tape: Tape, ahead: bool, part: str) -> None:
        """Between the parts of a layer's backward: what the rest wants is taken, what the next wants first is called.

        That is done as late as it may be: while attention's backward runs memory is fullest.
        """
        if part == "mlp":
            self._take(tape, NAMES)
        elif not ahead and i - 1 in self.tapes:
            self._call(self.tapes[i - 1], self._first(i - 1))

    def _hold(self, i: int, tape: Tape) -> None:
        """Leaves on the tape what the layer's policy holds, and starts moving what goes to the host."""
        policy, offloader = self.stack.policies[i], self.stack.offloader
        self.tapes[i] = tape
        if offloader:
            offloader.settle()
        for name in NAMES:
            tensor = getattr(tape, name)
            if tensor is None or name in policy.device:
                continue
            if name not in policy.host:
                setattr(tape, name, None)
            elif offloader:
                setattr(tape, name, offloader.put(tensor, self._pieces(i) if name == "gate_up" else 1))
        if tape.attention is None:
            tape.attention_extra = None

    def _pieces(self, i: int) -> int:
        """Layers until the one before the next that moves its gate_up: two of that width are never here at once."""
        later = (j for j in self.span if j > i and "gate_up" in self.stack.policies[j].host)
        return max(1, next(later, self.span.stop) - i - 1)

    def _first(self, i: int) -> tuple[str, ...]:
        """What a layer's backward wants at once. With everything at hand that attention made, that is the MLP's."""
        held = self.stack.policies[i].held
        return ("middle", "gate_up") if {"middle", "qkv", "attention"} <= held else NAMES

    def _comes_early(self, i: int) -> bool:
        """Whether a layer's first tensors are called back while the whole layer above is still to be done."""
        return i in self.tapes and isinstance(self.tapes[i].gate_up, Parked)

    def _call(self, tape: Tape, names: tuple[str, ...]) -> None:
        for name, parked in _parked(tape, names).items():
            self.stack.offloader.call(parked, self.batch.mlp_tile if name in _BY_TILES else None)

    def _take(self, tape: Tape, names: tuple[str, ...]) -> None:
        self._call(tape, names)
        offloader = self.stack.offloader
        for name, parked in _parked(tape, names).items():
            setattr(tape, name, offloader.receive(parked))
            if name in _BY_TILES:
                tape.arriving.append(partial(offloader.wait, parked))
            else:
                offloader.wait(parked)

    def __del__(self) -> None:
        for tape in self.tapes.values():
            for parked in _parked(tape).values():
                self.stack.offloader.drop(parked)


def _parked(tape: Tape, names: tuple[str, ...] = NAMES) -> dict[str, Parked]:
    return {name: value for name in names if isinstance(value := getattr(tape, name), Parked)}


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, segment: Segment, *parameters: nn.Parameter) -> Tensor:
        ctx.segment = segment
        with torch.autocast(x.device.type, enabled=False):
            return segment.forward(x)

    @staticmethod
    @once
    def backward(ctx: Any, dout: Tensor) -> Any:
        # Written to on the way down, and autograd may hand the same tensor to somebody else.
        dx = ctx.segment.grad_buffer(dout.shape[0], dout)
        dx[:, : dout.shape[1]].copy_(dout)
        with torch.autocast(dout.device.type, enabled=False):
            dx, grads = ctx.segment.backward(dx, ctx.needs_input_grad[0])
        return dx, None, *grads
