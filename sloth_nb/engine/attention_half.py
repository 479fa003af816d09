"""The attention half of a decoder layer: norm, q k v, rotation, attention and the output projection."""

from __future__ import annotations

from torch import Tensor, nn

from .grads import Grads
from .linear import Group
from .norm import Norm, norm_weight
from .spec import LayerSpec
from .tape import Batch, Tape

__all__ = ["AttentionHalf"]


class AttentionHalf:
    """x → x + output(attention(q, k, v)) of x's norm, itself normed where the family does."""

    def __init__(self, module: nn.Module, spec: LayerSpec):
        self.spec = spec
        self.qkv, self.output = Group.of(module, spec.qkv), Group.of(module, (spec.output,))
        self.norm = Norm.of(module, spec.attention_norm, spec)
        post_norm = spec.attention_post_norm
        self.post_norm = None if post_norm is None else Norm.of(module, post_norm, spec)
        self.query_norm, self.key_norm = (
            None if name is None else norm_weight(module, name) for name in (spec.query_norm, spec.key_norm)
        )

    # -- forward --------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, batch: Batch, tape: Tape) -> Tensor:
        """(tokens, hidden) → the middle, (tokens, hidden); takes from the tape what is there, and leaves there what it
        made."""
        if tape.qkv is None:
            normed, _ = self.norm.forward(x, self.qkv)
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
            tape.middle, t = self._projected(x, tape.attention.flatten(1))
            if t is not None:
                tape.low_rank["output"] = t
        return tape.middle

    def _projected(self, x: Tensor, attention: Tensor) -> tuple[Tensor, Tensor | None]:
        weights = self.output.weights(x.dtype)
        if self.post_norm is None:
            return self.output.forward(attention, weights, residual=x)
        out, t = self.output.forward(attention, weights)
        return self.post_norm.forward(out)[0].add_(x), t

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

    def backward(self, dx: Tensor, batch: Batch, tape: Tape, grads: Grads) -> Tensor:
        """From the gradient of the middle, in ``dx``, down to that of q, k and v, side by side."""
        attention = tape.attention.flatten(1)
        tokens, hidden = tape.input.shape
        weights = self.output.weights(dx.dtype)
        t = tape.low_rank.get("output")
        dout = self.output.fitted(dx)
        if self.post_norm is not None:
            out, t = self.output.forward(attention, weights)
            _, rstd = self.post_norm.forward(out)
            dout = self.output.grad_buffer(tokens, dx)
            self.post_norm.backward(dx[:, :hidden], out, rstd, grads, out=dout[:, :hidden])
            del out
        elif t is None:
            t = self.output.low_rank_input(attention, weights)
        dt = self.output.backward_low_rank(dout, weights)
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

    def backward_projections(
        self, dqkv: Tensor, dx: Tensor, tape: Tape, grads: Grads, need_input: bool
    ) -> None:
        """Through the q, k, v products and the first norm; added to the residual's gradient in dx."""
        tape.qkv, hidden = None, tape.input.shape[1]
        normed, rstd = self.norm.forward(tape.input)
        weights = self.qkv.weights(dx.dtype)
        t = tape.low_rank.get("qkv")
        if t is None:
            t = self.qkv.low_rank_input(normed, weights)
        dt = self.qkv.backward_low_rank(dqkv, weights)
        if need_input or grads.wants(self.norm.weight):
            dnormed = self.qkv.backward_input(dqkv, dt, weights)
            del weights
            self.norm.backward(dnormed, tape.input, rstd, grads, out=dx[:, :hidden], add=True)
            del dnormed
        self.qkv.backward_parameters(dqkv, dt, normed, t, grads)

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
