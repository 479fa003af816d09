"""Assembling encoded rows: cutting, counting, leaving out, packing; compact arrays up to the Dataset."""

from itertools import chain
from typing import Any

import numpy as np

from sloth_nb.data.packing import pack
from sloth_nb.data.report import DataReport
from sloth_nb.data.tokenise import IGNORED, Encoded

__all__ = ["Assembly"]


class Assembly:
    """Takes encoded rows batch by batch and makes one Dataset of them. Counts into ``report``.

    Args:
        max_length: rows are cut to so many tokens; None leaves them whole.
    """

    def __init__(self, max_length: int | None, report: DataReport):
        self.max_length, self.report = max_length, report
        self._ids: list[np.ndarray] = []
        self._lengths: list[int] = []
        self._begins: list[int] = []  # where each trained range begins and ends, in all rows laid end to end
        self._ends: list[int] = []
        self._at = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, rows: list[Encoded]) -> None:
        """Adds a batch; a row of which nothing would be learnt is counted and left out."""
        report, limit = self.report, self.max_length
        kept, trained_before = [], 0
        for row in rows:
            length = len(row.ids)
            report.lengths.append(length)
            trained = row.count_trained()
            if limit is not None and length > limit:
                report.truncated += 1
                report.lost_tokens += length - limit
                row, trained_before = row.cut(limit), trained
                trained = row.count_trained()
                length = limit
                if trained_before and not trained:
                    report.drop("cut")
                    continue
            if not trained:
                report.drop("masked")
                continue
            for begin, end in row.trained:
                self._begins.append(self._at + begin)
                self._ends.append(self._at + end)
            self._at += length
            self._lengths.append(length)
            report.trained_tokens += trained
            report.resplit += row.resplit
            kept.append(row.ids)
        report.kept += len(kept)
        ids = np.fromiter(chain.from_iterable(kept), np.int32)
        report.tokens += len(ids)
        self._ids.append(ids)

    def dataset(self, *, packing: bool) -> Any:
        """The rows as a Dataset of ``input_ids`` and ``labels``, and ``seq_lengths`` when packed."""
        import datasets
        import pyarrow

        ids = np.concatenate(self._ids)
        edges = np.zeros(len(ids) + 1, dtype=np.int8)
        edges[self._begins] += 1
        edges[self._ends] -= 1
        labels = np.where(np.cumsum(edges[:-1], dtype=np.int8) > 0, ids, np.int32(IGNORED))
        lengths = np.array(self._lengths)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        if not packing:
            return datasets.Dataset(
                pyarrow.table({"input_ids": _lists(ids, starts), "labels": _lists(labels, starts)})
            )
        groups = pack(self._lengths, self.max_length or 0)
        self.report.packs += len(groups)
        labels[starts[:-1]] = IGNORED  # no token is predicted from its neighbour's last
        order = [row for group in groups for row in group]
        gather = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in order])
        ends = np.cumsum([len(group) for group in groups])
        offsets = np.concatenate([[0], np.cumsum(lengths[order])[ends - 1]])
        return datasets.Dataset(
            pyarrow.table(
                {
                    "input_ids": _lists(ids[gather], offsets),
                    "labels": _lists(labels[gather], offsets),
                    "seq_lengths": _lists(lengths[order], np.concatenate([[0], ends])),
                }
            )
        )


def _lists(values: np.ndarray, offsets: np.ndarray) -> Any:
    import pyarrow

    kind = pyarrow.LargeListArray if len(values) > np.iinfo(np.int32).max else pyarrow.ListArray
    width = np.int64 if kind is pyarrow.LargeListArray else np.int32
    return kind.from_arrays(pyarrow.array(offsets.astype(width)), pyarrow.array(values, type=pyarrow.int32()))
