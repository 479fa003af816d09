"""Packing: every row lands in one pack, no pack overflows, and little room is left."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloth_nb.data.packing import pack
from sloth_nb.errors import DatasetError


@given(st.lists(st.integers(1, 64), max_size=200), st.integers(64, 300))
def test_every_row_is_packed_once_and_no_pack_overflows(lengths: list[int], capacity: int):
    packs = pack(lengths, capacity)
    assert sorted(i for group in packs for i in group) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= capacity for group in packs)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_it_chooses_what_a_plain_best_fit_would(lengths: list[int]):
    frees: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [f for f in frees if f >= length]
        if fitting:
            frees.remove(min(fitting))
            frees.append(min(fitting) - length)
        else:
            frees.append(20 - length)
    assert sorted(20 - sum(lengths[i] for i in group) for group in pack(lengths, 20)) == sorted(frees)


def test_a_mixed_set_fills_its_packs():
    lengths = [min(2048, int(random.Random(i).lognormvariate(5.2, 0.8)) + 8) for i in range(5000)]
    packs = pack(lengths, 2048)
    assert sum(lengths) / (len(packs) * 2048) > 0.99


def test_a_row_longer_than_a_pack_is_refused():
    with pytest.raises(DatasetError, match="65 tokens"):
        pack([65], 64)


def test_nothing_packs_into_nothing():
    assert pack([], 64) == []
