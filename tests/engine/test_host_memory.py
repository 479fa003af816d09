"""Pinned host memory: carved without overlaps, taken once for all that follows; on a GPU, truly page-locked."""

from itertools import pairwise

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sloth_nb.engine import host_memory
from sloth_nb.engine.host_memory import HostMemory, pinned
from sloth_nb.errors import HardwareError

MIB = 1 << 20


def unpinned(fixed=False):
    """Host memory without a driver: of nothing but sizes, as nobody writes to it."""
    return HostMemory(fixed, pin=lambda size: torch.empty(1, dtype=torch.uint8).expand(size))


def one_pass(memory, sizes):
    """A forward that moves tensors of these sizes, and its backward."""
    for buffer in reversed([memory.take(size) for size in sizes]):
        memory.give_back(buffer)


def place(buffer):
    return id(buffer.slab), buffer.start, buffer.start + buffer.memory.numel()


@given(
    steps=st.lists(
        st.tuples(st.booleans(), st.integers(1, 700 * MIB), st.integers(0, 10**6)), min_size=1, max_size=60
    )
)
def test_no_two_buffers_that_are_out_share_a_byte(steps):
    memory, out = unpinned(), []
    for takes, size, which in steps:
        if takes or not out:
            out.append(memory.take(size))
        else:
            memory.give_back(out.pop(which % len(out)))
        taken = sorted(map(place, out))
        assert all(buffer.start % 512 == 0 and place(buffer)[2] <= buffer.slab.size for buffer in out)
        assert all(a[0] != b[0] or a[2] <= b[1] for a, b in pairwise(taken))
    for buffer in out:
        memory.give_back(buffer)
    assert all(slab.used == slab.out == 0 for slab in memory.slabs)


@given(sizes=st.lists(st.integers(1, 300 * MIB), min_size=1, max_size=40), share=st.floats(0.1, 1.0))
def test_a_pass_that_comes_again_or_a_smaller_one_pins_nothing_more(sizes, share):
    memory = unpinned()
    one_pass(memory, sizes)
    taken = memory.pinned_bytes
    one_pass(memory, sizes)
    assert memory.pinned_bytes == taken
    one_pass(memory, [max(1, int(share * size)) for size in sizes])
    assert memory.pinned_bytes == taken


def test_little_is_pinned_for_little():
    memory = unpinned()
    one_pass(memory, [5 * MIB] * 20)
    assert memory.pinned_bytes == 128 * MIB


def test_batches_of_ever_new_lengths_take_what_the_longest_takes():
    memory, longest = unpinned(), unpinned()
    for tokens in range(1000, 4001, 37):
        one_pass(memory, [tokens * 8192, tokens * 12288, tokens * 57344] * 32)
    one_pass(longest, [4000 * 8192, 4000 * 12288, 4000 * 57344] * 32)
    assert memory.pinned_bytes <= longest.pinned_bytes + 512 * MIB


def test_slabs_that_are_too_small_for_longer_batches_are_given_up():
    memory = unpinned()
    for size in (600 * MIB, 700 * MIB, 800 * MIB):
        one_pass(memory, [size] * 4)
        assert [slab.size for slab in memory.slabs] == [size] * 4
    one_pass(memory, [650 * MIB] * 4)
    assert memory.pinned_bytes == 3200 * MIB


def test_what_a_graph_writes_to_stays():
    memory = unpinned(fixed=True)
    one_pass(memory, [600 * MIB] * 4)
    one_pass(memory, [700 * MIB] * 4)
    assert memory.pinned_bytes == (2400 + 2800) * MIB


def test_a_captured_step_takes_over_what_nothing_lies_in():
    usual, captured = unpinned(), unpinned(fixed=True)
    waiting = usual.take(200 * MIB)
    one_pass(usual, [400 * MIB] * 3)
    idle = [id(slab) for slab in usual.slabs if slab is not waiting.slab]
    captured.adopt(usual)
    assert [id(slab) for slab in captured.slabs] == idle and len(idle) == 3
    assert [slab is waiting.slab for slab in usual.slabs] == [True]
    one_pass(captured, [400 * MIB] * 3)
    assert len(captured.slabs) == 3


def test_too_little_ram_is_said_before_it_runs_out(monkeypatch):
    monkeypatch.setattr(host_memory, "free_ram", lambda: 3 << 30)
    with pytest.raises(HardwareError, match=r"wants 4\.0 GB more RAM, and 3\.0 GB are free\. Recompute"):
        unpinned().take(4 << 30)


@pytest.mark.gpu
def test_pinned_memory_is_page_locked_and_carries_bytes_both_ways():
    memory = pinned(64 * MIB)
    assert memory.is_pinned() and memory.numel() == 64 * MIB
    there = torch.randint(0, 256, (64 * MIB,), dtype=torch.uint8, device="cuda")
    memory.copy_(there, non_blocking=True)
    back = memory.cuda(non_blocking=True)
    assert torch.equal(there, back)
    view = memory[5:10]
    del memory
    assert view.is_pinned() and torch.equal(view, there[5:10].cpu())


@pytest.mark.gpu
def test_pinned_memory_goes_with_its_last_view():
    pinned(MIB)
    before = psutil.Process().memory_info().rss
    memory = pinned(256 * MIB)
    part = memory[:MIB]
    del memory
    assert psutil.Process().memory_info().rss - before > 200 * MIB and part.is_pinned()
    del part
    assert psutil.Process().memory_info().rss - before < 50 * MIB
