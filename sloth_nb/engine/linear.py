"""Projections with LoRA over NF4, int8, 16-bit or fp32 bases: forward and backward without autograd.

A ``Projection`` is a view of one module (plain, bitsandbytes or peft); parameters stay where they are. A ``Group``
is one or several projections of the same input whose outputs stand side by side (q, k, v or gate, up): its base
weights are dequantised once and its low-rank products share one pass over the input.
"""

from dataclasses import dataclass, field

import torch
from sloth_nb_kernels.dequantize import dequantize_int8, dequantize_nf4
from torch import Tensor, nn

from .grads import Grads
from .spec import Unsupported

__all__ = ["Group", "Projection", "Weights"]

# Output over input width from which adding the adapters in a second pass over the output costs more than widening.
_WIDEN_FROM = 4


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


@dataclass
class Weights:
    """A group's base weights in the compute dtype: (weight (rows, in), where its rows stand in the output).

    ``widened``, (out, in + rank), is the same weight with scaling * B beside it, each in its projection's columns: one
    product with an input that x A^T has been written beside adds base and adapters in one pass over the output.
    """

    parts: list[tuple[Tensor, slice]]
    widened: Tensor | None = None


@dataclass
class Group:
    """Projections of one input, side by side in the output."""

    projections: list[Projection]
    out_features: int = field(init=False)
    in_features: int = field(init=False)
    rank: int = field(init=False)

    def __post_init__(self) -> None:
        self.out_features = sum(p.out_features for p in self.projections)
        self.in_features = self.projections[0].in_features
        self.rank = sum(p.rank for p in self.projections)
        self._rows, self._ranks = [], []
        row = rank = 0
        for p in self.projections:
            self._rows.append(slice(row, row + p.out_features))
            self._ranks.append(slice(rank, rank + p.rank))
            row, rank = row + p.out_features, rank + p.rank
        self.quantised = any(p.kind != "dense" for p in self.projections)
        self.a: Tensor | None = None
        self.b: list[Tensor | None] = []

    def parameters(self) -> list[nn.Parameter]:
        return [p for projection in self.projections for p in projection.parameters()]

    # -- the low-rank factors in the compute dtype ---------------------------------------------------------------

    def low_rank_targets(self, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Allocates this pass's copies of A (stacked) and B; returns (copies, parameters) to be filled in one go."""
        copies: list[Tensor] = []
        sources: list[Tensor] = []
        self.a = like.new_empty(self.rank, self.in_features) if self.rank else None
        self.b = []
        for p, ranks in zip(self.projections, self._ranks, strict=True):
            if not p.rank:
                self.b.append(None)
                continue
            b = like.new_empty(p.out_features, p.rank)
            self.b.append(b)
            copies += [self.a[ranks], b]
            sources += [p.lora_a.detach(), p.lora_b.detach()]
        return copies, sources

    # -- base weights ---------------------------------------------------------------------------------------------

    @property
    def widens(self) -> bool:
        """Whether the forward goes through a widened weight: where the output is much wider than the input."""
        return self.quantised and self.rank > 0 and self.out_features >= _WIDEN_FROM * self.in_features

    def weights(self, dtype: torch.dtype, *, forward: bool = True) -> Weights:
        """Dequantises into one buffer (released with the returned object); dense weights are used where they lie.

        Without ``forward`` they serve a backward only, and are not widened.
        """
        if not self.quantised:
            parts = [
                (p.base.weight.detach().to(dtype), rows)
                for p, rows in zip(self.projections, self._rows, strict=True)
            ]
            return Weights(parts)
        device = self.projections[0].base.weight.device
        extra = self.rank if forward and self.widens else 0
        buffer = torch.empty(self.out_features, self.in_features + extra, dtype=dtype, device=device)
        weight, beside = buffer[:, : self.in_features], buffer[:, self.in_features :]
        for p, rows in zip(self.projections, self._rows, strict=True):
            _dequantise(p, weight[rows])
        if extra:
            if len(self.projections) > 1:
                beside.zero_()
            for p, rows, ranks in zip(self.projections, self._rows, self._ranks, strict=True):
                if p.rank:  # scaled in the parameter's precision, rounded once
                    torch.mul(p.lora_b.detach(), p.scaling, out=beside[rows, ranks])
        return Weights([(weight, slice(0, self.out_features))], buffer if extra else None)

    def input_buffer(self, tokens: int, like: Tensor) -> Tensor:
        """(tokens, in), for the group's input to be written into; with room beside it when the weight is widened."""
        extra = self.rank if self.widens else 0
        return like.new_empty(tokens, self.in_features + extra)[:, : self.in_features]

    # -- products -------------------------------------------------------------------------------------------------

    def low_rank_input(self, x: Tensor) -> Tensor | None:
        """x A^T of every projection, side by side: (tokens, sum of ranks)."""
        return torch.mm(x, self.a.t()) if self.rank else None

    def forward(
        self, x: Tensor, weights: Weights, *, residual: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(tokens, in) → (tokens, out) plus ``residual``; also the low-rank input, for the backward.

        With a widened weight, x must have come from ``input_buffer``. ``residual`` may be ``out`` itself.
        """
        y = x.new_empty(x.shape[0], self.out_features) if out is None else out
        if weights.widened is not None:
            beside = x.as_strided((x.shape[0], self.in_features + self.rank), x.stride())
            t = torch.mm(x, self.a.t(), out=beside[:, self.in_features :])
            torch.mm(beside, weights.widened.t(), out=y)
            self._add_biases(y)
            return y, t
        for weight, rows in weights.parts:
            target = y[:, rows]
            if residual is None:
                torch.mm(x, weight.t(), out=target)
            elif residual is out:  # added in place, where addmm would copy first
                target.addmm_(x, weight.t())
            else:
                torch.addmm(residual[:, rows], x, weight.t(), out=target)
        t = self.low_rank_input(x)
        for p, rows, ranks, b in zip(self.projections, self._rows, self._ranks, self.b, strict=True):
            if b is not None:
                y[:, rows].addmm_(t[:, ranks], b.t(), alpha=p.scaling)
        self._add_biases(y)
        return y, t

    def _add_biases(self, y: Tensor) -> None:
        for p, rows in zip(self.projections, self._rows, strict=True):
            if p.bias is not None:
                y[:, rows] += p.bias.detach().to(y.dtype)

    def backward_low_rank(self, dy: Tensor) -> Tensor | None:
        """The gradient of the low-rank input, (tokens, sum of ranks)."""
        if not self.rank:
            return None
        dt = dy.new_empty(dy.shape[0], self.rank)
        for p, rows, ranks, b in zip(self.projections, self._rows, self._ranks, self.b, strict=True):
            if b is not None:
                target = dt[:, ranks]
                torch.addmm(target, dy[:, rows], b, beta=0, alpha=p.scaling, out=target)
        return dt

    def backward_input(self, dy: Tensor, dt: Tensor | None, weights: Weights) -> Tensor:
        """The input's gradient, (tokens, in)."""
        (weight, rows), *others = weights.parts
        dx = torch.mm(dy[:, rows], weight)
        for weight, rows in others:
            dx.addmm_(dy[:, rows], weight)
        if dt is not None:
            dx.addmm_(dt, self.a)
        return dx

    def backward_parameters(
        self, dy: Tensor, dt: Tensor | None, x: Tensor, t: Tensor | None, grads: Grads
    ) -> None:
        """Adds the gradients of A, B, the base weight and the bias, where they are trained."""
        for p, rows, ranks in zip(self.projections, self._rows, self._ranks, strict=True):
            part = dy[:, rows]
            grads.add_outer(p.base.weight, part, x)
            if p.bias is not None:
                grads.add_sum(p.bias, part)
            if p.rank:
                grads.add_outer(p.lora_b, part, t[:, ranks], p.scaling)
                grads.add_outer(p.lora_a, dt[:, ranks], x)


def _dequantise(p: Projection, out: Tensor) -> None:
    if p.kind == "nf4":
        dequantize_nf4(p.base.weight.detach(), p.base.weight.quant_state, out=out)
    elif p.kind == "int8":
        scale = p.base.state.SCB if p.base.state.SCB is not None else p.base.weight.SCB
        dequantize_int8(p.base.weight.detach(), scale, out=out)
    else:
        out.copy_(p.base.weight.detach())
