"""Block: a batch of encoded rows in flat arrays. No Python object a row outlives it, so the collector is idle."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from sloth_nb.data.tokenise import IGNORED, Encoded

__all__ = ["Block"]


@dataclass
class Block:
    """Rows laid end to end.

    ``ids``: int32 (tokens,). ``lengths``: int64 (rows,). ``ranges``: int64 (n, 3), of each range of trained
    tokens its row and where it begins and ends in that row. ``resplit``: rows encoded in pieces.
    ``parted``: texts that became several rows, ``pieces`` together.
    """

    ids: np.ndarray
    lengths: np.ndarray
    ranges: np.ndarray
    resplit: int = 0
    parted: int = 0
    pieces: int = 0

    @classmethod
    def of(cls, rows: Iterable[Encoded]) -> "Block":
        """The block of these rows, each of which is let go at once."""
        lengths: list[int] = []
        ranges: list[int] = []
        resplit = 0

        def ids() -> Iterator[list[int]]:
            nonlocal resplit
            for number, row in enumerate(rows):
                lengths.append(len(row.ids))
                for start, end in row.trained:
                    ranges.extend((number, start, end))
                resplit += row.resplit
                yield row.ids

        flat = np.fromiter(chain.from_iterable(ids()), np.int32)
        return cls(flat, np.array(lengths, np.int64), np.array(ranges, np.int64).reshape(-1, 3), resplit)

    @property
    def starts(self) -> np.ndarray:
        """Where each row begins in ``ids``: int64 (rows,)."""
        return np.cumsum(self.lengths) - self.lengths

    def trained(self) -> np.ndarray:
        """How many tokens of each row are learnt: int64 (rows,). A row's first has nothing that predicts it."""
        row, start, end = self.ranges.T
        counts = np.bincount(row, np.maximum(end - np.maximum(start, 1), 0), minlength=len(self.lengths))
        return counts.astype(np.int64)

    def labels(self) -> np.ndarray:
        """The ids where they are trained, -100 elsewhere: int32 (tokens,)."""
        row, start, end = self.ranges.T
        edges = np.zeros(len(self.ids) + 1, np.int8)
        at = self.starts[row]
        np.add.at(edges, at + start, 1)  # not +=: where one range ends, the next may begin
        np.subtract.at(edges, at + end, 1)
        return np.where(np.cumsum(edges[:-1], dtype=np.int8) > 0, self.ids, np.int32(IGNORED))

    def cut(self, limit: int) -> "Block":
        """The first ``limit`` tokens of each row."""
        if not len(self.lengths) or self.lengths.max() <= limit:
            return self
        places = np.arange(len(self.ids)) - np.repeat(self.starts, self.lengths)
        ranges = self.ranges[self.ranges[:, 1] < limit]
        ranges = np.column_stack([ranges[:, :2], np.minimum(ranges[:, 2], limit)])
        return Block(self.ids[places < limit], np.minimum(self.lengths, limit), ranges, self.resplit)

    def only(self, kept: np.ndarray) -> "Block":
        """The rows where ``kept``, bool (rows,), is true."""
        if kept.all():
            return self
        number = np.cumsum(kept) - 1
        ranges = self.ranges[kept[self.ranges[:, 0]]]
        ranges = np.column_stack([number[ranges[:, 0]], ranges[:, 1:]])
        return Block(self.ids[np.repeat(kept, self.lengths)], self.lengths[kept], ranges, self.resplit)
