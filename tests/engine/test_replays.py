"""Which captured shapes are kept: those whose memory nobody else wants. Without a device, and without a graph."""

import random
from types import SimpleNamespace

import pytest
import torch

from sloth_nb.engine import graphs
from sloth_nb.engine.captured import shared_length
from sloth_nb.engine.graphs import Form, Replays
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


def form(key, make_step=lambda buffers: None):
    return Form(key, {}, make_step)


def due(replays, key):
    replays.count([form(key)])
    return replays._is_due(key)


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
    assert not any(due(replays, "long") for _ in range(5))
    replays.clear()
    assert replays._shared is None
    assert [due(replays, "long") for _ in range(3)] == [False, False, True]


def test_where_nothing_is_captured_no_device_is_asked():
    Replays().give_way(1 << 20, torch.device("cpu"))


@pytest.fixture
def pool(monkeypatch):
    """A pool of memory for graphs that nobody makes."""
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))


@pytest.fixture
def captured_at_once(pool, monkeypatch):
    monkeypatch.setattr(
        graphs, "Replay", lambda step, inputs, shared: SimpleNamespace(tokens=1, taken=1, run=repr)
    )


@pytest.mark.parametrize("shapes", [9, 24, 64])
def test_many_shapes_that_come_again_and_again_are_not_captured_again_and_again(captured_at_once, shapes):
    made, captures, draw = Replays(), [], random.Random(0)
    for _ in range(3000):
        made.get([], [form(draw.randrange(shapes), captures.append)])
    assert len(made) == made.most and len(captures) < 3 * made.most


def test_lengths_that_vary_as_texts_do_are_nearly_all_replayed_from_a_few_captures(captured_at_once):
    made, captures, draw = Replays(), [], random.Random(0)
    replayed = 0
    for _ in range(3000):
        length = max(int(draw.lognormvariate(5, 0.5)) + 40 for _ in range(2))
        forms = [form(key, captures.append) for key in (length, shared_length(length))]
        replayed += made.get([], forms) is not None
    assert replayed > 0.9 * 3000 and len(captures) < 3 * made.most


def test_a_shape_that_comes_to_prevail_takes_the_place_of_one_that_no_longer_comes(captured_at_once):
    made = Replays()
    for key in [*"abcdefgh" * 500, *"i" * 1500]:
        made.get([], [form(key)])
    assert "i" in made._captured


def test_a_shape_of_its_own_is_captured_where_most_come_in_it_and_else_the_longer_one(captured_at_once):
    alike, varied = Replays(), Replays()
    for length in (300, 300, 300, 310, 300, 300):
        alike.get([], [form(length), form(320)])
    for length in (300, 310, 290, 300, 305, 299):
        varied.get([], [form(length), form(320)])
    assert list(alike._captured) == [300] and list(varied._captured) == [320]
    assert alike.ready([form(310), form(320)]) is None and varied.ready([form(298), form(320)]) is not None
    for _ in range(7):  # from now on all are alike
        varied.get([], [form(300), form(320)])
    assert list(varied._captured) == [320, 300]


def test_an_interrupt_in_a_capture_reaches_the_user_and_leaves_nothing_half_made(pool, monkeypatch):
    made = Replays(after=1)

    def broken_off(step, inputs, shared):
        try:
            raise KeyboardInterrupt
        finally:  # as the end of a capture that was broken off does
            raise RuntimeError("the capture was invalidated")

    monkeypatch.setattr(graphs, "Replay", broken_off)
    with pytest.raises(KeyboardInterrupt):
        made.get([], [form("a shape")])
    assert made._shared is None and made.disabled_because is None
    made.give_way(10, CUDA)


def test_memory_that_runs_out_in_a_capture_says_nothing_of_other_shapes(pool, monkeypatch):
    made = Replays(after=1)

    def out_of_memory(step, inputs, shared):
        try:
            raise torch.OutOfMemoryError("no memory")
        finally:
            raise RuntimeError("the capture was invalidated")

    monkeypatch.setattr(graphs, "Replay", out_of_memory)
    assert made.get([], [form("a shape")]) is None and made.disabled_because is None


def test_gradients_have_a_buffer_each_when_more_parameters_are_trained_than_before(captured_at_once):
    made, (first, second) = Replays(after=1), (torch.nn.Parameter(torch.ones(n)) for n in (2, 3))
    given = []
    for parameters in ([first], [first, second]):
        made.get(parameters, [form(len(parameters), given.append)])
    assert [[b.shape for b in buffers] for buffers in given] == [[(2,)], [(2,), (3,)]]


@pytest.mark.parametrize("reason", [HardwareError("no RAM"), torch.OutOfMemoryError("no memory")])
def test_a_shape_that_finds_no_room_runs_as_usual_from_then_on(pool, reason):
    made, tried = Replays(after=2), []

    def make_step(buffers):
        tried.append(buffers)
        raise reason

    assert [made.get([], [form("a shape", make_step)]) for _ in range(4)] == [None] * 4
    assert len(tried) == 1 and made.disabled_because is None
