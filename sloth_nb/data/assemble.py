"""Assembling encoded rows: cutting, counting, leaving out, packing; compact arrays up to the Dataset."""

from typing import Any

import numpy as np

from sloth_nb.data.block import Block
from sloth_nb.data.packing import pack
from sloth_nb.data.report import DataReport
from sloth_nb.data.tokenise import IGNORED

__all__ = ["Assembly"]


class Assembly:
    """Takes encoded rows block by block and makes one Dataset of them. Counts into ``report``.

    Args:
        max_length: rows are cut to so many tokens; None leaves them whole.
    """

    def __init__(self, max_length: int | None, report: DataReport):
        self.max_length, self.report = max_length, report
        self._ids: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []

    def __len__(self) -> int:
        return sum(map(len, self._lengths))

    def add(self, block: Block) -> None:
        """Adds a batch; a row of which nothing would be learnt is counted and left out."""
        report, limit = self.report, self.max_length
        report.lengths.frombytes(block.lengths.astype(np.uint32).tobytes())
        report.parted += block.parted
        report.pieces += block.pieces
        report.resplit += block.resplit
        trained = block.trained()
        learnt = trained > 0
        if limit is not None:
            over = np.maximum(block.lengths - limit, 0)
            report.truncated += int(np.count_nonzero(over))
            report.lost_tokens += int(over.sum())
            block = block.cut(limit)
            trained = block.trained()
        report.drop("cut", times=int(np.count_nonzero(learnt & (trained == 0))))
        report.drop("masked", times=int(np.count_nonzero(~learnt)))
        block = block.only(trained > 0)
        report.kept += len(block.lengths)
        report.tokens += len(block.ids)
        report.trained_tokens += int(trained.sum())
        self._ids.append(block.ids)
        self._labels.append(block.labels())
        self._lengths.append(block.lengths)

    def dataset(self, *, packing: bool) -> Any:
        """The rows as a Dataset of ``input_ids`` and ``labels``, and ``seq_lengths`` when packed."""

        ids, labels = np.concatenate(self._ids), np.concatenate(self._labels)
        lengths = np.concatenate(self._lengths)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        if not packing:
            return _dataset({"input_ids": _lists(ids, starts), "labels": _lists(labels, starts)})
        groups = pack(lengths.tolist(), self.max_length or 0)
        self.report.packs += len(groups)
        labels[starts[:-1]] = IGNORED  # no token is predicted from its neighbour's last
        order = [row for group in groups for row in group]
        gather = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in order])
        ends = np.cumsum([len(group) for group in groups])
        offsets = np.concatenate([[0], np.cumsum(lengths[order])[ends - 1]])
        return _dataset(
            {
                "input_ids": _lists(ids[gather], offsets),
                "labels": _lists(labels[gather], offsets),
                "seq_lengths": _lists(lengths[order], np.concatenate([[0], ends])),
            }
        )


def _dataset(columns: dict[str, Any]) -> Any:
    import datasets
    import pyarrow
    from datasets.fingerprint import generate_random_fingerprint

    # Without one, datasets pickles all rows to name them: for a cache that rows in memory never get.
    return datasets.Dataset(pyarrow.table(columns), fingerprint=generate_random_fingerprint())


def _lists(values: np.ndarray, offsets: np.ndarray) -> Any:
    import pyarrow

    kind = pyarrow.LargeListArray if len(values) > np.iinfo(np.int32).max else pyarrow.ListArray
    width = np.int64 if kind is pyarrow.LargeListArray else np.int32
    return kind.from_arrays(pyarrow.array(offsets.astype(width)), pyarrow.array(values, type=pyarrow.int32()))
