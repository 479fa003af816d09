"""Which captured shapes are kept: those whose memory nobody else wants. Without a device, and without a graph."""

from types import SimpleNamespace

import pytest
import torch

from sloth_nb.engine import graphs
from sloth_nb.engine.graphs import Replays
from sloth_nb.errors import HardwareError

GB = 10**9
CUDA = torch.device("cuda", 0)


@pytest.fixture
def replays(monkeypatch):
    """Two captured shapes, of 1,000 tokens in 2 GB and 500 in 1; the allocator has 1 GB cached beside them."""
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 9 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 6 * GB)
    made = Replays()
    made._captured = {
        "long": SimpleNamespace(tokens=1000, taken=2 * GB),
        "short": SimpleNamespace(tokens=500, taken=GB),
    }
    made._shared = SimpleNamespace(busy=False)
    return made


def test_nothing_is_taken_from_a_forward_whose_backward_is_to_come(replays, monkeypatch):
    monkeypatch.setattr(graphs, "unreserved", lambda device: 0)
    replays._shared.busy = True
    replays.give_way(4000, CUDA)
    assert len(replays) == 2


@pytest.mark.parametrize(("free", "tokens", "kept"), [(3, 2000, True), (2.9, 2000, False), (0, 400, True)])
def test_captured_shapes_go_when_a_longer_step_wants_their_memory(replays, monkeypatch, free, tokens, kept):
    monkeypatch.setattr(graphs, "unreserved", lambda device: int(free * GB))
    replays.give_way(tokens, CUDA)
    assert bool(len(replays)) == kept


def test_what_gave_way_is_not_captured_again_before_plans_are_made_anew(replays, monkeypatch):
    monkeypatch.setattr(graphs, "unreserved", lambda device: 0)
    replays.give_way(4000, CUDA)
    assert not any(replays._is_due("long") for _ in range(5))
    replays.clear()
    assert replays._shared is None
    assert [replays._is_due("long") for _ in range(3)] == [False, False, True]


def test_where_nothing_is_captured_no_device_is_asked():
    Replays().give_way(1 << 20, torch.device("cpu"))


@pytest.mark.parametrize("reason", [HardwareError("no RAM"), torch.OutOfMemoryError("no memory")])
def test_a_shape_that_finds_no_room_runs_as_usual_from_then_on(monkeypatch, reason):
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    made, tried = Replays(after=2), []

    def make_step(buffers):
        tried.append(buffers)
        raise reason

    assert [made.get("a shape", [], {}, make_step) for _ in range(4)] == [None] * 4
    assert len(tried) == 1 and made.disabled_because is None
