"""One linear layer as the engine reads it: plain, bitsandbytes' or peft's, with its LoRA, where it lies."""

from dataclasses import dataclass
from operator import attrgetter

from sloth_nb_kernels import lora
from torch import Tensor, nn

from .spec import Unsupported

__all__ = ["Projection"]

# The tensors of an NF4 weight's state, whose absmax is quantised itself or not.
_PLAIN = attrgetter("absmax", "code")
_NESTED = attrgetter("absmax", "code", "offset", "state2.absmax", "state2.code")


@dataclass
class Projection:
    """One linear module: y = x W^T (+ bias) (+ scaling * (x A^T) B^T)."""

    name: str
    base: nn.Module
    kind: str
    """``dense``, ``nf4`` or ``int8``: how the base weight is stored."""
    out_features: int
    in_features: int
    lora_a: nn.Parameter | None = None
    lora_b: nn.Parameter | None = None
    scaling: float = 1.0

    @property
    def rank(self) -> int:
        return 0 if self.lora_a is None else self.lora_a.shape[0]

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.base, "bias", None)

    def parameters(self) -> list[nn.Parameter]:
        """Everything of this projection that may be trained, in a fixed order."""
        found = [self.base.weight, self.bias, self.lora_a, self.lora_b]
        return [p for p in found if isinstance(p, nn.Parameter) and p.requires_grad]

    def scales(self) -> tuple[Tensor, ...]:
        """What stands beside a quantised weight's values, where it lies now."""
        if self.kind == "nf4":
            state = self.base.weight.quant_state
            return _PLAIN(state) if state.state2 is None else _NESTED(state)
        return (self.scale,) if self.kind == "int8" else ()

    def operand(self) -> lora.Projection:
        """The base weight and the adapter as the kernels take them, where they lie now."""
        weight = self.base.weight
        quantised = weight.quant_state if self.kind == "nf4" else self.scale if self.kind == "int8" else None
        return lora.Projection(weight, quantised, a=self.lora_a, b=self.lora_b, scale=self.scaling)

    @property
    def scale(self) -> Tensor:
        """Of an int8 base: each row's largest value."""
        return self.base.state.SCB if self.base.state.SCB is not None else self.base.weight.SCB

    @classmethod
    def of(cls, name: str, module: nn.Module) -> "Projection":
        """Reads a module as it stands now (which adapter is active, whether it is switched off or merged).

        Raises:
            Unsupported: the module computes something that this class can't say; with the reason.
        """
        base = getattr(module, "base_layer", module)
        kind = _kind_of(base)
        projection = cls(name, base, kind, base.out_features, base.in_features)
        if base is module or module.disable_adapters or module.merged:
            return projection
        active = [a for a in module.active_adapters if a in module.lora_A]
        if len(active) > 1:
            raise Unsupported(f"{name} has {len(active)} active adapters at once")
        for adapter in active:
            if adapter in getattr(module, "lora_variant", {}):
                raise Unsupported(f"{name} uses a LoRA variant ({_variant_name(module, adapter)})")
            dropout = module.lora_dropout[adapter]
            if getattr(dropout, "p", 0.0) and module.training:
                raise Unsupported(f"{name} has lora_dropout={dropout.p}")
            if module.lora_B[adapter].bias is not None:
                raise Unsupported(f"{name} has a LoRA bias")
            projection.lora_a = module.lora_A[adapter].weight
            projection.lora_b = module.lora_B[adapter].weight
            projection.scaling = float(module.scaling[adapter])
        return projection


def _variant_name(module: nn.Module, adapter: str) -> str:
    return type(module.lora_variant[adapter]).__name__.removesuffix("LinearVariant") or "unknown"


def _kind_of(base: nn.Module) -> str:
    kind = type(base).__name__
    if kind == "Linear4bit":
        state = getattr(base.weight, "quant_state", None)
        if state is None or state.quant_type != "nf4":
            raise Unsupported(f"4-bit type {getattr(state, 'quant_type', 'not yet quantised')!r} is not nf4")
        return "nf4"
    if kind == "Linear8bitLt":
        return "int8"
    if isinstance(base, nn.Linear):
        return "dense"
    raise Unsupported(f"{kind} is not a linear layer that the engine knows")
