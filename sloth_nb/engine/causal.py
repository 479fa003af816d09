"""The engine of one causal language model: embeddings, the stack of layers, the last norm and the fused loss.

It answers the calls that training makes. Whatever it doesn't (a cache, left padding, attention maps) goes to the
model's own forward, and is counted with its reason.
"""

import inspect
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from sloth_nb_kernels.ahead import finish_compiling
from sloth_nb_kernels.linear_cross_entropy import linear_cross_entropy
from sloth_nb_kernels.rms_norm import rms_norm
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .batching import Call, LossNotForEngine, NotForEngine, read_call
from .captured import CapturedSteps
from .decoder import Bound, Decoder
from .held_logits import HeldLogits
from .spec import Unsupported
from .stack import Stack
from .standing import hooked

__all__ = ["CausalEngine", "FusedLossOutput"]

# transformers' name of the shifted cross-entropy; None where a model has no say.
_CAUSAL_LOSS = ("ForCausalLM", None)


class FusedLossOutput(CausalLMOutputWithPast):
    """A model output whose logits are made when somebody asks for them, by name, by place or as a tuple.

    Its items are the loss alone: mixed precision walks through them at every step.
    """

    @classmethod
    def of(cls, loss: Tensor, make_logits: Callable[[], Tensor]) -> "FusedLossOutput":
        output = cls(loss=loss)
        output.__dict__["_make_logits"] = make_logits
        return output

    def with_logits(self) -> "FusedLossOutput":
        """The same, its logits made."""
        make = self.__dict__.pop("_make_logits", None)
        if make is not None:
            self["logits"] = make()
        return self

    def __getattribute__(self, name: str) -> Any:
        if name == "logits" and "_make_logits" in super().__getattribute__("__dict__"):
            self.with_logits()
        return super().__getattribute__(name)

    def __getitem__(self, key: Any) -> Any:
        return super(FusedLossOutput, self if key == "loss" else self.with_logits()).__getitem__(key)

    def to_tuple(self) -> tuple[Any, ...]:
        return super(FusedLossOutput, self.with_logits()).to_tuple()


