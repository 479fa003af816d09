"""Which of a causal model's steps are replayed from CUDA graphs, and the host memory that only those write to."""

from __future__ import annotations

from functools import partial

import torch
from sloth_nb_kernels.launch import next_power_of_2
from torch import Tensor

from .batching import Call
from .decoder import Bound, Decoder
from .graphs import Replay, Replays
from .offload import Offloader
from .rules import StackPlan
from .standing import hooked
from .step import CausalStep

__all__ = ["CapturedSteps"]


class CapturedSteps:
    """The steps of one model that are bound by launches, and of whose shape enough came."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        self.replays = Replays()
        self.offloader: Offloader | None = None
        self._bound_by_launches: dict[tuple[int, int], bool] = {}

    def loss(
        self, ids: Tensor, call: Call, targets: Tensor, items: Tensor | int | None, bound: Bound
    ) -> Tensor | None:
        """The loss of a captured step of this shape; None when the step has to run as usual."""
        seqs = call.seqs
        if not ids.is_cuda or not self._may_replay(ids.numel(), seqs.length, bound):
            return None
        inputs = {"input_ids": ids, "targets": targets.to(ids.device)}
        count = (inputs["targets"] != -100).sum() if items is None else items
        inputs["items"] = torch.as_tensor(count, dtype=torch.float32, device=ids.device)
        if call.position_ids is not None:
            inputs["position_ids"] = call.position_ids
        if seqs.packed:
            inputs["cu_seqlens"] = _pad_edges(seqs.cu_seqlens)
        longest = next_power_of_2(seqs.length) if seqs.packed else seqs.length
        plan = self.decoder.plan(ids.numel(), longest)
        shape = tuple((name, tuple(tensor.shape)) for name, tensor in inputs.items())
        places = hash(tuple(tensor.data_ptr() for tensor in self.decoder.reads(bound)))
        key = (shape, longest, bound, plan, places)
        replay: Replay | None = self.replays.get(
            key, bound.parameters, inputs, partial(self._step, plan, longest, bound)
        )
        return None if replay is None else replay.run(inputs)

    def make_way(self, targets: Tensor) -> None:
        """Before a step that isn't captured: what graphs hold and it may want, it gets."""
        if not torch.is_grad_enabled():
            return
        device = self.decoder.base.norm.weight.device
        self.replays.give_way(targets.numel(), device)
        if self.offloader is not None and not len(self.replays):
            torch.cuda.synchronize(device)  # the last of them may still be copying
            if self.decoder.offloader is not None:
                self.decoder.offloader.memory.adopt(self.offloader.memory)
            self.offloader = None

    def forget(self) -> None:
        """What was captured goes, and its memory with it."""
        self.replays.clear()
        self.offloader = None

    def _may_replay(self, tokens: int, length: int, bound: Bound) -> bool:
        decoder, settings = self.decoder, self.decoder.settings
        if not settings.cuda_graphs or not torch.is_grad_enabled():
            return False
        if (tokens, length) not in self._bound_by_launches:
            weight = decoder.base.norm.weight
            self._bound_by_launches[tokens, length] = settings.captures(
                decoder.config, tokens, length, weight
            )
        if not self._bound_by_launches[tokens, length]:
            return False
        if bound.trains_weights or decoder.trains_outside() or not bound.parameters:
            return False
        # Rotations that depend on the batch's longest sequence are made after a look at it, on the host.
        if not decoder.rotations.static or hooked(decoder.base.embed_tokens):
            return False
        return not torch.cuda.is_current_stream_capturing()

    def _step(self, plan: StackPlan, longest: int, bound: Bound, buffers: list[Tensor]) -> CausalStep:
        """A step to be captured. Host memory that graphs write to is no other step's, so that they have their own: at
        first what earlier steps took, of whose shape most that follow will be."""
        usual = self.decoder.offloader_for(plan.policies, buffers[0])
        if usual is None:
            return CausalStep(self.decoder, bound, plan, longest, buffers)
        torch.cuda.synchronize(buffers[0].device)
        if self.offloader is None:
            self.offloader = Offloader(usual.device, captured=True)
            self.offloader.memory.adopt(usual.memory)
        self.offloader.forget()
        return CausalStep(self.decoder, bound, plan, longest, buffers, self.offloader)


def _pad_edges(cu_seqlens: Tensor) -> Tensor:
    """cu_seqlens with empty sequences at the end, up to a power of two, so that few shapes are captured."""
    size = next_power_of_2(cu_seqlens.numel())
    return torch.cat([cu_seqlens, cu_seqlens[-1:].expand(size - cu_seqlens.numel())])
