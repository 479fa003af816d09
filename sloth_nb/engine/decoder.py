"""A causal language model as the engine takes it: its layers, bound to the adapters that are active, its output head,
and how a pass over it is to spend memory."""

from dataclasses import dataclass

import torch
from sloth_nb_kernels.launch import on_gpu
from torch import Tensor, nn

from .batching import Call, NotForEngine
from .layer import Layer
from .offload import Offloader
from .policy import LayerPolicy
from .rotary import RotationTable
from .rules import Settings, StackPlan
from .spec import LayerSpec, spec_for
from .tape import Batch

__all__ = ["Decoder"]


@dataclass
class Decoder:
    """``model`` (a ...ForCausalLM of transformers, with or without peft's adapters in it) as it stands now."""

    model: nn.Module
    settings: Settings

    def __post_init__(self) -> None:
        self.base = self.model.model
        self.config = self.base.config
        self.specs: list[LayerSpec] = [
            spec_for(layer, self.config, i) for i, layer in enumerate(self.base.layers)
        ]
        self.rotations = RotationTable(self.base.rotary_emb, {s.rope_kind for s in self.specs})
        self._adapted = [
            m for m in self.base.layers.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")
        ]
        self._bounds: dict[tuple, _Bound] = {}
        self._plans: dict[tuple, StackPlan] = {}
        self.offloader: Offloader | None = None
        self._listed: tuple[int, list[nn.Parameter]] | None = None
        self.layers()

    def _state(self) -> tuple:
        """Changes whenever an adapter is switched, added or merged, or what is trained changes."""
        adapters = [(m.disable_adapters, m.merged, m.training, *m.active_adapters) for m in self._adapted]
        count = sum(len(m.lora_A) for m in self._adapted)
        return (tuple(adapters), count, self._trained(count))

    def _trained(self, adapters: int) -> int:
        """How many of the layers' parameters are trained, while there are so many adapters."""
        if self._listed is None or self._listed[0] != adapters:  # walking the modules takes milliseconds
            self._listed = adapters, list(self.base.layers.parameters())
        return sum(p.requires_grad for p in self._listed[1])

    def bound(self) -> "_Bound":
        """The layers bound to the adapters that are active now, and what is trained in them.

        Raises:
            Unsupported: an adapter that the engine can't run (dropout, DoRA, several at once).
        """
        state = self._state()
        if state not in self._bounds:
            if len(self._bounds) >= 4:
                self._bounds.clear()
            layers = [Layer(module, spec) for module, spec in zip(self.base.layers, self.specs, strict=True)]
            self._bounds[state] = _Bound(layers, [p for layer in layers for p in layer.parameters()])
        return self._bounds[state]

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
        key = (tokens, length, weight.device, weight.dtype)
        if key not in self._plans:
            if len(self._plans) >= 256:
                self._plans.clear()
            self._plans[key] = self.settings.plan(self.config, len(self.specs), tokens, length, weight)
        return self._plans[key]

    def forget_plans(self) -> None:
        """Plans are asked for anew."""
        self._plans.clear()

    @property
    def softcap(self) -> float | None:
        """Of the logits (Gemma 2)."""
        return getattr(self.config, "final_logit_softcapping", None)

    def trains_weights(self) -> bool:
        """Whether the layers' own weights are trained, and not adapters alone."""
        projection = self.base.layers[0].get_submodule(self.specs[0].down)
        return getattr(projection, "base_layer", projection).weight.requires_grad

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
            NotForEngine: it is adapted, quantised or has a bias; then logits are made and the model's loss used.
        """
        head = self.model.lm_head
        if hasattr(head, "modules_to_save") and not getattr(head, "disable_adapters", False):
            head = head.modules_to_save[head.active_adapter]
        if type(head) is not nn.Linear or head.bias is not None:
            raise NotForEngine(f"the output head is a {type(head).__name__}")
        return head


@dataclass
class _Bound:
    """Layers as they are bound in one state of the adapters, and the parameters trained in them, in order."""

    layers: list[Layer]
    parameters: list[nn.Parameter]
