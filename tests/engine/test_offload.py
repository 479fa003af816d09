"""Activations that go to the host and come back: in time, whole, and at no cost in memory when a step fails."""

import gc
from itertools import count

import pytest
import torch
from families import adapted_model, batch, step, worst
from lazy_streams import lazy_streams

from sloth_nb.engine.decoder import Decoder
from sloth_nb.engine.host_memory import HostMemory
from sloth_nb.engine.mlp_half import MlpHalf
from sloth_nb.engine.offload import Offloader
from sloth_nb.engine.policy import LayerPolicy
from sloth_nb.models.install import install

HALF = frozenset({"input", "qkv", "attention", "middle"})
POLICIES = {
    "offload": "offload",
    "offload-wide": "offload-wide",
    "offload-all": "offload-all",
    "middle": LayerPolicy(frozenset({"input"}), frozenset({"middle"})),
    "wide ones between": [
        LayerPolicy(frozenset(), HALF | ({"gate_up"} if i % 2 else set())) for i in range(3)
    ],
    "all but the last": [LayerPolicy(frozenset(), HALF)] * 2 + [LayerPolicy(HALF)],
}


@pytest.fixture
def offloader(monkeypatch):
    """One that moves a CPU's tensors, over streams at their laziest."""
    with lazy_streams(monkeypatch):
        made = Offloader(torch.device("cpu"))
        made.memory = HostMemory(pin=lambda size: torch.empty(size, dtype=torch.uint8))
        monkeypatch.setattr(Decoder, "offloader_for", lambda self, policies, like: made)
        yield made


@pytest.mark.parametrize("tile", [7, None])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_what_comes_back_is_waited_for_before_it_is_read(family, policy, tile, offloader):
    model, inputs = adapted_model(family), batch()
    loss, grads = step(model, **inputs)
    install(model, POLICIES[policy], cuda_graphs=False, mlp_tile=tile)
    for _ in range(2):
        got_loss, got = step(model, **inputs)
        assert abs(float(got_loss - loss)) < 1e-6 * float(loss) and worst(got, grads) < 1e-5
    assert offloader.memory.pinned_bytes and not any(slab.out for slab in offloader.memory.slabs)


@pytest.mark.parametrize("broken", ["wait", "copy"])
def test_a_wait_that_is_left_out_would_be_seen(broken, offloader, monkeypatch):
    model, inputs = adapted_model("llama"), batch()
    install(model, "offload-wide", cuda_graphs=False, mlp_tile=7)
    if broken == "wait":
        monkeypatch.setattr(offloader, "wait", lambda parked, rows=None: None)
    else:
        monkeypatch.setattr(offloader, "_start", lambda host, tensor: None)
    _, grads = step(model, **inputs)
    assert not all(grad.isfinite().all() for grad in grads.values())


def test_the_mlps_backward_waits_for_a_tile_at_a_time(offloader, monkeypatch):
    model, inputs = adapted_model("llama"), batch()
    install(model, "offload-wide", cuda_graphs=False, mlp_tile=7)
    asked, wait = [], offloader.wait
    monkeypatch.setattr(
        offloader,
        "wait",
        lambda parked, rows=None: asked.append((rows, len(parked.pieces))) or wait(parked, rows),
    )
    step(model, **inputs)
    tokens = inputs["input_ids"].numel()
    tiles = -(-tokens // 7)
    wanted = [(min(7 * (i + 1), tokens), tiles - i) for i in range(tiles)]
    assert [one for one in asked if one[0] is not None] == 3 * wanted


@pytest.mark.parametrize("broken", ["backward", "tile", "put"])
def test_a_step_that_fails_halfway_gives_its_memory_back(broken, offloader, monkeypatch):
    model = adapted_model("llama")
    install(model, "offload-wide", cuda_graphs=False, mlp_tile=7)
    wanted, calls = step(model, **batch()), count()
    with monkeypatch.context() as broke:
        if broken == "backward":
            broke.setattr(MlpHalf, "backward", refuse)
        elif broken == "tile":
            usual = MlpHalf._tile_backward
            broke.setattr(MlpHalf, "_tile_backward", lambda *a: refuse() if next(calls) == 7 else usual(*a))
        else:
            put = offloader.put
            broke.setattr(offloader, "put", lambda *a: refuse() if next(calls) == 4 else put(*a))
        with pytest.raises(torch.OutOfMemoryError):
            step(model, **batch())
    gc.collect()
    assert [slab.out for slab in offloader.memory.slabs] == [0]
    got = step(model, **batch())
    assert got[0] == wanted[0] and worst(got[1], wanted[1]) < 1e-6
    assert not offloader._coming and not offloader._leaving


def refuse(*_):
    raise torch.OutOfMemoryError("no memory")
