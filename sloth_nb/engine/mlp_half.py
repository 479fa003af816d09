"""The MLP half of a decoder layer: in tiles of tokens, so that its wide activations never exist for the whole batch."""

from __future__ import annotations

import torch
from sloth_nb_kernels.glu import glu_backward, glu_forward, split_gate_up
from torch import Tensor, nn

from .grads import Grads
from .linear import Group
from .norm import Norm
from .spec import LayerSpec
from .tape import Batch, HeldWeights, Tape

__all__ = ["MlpHalf"]

# Of gate_up and of down.
_Weights = tuple[HeldWeights, HeldWeights]


class MlpHalf:
    """y → y + down(act(gate) * up) of y's norm, itself normed where the family does."""

    def __init__(self, module: nn.Module, spec: LayerSpec):
        self.spec = spec
        self.gate_up, self.down = Group.of(module, spec.gate_up), Group.of(module, (spec.down,))
        self.norm = Norm.of(module, spec.mlp_norm, spec)
        post_norm = spec.mlp_post_norm
        self.post_norm = None if post_norm is None else Norm.of(module, post_norm, spec)

    def forward(self, y: Tensor, out: Tensor, batch: Batch, tape: Tape, *, keeps: bool) -> None:
        """(tokens, hidden) → (tokens, hidden), written into ``out``, which may be y.

        gate_up, the widest, is made for all tokens at once only when the tape ``keeps`` it.
        """
        tokens = y.shape[0]
        gate_up = self.gate_up.grad_buffer(tokens, y) if keeps else None
        if not keeps:
            tape.low_rank.clear()
        weights = self._weights(y, batch)
        for tile in batch.tiles(tokens):
            part = y[tile]
            into = part if out is y else out[tile]
            inputs = self._tile(part, weights, into, None if gate_up is None else gate_up[tile])
            if keeps:
                _remember(tape, tile, tokens, inputs)
        tape.gate_up = gate_up

    def backward(self, dx: Tensor, y: Tensor, batch: Batch, tape: Tape, grads: Grads) -> None:
        """From the gradient of the output to that of y, in ``dx`` itself."""
        weights = self._weights(dx, batch)
        kept = tape.gate_up, tape.low_rank.get("gate_up"), tape.low_rank.get("down")
        for tile in batch.tiles(dx.shape[0]):
            parts = tuple(None if tensor is None else tensor[tile] for tensor in kept)
            tape.wait(tile.stop)
            self._tile_backward(dx[tile], y[tile], parts, weights, grads)
        tape.gate_up = tape.middle = None
        tape.arriving.clear()

    def _weights(self, like: Tensor, batch: Batch) -> _Weights:
        return HeldWeights(self.gate_up, like.dtype, batch), HeldWeights(self.down, like.dtype, batch)

    def _tile(
        self, y: Tensor, weights: _Weights, out: Tensor, gate_up: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """One tile, written into ``out``; gate and up into ``gate_up`` where it is held.

        Returns the low-rank inputs of both groups.
        """
        normed, _ = self.norm.forward(y, self.gate_up)
        width = self.gate_up.out_features
        gate_up, t = self.gate_up.forward(
            normed, weights[0].get(), out=None if gate_up is None else gate_up[:, :width]
        )
        h = self._gated(*split_gate_up(gate_up))
        if self.post_norm is None:
            _, t_down = self.down.forward(h, weights[1].get(), residual=y, out=out)
        else:
            m, t_down = self.down.forward(h, weights[1].get())
            torch.add(self.post_norm.forward(m)[0], y, out=out)
        return t, t_down

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """act(gate) * up, as the down-projection's input."""
        h = self.down.input_buffer(gate.shape[0], gate)
        glu_forward(gate, up, self.spec.activation, out=h[:, : self.down.in_features])
        return h

    def _tile_backward(
        self, dx: Tensor, y: Tensor, kept: tuple[Tensor | None, ...], weights: _Weights, grads: Grads
    ) -> None:
        buffer, t, t_down = kept
        width, hidden = self.gate_up.out_features, y.shape[1]
        normed, rstd = self.norm.forward(y, self.gate_up)
        if buffer is None:
            buffer = self.gate_up.grad_buffer(y.shape[0], y)
            _, t = self.gate_up.forward(normed, weights[0].get(), out=buffer[:, :width])
        gate, up = split_gate_up(buffer[:, :width])
        dm, h = self.down.fitted(dx), None
        if self.post_norm is not None:
            h = self._gated(gate, up)
            m, t_down = self.down.forward(h, weights[1].get())
            _, m_rstd = self.post_norm.forward(m)
            dm = self.down.grad_buffer(y.shape[0], y)
            self.post_norm.backward(dx[:, :hidden], m, m_rstd, grads, out=dm[:, :hidden])
            del m
        weight = weights[1].get()
        dt_down = self.down.backward_low_rank(dm, weight)
        dh = self.down.backward_input(dm, dt_down, weight)
        # The gradients of gate and up replace them; h comes again in place of its own gradient.
        glu_backward(dh, gate, up, self.spec.activation, dgate=gate, dup=up, h=dh if h is None else None)
        if h is None:
            h = dh
            t_down = self.down.low_rank_input(h, weight) if t_down is None else t_down
        del weight
        self.down.backward_parameters(dm, dt_down, h, t_down, grads)
        del dh, h, dm
        weight = weights[0].get()
        dt = self.gate_up.backward_low_rank(buffer, weight)
        dnormed = self.gate_up.backward_input(buffer, dt, weight)
        del weight
        self.norm.backward(dnormed, y, rstd, grads, out=dx[:, :hidden], add=True)
        del dnormed
        self.gate_up.backward_parameters(buffer, dt, normed, t, grads)


def _remember(tape: Tape, tile: slice, tokens: int, inputs: tuple[Tensor | None, Tensor | None]) -> None:
    """Copies one tile's low-rank inputs onto the tape: they lie in buffers that are to be freed."""
    for name, t in zip(("gate_up", "down"), inputs, strict=True):
        if t is not None:
            if name not in tape.low_rank:
                tape.low_rank[name] = t.new_empty(tokens, t.shape[1])
            tape.low_rank[name][tile].copy_(t)
