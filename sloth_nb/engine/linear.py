"""Projections with LoRA over NF4, int8, 16-bit or fp32 bases: forward and backward without autograd.

A ``Group`` is one or several projections of the same input whose outputs stand side by side (q, k, v or gate, up): its
base weights are dequantised once and its low-rank products share one pass over the input.
"""

from dataclasses import dataclass, field

import torch
from sloth_nb_kernels.adapted_weight import adapted_weight
from sloth_nb_kernels.launch import on_gpu
from torch import Tensor, nn

from sloth_nb.memory.layout import room_beside

from .grads import Grads
from .projection import Projection

__all__ = ["Group", "Weights"]


@dataclass
class Weights:
    """A group's base weights in the compute dtype: (weight (rows, in), where its rows stand in the output); and ``a``,
    the projections' A stacked, (rank, in).

    ``around``, (out + rank, in + room), is the same weight with scaling * B beside it, ``b``, and A beneath
    (``adapted_weight``): one product with an input that x A^T stands beside adds base and adapters in one pass over
    the output, and so does the backward with a gradient that dt stands beside.
    """

    parts: list[tuple[Tensor, slice]]
    a: Tensor | None = None
    around: Tensor | None = None
    b: Tensor | None = None


@dataclass
class Group:
    """Projections of one input, side by side in the output.

    Inputs and output gradients may be wider than the layer by ``room`` columns, as ``input_buffer`` and
    ``grad_buffer`` make them: what the adapters contribute then goes through the base's own product.
    """

    projections: list[Projection]
    out_features: int = field(init=False)
    in_features: int = field(init=False)
    rank: int = field(init=False)
    room: int = field(init=False)

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
        # A weight that lies there in the compute dtype is not copied to be widened. Nothing stands beside a product's
        # operands on a CPU: oneDNN's AMX kernels read on past the end of their rows, and a NaN there goes into the sum.
        wide = on_gpu(self.projections[0].base.weight)
        self.room = room_beside(self.rank, self.quantised) if wide else 0
        self.a: Tensor | None = None
        self.b: list[Tensor | None] = []

    @classmethod
    def of(cls, module: nn.Module, names: tuple[str, ...]) -> "Group":
        """The module's projections of these names.

        Raises:
            Unsupported: as ``Projection.of`` does.
        """
        return cls([Projection.of(name, module.get_submodule(name)) for name in names])

    def parameters(self) -> list[nn.Parameter]:
        return [p for projection in self.projections for p in projection.parameters()]

    # -- the low-rank factors in the compute dtype ---------------------------------------------------------------

    def low_rank_targets(self, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Allocates this pass's copies of A (stacked) and B; returns (copies, parameters) to be filled in one go. None
        where they lie around the weights, or can be read where they lie."""
        copies: list[Tensor] = []
        sources: list[Tensor] = []
        self.a, self.b = None, []
        if self.room or not self.rank:
            return copies, sources
        adapted = [(p, ranks) for p, ranks in zip(self.projections, self._ranks, strict=True) if p.rank]
        if len(adapted) == 1 and _is_as(adapted[0][0].lora_a, like):
            self.a = adapted[0][0].lora_a.detach()
        else:
            self.a = like.new_empty(self.rank, self.in_features)
            copies += [self.a[ranks] for _, ranks in adapted]
            sources += [p.lora_a.detach() for p, _ in adapted]
        for p in self.projections:
            b = p.lora_b.detach() if p.rank else None
            if b is not None and not _is_as(b, like):
                copies.append(like.new_empty(b.shape))
                sources.append(b)
                b = copies[-1]
            self.b.append(b)
        return copies, sources

    # -- buffers --------------------------------------------------------------------------------------------------

    def input_buffer(self, tokens: int, like: Tensor) -> Tensor:
        """(tokens, in + room): the group's input goes into its first columns."""
        return like.new_empty(tokens, self.in_features + self.room)

    def grad_buffer(self, tokens: int, like: Tensor) -> Tensor:
        """(tokens, out + room), for the group's output or its gradient."""
        return like.new_empty(tokens, self.out_features + self.room)

    def fitted(self, dy: Tensor) -> Tensor:
        """A gradient that has columns beside it, with as many of them as the group uses: all, or none."""
        return dy if self.room else dy[:, : self.out_features]

    def weights(self, dtype: torch.dtype) -> Weights:
        """Dequantises into one buffer (released with the returned object); dense weights are used where they lie."""
        if not self.quantised:
            parts = [
                (p.base.weight.detach().to(dtype), rows)
                for p, rows in zip(self.projections, self._rows, strict=True)
            ]
            return Weights(parts, self.a)
        rows, columns, beneath = self.out_features, self.in_features, self.rank if self.room else 0
        device = self.projections[0].base.weight.device
        around = torch.empty(rows + beneath, columns + self.room, dtype=dtype, device=device)
        weight = around[:rows, :columns]
        parts = [(weight, slice(0, rows))]
        if self.room:
            adapted_weight([p.operand() for p in self.projections], around)
            return Weights(parts, around[rows:, :columns], around, self._beside(around[:rows], columns))
        for p, own in zip(self.projections, self._rows, strict=True):
            p.operand().dense(dtype, weight[own])
        return Weights(parts, self.a)

    def _beside(self, x: Tensor, features: int) -> Tensor | None:
        """The ranks' columns beside an input or a gradient of so many ``features``; None where it has none."""
        return x[:, features : features + self.rank] if x.shape[1] > features else None

    # -- products -------------------------------------------------------------------------------------------------

    def low_rank_input(self, x: Tensor, weights: Weights) -> Tensor | None:
        """x A^T of every projection, side by side: (tokens, sum of ranks)."""
        return torch.mm(x[:, : self.in_features], weights.a.t()) if self.rank else None

    def forward(
        self, x: Tensor, weights: Weights, *, residual: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """(tokens, in, or with room) → (tokens, out) plus ``residual``; also the low-rank input, for the backward.

        ``residual`` may be ``out`` itself. With room the low-rank input is a view into x's.
        """
        y = x.new_empty(x.shape[0], self.out_features) if out is None else out
        if residual is not None and residual is not y:
            y.copy_(residual)
        begun, parts = residual is not None, weights.parts
        if weights.around is not None and (t := self._beside(x, self.in_features)) is not None:
            torch.mm(x[:, : self.in_features], weights.a.t(), out=t)
            x = x[:, : self.in_features + self.rank]
            parts = [(weights.around[: self.out_features, : x.shape[1]], slice(None))]
        else:
            x = x[:, : self.in_features]
            t = self.low_rank_input(x, weights)
            if t is not None:
                self._add_adapters(y, t, weights, begun)
                begun = True
        for weight, rows in parts:
            y[:, rows].addmm_(x, weight.t(), beta=float(begun))
        self._add_biases(y)
        return y, t

    def _add_adapters(self, y: Tensor, t: Tensor, weights: Weights, begun: bool) -> None:
        """Adds what the adapters contribute to y, or puts it there where nothing has ``begun`` yet. Before the base's
        product: rounding it costs little as it is small, rounding the sum again costs as much as that is large."""
        if weights.b is not None:
            y.addmm_(t, weights.b.t(), beta=float(begun))
            return
        for p, rows, ranks, b in zip(self.projections, self._rows, self._ranks, self.b, strict=True):
            if b is not None:
                y[:, rows].addmm_(t[:, ranks], b.t(), beta=float(begun), alpha=p.scaling)
            elif not begun:
                y[:, rows].zero_()

    def _add_biases(self, y: Tensor) -> None:
        for p, rows in zip(self.projections, self._rows, strict=True):
            if p.bias is not None:
                y[:, rows] += p.bias.detach().to(y.dtype)

    def backward_low_rank(self, dy: Tensor, weights: Weights) -> Tensor | None:
        """The gradient of the low-rank input, (tokens, sum of ranks); beside dy where that has room."""
        if not self.rank:
            return None
        dt = self._beside(dy, self.out_features)
        if dt is None:
            dt = dy.new_empty(dy.shape[0], self.rank)
        if weights.b is not None:  # zeros beside each B keep the projections apart
            return torch.mm(dy[:, : self.out_features], weights.b, out=dt)
        for p, rows, ranks, b in zip(self.projections, self._rows, self._ranks, self.b, strict=True):
            if b is not None:
                target = dt[:, ranks]
                torch.addmm(target, dy[:, rows], b, beta=0, alpha=p.scaling, out=target)
        return dt

    def backward_input(self, dy: Tensor, dt: Tensor | None, weights: Weights) -> Tensor:
        """The input's gradient, (tokens, in). With room in dy, ``dt`` must lie there."""
        if weights.around is not None and dy.shape[1] > self.out_features:
            return torch.mm(dy[:, : self.out_features + self.rank], weights.around[:, : self.in_features])
        dx = None if dt is None else torch.mm(dt, weights.a)  # first, as in _add_adapters
        for weight, rows in weights.parts:
            dx = torch.mm(dy[:, rows], weight) if dx is None else dx.addmm_(dy[:, rows], weight)
        return dx

    def backward_parameters(
        self, dy: Tensor, dt: Tensor | None, x: Tensor, t: Tensor | None, grads: Grads
    ) -> None:
        """Adds the gradients of A, B, the base weight and the bias, where they are trained."""
        x = x[:, : self.in_features]
        for p, rows, ranks in zip(self.projections, self._rows, self._ranks, strict=True):
            part = dy[:, rows]
            grads.add_outer(p.base.weight, part, x)
            if p.bias is not None:
                grads.add_sum(p.bias, part)
            if p.rank:
                grads.add_outer(p.lora_b, part, t[:, ranks], p.scaling)
        if dt is not None:
            grads.add_stacked([p.lora_a for p in self.projections if p.rank], dt, x)


def _is_as(factor: Tensor, like: Tensor) -> bool:
    """Whether an adapter's factor can take part in a product as it is."""
    return factor.dtype is like.dtype and factor.device == like.device
