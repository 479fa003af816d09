"""What all layers share in one pass, and what one layer's forward leaves for its backward."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sloth_nb.memory.layout import HOLD_FROM

from .attention import Attention, choose_attention
from .linear import Group, Weights
from .rotary import Rotation
from .sequences import Sequences
from .spec import LayerSpec

__all__ = ["Batch", "HeldWeights", "Tape"]


@dataclass
class Batch:
    """What all layers share in one pass: which tokens belong together, their rotations, the tile of the MLP."""

    seqs: Sequences
    rotations: dict[str | None, Rotation]
    mlp_tile: int | None = None
    _attention: dict[tuple, Attention] = field(default_factory=dict)

    def attention(self, spec: LayerSpec, like: Tensor) -> Attention:
        key = (spec.window, spec.softcap, spec.head_dim, spec.scale)
        if key not in self._attention:
            self._attention[key] = choose_attention(spec, self.seqs, like)
        return self._attention[key]

    def tiles(self, tokens: int) -> Iterator[slice]:
        step = self.mlp_tile or max(tokens, 1)
        for start in range(0, max(tokens, 1), step):
            yield slice(start, min(start + step, tokens))


@dataclass
class Tape:
    """A layer's tensors between forward and backward, by the names of ``policy.NAMES``; None is recomputed.

    gate_up is as ``Group.grad_buffer`` makes it. ``low_rank`` are inputs of the adapters, x A^T, by group: small, and
    there whenever gate_up is.
    """

    input: Tensor | None = None
    qkv: Tensor | None = None
    attention: Tensor | None = None
    attention_extra: tuple | None = None
    middle: Tensor | None = None
    gate_up: Tensor | None = None
    low_rank: dict[str, Tensor] = field(default_factory=dict)
    arriving: list[Callable[[int], object]] = field(default_factory=list)
    """Of each tensor on its way from the host: waits for as many of its rows as it is told."""

    def wait(self, rows: int) -> None:
        """Before so many rows of ``middle`` and gate_up are read."""
        for one in self.arriving:
            one(rows)


class HeldWeights:
    """A group's weights within one pass of the MLP: dequantised once when many tokens use them, else each time.

    With few tokens the weights are by far the largest thing in memory, and dequantising them again costs little.
    """

    def __init__(self, group: Group, dtype: torch.dtype, batch: Batch):
        self.group, self.dtype = group, dtype
        self.keep = batch.seqs.tokens > HOLD_FROM
        self._weights: Weights | None = None

    def get(self) -> Weights:
        if self._weights is not None:
            return self._weights
        weights = self.group.weights(self.dtype)
        if self.keep:
            self._weights = weights
        return weights
