"""Which tokens belong together: the batch's shape, or the boundaries of packed sequences. Built once a batch."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from torch import Tensor

__all__ = ["Sequences"]


@dataclass
class Sequences:
    """Either ``batch`` sequences of ``length`` tokens, or packed ones between ``cu_seqlens``."""

    batch: int
    length: int
    """Tokens a sequence; for packed ones, the longest sequence's."""
    cu_seqlens: Tensor | None = None
    """(sequences + 1,) int32 on the device: where each packed sequence starts, then the total."""
    tokens: int = 0

    def __post_init__(self) -> None:
        if self.cu_seqlens is None:
            self.tokens = self.batch * self.length

    @property
    def packed(self) -> bool:
        return self.cu_seqlens is not None

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """(first, past last) token of each packed sequence, on the host. Waits for the device: CPU paths only."""
        edges = self.cu_seqlens.tolist()
        return [(a, b) for a, b in pairwise(edges) if b > a]
