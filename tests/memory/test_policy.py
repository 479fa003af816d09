"""The memory model's policies are the engine's, by name, by size and by rule."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from sloth_nb import catalog
from sloth_nb.engine import policy as engine
from sloth_nb.engine import rules
from sloth_nb.engine.device import DeviceSpeed
from sloth_nb.engine.rules import Settings, offload_policies
from sloth_nb.memory import Work
from sloth_nb.memory.policy import (
    COPIES,
    NAMED,
    NAMES,
    PRODUCTS,
    automatic_tile,
    sloth_policies,
    tape_bytes,
)

H200 = catalog.gpu("H200")
# What the engine would measure on it, as the model foretells it.
SPEED = DeviceSpeed(PRODUCTS * H200.tflops_16 * 1e12, COPIES * H200.host_gbps * 1e9)
INFO = catalog.find("llama-3.1-8b")
BLOCK = INFO.shape.blocks[0]
CONFIG = AutoConfig.for_model(**INFO.config)


@pytest.mark.parametrize("name", NAMED)
def test_a_name_means_the_same_to_both(name):
    theirs = engine.policy_of(name)
    assert (frozenset(NAMED[name].device), frozenset(NAMED[name].host)) == (theirs.device, theirs.host)
    assert NAMES == engine.NAMES


def test_both_count_the_same_bytes():
    assert tape_bytes(BLOCK, 4096) == engine.activation_bytes(CONFIG, 4096)


@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 8), length=st.integers(128, 65536), host=st.sampled_from([1e9, 40e9, 1e15]))
def test_the_rule_for_sloth_is_the_engines(batch, length, host):
    tokens = batch * length
    ours = sloth_policies(BLOCK, 32, tokens, length, H200, host)
    if tokens < 1024:
        assert set(ours) == {NAMED["lean"]}
        return
    sizes = engine.activation_bytes(CONFIG, tokens)
    seconds = rules._layer_seconds(CONFIG, tokens, length, SPEED)
    again = rules._seconds_again(CONFIG, tokens, SPEED)
    theirs = offload_policies(sizes, again, seconds, 32, SPEED.link, host)
    assert [(frozenset(p.device), frozenset(p.host)) for p in ours] == [(p.device, p.host) for p in theirs]


@pytest.mark.parametrize("tokens", [512, 2048, 5000, 65536])
@pytest.mark.parametrize("name", ["keep", "lean", "offload"])
def test_tiles_are_the_engines(tokens, name):
    import torch
    from sloth_nb_kernels.launch import pretend

    with pretend((9, 0)):
        like = torch.empty(1, dtype=torch.bfloat16)
        theirs = Settings()._tile(CONFIG, [engine.policy_of(name)] * 32, tokens, like)
    assert automatic_tile(BLOCK, tokens, (NAMED[name],) * 32) == theirs


@pytest.mark.parametrize("length", [256, 1024, 4096, 5000, 8192])
def test_what_is_captured_is_what_the_engine_captures(length, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr(rules, "speed_of", lambda index: SPEED)
    like = SimpleNamespace(is_cuda=True, device=SimpleNamespace(index=0))
    work = Work(INFO, batch=1, length=length)
    assert work.captured(H200) == Settings().captures(CONFIG, length, length, like) == (length < 4500)
    assert not Settings(cuda_graphs=False).captures(CONFIG, length, length, like)
