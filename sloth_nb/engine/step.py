"""A causal model's training step without autograd: what a CUDA graph captures."""

from __future__ import annotations

import torch
from sloth_nb_kernels.linear_cross_entropy import linear_cross_entropy_forward
from sloth_nb_kernels.rms_norm import rms_norm_backward, rms_norm_forward
from torch import Tensor

from .batching import Call
from .decoder import Bound, Decoder
from .offload import Offloader
from .rules import StackPlan
from .sequences import Sequences
from .stack import Segment, Stack

__all__ = ["CausalStep"]


class CausalStep:
    """Forward and backward of one shape; only adapters are trained.

    Inputs: ``input_ids`` and ``targets`` (batch, length), ``items`` (fp32 scalar that divides the summed loss), and
    for packed batches ``position_ids`` and ``cu_seqlens``. Gradients are written into ``buffers``.
    """

    def __init__(
        self,
        decoder: Decoder,
        bound: Bound,
        plan: StackPlan,
        longest: int,
        buffers: list[Tensor],
        offloader: Offloader | None = None,
    ):
        self.decoder, self.bound, self.plan = decoder, bound, plan
        self.longest, self.buffers = longest, buffers
        self.offloader = offloader

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        decoder, ids = self.decoder, inputs["input_ids"]
        cu_seqlens = inputs.get("cu_seqlens")
        if cu_seqlens is None:
            seqs = Sequences(*ids.shape)
        else:
            seqs = Sequences(1, self.longest, cu_seqlens, ids.numel())
        # Kept, as a graph goes on reading what the batch holds: rotations that others share, too.
        self._batch = decoder.batch(
            Call(seqs, inputs.get("position_ids")), ids.shape[1], ids.device, self.plan
        )
        stack = Stack(self.bound.layers, self.plan.policies, self.offloader)
        self._segment = Segment(stack, self._batch, range(len(stack.layers)), self.buffers)
        self._x = self._segment.forward(decoder.base.embed_tokens(ids).flatten(0, 1))
        spec, weight = self.bound.specs[0], decoder.base.norm.weight
        self._buffer = self._segment.grad_buffer(ids.numel(), self._x)
        normed, self._rstd = rms_norm_forward(
            self._x, weight, spec.eps, zero_centred=spec.zero_centred, out=self._narrow()
        )
        result = linear_cross_entropy_forward(
            normed,
            decoder.head().weight,
            inputs["targets"].flatten(),
            softcap=decoder.softcap,
            chunk_bytes=decoder.settings.loss_chunk_bytes,
            out=normed if normed.is_cuda else None,  # on a CPU masked rows are left out, and need their zeros
        )
        self._dhidden, self._items = result.hidden_grad, inputs["items"]
        return result.loss / self._items

    def backward(self, dloss: Tensor) -> None:
        spec, weight = self.bound.specs[0], self.decoder.base.norm.weight
        dhidden = self._dhidden.mul_(dloss / self._items)
        rms_norm_backward(
            dhidden, self._x, weight, self._rstd, zero_centred=spec.zero_centred, out=self._narrow()
        )
        segment, dx = self._segment, self._buffer
        self._segment = self._x = self._rstd = self._dhidden = self._buffer = None
        del dhidden
        with torch.autocast(dx.device.type, enabled=False):
            segment.backward(dx, need_input=False)

    def _narrow(self) -> Tensor:
        """The columns of the gradient's buffer that are the hidden states'."""
        return self._buffer[:, : self._x.shape[1]]
