"""One decoder layer, forward and backward by hand, for every family that a ``LayerSpec`` can say.

The forward fills a tape with what the policy holds; the backward takes what is there, recomputes the rest, and
turns the gradient of the layer's output into that of its input, in place.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .attention_half import AttentionHalf
from .grads import Grads
from .linear import Group
from .mlp_half import MlpHalf
from .spec import LayerSpec
from .tape import Batch, Tape

__all__ = ["Layer"]


class Layer:
    """The engine's view of one decoder layer; parameters stay in the module."""

    def __init__(self, module: nn.Module, spec: LayerSpec):
        self.spec = spec
        self.attention, self.mlp = AttentionHalf(module, spec), MlpHalf(module, spec)

    @property
    def groups(self) -> tuple[Group, ...]:
        """Its projections, in the order of the forward."""
        return self.attention.qkv, self.attention.output, self.mlp.gate_up, self.mlp.down

    @property
    def width(self) -> int:
        """Of the hidden states."""
        return self.attention.qkv.in_features

    @property
    def room(self) -> int:
        """Columns that the gradient of the layer's output has beside it."""
        return max(self.mlp.down.room, self.attention.output.room)

    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained in this layer, in a fixed order."""
        own = [weight for weight in self._norms() if weight.requires_grad]
        return own + [p for group in self.groups for p in group.parameters()]

    def _norms(self) -> list[Tensor]:
        attention, mlp = self.attention, self.mlp
        norms = [
            n.weight for n in (attention.norm, attention.post_norm, mlp.norm, mlp.post_norm) if n is not None
        ]
        return norms + [weight for weight in (attention.query_norm, attention.key_norm) if weight is not None]

    def forward(self, x: Tensor, batch: Batch, tape: Tape, held: frozenset[str] = frozenset()) -> Tensor:
        """(tokens, hidden) → (tokens, hidden). Fills ``tape`` with what a backward wants.

        The middle is overwritten by the output unless it is to be ``held``.
        """
        self._refresh(x)
        tape.input = x
        y = self.attention.forward(x, batch, tape)
        if "middle" in held:
            out = torch.empty_like(x)
        else:
            out, tape.middle = y, None
        self.mlp.forward(y, out, batch, tape, keeps="gate_up" in held)
        self._release()
        return out

    def backward(
        self,
        dx: Tensor,
        batch: Batch,
        tape: Tape,
        grads: Grads,
        *,
        need_input: bool = True,
        passed: Callable[[str], None] = lambda part: None,
    ) -> Tensor:
        """Gradient of the output → gradient of the input, (tokens, hidden), written into ``dx`` itself.

        dx has ``room`` beside it. Without ``need_input`` the last step, through the first norm and the q, k, v
        products, is left out. ``passed`` is told when the "mlp" is behind, and when "attention" is: where the tape
        holds all that attention made, only ``middle`` and gate_up need be there before the first.
        """
        self._refresh(dx)
        y = self.attention.forward(tape.input, batch, tape)
        self.mlp.backward(dx, y, batch, tape, grads)
        del y
        passed("mlp")
        dqkv = self.attention.backward(dx, batch, tape, grads)
        passed("attention")
        self.attention.backward_projections(dqkv, dx, tape, grads, need_input)
        grads.settle()
        self._release()
        return dx

    def _refresh(self, like: Tensor) -> None:
        """Copies the adapters to the compute dtype, in one launch: parameters are fp32 where they are trained."""
        copies, sources = [], []
        for group in self.groups:
            into, source = group.low_rank_targets(like)
            copies += into
            sources += source
        if copies:
            torch._foreach_copy_(copies, sources)

    def _release(self) -> None:
        """Drops the adapters' copies."""
        for group in self.groups:
            group.a, group.b = None, []
