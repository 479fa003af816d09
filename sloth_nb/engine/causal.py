"""The engine of one causal language model: embeddings, the stack of layers, the last norm and the fused loss.

It answers the calls that training makes. Whatever it doesn't (a cache, left padding, attention maps) goes to the
model's own forward, and is counted with its reason.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from sloth_nb_kernels.ahead import finish_compiling
from sloth_nb_kernels.linear_cross_entropy import linear_cross_entropy
from sloth_nb_kernels.rms_norm import rms_norm
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .batching import Call, NotForEngine, read_call
from .captured import CapturedSteps
from .decoder import Decoder
from .stack import Stack

__all__ = ["CausalEngine", "FusedLossOutput"]


class FusedLossOutput(CausalLMOutputWithPast):
    """A model output whose logits were never made; asking for them makes them."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if name == "logits" and value is None:
            make = self.__dict__.get("_make_logits")
            return make() if make else None
        return value


@dataclass
class CausalEngine(Decoder):
    """Runs the model. ``left_to_model`` counts the calls that it left to the model's own forward, by reason."""

    left_to_model: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.captured = CapturedSteps(self)

    def forget_plans(self) -> None:
        """Plans are asked for anew, and what was captured by the old ones goes."""
        super().forget_plans()
        self.captured.forget()

    @property
    def pinned_bytes(self) -> int:
        """Host memory that activations are moved to."""
        mine = (self.offloader, self.captured.offloader)
        return sum(one.memory.pinned_bytes for one in mine if one is not None)

    def hidden(self, embeddings: Tensor, call: Call) -> Tensor:
        """(batch, length, hidden) embeddings → hidden states after the last norm."""
        finish_compiling()
        batch, length = embeddings.shape[:2]
        plan = self.plan(batch * length, call.seqs.length)
        offloader = self.offloader_for(plan.policies, embeddings)
        stack = Stack(self.layers(), plan.policies, offloader, self.trains_weights())
        x = stack.forward(embeddings, self.batch(call, length, embeddings.device, plan))
        spec = self.specs[0]
        return rms_norm(x, self.base.norm.weight, spec.eps, zero_centred=spec.zero_centred)

    def loss(self, hidden: Tensor, targets: Tensor, items: Tensor | int | None) -> Tensor:
        """Cross-entropy of shifted targets, from hidden states, without logits: mean, or sum over ``items``."""
        return linear_cross_entropy(
            hidden.flatten(0, -2),
            self.head().weight,
            targets.flatten().to(hidden.device),
            softcap=self.softcap,
            num_items=items,
            chunk_bytes=self.settings.loss_chunk_bytes,
        )

    # -- the two forwards that stand in for the model's ----------------------------------------------------------

    def base_forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """In place of the decoder's forward: hidden states, without a cache."""
        if args:
            return original(*args, **kwargs)
        try:
            hidden = self._hidden_of(self._read(kwargs))
        except NotForEngine as reason:
            self.left_to_model[str(reason)] += 1
            return original(**kwargs)
        return BaseModelOutputWithPast(last_hidden_state=hidden)

    def causal_forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """In place of the causal model's forward: the loss without logits, when labels are given."""
        labels = kwargs.get("labels")
        if args or (labels is None and kwargs.get("shift_labels") is None):
            return original(*args, **kwargs)
        arguments = dict(kwargs)
        labels, shifted = arguments.pop("labels", None), arguments.pop("shift_labels", None)
        items, positions = arguments.pop("num_items_in_batch", None), arguments.pop("logits_to_keep", 0)
        try:
            head = self.head()
            read = self._read(arguments)
            targets = _next_token(labels) if shifted is None else shifted
            everywhere = isinstance(positions, int) and positions == 0
            replayed = self.captured.loss(read.input_ids, read.call, targets, items) if everywhere else None
            if replayed is None:
                self.captured.make_way(targets)
                hidden = _at(self._hidden_of(read), positions)
        except NotForEngine as reason:
            self.left_to_model[str(reason)] += 1
            return original(**kwargs)
        if replayed is not None:
            output = FusedLossOutput(loss=replayed)
            output.__dict__["_make_logits"] = lambda: self._logits(self._hidden_of(read), head)
        else:
            output = FusedLossOutput(loss=self.loss(hidden, targets, items))
            output.__dict__["_make_logits"] = lambda: self._logits(hidden, head)
        return output if kwargs.get("return_dict", True) is not False else output.to_tuple()

    def _logits(self, hidden: Tensor, head: nn.Linear) -> Tensor:
        logits = head(hidden)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def _read(self, kwargs: dict[str, Any]) -> "_Read":
        arguments = dict(kwargs)
        input_ids, embeddings = arguments.pop("input_ids", None), arguments.pop("inputs_embeds", None)
        mask, position_ids = arguments.pop("attention_mask", None), arguments.pop("position_ids", None)
        wants_cache = arguments.get("use_cache")
        if wants_cache is None:
            wants_cache = self.config.use_cache and not self.base.training
        if wants_cache and not torch.is_grad_enabled() and "labels" not in kwargs:
            raise NotForEngine("a key/value cache is asked for")
        given = input_ids if input_ids is not None else embeddings
        call = read_call(given.shape[:2], given.device, mask, position_ids, arguments)
        return _Read(input_ids, embeddings, call)

    def _hidden_of(self, read: "_Read") -> Tensor:
        embeddings = read.embeddings
        if embeddings is None:
            embeddings = self.base.embed_tokens(read.input_ids)
        return self.hidden(embeddings, read.call)


@dataclass
class _Read:
    """A call's tokens (or their embeddings) and how they belong together."""

    input_ids: Tensor | None
    embeddings: Tensor | None
    call: Call


def _at(hidden: Tensor, positions: int | Tensor) -> Tensor:
    """Hidden states where ``logits_to_keep`` asks for them: the last n positions (0: all), or those listed."""
    return hidden[:, slice(-positions, None) if isinstance(positions, int) else positions]


def _next_token(labels: Tensor) -> Tensor:
    """Each position's target: the label of the position after it."""
    return nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
