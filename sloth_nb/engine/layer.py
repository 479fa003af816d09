"""One decoder layer, forward and backward by hand, for every family that a ``LayerSpec`` can say.

The forward fills a tape with what the policy holds; the backward takes what is there, recomputes the rest, and
turns the gradient of the layer's output into that of its input, in place. The MLP may run in tiles of tokens, so
that its wide activations never exist for the whole batch.
"""

from collections.abc import Callable

import torch
from sloth_nb_kernels.glu import glu_backward, glu_forward, split_gate_up
from sloth_nb_kernels.rms_norm import rms_norm_backward, rms_norm_forward
from torch import Tensor, nn

from .grads import Grads
from .linear import Group, Projection
from .spec import LayerSpec
from .tape import Batch, HeldWeights, Tape

__all__ = ["Layer"]


class Layer:
    """The engine's view of one decoder layer; parameters stay in the module."""

    def __init__(self, module: nn.Module, spec: LayerSpec):
        self.module, self.spec = module, spec

        def group(names: tuple[str, ...]) -> Group:
            return Group([Projection.of(name, module.get_submodule(name)) for name in names])

        def norm(name: str | None) -> Tensor | None:
            return None if name is None else module.get_submodule(name).weight

        self.qkv, self.output = group(spec.qkv), group((spec.output,))
        self.gate_up, self.down = group(spec.gate_up), group((spec.down,))
        self.attention_norm, self.attention_post_norm = (
            norm(spec.attention_norm),
            norm(spec.attention_post_norm),
        )
        self.mlp_norm, self.mlp_post_norm = norm(spec.mlp_norm), norm(spec.mlp_post_norm)
        self.query_norm, self.key_norm = norm(spec.query_norm), norm(spec.key_norm)
        self._groups = (self.qkv, self.output, self.gate_up, self.down)

    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained in this layer, in a fixed order."""
        norms = (
            self.attention_norm,
            self.attention_post_norm,
            self.mlp_norm,
            self.mlp_post_norm,
            self.query_norm,
            self.key_norm,
        )
        own = [p for p in norms if p is not None and p.requires_grad]
        return own + [p for group in self._groups for p in group.parameters()]

    def refresh(self, like: Tensor) -> None:
        """Copies the adapters to the compute dtype, in one launch: parameters are fp32 where they are trained."""
        copies, sources = [], []
        for group in self._groups:
            into, source = group.low_rank_targets(like)
            copies += into
            sources += source
        if copies:
            torch._foreach_copy_(copies, sources)

    def release(self) -> None:
        """Drops the adapters' copies."""
        for group in self._groups:
            group.a, group.b = None, []

    # -- forward --------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, batch: Batch, tape: Tape, held: frozenset[str] = frozenset()) -> Tensor:
        """(tokens, hidden) → (tokens, hidden). Fills ``tape`` with what a backward wants.

        gate_up, the widest, is made for all tokens at once only when it is to be ``held``; the middle is overwritten
        by the output unless it is.
        """
        self.refresh(x)
        tape.input = x
        tokens, keeps = x.shape[0], "gate_up" in held
        y = self._attend(x, batch, tape)
        if "middle" in held:
            out = torch.empty_like(x)
        else:
            out, tape.middle = y, None
        gate_up = self.gate_up.grad_buffer(tokens, x) if keeps else None
        if not keeps:
            tape.low_rank.clear()
        weights = HeldWeights(self.gate_up, x.dtype, batch), HeldWeights(self.down, x.dtype, batch)
        for tile in batch.tiles(tokens):
            part = y[tile]
            into = part if out is y else out[tile]
            inputs = self._mlp(part, weights, into, None if gate_up is None else gate_up[tile])
            if keeps:
                self._remember(tape, tile, tokens, inputs)
        tape.gate_up = gate_up
        self.release()
        return out

    def _remember(
        self, tape: Tape, tile: slice, tokens: int, inputs: tuple[Tensor | None, Tensor | None]
    ) -> None:
        """Copies one tile's low-rank inputs of the MLP onto the tape: they lie in buffers that are to be freed."""
        for name, t in zip(("gate_up", "down"), inputs, strict=True):
            if t is not None:
                if name not in tape.low_rank:
                    tape.low_rank[name] = t.new_empty(tokens, t.shape[1])
                tape.low_rank[name][tile].copy_(t)

    def _norm(self, x: Tensor, weight: Tensor, into: Group | None = None) -> tuple[Tensor, Tensor]:
        """x's norm, as the input of the group ``into`` when given, and the reciprocals that its backward takes."""
        width = x.shape[1]
        buffer = x.new_empty(x.shape) if into is None else into.input_buffer(x.shape[0], x)
        _, rstd = rms_norm_forward(
            x, weight.detach(), self.spec.eps, zero_centred=self.spec.zero_centred, out=buffer[:, :width]
        )
        return buffer, rstd

    def _attend(self, x: Tensor, batch: Batch, tape: Tape) -> Tensor:
        """The attention half, up to y; takes from the tape what is there and leaves there what it made."""
        if tape.qkv is None:
            normed, _ = self._norm(x, self.attention_norm, self.qkv)
            tape.qkv, t = self.qkv.forward(normed, self.qkv.weights(x.dtype))
            if t is not None:  # not the view, which would keep all of its input
                tape.low_rank["qkv"] = t.clone() if self.qkv.room else t
            del normed, t
            if self.query_norm is None:
                self._rotate(tape.qkv, batch)
        if tape.attention is None:
            q, k, v = self._heads(tape.qkv, batch)
            attention = batch.attention(self.spec, x)
            tape.attention, tape.attention_extra = attention.forward(q, k, v, batch.seqs)
        if tape.middle is None:
            tape.middle, t = self._attention_output(x, tape.attention.flatten(1))
            if t is not None:
                tape.low_rank["output"] = t
        return tape.middle

    def _attention_output(self, x: Tensor, attention: Tensor) -> tuple[Tensor, Tensor | None]:
        weights = self.output.weights(x.dtype)
        if self.attention_post_norm is None:
            return self.output.forward(attention, weights, residual=x)
        out, t = self.output.forward(attention, weights)
        return self._norm(out, self.attention_post_norm)[0].add_(x), t

    def _mlp(
        self, y: Tensor, weights: tuple[HeldWeights, HeldWeights], out: Tensor, gate_up: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The MLP half of one tile, written into ``out``; gate and up into ``gate_up`` where it is held.

        Returns the low-rank inputs of both groups.
        """
        normed, _ = self._norm(y, self.mlp_norm, self.gate_up)
        width = self.gate_up.out_features
        gate_up, t = self.gate_up.forward(
            normed, weights[0].get(), out=None if gate_up is None else gate_up[:, :width]
        )
        h = self._gated(*split_gate_up(gate_up))
        if self.mlp_post_norm is None:
            _, t_down = self.down.forward(h, weights[1].get(), residual=y, out=out)
        else:
            m, t_down = self.down.forward(h, weights[1].get())
            torch.add(self._norm(m, self.mlp_post_norm)[0], y, out=out)
        return t, t_down

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        """act(gate) * up, as the down-projection's input."""
        h = self.down.input_buffer(gate.shape[0], gate)
        glu_forward(gate, up, self.spec.activation, out=h[:, : self.down.in_features])
        return h

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The fused buffer as q (tokens, heads, head_dim), k and v (tokens, kv_heads, head_dim): views."""
        s = self.spec
        q, k, v = qkv.split([s.heads * s.head_dim, s.kv_heads * s.head_dim, s.kv_heads * s.head_dim], dim=1)
        return (
            q.unflatten(1, (s.heads, -1)),
            k.unflatten(1, (s.kv_heads, -1)),
            v.unflatten(1, (s.kv_heads, -1)),
        )

    def _rotate(self, qkv: Tensor, batch: Batch) -> None:
        q, k, _ = self._split(qkv)
        batch.rotations[self.spec.rope_kind].rotate_(q, k)

    def _heads(self, qkv: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v as attention takes them."""
        q, k, v = self._split(qkv)
        if self.query_norm is not None:
            rotation = batch.rotations[self.spec.rope_kind]
            q, k = rotation.norm_rotate(q, k, self._head_norms(), self.spec.eps, self.spec.zero_centred)
        return q, k, v

    def _head_norms(self) -> tuple[Tensor, Tensor]:
        return self.query_norm.detach(), self.key_norm.detach()

    # -- backward -------------------------------------------------------------------------------------------------

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

        dx is as ``grad_buffer`` makes it, with ``room``. Without ``need_input`` the last step, through the first norm
        and the q, k, v products, is left out. ``passed`` is told when the "mlp" is behind, and when "attention" is:
        where the tape holds all that attention made, only ``middle`` and gate_up need be there before the first.
        """
        self.refresh(dx)
        y = self._attend(tape.input, batch, tape)
        weights = HeldWeights(self.gate_up, dx.dtype, batch), HeldWeights(self.down, dx.dtype, batch)
        kept = tape.gate_up, tape.low_rank.get("gate_up"), tape.low_rank.get("down")
        for tile in batch.tiles(dx.shape[0]):
            parts = tuple(None if tensor is None else tensor[tile] for tensor in kept)
            self._mlp_backward(dx[tile], y[tile], parts, weights, grads)
        tape.gate_up = tape.middle = None
        del weights, y, kept, parts
        passed("mlp")
        dqkv = self._attention_backward(dx, batch, tape, grads)
        passed("attention")
        self._projections_backward(dqkv, dx, tape, grads, need_input)
        grads.settle()
        self.release()
        return dx

    @property
    def room(self) -> int:
        """Columns that the gradient of the layer's output has beside it."""
        return max(self.down.room, self.output.room)

    def _room_for(self, group: Group, dy: Tensor) -> Tensor:
        """dy with the room that the group uses, if it is there: without a post-norm, dy is the layer's own dx."""
        return dy if group.room else dy[:, : group.out_features]

    def _through_norm(
        self,
        dy: Tensor,
        x: Tensor,
        weight: Tensor,
        rstd: Tensor,
        grads: Grads,
        out: Tensor,
        add: bool = False,
    ) -> None:
        """Backward of a norm, written into ``out`` or, with ``add``, added to it: the residual's gradient."""
        _, dw = rms_norm_backward(
            dy, x, weight.detach(), rstd, zero_centred=self.spec.zero_centred,
            residual_grad=out if add else None, out=None if add else out, weight_grad=grads.wants(weight),
        )  # fmt: skip
        if dw is not None:
            grads.add(weight, dw)

    def _mlp_backward(
        self,
        dx: Tensor,
        y: Tensor,
        kept: tuple[Tensor | None, Tensor | None, Tensor | None],
        weights: tuple[HeldWeights, HeldWeights],
        grads: Grads,
    ) -> None:
        buffer, t, t_down = kept
        width, hidden = self.gate_up.out_features, y.shape[1]
        normed, rstd = self._norm(y, self.mlp_norm, self.gate_up)
        if buffer is None:
            buffer = self.gate_up.grad_buffer(y.shape[0], y)
            _, t = self.gate_up.forward(normed, weights[0].get(), out=buffer[:, :width])
        elif t is None:
            t = self.gate_up.low_rank_input(normed)
        gate, up = split_gate_up(buffer[:, :width])
        dm, h = self._room_for(self.down, dx), None
        if self.mlp_post_norm is not None:
            h = self._gated(gate, up)
            m, t_down = self.down.forward(h, weights[1].get())
            _, m_rstd = self._norm(m, self.mlp_post_norm)
            dm = self.down.grad_buffer(y.shape[0], y)
            self._through_norm(dx[:, :hidden], m, self.mlp_post_norm, m_rstd, grads, out=dm[:, :hidden])
            del m
        dt_down = self.down.backward_low_rank(dm)
        dh = self.down.backward_input(dm, dt_down, weights[1].get())
        # The gradients of gate and up replace them; h comes again in place of its own gradient.
        glu_backward(dh, gate, up, self.spec.activation, dgate=gate, dup=up, h=dh if h is None else None)
        if h is None:
            h = dh
            t_down = self.down.low_rank_input(h) if t_down is None else t_down
        self.down.backward_parameters(dm, dt_down, h, t_down, grads)
        del dh, h, dm
        dt = self.gate_up.backward_low_rank(buffer)
        self.gate_up.backward_parameters(buffer, dt, normed, t, grads)
        dnormed = self.gate_up.backward_input(buffer, dt, weights[0].get())
        self._through_norm(dnormed, y, self.mlp_norm, rstd, grads, out=dx[:, :hidden], add=True)

    def _attention_backward(self, dx: Tensor, batch: Batch, tape: Tape, grads: Grads) -> Tensor:
        """From the attention half's output down to the gradient of q, k and v, side by side."""
        attention = tape.attention.flatten(1)
        tokens, hidden = tape.input.shape
        weights = self.output.weights(dx.dtype)
        t = tape.low_rank.get("output")
        dout = self._room_for(self.output, dx)
        if self.attention_post_norm is not None:
            out, t = self.output.forward(attention, weights)
            _, rstd = self._norm(out, self.attention_post_norm)
            dout = self.output.grad_buffer(tokens, dx)
            self._through_norm(
                dx[:, :hidden], out, self.attention_post_norm, rstd, grads, out=dout[:, :hidden]
            )
            del out
        elif t is None:
            t = self.output.low_rank_input(attention)
        dt = self.output.backward_low_rank(dout)
        dattention = self.output.backward_input(dout, dt, weights)
        self.output.backward_parameters(dout, dt, attention, t, grads)
        del dout, weights, attention

        q, k, v = self._heads(tape.qkv, batch)
        kernel = batch.attention(self.spec, dx)
        dq, dk, dv = kernel.backward(
            dattention.view(tape.attention.shape), q, k, v, tape.attention, tape.attention_extra, batch.seqs
        )
        del dattention, q, k, v
        tape.attention = tape.attention_extra = None
        return self._rotate_back(dq, dk, dv, tape.qkv, batch, grads)

    def _projections_backward(
        self, dqkv: Tensor, dx: Tensor, tape: Tape, grads: Grads, need_input: bool
    ) -> None:
        """Through the q, k, v products and the first norm; added to the residual's gradient in dx."""
        tape.qkv, hidden = None, tape.input.shape[1]
        normed, rstd = self._norm(tape.input, self.attention_norm)
        t = tape.low_rank.get("qkv")
        if t is None:
            t = self.qkv.low_rank_input(normed)
        dt = self.qkv.backward_low_rank(dqkv)
        self.qkv.backward_parameters(dqkv, dt, normed, t, grads)
        if need_input or grads.wants(self.attention_norm):
            dnormed = self.qkv.backward_input(dqkv, dt, self.qkv.weights(dx.dtype))
            self._through_norm(
                dnormed, tape.input, self.attention_norm, rstd, grads, out=dx[:, :hidden], add=True
            )

    def _rotate_back(
        self, dq: Tensor, dk: Tensor, dv: Tensor, qkv: Tensor, batch: Batch, grads: Grads
    ) -> Tensor:
        """The gradients of the rotated heads → that of the fused projection's output, in one buffer."""
        dqkv = self.qkv.grad_buffer(qkv.shape[0], qkv)
        into_q, into_k, into_v = self._split(dqkv[:, : self.qkv.out_features])
        into_v.copy_(dv)
        rotation = batch.rotations[self.spec.rope_kind]
        if self.query_norm is None:
            rotation.backward(dq, dk, into_q, into_k)
            return dqkv
        q, k, _ = self._split(qkv)
        wanted = grads.wants(self.query_norm) or grads.wants(self.key_norm)
        norm_grads = rotation.norm_rotate_backward(
            dq, dk, q, k, self._head_norms(), self.spec.eps, self.spec.zero_centred,
            into=(into_q, into_k), weight_grad=wanted,
        )  # fmt: skip
        if wanted:
            grads.add(self.query_norm, norm_grads[0])
            grads.add(self.key_norm, norm_grads[1])
        return dqkv
