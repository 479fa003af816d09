"""The collator: a rectangle with padding, or one long sequence without."""

import pytest
import torch

from sloth_nb.data import Collator
from sloth_nb.errors import DatasetError

ROWS = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8, 9], "labels": [8, 9]}]


def test_a_padded_batch_hides_its_padding():
    batch = Collator(0, pad_to_multiple_of=4)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 0], [8, 9, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100], [8, 9, -100, -100]]


def test_a_padding_free_batch_restarts_positions_and_masks_first_labels():
    batch = Collator(0, padding_free=True)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5] == batch["cu_seq_lens_k"].tolist()
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert (batch["max_length_q"], batch["max_length_k"]) == (3, 3)


def test_packed_rows_restart_inside_the_row():
    packed = {"input_ids": [5, 6, 7, 8, 9], "labels": [5, 6, 7, 8, 9], "seq_lengths": [3, 2]}
    batch = Collator(0, padding_free=True)([packed, ROWS[1]])
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1]]
    assert batch["labels"].tolist() == [[-100, 6, 7, -100, 9, -100, 9]]
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5, 7]


def test_packed_rows_are_refused_by_a_padded_batch():
    packed = {"input_ids": [5, 6], "labels": [5, 6], "seq_lengths": [1, 1]}
    with pytest.raises(ValueError, match="padding_free=True"):
        Collator(0)([packed])


def test_lengths_that_dont_add_up_are_refused():
    with pytest.raises(ValueError, match="add up to 3"):
        Collator(0, padding_free=True)([{"input_ids": [5, 6], "labels": [5, 6], "seq_lengths": [1, 2]}])


def test_no_pad_token_is_refused_where_one_is_needed():
    with pytest.raises(DatasetError, match="no pad token"):
        Collator(None)
    assert Collator(None, padding_free=True)(ROWS)["input_ids"].shape == (1, 5)
