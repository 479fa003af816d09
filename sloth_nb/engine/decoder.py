"""A causal language model as the engine takes it: its layers, bound to the adapters that are active, its output head,
and how a pass over it is to spend memory."""

from dataclasses import dataclass, field
from itertools import chain

import torch
from sloth_nb_kernels.launch import on_gpu
from torch import Tensor, nn

from .batching import Call, LossNotForEngine
from .layer import Layer
from .norm import norm_weight
from .offload import Offloader
from .policy import LayerPolicy
from .projection import Projection
from .rotary import RotationTable
from .rules import Settings, StackPlan
from .spec import LayerSpec, Unsupported, spec_for
from .standing import Standing, foreign
from .tape import Batch

__all__ = ["Bound", "Decoder"]


@dataclass
class Decoder:
    """``model`` (a ...ForCausalLM of transformers, with or without peft's adapters in it) as it stands now."""

    model: nn.Module
    settings: Settings

    def __post_init__(self) -> None:
        self.base = self.model.model
        self.config = self.base.config
        self._bounds: list[Bound] = []
        self._plans: dict[tuple, StackPlan] = {}
        self.offloader: Offloader | None = None
        self.rotations = RotationTable(self.base.rotary_emb, {s.rope_kind for s in self.bound().specs})

    def bound(self) -> "Bound":
        """The layers as they stand now, and what is trained in them. Looking takes a millisecond: once a pass.

        Raises:
            Unsupported: something the engine can't run (dropout, DoRA, two adapters at once, a hook on a layer, …).
        """
        found = next((one for one in self._bounds if one.standing.holds()), None)
        if found is None:
            found = self._bind()
            self._bounds = [found, *self._bounds[:3]]
        if found.refusal is not None:
            raise Unsupported(found.refusal)
        return found

    def _bind(self) -> "Bound":
        standing = Standing(self.base, ("layers", "norm"))
        try:
            standing.check()
            norm_weight(self.base, "norm")
            specs = [spec_for(layer, self.config, i) for i, layer in enumerate(self.base.layers)]
            layers = [Layer(module, spec) for module, spec in zip(self.base.layers, specs, strict=True)]
        except Unsupported as reason:
            return Bound(standing, refusal=str(reason))
        return Bound(standing, specs, layers, [p for layer in layers for p in layer.parameters()])

    def layers(self) -> list[Layer]:
        """The layers bound to the adapters that are active now."""
        return self.bound().layers

    def batch(self, call: Call, length: int, device: torch.device, plan: StackPlan) -> Batch:
        """What the layers share in one pass."""
        if call.position_ids is None:
            rotations = self.rotations.for_length(length, device)
        else:
            rotations = self.rotations.for_positions(call.position_ids)
        return Batch(call.seqs, rotations, plan.mlp_tile)

    def plan(self, tokens: int, length: int) -> StackPlan:
        """Policies for a pass over this many tokens, in sequences of ``length``."""
        weight = self.base.norm.weight
        key = (tokens, length, len(self.base.layers), weight.device, weight.dtype)
        if key not in self._plans:
            if len(self._plans) >= 256:
                self._plans.clear()
            self._plans[key] = self.settings.plan(self.config, len(self.base.layers), tokens, length, weight)
        return self._plans[key]

    def forget_plans(self) -> None:
        """Plans are asked for anew."""
        self._plans.clear()

    @property
    def softcap(self) -> float | None:
        """Of the logits (Gemma 2)."""
        return getattr(self.config, "final_logit_softcapping", None)

    def trains_outside(self) -> bool:
        """Whether anything is trained beside the layers: the embedding (its adapter, too), the last norm, the head."""
        outside = (self.base.embed_tokens, self.base.norm, self.model.lm_head)
        return any(p.requires_grad for module in outside for p in module.parameters())

    def parameters(self, bound: "Bound") -> list[Tensor]:
        """All parameters that a pass from token ids to the loss reads. What it reads besides, ``bound.scales()``."""
        return [self.base.embed_tokens.weight, self.head().weight, *bound.standing.tensors()]

    def offloader_for(self, policies: list[LayerPolicy], like: Tensor) -> Offloader | None:
        """Who moves activations to the host, where one of the policies does."""
        if not on_gpu(like) or not any(p.host for p in policies):
            return None
        if self.offloader is None or self.offloader.device != like.device:
            self.offloader = Offloader(like.device)
        return self.offloader

    def head(self) -> nn.Linear:
        """The output projection.

        Raises:
            LossNotForEngine: it is adapted, quantised or has a bias; then logits are made and the model's loss used.
        """
        head = self.model.lm_head
        if hasattr(head, "modules_to_save") and not getattr(head, "disable_adapters", False):
            head = head.modules_to_save[head.active_adapter]
        if type(head) is not nn.Linear or head.bias is not None:
            raise LossNotForEngine(f"the output head is a {type(head).__name__}")
        if (reason := foreign(head)) is not None:
            raise LossNotForEngine(f"the output head {reason}")
        return head


@dataclass(eq=False)
class Bound:
    """Layers as they are bound while the modules stand so, and the parameters trained in them, in order; or why they
    can't be."""

    standing: Standing
    specs: list[LayerSpec] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    parameters: list[nn.Parameter] = field(default_factory=list)
    refusal: str | None = None
    quantised: list[Projection] = field(init=False)

    def __post_init__(self) -> None:
        projections = (p for layer in self.layers for group in layer.groups for p in group.projections)
        self.quantised = [p for p in projections if p.kind != "dense"]

    def scales(self) -> list[Tensor]:
        """What stands beside the quantised weights' values, where it lies now: some sixtieth of them."""
        return list(chain.from_iterable(map(Projection.scales, self.quantised)))

    @property
    def trains_weights(self) -> bool:
        """Whether the layers' own weights are trained, and not adapters alone."""
        return any(p.base.weight.requires_grad for p in self.layers[0].mlp.down.projections)
