"""The allocator on paper: torch's rules, one by one."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloth_nb.memory.caching_allocator import CachingAllocator, OutOfRoom

MIB = 2**20


def test_small_requests_share_segments_of_two_megabytes():
    allocator = CachingAllocator()
    first = allocator.allocate(1)
    assert (first.size, allocator.allocated, allocator.reserved) == (512, 512, 2 * MIB)
    for _ in range(4095):
        allocator.allocate(512)
    assert allocator.reserved == 2 * MIB
    allocator.allocate(512)
    assert allocator.reserved == 4 * MIB


def test_requests_up_to_ten_megabytes_share_twenty_and_larger_ones_get_whole_twos():
    allocator = CachingAllocator()
    allocator.allocate(3 * MIB)
    allocator.allocate(9 * MIB)
    assert allocator.reserved == 20 * MIB
    allocator.allocate(10 * MIB + 1)
    assert allocator.reserved == 32 * MIB


def test_an_end_of_up_to_a_megabyte_is_not_split_off_and_counts_as_allocated():
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(40 * MIB))
    assert allocator.allocate(39 * MIB).size == 40 * MIB
    other = CachingAllocator()
    other.free(other.allocate(40 * MIB))
    assert other.allocate(38 * MIB).size == 38 * MIB


def test_the_smallest_block_that_is_large_enough_is_taken():
    allocator = CachingAllocator()
    for block in [allocator.allocate(size * MIB) for size in (100, 60, 80)]:
        allocator.free(block)
    allocator.allocate(70 * MIB)
    allocator.allocate(100 * MIB)
    allocator.allocate(60 * MIB)
    assert allocator.reserved == 240 * MIB


def test_what_is_cut_out_of_a_wide_segment_makes_the_next_wide_one_cost_anew():
    """Why a step reserves more than it holds: a layer's output in the place of the weight before it."""
    allocator = CachingAllocator()
    for _ in range(3):
        weight = allocator.allocate(228 * MIB)
        allocator.free(weight)
        allocator.allocate(128 * MIB)
    assert allocator.allocated == 3 * 128 * MIB and allocator.reserved == 3 * 228 * MIB


def test_neighbours_that_are_free_become_one():
    allocator = CachingAllocator()
    allocator.free(allocator.allocate(60 * MIB))
    parts = [allocator.allocate(20 * MIB) for _ in range(3)]
    for part in (parts[0], parts[2], parts[1]):
        allocator.free(part)
    allocator.allocate(60 * MIB)
    assert allocator.reserved == 60 * MIB


def test_under_a_cap_free_segments_go_back_before_it_runs_out():
    allocator = CachingAllocator(cap=100 * MIB)
    allocator.free(allocator.allocate(60 * MIB))
    allocator.allocate(80 * MIB)
    assert allocator.reserved == 80 * MIB and allocator.reserved_peak == 80 * MIB
    with pytest.raises(OutOfRoom, match="of 104857600"):
        allocator.allocate(30 * MIB)


def test_what_is_split_off_a_segment_is_still_free_after_others_went_back_for_it():
    allocator = CachingAllocator(cap=21 * MIB)
    allocator.free(allocator.allocate(MIB + 512))
    block = allocator.allocate(100 * 1024)
    allocator.allocate(100 * 1024)
    assert allocator.reserved == 2 * MIB, "the rest of the segment serves the next request"
    allocator.free(block)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 2 * MIB) | st.integers(1, 300 * MIB), st.booleans()), max_size=60),
    st.none() | st.integers(2 * MIB, 600 * MIB),
)
def test_whatever_comes_and_goes_nothing_is_lost(requests, cap):
    allocator, held = CachingAllocator(cap), []
    for size, goes in requests:
        try:
            held.append(allocator.allocate(size))
        except OutOfRoom:
            assert cap is not None
            continue
        assert held[-1].size >= size
        if goes:
            allocator.free(held.pop(len(held) // 2))
        assert allocator.allocated == sum(block.size for block in held) <= allocator.reserved
    spans = sorted((block.address, block.address + block.size) for block in held)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    for block in held:
        allocator.free(block)
    allocator.empty_cache()
    assert allocator.reserved == 0