@dataclass
class CausalEngine(Decoder):
    """Runs the model. ``left_to_model`` counts the calls that it left to the model's own forward, by reason."""

    left_to_model: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._left = threading.local()  # a chat may ask while a run trains
        self.held_logits = HeldLogits()
        self.captured = CapturedSteps(self)

    def forget_plans(self) -> None:
        """Plans are asked for anew, and what was captured by the old ones goes."""
        super().forget_plans()
        self.captured.forget()

    def release(self) -> None:
        """Gives back what is held from step to step: plans, captured steps, host memory. A step makes it anew."""
        self.forget_plans()
        self.offloader, self.held_logits = None, HeldLogits()

    @property
    def pinned_bytes(self) -> int:
        """Host memory that activations are moved to."""
        mine = (self.offloader, self.captured.offloader)
        return sum(one.memory.pinned_bytes for one in mine if one is not None)

    def hidden(self, embeddings: Tensor, call: Call, bound: Bound) -> Tensor:
        """(batch, length, hidden) embeddings → hidden states after the last norm."""
        finish_compiling()
        batch, length = embeddings.shape[:2]
        plan = self.plan(batch * length, call.seqs.length)
        offloader = self.offloader_for(plan.policies, embeddings)
        stack = Stack(bound.layers, plan.policies, offloader, bound.trains_weights)
        x = stack.forward(embeddings, self.batch(call, length, embeddings.device, plan))
        spec = bound.specs[0]
        return rms_norm(x, self.base.norm.weight, spec.eps, zero_centred=spec.zero_centred)

    def loss(self, hidden: Tensor, targets: Tensor, items: Tensor | int | None) -> Tensor:
        """Cross-entropy of shifted targets, from hidden states, without logits: mean, or sum over ``items``."""
        weight, chunk_bytes = self.head().weight, self.settings.loss_chunk_bytes
        # As many as a chunk may have: how many it has depends on the rows that are trained, which the loss counts.
        most = max(weight.shape[0], chunk_bytes // hidden.element_size())
        with (
            torch.autocast(hidden.device.type, enabled=False),
            self.held_logits.lent(hidden, most) as logits,
        ):
            return linear_cross_entropy(
                hidden.flatten(0, -2),
                weight,
                targets.flatten().to(hidden.device),
                softcap=self.softcap,
                num_items=items,
                chunk_bytes=chunk_bytes,
                logits=logits,
            )

    # -- the two forwards that stand in for the model's ----------------------------------------------------------

    def base_forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """In place of the decoder's forward: hidden states, without a cache."""
        reason = getattr(self._left, "reason", None)
        if not isinstance(
            reason, LossNotForEngine | None
        ):  # the whole call was left, and this is its decoder
            return original(*args, **kwargs)
        try:
            arguments = _named(original, args, kwargs)
            hidden = self._hidden_of(self._read(arguments), self.bound())
        except (NotForEngine, Unsupported) as reason:
            return self._leave(reason, original, args, kwargs)
        output = BaseModelOutputWithPast(last_hidden_state=hidden)
        return output.to_tuple() if arguments.get("return_dict") is False else output

    def causal_forward(self, original: Any, *args: Any, **kwargs: Any) -> Any:
        """In place of the causal model's forward: the loss without logits, when labels are given."""
        try:
            arguments = _named(original, args, kwargs)
            labels, shifted = arguments.pop("labels", None), arguments.pop("shift_labels", None)
            if labels is None and shifted is None:
                return original(*args, **kwargs)
            output = self._with_loss(arguments, _next_token(labels) if shifted is None else shifted)
        except (NotForEngine, Unsupported) as reason:
            return self._leave(reason, original, args, kwargs)
        # Who evaluates may want logits, and has been given them by every model, unless it says that it doesn't.
        if not torch.is_grad_enabled() and arguments.get("use_cache") is not False:
            output = output.with_logits()
        return output.to_tuple() if arguments.get("return_dict") is False else output

    def _with_loss(self, arguments: dict[str, Any], targets: Tensor) -> FusedLossOutput:
        items, positions = arguments.pop("num_items_in_batch", None), arguments.pop("logits_to_keep", 0)
        if (
            hasattr(self.model, "_loss_function")
            or getattr(self.model, "loss_type", None) not in _CAUSAL_LOSS
        ):
            raise LossNotForEngine("the model has a loss of its own")
        if hooked(self.base):
            raise NotForEngine("the decoder has a hook")
        head, everywhere = self.head(), isinstance(positions, int) and positions == 0
        read = self._read(arguments, targets if everywhere else None, labelled=True)
        if read.dtype is not head.weight.dtype:
            raise LossNotForEngine(f"the output head is {head.weight.dtype}, what it gets {read.dtype}")
        look = cache(self.bound)  # once a call, and then only when its answer is wanted
        replayed = None
        if everywhere and read.input_ids is not None:
            replayed = self.captured.loss(read.input_ids, read.call, targets, items, look)
        if replayed is not None:
            return FusedLossOutput.of(replayed, lambda: self._logits(self._hidden_of(read, look()), head))
        self.captured.make_way(targets)
        hidden = _at(self._hidden_of(read, look()), positions)
        return FusedLossOutput.of(self.loss(hidden, targets, items), lambda: self._logits(hidden, head))

    def _leave(self, reason: Exception, original: Any, args: Any, kwargs: Any) -> Any:
        self.left_to_model[str(reason)] += 1
        self._left.reason = reason
        try:
            return original(*args, **kwargs)
        finally:
            self._left.reason = None

    def _logits(self, hidden: Tensor, head: nn.Linear) -> Tensor:
        logits = head(hidden)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def _read(
        self, kwargs: dict[str, Any], targets: Tensor | None = None, *, labelled: bool = False
    ) -> "_Read":
        arguments = dict(kwargs)
        input_ids, embeddings = arguments.pop("input_ids", None), arguments.pop("inputs_embeds", None)
        mask, position_ids = arguments.pop("attention_mask", None), arguments.pop("position_ids", None)
        for name in ("output_attentions", "output_hidden_states"):
            if arguments.get(name) is None and getattr(self.config, name, False):
                arguments[name] = True
        asked = arguments.get("use_cache")
        cached = self.config.use_cache if asked is None else asked
        answers = not (labelled or self.base.training or torch.is_grad_enabled())
        if cached and (asked or answers):
            raise NotForEngine("a key/value cache is asked for")
        given = input_ids if input_ids is not None else embeddings
        if given is None:
            raise NotForEngine("neither input_ids nor inputs_embeds is given")
        if targets is not None and targets.numel() != given.shape[:2].numel():
            wrong = f"the labels are {tuple(targets.shape)}, the tokens {tuple(given.shape[:2])}"
            raise ValueError(f"{wrong}: each token needs a label (-100 where nothing is to be learnt).")
        call = read_call(
            given.shape[:2], given.device, mask, position_ids, arguments, targets=targets, cached=cached
        )
        dtype = self.base.embed_tokens.weight.dtype if embeddings is None else embeddings.dtype
        kind = given.device.type
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind).itemsize < dtype.itemsize:
            raise NotForEngine(f"{dtype} is to be computed in {torch.get_autocast_dtype(kind)} (autocast)")
        return _Read(input_ids, embeddings, call, dtype)

    def _hidden_of(self, read: "_Read", bound: Bound) -> Tensor:
        embeddings = read.embeddings
        if embeddings is None:
            embeddings = self.base.embed_tokens(read.input_ids)
        return self.hidden(embeddings, read.call, bound)


@dataclass
class _Read:
    """A call's tokens (or their embeddings) and how they belong together."""

    input_ids: Tensor | None
    embeddings: Tensor | None
    call: Call
    dtype: torch.dtype
    """Of the embeddings, and of all that is computed with them."""


def _named(original: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments by their names."""
    if not args:
        return dict(kwargs)
    try:
        bound = inspect.signature(original).bind_partial(*args)
    except TypeError:  # the model's own forward says what is wrong
        raise NotForEngine("more positional arguments than the model takes") from None
    if any(isinstance(value, tuple) for value in bound.arguments.values()):
        raise NotForEngine("positional arguments without a name")
    return {**bound.arguments, **kwargs}


def _at(hidden: Tensor, positions: int | Tensor) -> Tensor:
    """Hidden states where ``logits_to_keep`` asks for them: the last n positions (0: all), or those listed."""
    return hidden[:, slice(-positions, None) if isinstance(positions, int) else positions]


def _next_token(labels: Tensor) -> Tensor:
    """Each position's target: the label of the position after it."""
    return nn.functional.pad(labels, (0, 1), value=-100)[..., 1:]
