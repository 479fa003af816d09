"""Which of a causal model's steps are replayed from CUDA graphs, and the host memory that only those write to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from sloth_nb_kernels.launch import next_power_of_2
from torch import Tensor
from torch.nn.functional import pad

from sloth_nb.memory import moving

from .batching import Call
from .decoder import Bound, Decoder
from .graphs import Form, Replays
from .offload import Offloader
from .rules import StackPlan
from .sequences import Sequences
from .standing import hooked
from .step import CausalStep

__all__ = ["CapturedSteps", "shared_length"]

# A step is padded to be captured while a layer's forward takes less than this, padding and all: launching it takes a
# fast host longer.
_PADDED_WITHIN = 2e-3


class CapturedSteps:
    """The steps of one model that are bound by launches, and of whose shape enough came."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        self.replays = Replays()
        self.offloader: Offloader | None = None
        self._waiting: dict[tuple[int, int, float], bool] = {}
        # How the model stood at the last step that was replayed. Where that was a wrong guess once, as when adapters
        # take turns, no guess is made again.
        self._usual: Bound | None = None
        self._alternates = False
        # What all that is captured reads beside the model's parameters. Held, so that it is still there when a step
        # has been launched, which is when it is looked at.
        self._scales: list[Tensor] = []
        self._scale_places: tuple[int, ...] = ()

    def loss(
        self, ids: Tensor, call: Call, targets: Tensor, items: Tensor | int | None, look: Callable[[], Bound]
    ) -> Tensor | None:
        """The loss of a captured step of this shape; None when the step has to run as usual.

        ``look`` says how the model stands, which takes the host milliseconds in which the device has nothing to do. So
        a step is first taken as the one before, if all parameters lie where that one read them, and looked at
        meanwhile; what is computed is thrown away if another adapter, say, is active by then.
        """
        seqs = call.seqs
        if not ids.is_cuda or not self._waits_for_launches(seqs.tokens, seqs.length):
            return None
        usual = self._usual
        if usual is None and not self._may_replay(look()):
            return None
        inputs = self._widths(_inputs(ids, call, targets, items), seqs)
        if usual is not None and self._may_replay(usual):
            forms = self._forms(inputs, seqs, usual)
            run = self.replays.ready(forms)
            loss = None if run is None else run()
            if loss is not None:
                stands = look() is usual
                if stands and self._scale_places == _places(usual.scales()):
                    self.replays.count(forms)
                    return loss
                self._alternates |= not stands
                del loss
        bound = look()
        if not self._may_replay(bound):
            return None
        self._follow(bound)
        run = self.replays.get(bound.parameters, self._forms(inputs, seqs, bound))
        self._usual = None if self._alternates or not len(self.replays) else bound
        return None if run is None else run()

    def _widths(self, inputs: dict[str, Tensor], seqs: Sequences) -> list[dict[str, Tensor]]:
        """A step's inputs as they are and, where they may be padded so, in a length that others share.

        Batches are as long as their longest row, and hardly two alike. What is padded on the right changes nothing
        before it, and isn't learnt.
        """
        more = shared_length(seqs.length) - seqs.length
        if not more or seqs.packed or "position_ids" in inputs:
            return [inputs]
        length = seqs.length + more
        if not self._waits_for_launches(seqs.batch * length, length, _PADDED_WITHIN):
            return [inputs]
        ids, targets = pad(inputs["input_ids"], (0, more)), pad(inputs["targets"], (0, more), value=-100)
        return [inputs, inputs | {"input_ids": ids, "targets": targets}]

    def _forms(self, inputs: list[dict[str, Tensor]], seqs: Sequences, bound: Bound) -> list[Form]:
        weights, forms = hash(_places(self.decoder.parameters(bound))), []
        for each in inputs:
            longest = next_power_of_2(seqs.length) if seqs.packed else each["input_ids"].shape[1]
            plan = self.decoder.plan(each["input_ids"].numel(), longest)
            shape = tuple((name, tuple(tensor.shape)) for name, tensor in each.items())
            key = (shape, longest, bound, plan, weights)
            forms.append(Form(key, each, partial(self._step, plan, longest, bound)))
        return forms

    def _follow(self, bound: Bound) -> None:
        """What was captured with other scales beside the quantised weights than there are now goes."""
        scales = bound.scales()
        where = _places(scales)
        if where != self._scale_places:
            self.replays.clear()
            self._scales, self._scale_places = scales, where

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
        self.offloader = self._usual = None
        self._alternates = False
        self._scales, self._scale_places = [], ()

    def _waits_for_launches(self, tokens: int, length: int, within: float = moving.HOST_BOUND) -> bool:
        """Whether launches take longer than the work of a pass over so many tokens."""
        decoder, settings = self.decoder, self.decoder.settings
        if not settings.cuda_graphs or not torch.is_grad_enabled():
            return False
        key = (tokens, length, within)
        if key not in self._waiting:
            weight = decoder.base.norm.weight
            self._waiting[key] = settings.captures(decoder.config, tokens, length, weight, within)
        return self._waiting[key]

    def _may_replay(self, bound: Bound) -> bool:
        decoder = self.decoder
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


def shared_length(length: int) -> int:
    """The length that rows of up to so many tokens are padded to for a captured step: four or so an octave, so that
    few shapes are captured and at most a quarter is padded."""
    step = max(16, 1 << max((length - 1).bit_length() - 3, 0))
    return -(-length // step) * step


def _places(tensors: list[Tensor]) -> tuple[int, ...]:
    """Their addresses."""
    with torch._C.DisableTorchFunctionSubclass():  # as in standing.py
        return tuple(map(Tensor.data_ptr, tensors))


def _inputs(ids: Tensor, call: Call, targets: Tensor, items: Tensor | int | None) -> dict[str, Tensor]:
    """A step's inputs as ``CausalStep`` takes them."""
    inputs = {"input_ids": ids, "targets": targets.to(ids.device)}
    count = (inputs["targets"] != -100).sum() if items is None else items
    inputs["items"] = torch.as_tensor(count, dtype=torch.float32, device=ids.device)
    if call.position_ids is not None:
        inputs["position_ids"] = call.position_ids
    if call.seqs.packed:
        inputs["cu_seqlens"] = _pad_edges(call.seqs.cu_seqlens)
    return inputs


def _pad_edges(cu_seqlens: Tensor) -> Tensor:
    """cu_seqlens with empty sequences at the end, up to a power of two, so that few shapes are captured."""
    size = next_power_of_2(cu_seqlens.numel())
    return torch.cat([cu_seqlens, cu_seqlens[-1:].expand(size - cu_seqlens.numel())])
